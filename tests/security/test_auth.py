"""Keys, users, and the ownership of streams."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from zmq.auth import load_certificate

from streamrnn import Engine
from streamrnn.errors import StartError
from streamrnn.state.record import decode_record, encode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client import Client, PartialFailure, aio, errors
from streamrnn_client.protocol import canonical_id
from streamrnn_server.cli import main
from streamrnn_server.config import Endpoint, ServerConfig
from streamrnn_server.testing import serving
from tests.security.users import GuardedPeer, make_keys, make_keys_of
from tests.support.models import random_model
from tests.support.peer import Peer
from tests.support.program import Program, streamrnn

NUM_INPUTS = 3
USERS = ("alice", "bob")


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS, 2)


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, NUM_INPUTS)).astype(np.float32)


@pytest.fixture
def expected(model, x):
    return Engine(model).steps("s", x)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The server's keys and the users', and a directory with the users' public ones."""
    return make_keys_of(tmp_path_factory.mktemp("keys"), USERS, ["mallory"])


def guarded(model, keys, **options):
    options = {"curve_secret_key": keys / "server.key_secret", "admins": ("alice",), **options}
    return serving({"m": model}, **{"curve_clients": keys / "clients", **options})


def client_of(server, keys, user, **options):
    return Client(
        server.endpoints[0],
        curve_key=keys / f"{user}.key_secret",
        server_key=keys / "server.key",
        **options,
    )


@pytest.fixture(params=["in memory", "durable"])
def options(request, tmp_path):
    if request.param == "in memory":
        return {}
    return {"state_dir": tmp_path, "durability": "checkpoint", "checkpoint_interval_s": 3600.0}


def test_nobody_is_served_under_an_id_that_the_next_may_be_given(model, keys, x):
    """libzmq counts ids for those who have none; a reply on its way would be the next one's."""
    with guarded(model, keys) as server:
        with_id, without = (GuardedPeer(server, keys, "alice", has_id=k) for k in (True, False))
        with_id.ok("open", "a", None, 8)
        for call in (["hello", {}], ["open", "b", None, 8], ["step", "a", 1, x[0].tobytes()]):
            error, _ = without.call(*call)
            assert error[0] == "forbidden"
            assert "ZMQ_ROUTING_ID" in error[1]
        assert with_id.ok("step", "a", 1, x[0].tobytes())[0] == 1
        for peer in (with_id, without):
            peer.socket.close()


def test_one_user_cannot_touch_another_s_streams(model, keys, x, expected, options):
    with guarded(model, keys, **options) as server:
        alice, bob = (GuardedPeer(server, keys, user) for user in USERS)
        assert alice.ok("open", "a", None, 8) == [0, 0, 8]
        assert alice.ok("step", "a", 1, x[0].tobytes())[2] == expected[0].tobytes()
        record = alice.ok("export", "a")
        assert decode_record(record).owner == "alice"
        calls = [
            ["open", "a", None, 8],
            ["step", "a", 2, x[1].tobytes()],
            ["step", "a", 1, x[0].tobytes()],
            ["step", "a", 0, x[1].tobytes()],
            ["step", "a", 99, b""],
            ["reset", "a", 2],
            ["close", "a"],
            ["export", "a"],
            ["fork", "a", "b"],
            ["import", "a", bob_s_record(bob, x), None],
            ["open", "a", "m", 8, bob_s_record(bob, x)],
            ["import", "b", record, None],
            ["open", "b", "m", 8, record],
        ]
        if options:
            # Nothing of it is on disk yet.
            calls += [["rollback", "a", 2, None], ["rollback", "a", 2, "none"]]
        for call in calls[-2:]:
            assert bob.error(*call)[0] == "forbidden"
        if options:
            assert alice.error("rollback", "a", 2, None) == ("unknown_snapshot", {"stream": "a"})
            assert alice.error("rollback", "a", 2, "none") == ("unknown_snapshot", {})
            alice.ok("snapshot", "a", "one")
            calls += [
                ["rollback", "a", 2, None],
                ["rollback", "a", 2, "one"],
                ["rollback", "a", 2, "none"],
                ["snapshot", "a", "mine"],
                ["sync", "a"],
            ]
        for call in calls:
            code, detail = bob.error(*call)
            # The error tells that it is another's, and no number, model or snapshot.
            assert (call, code, detail) == (
                call,
                "forbidden",
                {"stream": call[1] if call[0] != "fork" else "a"},
            )
        results = bob.ok("open", ["a", "c"], None, 8)
        assert [error and error[0] for error, _ in results] == ["forbidden", None]
        results = bob.ok("batch", ["a", "c"], [2, 1], x[:2].tobytes())
        assert results[0][0][0] == "forbidden"
        assert results[1][0] is None
        assert bob.error("step", "b", 1, x[0].tobytes())[0] == "unknown"
        # Nothing was changed, and no stream is left waiting.
        assert alice.ok("step", "a", 1, x[0].tobytes())[2] == expected[0].tobytes()
        assert alice.ok("step", "a", 2, x[1].tobytes())[2] == expected[1].tobytes()
        assert alice.ok("fork", "a", "branch")[0] == 2
        assert bob.error("step", "branch", 3, x[2].tobytes())[0] == "forbidden"
        assert alice.ok("import", "copy", record, None)[0] == 1
        assert bob.error("close", "copy")[0] == "forbidden"
        assert alice.ok("close", "a") is True
        assert bob.ok("open", "a", None, 8)[0] == 0  # the name is free
        assert alice.error("step", "a", 3, x[2].tobytes())[0] == "forbidden"
        for peer in (alice, bob):
            peer.socket.close()


def bob_s_record(bob, x):
    bob.ok("open", "bob's", None, 8)
    return bob.ok("export", "bob's")


def test_the_owner_survives_a_restart_and_spilling(model, keys, x, expected, tmp_path):
    durable = {"state_dir": tmp_path, "durability": "checkpoint", "checkpoint_interval_s": 0.01}
    with guarded(model, keys, **durable, max_streams=2) as server:
        alice, bob = (GuardedPeer(server, keys, user) for user in USERS)
        names = [f"a{k}" for k in range(6)]
        for name in names:
            until_not_busy(alice, "open", name, None, 8)
            y = until_not_busy(alice, "step", name, 1, x[0].tobytes())[2]
            assert y == expected[0].tobytes()
        for name in names:  # all but two are on disk only
            error = busy_or_error(bob, "step", name, 2, x[1].tobytes())
            assert (error[0], error[2]) == ("forbidden", {"stream": name})
        assert until_not_busy(alice, "stats")["num_spilled_for_room"] > 3
        for peer in (alice, bob):
            peer.socket.close()
    with guarded(model, keys, **durable) as server:
        alice, bob = (GuardedPeer(server, keys, user) for user in USERS)
        assert bob.error("close", "a0")[0] == "forbidden"
        assert bob.error("open", "a1", None, 8)[0] == "forbidden"
        assert bob.error("rollback", "a2", 2, None)[0] == "forbidden"
        for name in names:
            assert alice.ok("step", name, 2, x[1].tobytes())[2] == expected[1].tobytes()
        assert decode_record(alice.ok("export", "a0")).owner == "alice"
        for peer in (alice, bob):
            peer.socket.close()
    with serving({"m": model}, **durable) as server:  # without keys there are no owners
        stranger = Peer(server.endpoints[0])
        for call in (["step", "a0", 3, x[2].tobytes()], ["close", "a0"], ["open", "a0", None, 8]):
            assert stranger.error(*call)[0] == "forbidden"
        stranger.socket.close()
    with guarded(model, keys, **durable) as server:
        alice = GuardedPeer(server, keys, "alice")
        assert alice.ok("step", "a0", 3, x[2].tobytes())[2] == expected[2].tobytes()
        alice.socket.close()


def until_not_busy(peer, *call):
    for _ in range(100_000):
        error, result = peer.call(*call)
        if error is None:
            return result
        assert error[0] == "busy"
    raise AssertionError("it stayed busy")


def busy_or_error(peer, *call):
    for _ in range(100_000):
        error, _ = peer.call(*call)
        assert error is not None
        if error[0] != "busy":
            return error
    raise AssertionError("it stayed busy")


def test_streams_without_owner_belong_to_the_first_user_that_asks(
    model, keys, x, expected, tmp_path
):
    durable = {"state_dir": tmp_path, "durability": "checkpoint", "checkpoint_interval_s": 3600.0}
    with serving({"m": model}, **durable) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "a", None, 8)
        peer.ok("step", "a", 1, x[0].tobytes())
        record = peer.ok("export", "a")
        peer.socket.close()
    with guarded(model, keys, **durable) as server:
        alice, bob = (GuardedPeer(server, keys, user) for user in USERS)
        assert alice.ok("step", "a", 1, x[0].tobytes())[2] == expected[0].tobytes()
        assert bob.error("step", "a", 2, x[1].tobytes())[0] == "forbidden"
        assert bob.ok("import", "b", record, None)[0] == 1
        assert alice.error("step", "b", 2, x[1].tobytes())[0] == "forbidden"
        for peer in (alice, bob):
            peer.socket.close()
    with guarded(model, keys, **durable) as server:
        bob = GuardedPeer(server, keys, "bob")
        assert bob.error("step", "a", 2, x[1].tobytes())[0] == "forbidden"
        bob.socket.close()


def test_the_client_with_keys(model, keys, x, expected):
    with (
        guarded(model, keys, num_shards=2) as server,
        client_of(server, keys, "alice") as alice,
        client_of(server, keys, "bob") as bob,
    ):
        streams = alice.streams([f"s{k}" for k in range(8)])
        for stream in streams:
            assert np.array_equal(stream.steps(x), expected)
            branch = stream.fork(f"{stream.id} branch")  # perhaps on the other shard
            with pytest.raises(errors.Forbidden, match="belongs to another user"):
                bob.stream(branch.id)
        with pytest.raises(PartialFailure) as caught:
            bob.streams(["s0", "mine"])
        assert isinstance(caught.value.errors["s0"], errors.Forbidden)
        assert np.array_equal(bob.step_many({"mine": x[0]})["mine"], expected[0])
        with pytest.raises(errors.Forbidden):
            bob.import_stream("mine too", streams[0].export())

        async def main():
            key = {"curve_key": keys / "alice.key_secret"}
            server_key = load_certificate(keys / "server.key")[0].decode()
            async with aio.Client(server.endpoints[0], **key, server_key=server_key) as client:
                stream = await client.stream("s0")
                return stream.last_seq

        assert asyncio.run(main()) == len(x)


def test_a_client_without_a_valid_key_cannot_connect(model, keys):
    with guarded(model, keys) as server:
        short: Any = {"timeout_s": 1.0}
        for user in ("mallory", "server"):
            with (
                client_of(server, keys, user, **short) as client,
                pytest.raises(errors.ConnectionLost, match="keys"),
            ):
                client.hello()
        with Client(server.endpoints[0], **short) as client, pytest.raises(errors.ConnectionLost):
            client.hello()
        wrong = {"curve_key": keys / "alice.key_secret", "server_key": keys / "bob.key"}
        with (
            Client(server.endpoints[0], **wrong, **short) as client,
            pytest.raises(errors.ConnectionLost),
        ):
            client.hello()
        with client_of(server, keys, "alice") as client:
            assert client.hello().models


def test_a_key_that_comes_later_counts_from_the_next_connection_on(model, keys, tmp_path):
    for suffix in (".key", ".key_secret"):
        shutil.copy(keys / f"server{suffix}", tmp_path)
    clients = tmp_path / "clients"
    clients.mkdir()
    make_keys(tmp_path, "carol")
    (clients / "alice.key").write_bytes((keys / "alice.key").read_bytes())
    with guarded(model, keys, curve_clients=clients) as server:
        with client_of(server, keys, "alice") as client:
            assert client.hello().models
        (tmp_path / "carol.key").rename(clients / "carol.key")
        with client_of(server, tmp_path, "carol") as client:
            assert client.hello().models
        (clients / "carol.key").unlink()
        with (
            client_of(server, tmp_path, "carol", timeout_s=1.0) as client,
            pytest.raises(errors.ConnectionLost),
        ):
            client.hello()


def test_one_file_is_one_user(model, keys):
    with guarded(model, keys, curve_clients=keys / "alice.key") as server:
        with client_of(server, keys, "alice") as client:
            assert client.hello().models
        with (
            client_of(server, keys, "bob", timeout_s=1.0) as client,
            pytest.raises(errors.ConnectionLost),
        ):
            client.hello()


def test_a_damaged_record_cannot_be_deleted_nor_another_user_s_mismatch_seen(
    model, keys, x, tmp_path
):
    durable = {"state_dir": tmp_path, "durability": "checkpoint", "checkpoint_interval_s": 3600.0}
    with guarded(model, keys, **durable) as server:
        alice = GuardedPeer(server, keys, "alice")
        for name in ("torn", "foreign"):
            alice.ok("open", name, None, 8)
            alice.ok("step", name, 1, x[0].tobytes())
        alice.socket.close()
    store = StateStore(tmp_path)
    torn, foreign = (store.get(STREAMS, canonical_id(name)) or b"" for name in ("torn", "foreign"))

    other = encode_record(dataclasses.replace(decode_record(foreign), fingerprint="00" * 32))
    changes = [
        (STREAMS, canonical_id("torn"), torn[:-1]),
        (STREAMS, canonical_id("foreign"), other),
    ]
    store.commit(changes, store.clock_s)
    store.close()
    with guarded(model, keys, **durable) as server:
        alice, bob = (GuardedPeer(server, keys, user) for user in USERS)
        for peer in (alice, bob):
            assert peer.error("step", "torn", 2, x[1].tobytes())[0] == "damaged"
            assert peer.error("close", "torn")[0] == "damaged"
        assert bob.error("step", "foreign", 2, x[1].tobytes()) == (
            "forbidden",
            {"stream": "foreign"},
        )
        assert bob.error("close", "foreign") == ("forbidden", {"stream": "foreign"})
        code, detail = alice.error("step", "foreign", 2, x[1].tobytes())
        assert (code, detail["stored"]) == ("mismatch", "00" * 32)
        assert alice.ok("close", "foreign") is True
        for peer in (alice, bob):
            peer.socket.close()


# ---------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------


def test_another_address_needs_keys_or_insecure(keys):
    everywhere = Endpoint("0.0.0.0", 0)
    with pytest.raises(StartError, match=r"--curve-secret-key.*--insecure"):
        ServerConfig(bind=everywhere)
    ServerConfig(bind=everywhere, insecure=True)
    both = {"curve_secret_key": keys / "server.key_secret", "curve_clients": keys / "clients"}
    assert ServerConfig(bind=everywhere, **both).has_users
    for one in both:
        with pytest.raises(StartError, match="belong together"):
            ServerConfig(**{one: both[one]})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"curve_secret_key": "server.key"}, "holds no secret key"),
        ({"curve_secret_key": "none.key_secret"}, "no key file"),
        ({"curve_clients": "nowhere"}, "cannot read --curve-clients"),
        ({"curve_clients": "empty"}, "nobody could connect"),
        ({"curve_clients": "twice"}, "whose is it"),
        ({"curve_clients": "server.txt"}, "no key file"),
    ],
)
def test_keys_that_cannot_be_used_say_why(model, keys, tmp_path, changes, told):
    (tmp_path / "server.key").write_bytes((keys / "server.key").read_bytes())
    (tmp_path / "server.txt").write_text("no key")
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    for name in ("one", "two"):
        (tmp_path / "twice" / f"{name}.key").write_bytes((keys / "alice.key").read_bytes())
    changed = {option: tmp_path / name for option, name in changes.items()}
    with pytest.raises(StartError, match=told), guarded(model, keys, **changed):
        pass


def test_a_client_s_keys_that_cannot_be_used_say_why(keys, tmp_path):
    (tmp_path / "open.key_secret").write_bytes((keys / "alice.key_secret").read_bytes())
    (tmp_path / "open.key_secret").chmod(0o640)
    shared = {"curve_key": tmp_path / "open.key_secret", "server_key": keys / "server.key"}
    for options, told in (
        (shared, r"mode 0640\): 'chmod 600 .*open.key_secret'"),
        ({"curve_key": keys / "alice.key_secret"}, "belong together"),
        ({"server_key": keys / "server.key"}, "belong together"),
        ({"curve_key": keys / "alice.key", "server_key": keys / "server.key"}, "no secret key"),
        ({"curve_key": keys / "none", "server_key": keys / "server.key"}, "no key file"),
    ):
        for kind in (Client, aio.Client):
            with pytest.raises(errors.BadParams, match=told):
                kind("tcp://127.0.0.1:7070", **options)


@pytest.mark.slow
def test_the_program_from_keys_to_status(model, tmp_path, capsys):
    path = tmp_path / "small.safetensors"
    model.save(path)
    keys = tmp_path / "keys"
    assert main(["keys", "server", "-o", str(keys)]) == 0
    assert main(["keys", "alice", "-o", str(keys)]) == 0
    assert "secret: for alice alone" in capsys.readouterr().out
    assert (keys / "alice.key_secret").stat().st_mode & 0o077 == 0
    assert main(["keys", "alice", "-o", str(keys)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["keys", "../alice"]) == 1
    server = ["--curve-secret-key", keys / "server.key_secret", "--curve-clients", keys]
    server += ["--admin", "alice"]
    with Program(path, *server) as program:
        assert program.endpoint is not None
        assert "clients need keys" in program.ready_line
        status = streamrnn("status", program.endpoint, "--curve-key", keys / "alice.key_secret")
        told = subprocess.run(
            [*status, "--server-key", str(keys / "server.key")],
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert told.returncode == 0, told.stderr
        assert "small (0 open)" in told.stdout
