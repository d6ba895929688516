"""Key files that change, or cannot be used, while a server runs."""

from __future__ import annotations

import io
import os
import shutil
import time

import numpy as np
import pytest
import zmq
from zmq.auth import load_certificate
from zmq.utils import z85

from streamrnn.errors import StartError
from streamrnn_server.access.keys import ClientKeys, load_secret_key
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.streams.owners import encode_key_number
from streamrnn_server.testing import serving
from tests.security.users import GuardedPeer, make_keys
from tests.support.models import random_model
from tests.support.peer import until

NUM_INPUTS = 3
NAMES = ("server", "alice", "bob", "bob2")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keys")
    make_keys(directory, *NAMES)
    return directory


@pytest.fixture
def users(made, tmp_path):
    """A directory with the keys of alice and bob."""
    directory = tmp_path / "users"
    directory.mkdir()
    for name in ("alice", "bob"):
        shutil.copy(made / f"{name}.key", directory)
    return directory


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def keys(users, log):
    return ClientKeys(users, EventLog(stream=log))


@pytest.fixture
def public(made):
    return {name: load_certificate(made / f"{name}.key")[0] for name in NAMES}


def who(keys, public):
    """Return whose keys are accepted, by the name of their pair."""
    keys.refresh()
    return {
        name: keys.user_id(key)[4:].decode() for name, key in public.items() if keys.user_id(key)
    }


def test_a_key_that_is_overwritten_in_place_counts_at_once(keys, public, made, users):
    assert who(keys, public) == {"alice": "alice", "bob": "bob"}
    for name in ("bob2", "bob", "bob2"):  # within one tick of the file's clock, of the same size
        with open(users / "bob.key", "r+b") as file:
            file.write((made / f"{name}.key").read_bytes())
        assert who(keys, public) == {"alice": "alice", name: "bob"}


def test_a_key_that_is_overwritten_within_a_tick_of_the_clock_counts(
    keys, public, made, users, monkeypatch
):
    now_ns = time.time_ns()
    stamp = (now_ns, now_ns, 1, 1)
    monkeypatch.setattr("streamrnn_server.access.keys._stamp_of", lambda _found: stamp)
    for name in ("bob2", "bob"):
        (users / "bob.key").write_bytes((made / f"{name}.key").read_bytes())
        assert who(keys, public) == {"alice": "alice", name: "bob"}


def test_files_that_do_not_change_are_read_once(keys, public, users, monkeypatch):
    for path in users.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    later_ns = time.time_ns() + 10**10
    monkeypatch.setattr("streamrnn_server.access.keys.time.time_ns", lambda: later_ns)
    who(keys, public)
    monkeypatch.setattr("streamrnn_server.access.keys.load_certificate", None)
    assert who(keys, public) == {"alice": "alice", "bob": "bob"}


def write_nothing(path):
    path.write_bytes(b"")


def write_garbage(path):
    path.write_bytes(b"public-key = \xff\xfe\n" * 10)


def write_short_key(path):
    path.write_text('curve\n    public-key = "abc"\n')


def write_many_bytes(path):
    path.write_bytes(b"#" * 200_000)


def make_fifo(path):
    os.mkfifo(path)


def link_to_nowhere(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make",
    [
        write_nothing,
        write_garbage,
        write_short_key,
        write_many_bytes,
        make_fifo,
        link_to_nowhere,
        os.mkdir,
    ],
)
def test_one_bad_file_is_skipped_and_named_once(keys, public, users, log, make):
    make(users / "x.key")
    (users / "bob.key").unlink()
    for _ in range(3):
        assert who(keys, public) == {"alice": "alice"}
    assert len([line for line in log.getvalue().splitlines() if "x.key" in line]) == 1
    os.rmdir(users / "x.key") if make is os.mkdir else (users / "x.key").unlink()
    shutil.copy(users / "alice.key", users / "keep")
    assert who(keys, public) == {"alice": "alice"}


@pytest.mark.parametrize("name", [b"caf\xe9.key", b".key", b"a" * 252])
def test_a_file_whose_name_is_no_user_s_is_skipped(keys, public, made, users, log, name):
    shutil.copy(os.fsencode(made / "bob2.key"), os.path.join(os.fsencode(users), name))
    expected = {"alice": "alice", "bob": "bob"}
    assert who(keys, public) == expected
    assert ("caf\\xe9.key" in log.getvalue().replace("\\\\", "\\")) == (b"caf" in name)


def test_a_key_that_two_files_hold_is_nobody_s(keys, public, users, log):
    shutil.copy(users / "alice.key", users / "mallory.key")
    assert who(keys, public) == {"bob": "bob"}
    assert "alice.key and mallory.key hold the same key" in log.getvalue()
    (users / "mallory.key").unlink()
    assert who(keys, public) == {"alice": "alice", "bob": "bob"}


def test_without_keys_or_without_their_directory_nobody_gets_in(keys, public, users, log):
    for name in ("alice", "bob"):
        (users / f"{name}.key").rename(users / name)
    assert who(keys, public) == {}
    assert log.getvalue().count("nobody gets in") == 1
    users.rename(users.with_name("gone"))
    for _ in range(3):
        assert who(keys, public) == {}
    assert log.getvalue().count("cannot read --curve-clients") == 1
    users.with_name("gone").rename(users)
    (users / "alice").rename(users / "alice.key")
    assert who(keys, public) == {"alice": "alice"}


def test_a_number_is_valid_while_its_key_is(keys, public, made, users):
    ids = {name: keys.user_id(public[name]) for name in ("alice", "bob")}
    numbers = {
        name: [encode_key_number(k) for k in range(9)].index(i[:4]) for name, i in ids.items()
    }
    shutil.copy(made / "bob2.key", users / "bob.key")
    keys.refresh()
    assert [keys.is_valid[numbers[name]] for name in ("alice", "bob")] == [1, 0]
    assert keys.user_id(public["bob2"])[:4] != ids["bob"][:4]
    shutil.copy(made / "bob.key", users / "bob.key")
    keys.refresh()
    assert keys.user_id(public["bob"]) == ids["bob"]
    assert keys.is_valid[numbers["bob"]] == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_a_secret_key_that_others_can_use_is_refused(made, tmp_path, mode):
    path = tmp_path / "server.key_secret"
    shutil.copy(made / "server.key_secret", path)
    path.chmod(mode)
    with pytest.raises(StartError, match=rf"mode {mode:04o}\): 'chmod 600 .*server.key_secret'"):
        load_secret_key(path)
    path.chmod(0o400)
    assert load_secret_key(path)[0] == load_certificate(made / "server.key")[0]


def test_a_credential_of_systemd_s_is_taken_with_the_mode_of_its_access_list(
    made, tmp_path, monkeypatch
):
    directory = tmp_path / "credentials"
    directory.mkdir(0o700)
    path = directory / "server.key_secret"
    shutil.copy(made / "server.key_secret", path)
    path.chmod(0o440)
    directory.chmod(0o550)
    with pytest.raises(StartError, match="mode 0440"):
        load_secret_key(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    assert load_secret_key(path)[0] == load_certificate(made / "server.key")[0]
    for others, modes in ((path, (0o460, 0o444)), (directory, (0o555, 0o570))):
        before = others.stat().st_mode
        for mode in modes:
            others.chmod(mode)
            with pytest.raises(StartError, match="is secret"):
                load_secret_key(path)
        others.chmod(before)
    outside = tmp_path / "server.key_secret"
    shutil.copy(made / "server.key_secret", outside)
    outside.chmod(0o440)
    with pytest.raises(StartError, match="mode 0440"):
        load_secret_key(outside)


# ---------------------------------------------------------------------------------------------
# With a server
# ---------------------------------------------------------------------------------------------


def is_refused(peer):
    """Tell whether a call is refused that Python has no part in."""
    error, _ = peer.call("close", "nothing")
    assert error is None or error[0] == "forbidden"
    return error is not None


@pytest.fixture
def server(made, users):
    model = random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS)
    options = {
        "curve_secret_key": made / "server.key_secret",
        "curve_clients": users,
        "admins": ("alice",),
    }
    with serving({"m": model}, **options) as server:
        yield server


def test_open_connections_of_a_removed_or_replaced_key_are_refused(server, made, users):
    alice, bob = (GuardedPeer(server, made, name) for name in ("alice", "bob"))
    alice.ok("open", "a", None, 8)
    bob.ok("open", "b", None, 8)
    shutil.copy(made / "bob2.key", users / "bob.key")
    until(lambda: is_refused(bob))
    for call in (["open", "c", None, 8], ["step", "b", 1, bytes(4 * NUM_INPUTS)]):
        error, _ = bob.call(*call)
        assert error[0] == "forbidden"
    heir = GuardedPeer(server, made, "bob2")  # the same user, with his new key
    assert heir.ok("open", "b", None, 8) == [0, 0, 8]
    shutil.copy(made / "bob.key", users / "bob.key")
    until(lambda: not is_refused(bob))
    (users / "alice.key").unlink()
    (users / "bob.key").unlink()
    for peer in (alice, bob):
        until(lambda: is_refused(peer))  # noqa: B023
    for peer in (alice, bob, heir):
        peer.socket.close()


def test_nonsense_to_the_one_who_judges_keys_is_refused_and_ends_nothing(server, made):
    key = z85.decode(load_certificate(made / "bob2.key")[0])
    good = [b"1.0", b"1", b"streamrnn", b"::1", b"", b"CURVE", key]
    known = z85.decode(load_certificate(made / "alice.key")[0])
    requests = [good[:n] for n in range(1, 7)]
    requests += [[*good[:-1], credential] for credential in (b"", b"\xff" * 31, b"\xff" * 64, key)]
    for place, value in ((0, b"2.0"), (2, b"other"), (5, b"NULL"), (5, b"PLAIN")):
        requests.append([*good[:place], value, *good[place + 1 : -1], known])
    with server._context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect("inproc://zeromq.zap.01")
        for request in requests:
            socket.send_multipart(request)
            assert socket.poll(20_000)
            reply = socket.recv_multipart()
            assert (len(reply), reply[2], reply[4]) == (6, b"400", b"")
        socket.send_multipart([*good[:-1], known])
        assert socket.recv_multipart()[2:5] == [b"200", b"OK", b"AAAAalice"]
    alice = GuardedPeer(server, made, "alice")
    assert alice.ok("hello")["protocol"] == 1
    alice.socket.close()


def test_a_fault_while_keys_are_read_lets_nobody_in_and_ends_nothing(server, made, monkeypatch):
    alice = GuardedPeer(server, made, "alice")
    alice.ok("hello")
    with monkeypatch.context() as patch:
        patch.setattr(server._guard.keys, "_stamps", lambda: dict[str, str]()["nothing"])
        until(lambda: is_refused(alice))
    until(lambda: not is_refused(alice))
    assert server.control.stats()["num_errors_internal"] > 0
    alice.socket.close()
