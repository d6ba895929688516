"""What one user may take, and what he sees of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.errors import StartError
from streamrnn.state.journal import JOURNAL_DIRECTORY, entries_of, read_journal
from streamrnn.state.store import SNAPSHOTS, STREAMS
from streamrnn_client.protocol import MAX_BATCH, encode_request
from streamrnn_server.commands.status import _lines
from streamrnn_server.config import ServerConfig
from streamrnn_server.control.messages import Ask
from streamrnn_server.control.turns import Turns
from streamrnn_server.storage.usage import DiskUsage
from streamrnn_server.testing import serving
from tests.security.users import GuardedPeer, make_keys_of
from tests.support.models import random_model
from tests.support.peer import RARELY_S, Peer, until

NUM_INPUTS = 3
USERS = ("alice", "bob")
X = bytes(4 * NUM_INPUTS)


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys_of(tmp_path_factory.mktemp("keys"), USERS)


@pytest.fixture
def serve(model, keys):
    """Return a function that starts a server, and returns it with a peer of each user."""
    opened: list[Any] = []
    peers: list[GuardedPeer] = []

    def start(**options):
        both = {"curve_secret_key": keys / "server.key_secret", "curve_clients": keys / "clients"}
        opened.append(serving({"m": model}, **both, **options))
        server = opened[-1].__enter__()
        peers.extend(GuardedPeer(server, keys, user) for user in USERS)
        return (server, *peers[-2:])

    yield start
    for peer in peers:
        peer.socket.close()
    for each in opened:
        each.__exit__(None, None, None)


def open_many(peer, ids):
    """Return how many streams could be opened; the others found no room."""
    errors = [error for error, _ in peer.ok("open", ids, None, 1)]
    assert all(error is None or error[0] == "busy" for error in errors)
    return sum(error is None for error in errors)


@pytest.mark.parametrize(("share", "expected"), [(50, 50), (10, 10), (100, 100)])
def test_a_user_may_open_his_share_of_all_streams(serve, share, expected):
    _, alice, bob = serve(max_streams=100, user_share=share)
    assert open_many(bob, [f"b{k}" for k in range(120)]) == expected
    assert open_many(alice, ["a"]) == (1 if share < 100 else 0)
    assert bob.ok("close", "b0") is True
    assert open_many(bob, ["b0", "another"]) == 1
    assert bob.ok("stats")["num_streams"] == expected
    assert bob.ok("stats")["max_streams"] == expected


def test_streams_of_a_user_above_his_share_make_way_for_his_own_alone(serve, tmp_path):
    durable = {"state_dir": tmp_path, "durability": "checkpoint", "checkpoint_interval_s": 0.01}
    _, alice, bob = serve(max_streams=40, user_share=50, **durable)
    assert open_many(alice, [f"a{k}" for k in range(15)]) == 15
    for k in range(60):
        until(lambda: bob.call("open", f"b{k}", None, 1)[0] is None)  # noqa: B023
        assert bob.ok("step", f"b{k}", 1, X)[0] == 1
    assert alice.ok("stats")["num_streams"] == 15
    assert bob.ok("stats")["num_streams"] <= 20
    for k in range(60):
        until(lambda: bob.call("step", f"b{k}", 2, X)[0] is None)  # noqa: B023


def test_a_user_who_asks_without_end_leaves_words_for_the_others(serve):
    server, alice, bob = serve()
    for _ in range(6000):
        bob.socket.send(encode_request(1, "hello", [{}]))
    refused = 0
    for k in range(6000):
        refused += bob.receive()[1] is not None
        if k % 100 == 0:
            assert alice.ok("hello")["protocol"] == 1
    assert refused > 0
    assert server.control.stats()["num_calls_refused"] == refused


def test_a_user_has_so_many_lookups_at_once_and_the_others_have_theirs(
    serve, tmp_path, monkeypatch
):
    server, alice, bob = serve(state_dir=tmp_path, durability="checkpoint")
    alice.ok("hello")
    with monkeypatch.context() as patch:
        # Python is at something else.
        patch.setattr(server._loop, "_answer_some", lambda stop_at_s: None)
        for k in range(MAX_BATCH // 2 + 1):
            bob.send("step", k, 1, X)
        assert bob.receive()[1][0] == "busy"
        alice.send("step", "hers", 1, X)
    assert alice.receive()[1][0] == "unknown"
    codes = {bob.receive()[1][0] for _ in range(MAX_BATCH // 2)}
    assert codes == {"unknown"}
    bob.send("step", 1, 1, X)
    assert bob.receive()[1][0] == "unknown"


def test_totals_are_told_to_administrators_alone(serve, model):
    server, alice, bob = serve(admins=("alice",))
    open_many(alice, ["a1", "a2"])
    open_many(bob, ["b"])
    assert alice.ok("stats")["num_streams"] == 3
    assert alice.ok("stats")["models"] == {"m": 3}
    assert alice.ok("stats", "step_times")["step_times"]["seq"] == []
    assert bob.error("stats", "step_times")[0] == "forbidden"
    told = bob.ok("stats")
    assert set(told) == {
        *("server", "instance", "uptime_s", "durability", "user", "num_streams", "max_streams"),
        *("num_bytes", "max_bytes", "max_steps_per_s"),
    }
    assert (told["user"], told["num_streams"]) == ("bob", 1)
    assert any("1 in memory" in line for line in _lines(told))
    assert server.control.stats()["num_streams"] == 3
    with serving({"m": model}) as server:
        peer = Peer(server.endpoints[0])
        assert peer.ok("stats")["models"] == {"m": 0}
        peer.socket.close()


def test_backups_are_made_for_administrators_alone(serve, tmp_path):
    (tmp_path / "backups").mkdir()
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint"}
    _, alice, bob = serve(admins=("alice",), backup_dir=tmp_path / "backups", **options)
    bob.send("backup", "b", "token")
    assert bob.receive()[1][0] == "forbidden"
    assert list((tmp_path / "backups").iterdir()) == []
    assert alice.ok("backup", "b", "token")["state"] == "running"
    until(lambda: alice.ok("backup", "b", "token")["state"] == "done")


def test_models_are_changed_by_administrators_alone(serve, model, tmp_path):
    (tmp_path / "models").mkdir()
    model.save(tmp_path / "models" / "m@2.safetensors")
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint"}
    _, alice, bob = serve(admins=("alice",), models_dir=tmp_path / "models", **options)
    bob.ok("open", "his", "m", 8)
    bob.ok("step", "his", 1, X)
    swap = {"name": "m", "to": "m@2", "streams": "carry"}
    for action, details in [("load", {"name": "m@2"}), ("swap", swap)]:
        bob.send("model", action, details)
        assert bob.receive()[1][0] == "forbidden"
        alice.ok("model", action, details)
    assert bob.ok("step", "his", 2, X)[0] == 2
    alice.send("step", "his", 3, X)
    assert alice.receive()[1][0] == "forbidden"  # it is still his
    assert bob.ok("stats")["num_streams"] == 1
    assert alice.ok("stats")["models"] == {"m": 0, "m@2": 1}


@given(asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=40))
def test_each_user_is_answered_in_his_order_and_in_turn(asked):
    turns = Turns()
    for user, number in asked:
        turns.add(user, 0, Ask(1, number, 0, (), 0, 0, 0, 0, user.encode(), b""))
    left = {user: [n for u, n in asked if u == user] for user in "abc"}
    last = dict.fromkeys("abc", -1)
    for at in range(len(asked)):
        _, ask = turns.take()
        user = ask.identity.decode()
        assert ask.msgid == left[user].pop(0)
        others_waiting = [u for u in "abc" if u != user and left[u]]
        assert all(last[u] >= last[user] or last[user] < 0 for u in others_waiting)
        last[user] = at
    assert not turns


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(StartError, match=r"--user-share is 0; it must be 1 to 100"):
        ServerConfig(user_share=0)
    with pytest.raises(StartError, match=r"--admin .* needs --curve-clients"):
        ServerConfig(admins=("alice",))


def test_a_user_whose_share_of_the_disk_is_taken_begins_nothing_new(serve, tmp_path):
    durable = {"state_dir": tmp_path, "durability": "always", "checkpoint_interval_s": RARELY_S}
    server, alice, bob = serve(user_disk_bytes=4000, **durable)
    for k in range(100):
        error, _ = bob.call("snapshot", "b", f"s{k}") if k else bob.call("open", "b", None, 1)
        if error is not None:
            break
    assert error[0] == "read_only"
    assert "of at most 4000: close some of them" in error[1]
    taken = bob.ok("stats")["num_bytes_on_disk"]
    assert server._disk is not None
    store = server._disk.store
    records = [data for table in (STREAMS, SNAPSHOTS) for _, data in store.items(table)]
    assert taken == sum(map(len, records)) >= 4000
    record = bob.ok("export", "b")
    for call in (
        ["open", "new", None, 1],
        ["import", "new", record, None],
        ["open", "new", None, 1, record],
        ["fork", "b", "new"],
        ["snapshot", "b", "one more"],
    ):
        code, detail = bob.error(*call)
        assert (code, "close some" in detail["reason"]) == ("read_only", True)
    assert bob.ok("step", "b", 1, X)[0] == 1
    assert alice.ok("open", "a", None, 1) == [0, 0, 1]
    assert bob.ok("close", "b") is True
    bob.ok("sync", None)
    assert bob.ok("stats")["num_bytes_on_disk"] == 0
    assert bob.ok("open", "new", None, 1) == [0, 0, 1]


def test_what_each_user_takes_on_disk_is_known_after_a_restart(serve, tmp_path):
    durable = {"state_dir": tmp_path, "durability": "always", "checkpoint_interval_s": RARELY_S}
    server, alice, bob = serve(**durable)
    alice.ok("open", "a", None, 1)
    bob.ok("open", "b", None, 1)
    segments = list(read_journal(tmp_path / JOURNAL_DIRECTORY))
    entries = [e for each in segments for group in each.groups for e in entries_of(group, 1)]
    assert [(entry.stream, entry.data) for entry in entries] == [(b"sa", b"alice"), (b"sb", b"bob")]
    alice.ok("sync", "a")
    bob.ok("snapshot", "b", "one")
    before = [peer.ok("stats")["num_bytes_on_disk"] for peer in (alice, bob)]
    assert server._disk is not None
    usage = DiskUsage(server._disk.store, 10)  # as the next start makes it
    assert [usage.num_bytes(user) for user in USERS] == before
    assert before[1] == 2 * before[0] > 0


def test_recordings_are_shared_among_the_users_who_ask(serve):
    server, alice, bob = serve(diagnostics_streams=4)
    server.control.diagnostics.stop()

    def has(user, prefix):
        return [user.ok("diagnostics", f"{prefix}{k}")["num_recorded"] for k in range(5)]

    def ask(user, prefix):
        return [user.ok("diagnostics", f"{prefix}{k}")["is_recorded"] for k in range(5)]

    for user, prefix in ((alice, "a"), (bob, "b")):
        for k in range(5):
            user.ok("open", f"{prefix}{k}", "m", 4)
    assert ask(alice, "a") == [True] * 4 + [False]  # alone, she may have all
    assert ask(bob, "b") == [True, True, False, False, False]
    assert sum(ask(alice, "a")) == 2
    assert ask(bob, "b") == [True, True, False, False, False]
    for user, prefix in ((alice, "a"), (bob, "b")):
        for k in range(5):
            user.ok("step", f"{prefix}{k}", 1, X)
    assert sum(has(alice, "a")) == sum(has(bob, "b")) == 2


def test_a_shadow_run_is_an_administrators(serve):
    _, alice, bob = serve(admins=("alice",))
    assert alice.ok("model", "shadow", {}) == {"state": None}
    assert bob.error("model", "shadow", {})[0] == "forbidden"


def test_a_users_diagnostics_are_his_own(serve):
    server, alice, bob = serve(admins=("alice",))
    alice.ok("open", "hers", "m", 4)
    assert alice.ok("diagnostics", "hers")["is_recorded"]
    for k in range(40):
        alice.ok("step", "hers", k + 1, X)
    alice.ok("reset", "hers", 41)
    server.control.diagnostics.look()
    assert alice.ok("diagnostics", "hers")["measured"]["num_steps"] == 40
    assert bob.error("diagnostics", "hers") == ("forbidden", {"stream": "hers"})
    assert [each["stream"] for each in alice.ok("stats")["recorded"]] == ["hers"]
    told = bob.ok("stats")
    assert not {"diagnostics", "recorded"} & set(told)
    alice.ok("close", "hers")
    bob.ok("open", "hers", "m", 4)
    assert bob.ok("diagnostics", "hers")["measured"] is None
    assert alice.error("diagnostics", "hers")[0] == "forbidden"
