"""What single users may take: streams, bytes, steps, and the file that says it."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.errors import StartError
from streamrnn_server.access.limits import LimitsFile, read_limits
from streamrnn_server.config import MAX_USER_NAME_BYTES, ServerConfig, UserLimits
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.memory.admission import ns_per_step
from streamrnn_server.shard.streams.owners import MAX_KEYS, Users
from streamrnn_server.testing import serving
from tests.security.users import GuardedPeer, make_keys_of
from tests.support.models import random_model
from tests.support.peer import RARELY_S, until

NUM_INPUTS = 3
USERS = ("alice", "bob")
X = np.zeros(NUM_INPUTS, np.float32).tobytes()
DEFAULT = UserLimits(100, 0, 0)


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys_of(tmp_path_factory.mktemp("keys"), USERS)


@pytest.fixture
def serve(model, keys, tmp_path):
    """Return a function that starts a server with limits; it returns it and a peer of each user."""
    with contextlib.ExitStack() as opened:

        def start(limits="", **options):
            both = {"curve_secret_key": keys / "server.key_secret"}
            (tmp_path / "limits.toml").write_text(limits)
            server = opened.enter_context(
                serving(
                    {"m": model},
                    **both,
                    curve_clients=keys / "clients",
                    user_limits_file=tmp_path / "limits.toml",
                    **options,
                )
            )
            peers = [GuardedPeer(server, keys, user) for user in USERS]
            for peer in peers:
                opened.callback(peer.socket.close)
            return server, *peers

        yield start


def limits_met(peer, ids):
    """Open streams; return what those met that were not opened."""
    errors = [error for error, _ in peer.ok("open", ids, None, 1)]
    assert all(error is None or error[0] == "busy" for error in errors)
    return [error[2]["limit"] for error in errors if error is not None]


def test_each_user_has_streams_of_his_own_number(serve):
    server, alice, bob = serve("[alice]\nmax_streams = 3", max_streams=20)
    assert limits_met(alice, ["a1", "a2", "a3", "a4"]) == ["user_streams"]
    assert limits_met(bob, [f"b{k}" for k in range(11)]) == ["user_streams"]
    assert alice.ok("close", "a1") is True
    assert limits_met(alice, ["a5", "a6"]) == ["user_streams"]
    assert server.control.stats()["num_refused_user_streams"] == 3
    assert (alice.ok("stats")["num_streams"], alice.ok("stats")["max_streams"]) == (3, 3)


def test_a_users_bytes_are_rows_and_the_replies_that_are_kept(serve, model):
    _, alice, bob = serve(user_memory_bytes=5000)
    row_bytes = alice.ok("models")[0]["row_bytes"]
    num_streams = 5000 // row_bytes
    assert limits_met(alice, [f"a{k}" for k in range(num_streams + 1)]) == ["user_bytes"]
    assert alice.ok("stats")["num_bytes"] == num_streams * row_bytes
    assert alice.ok("stats")["max_bytes"] == 5000
    # The ring of a window's replies is taken with the first numbered step.
    for name in ("b1", "b2"):
        bob.ok("open", name, None, 256)
    ring_bytes = 8 + 256 * (8 + 4 * model.spec.output_size)
    assert bob.ok("step", "b1", 1, X)[0] == 1
    assert bob.ok("stats")["num_bytes"] == 2 * row_bytes + ring_bytes
    assert bob.error("step", "b2", 1, X)[1]["limit"] == "user_bytes"
    assert bob.ok("close", "b1") is True
    assert bob.ok("stats")["num_bytes"] == row_bytes
    assert bob.ok("step", "b2", 1, X)[0] == 1
    assert bob.ok("close", "b2") is True
    assert bob.ok("stats")["num_bytes"] == 0


def test_own_streams_that_rest_make_way_within_a_users_bytes(serve, tmp_path):
    durable = {"state_dir": tmp_path / "state", "durability": "checkpoint"}
    _, alice, _ = serve(user_memory_bytes=3000, checkpoint_interval_s=RARELY_S, **durable)
    row_bytes = alice.ok("models")[0]["row_bytes"]
    num_streams = 3000 // row_bytes
    for k in range(3 * num_streams):
        error, _ = alice.call("open", f"a{k}", None, 1)
        if error is not None:
            assert (error[0], error[2]["limit"]) == ("busy", "user_bytes")
        alice.ok("sync", None)
        assert alice.ok("stats")["num_bytes"] <= 3000
    until(lambda: alice.call("open", "one more", None, 1)[0] is None)
    until(lambda: alice.call("step", "a0", 1, X)[0] is None)  # it is back from the disk


def test_a_user_has_steps_of_his_own_and_others_go_on(serve):
    server, alice, bob = serve("[alice]\nmax_steps_per_s = 1\n[bob]\nmax_steps_per_s = 0")
    for peer, name in ((alice, "a"), (bob, "b")):
        peer.ok("open", name, None, 16)
        peer.ok("step", name, 1, 16 * X)
    code, detail = alice.error("step", "a", 17, X)
    assert (code, detail["limit"]) == ("busy", "user_steps")
    assert 1000 < detail["retry_after_ms"] <= 16_000
    for seq in range(17, 100):
        bob.ok("step", "b", seq, X)
    assert server.control.stats()["num_refused_user_steps"] == 1
    assert alice.ok("stats")["max_steps_per_s"] == 1


def test_limits_that_change_count_within_a_second_also_of_new_users(serve, tmp_path):
    server, alice, bob = serve("[alice]\nmax_streams = 1", max_streams=20)
    assert limits_met(alice, ["a1", "a2"]) == ["user_streams"]
    path = tmp_path / "limits.toml"
    path.write_text("[bob]\nmax_streams = 2\n[alice]\nmax_streams = 4")
    until(lambda: alice.ok("stats")["max_streams"] == 4)
    until(lambda: limits_met(alice, ["a2"]) == [])
    until(lambda: bob.ok("stats")["max_streams"] == 2)
    until(lambda: bob.ok("close", "b3") in (True, False) and limits_met(bob, ["b1", "b2", "b3"]))
    path.write_text("[alice]\nmax_streams = -1")  # is refused: the limits stay
    os.utime(path, ns=(1, 1))
    until(lambda: server._guard.limits._stamp[0] == 1)
    assert alice.ok("stats")["max_streams"] == 4
    path.unlink()
    until(lambda: server._guard.limits._stamp == ())
    assert alice.ok("stats")["max_streams"] == 4


# ---------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------


def test_a_file_of_limits_says_what_differs(tmp_path):
    path = tmp_path / "limits.toml"
    path.write_text(
        '[alice]\nmax_streams = 7\n["bob.b"]\nmax_bytes = "64M"\nmax_steps_per_s = 10\n[carol]\n'
    )
    assert read_limits(path, DEFAULT) == {
        "alice": UserLimits(7, 0, 0),
        "bob.b": UserLimits(100, 2**26, 10),
        "carol": DEFAULT,
    }


@pytest.mark.parametrize(
    "text",
    [
        "alice = 3",
        "[alice]\nmax_streams = 0",
        "[alice]\nmax_streams = -1",
        "[alice]\nmax_streams = nan",
        "[alice]\nmax_streams = 1.0",
        "[alice]\nmax_streams = true",
        "[alice]\nmax_streams = 99999999999999999999",
        '[alice]\nmax_streams = "3"',
        "[alice]\nmax_steps_per_s = inf",
        "[alice]\nmax_steps_per_s = 1_000_000_001",
        "[alice]\nmax_bytes = -1",
        '[alice]\nmax_bytes = "-1M"',
        '[alice]\nmax_bytes = "much"',
        "[alice]\nmax_bytes = 1152921504606846977",
        "[alice]\nstreams = 1",
        "[alice.inner]\nmax_streams = 1",
        f"[{'x' * (MAX_USER_NAME_BYTES + 1)}]",
        '["a\\u0000b"]',
        '[""]',
        "[alice",
        "[alice]\n[alice]",
        "x" * (4 * 2**20 + 1),
    ],
)
def test_a_file_with_limits_that_are_none_is_refused(tmp_path, text):
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(StartError, match=r"limits\.toml"):
        LimitsFile(path, DEFAULT, EventLog())


@given(st.binary(max_size=60))
def test_any_bytes_are_limits_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with contextlib.suppress(StartError):
        assert all(isinstance(each, UserLimits) for each in read_limits(path, DEFAULT).values())


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StartError, match="No such file"):
        LimitsFile(tmp_path / "none", DEFAULT, EventLog())
    with pytest.raises(StartError, match="cannot read"):
        LimitsFile(tmp_path, DEFAULT, EventLog())


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps_per_s": -1},
        {"max_steps_per_s": 10**9 + 1},
        {"user_steps_per_s": -1},
        {"user_memory_bytes": -1},
        {"user_limits_file": "limits.toml"},
    ],
)
def test_limits_that_no_server_can_have_are_refused(options):
    with pytest.raises(StartError):
        ServerConfig(**options)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.dictionaries(NAMES.filter(lambda name: len(name.encode()) < 256), st.integers(1, 9)))
def test_users_that_are_named_have_their_part_in_every_shard(limits):
    users = Users(10, np.zeros(MAX_KEYS, np.uint8), DEFAULT, 2, 50)
    for name in limits:
        users.add(name)
        users.add(name)
    users.set_limits({name: UserLimits(k, k, k) for name, k in limits.items()})
    assert int(users.struct["num_users"]) == len(limits)
    for number in range(1, len(limits) + 1):
        k, budget = limits[users.name(number)], users._budgets[number]
        assert budget["max_streams"] == budget["max_bytes"] == (k + 1) // 2
        assert budget["steps"]["ns_per_step"] == ns_per_step(k, 2)
