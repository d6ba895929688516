"""Steps that are late, and rates of steps: what is refused leaves no trace."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn import Engine
from streamrnn.state.journal import JOURNAL_DIRECTORY, ChangeKind, entries_of, read_journal
from streamrnn_client import Client, aio, errors
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.peer import Peer, served

NUM_INPUTS = 3
WINDOW = 16
LONG_MS = 10**7


@pytest.fixture(scope="module")
def models():
    return {"m": random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS)}


@pytest.fixture(scope="module")
def server(models):
    with serving(models) as server:
        yield server


@pytest.fixture
def peer(server):
    peer = Peer(server.endpoints[0])
    yield peer
    peer.socket.close()


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, NUM_INPUTS)).astype(np.float32)


@pytest.fixture
def expected(models, x):
    return Engine(models["m"]).steps(0, x)


def test_a_late_step_is_not_computed_and_takes_no_number(peer, server, x, expected):
    peer.ok("open", "late", None, 0)
    num_late = server.control.stats()["num_late"]
    for _ in range(3):
        assert peer.error("step", "late", 1, x[0].tobytes(), 0, 0)[0] == "late"
    assert peer.ok("open", "late", None, 0)[0] == 0
    last, _, y = peer.ok("step", "late", 1, x[0].tobytes(), 0, LONG_MS)
    assert (last, y) == (1, expected[0].tobytes())
    assert peer.ok("step", "late", 2, x[1].tobytes(), 0, None)[2] == expected[1].tobytes()
    stats = server.control.stats()
    assert stats["num_late"] - num_late == 3
    assert stats["errors"]["late"] >= 3


def test_what_was_computed_is_answered_however_late(peer, x, expected):
    peer.ok("open", "again", None, 0)
    peer.ok("step", "again", 1, x[:3].tobytes())
    assert peer.ok("step", "again", 1, x[:3].tobytes(), 0, 0)[2] == expected[:3].tobytes()
    assert peer.ok("step", "again", 2, x[1].tobytes(), 0, 0)[2] == expected[1].tobytes()
    assert peer.error("step", "again", 2, x[5].tobytes(), 0, 0)[0] == "conflict"
    # A chunk that goes on beyond what was computed is late as a whole.
    assert peer.error("step", "again", 2, x[1:6].tobytes(), 0, 0)[0] == "late"
    assert peer.ok("open", "again", None, 0)[0] == 3
    assert peer.ok("step", "again", 2, x[1:6].tobytes(), 0, LONG_MS)[2] == expected[1:6].tobytes()


def test_late_is_told_apart_from_a_gap(peer, x):
    peer.ok("open", "gap", None, 0)
    late = peer.error("step", "gap", 7, x[0].tobytes(), 0, 0)
    assert late[0] == "late"
    assert peer.error("step", "gap", 7, x[0].tobytes(), 0, LONG_MS) == (
        "gap",
        {"expected": 1, "got": 7, "stream": "gap"},
    )
    # Those behind a late one that are in time themselves meet a gap: its number is free.
    peer.send("step", "gap", 1, x[0].tobytes(), 0, 0)
    peer.send("step", "gap", 2, x[1].tobytes())
    assert [error[0] for _, error, _ in (peer.receive(), peer.receive())] == ["late", "gap"]


def test_a_shard_reads_ahead_only_where_steps_have_deadlines(models, x):
    """What waits in sockets is in no clock; so it must not wait there."""
    with serving(models) as server:
        peer, struct = Peer(server.endpoints[0]), server.control.shards[0].struct
        peer.ok("open", "a", None, 0)
        peer.ok("step", "a", 1, x[0].tobytes(), 0, None)
        assert struct["read_ahead_until_ns"] == 0
        peer.ok("step", "a", 2, x[1].tobytes(), 0, LONG_MS)
        assert struct["read_ahead_until_ns"] > time.monotonic_ns() - 60 * 10**9
        peer.socket.close()


def test_an_unnumbered_step_that_is_late_is_not_computed(peer, x, expected):
    peer.ok("open", "plain", None, 0)
    assert peer.error("step", "plain", 0, x[1].tobytes(), 0, 0)[0] == "late"
    assert peer.ok("step", "plain", 0, x[0].tobytes(), 0, LONG_MS)[2] == expected[0].tobytes()


@pytest.mark.parametrize("columns", [False, True])
def test_the_late_items_of_a_batch_fail_alone(peer, x, expected, columns):
    ids = [f"{columns} {k}" for k in range(3)]
    peer.ok("open", ids, None, 0)
    peer.ok("step", ids[1], 1, x[1].tobytes())
    peer.send("batch", ids, [1, 1, 1], x[:3].tobytes(), columns, None, 0)
    _, _, error, result = msgpack.unpackb(peer.socket.recv(), strict_map_key=False)
    assert error is None
    if columns:
        assert {k: error[0] for k, error in result[0].items()} == {0: "late", 2: "late"}
        assert np.frombuffer(result[1], "<u8").tolist() == [0, 1, 0]
        assert np.frombuffer(result[3], np.float32).reshape(3, -1)[1].tobytes() == y_of(x, 1, peer)
    else:
        assert [error and error[0] for error, _ in result] == ["late", None, "late"]
        assert result[1][1][2] == y_of(x, 1, peer)
    items = peer.ok("batch", ids, [1, 1, 1], x[:3].tobytes(), False, None, LONG_MS)
    assert [error for error, _ in items] == [None] * 3
    assert items[0][1][2] == expected[0].tobytes()


def y_of(x, k, peer):
    """Return what a new stream answers to a row."""
    peer.ok("close", "y")
    peer.ok("open", "y", None, 0)
    return peer.ok("step", "y", 1, x[k].tobytes())[2]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.sampled_from([None, 0, 0, 1, LONG_MS, 2**63 - 1])),
        min_size=1,
        max_size=14,
    ),
    st.randoms(use_true_random=False),
)
def test_pipelined_steps_are_computed_in_order_or_refused_whole(server, models, calls, random):
    """Whatever was late: the outputs are those of the steps that were answered, and no others."""
    rows = np.random.default_rng(random.randrange(2**32)).normal(size=(128, NUM_INPUTS))
    rows = rows.astype(np.float32)
    peer = Peer(server.endpoints[0])
    with contextlib.closing(peer.socket):
        stream = random.randrange(2**63)
        peer.ok("open", stream, None, 256)
        first, sent = 1, {}
        for num_steps, waits_ms in calls:
            x = rows[first - 1 : first - 1 + num_steps]
            sent[peer.send("step", stream, first, x.tobytes(), 0, waits_ms)] = first, x, waits_ms
            first += num_steps
        replies = [peer.receive() for _ in sent]
        assert peer.ok("close", stream) is True
    done, engine = 0, Engine(models["m"])
    for msgid, error, result in sorted(replies, key=lambda each: each[0]):
        first, x, waits_ms = sent[msgid]
        if error is not None:
            assert error[0] in ("late", "gap")
            assert error[0] == "gap" or waits_ms in (0, 1)
            continue
        assert waits_ms != 0
        assert first == done + 1
        assert result[2] == engine.steps(0, x).tobytes()
        done += len(x)


@pytest.mark.parametrize("waits", [-1, 1.0, float("nan"), True, "1", 2**63, [], b"\0"])
def test_a_time_to_wait_that_is_none_is_refused(peer, x, waits):
    peer.ok("open", "hostile", None, 0)
    assert peer.error("step", "hostile", 1, x[0].tobytes(), 0, waits)[0] == "bad_params"
    batch = (["hostile"], [1], x[0].tobytes(), True, None, waits)
    assert peer.error("batch", *batch)[0] == "bad_params"
    assert peer.ok("open", "hostile", None, 0)[0] == 0


def test_refused_steps_are_not_in_the_journal(models, tmp_path, x, expected):
    options = {"durability": "always", "max_steps_per_s": 1}
    with served(models, tmp_path, ("m",), **options) as peer:
        peer.ok("open", "a", None, 0)
        assert peer.error("step", "a", 1, x[0].tobytes(), 0, 0)[0] == "late"
        assert peer.ok("step", "a", 1, x[:9].tobytes())[1] == 9
        assert peer.error("step", "a", 10, x[9].tobytes())[0] == "busy"
        segments = list(read_journal(tmp_path / JOURNAL_DIRECTORY))
    entries = [e for each in segments for group in each.groups for e in entries_of(group, 1)]
    steps = [entry.seq for entry in entries if entry.kind == ChangeKind.STEP]
    assert steps == list(range(1, 10))


def test_a_rate_of_steps_refuses_what_is_beyond_a_second_and_says_until_when(models, x, expected):
    with serving(models, max_steps_per_s=1) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", ["a", "b"], None, 0)
        # More than a second's worth has its turn when nothing is owed, and is paid for then.
        assert peer.ok("step", "a", 1, x[:16].tobytes())[2] == expected[:16].tobytes()
        for stream, seq in (("a", 17), ("b", 1)):
            code, detail = peer.error("step", stream, seq, x[seq - 1].tobytes())
            assert (code, detail["limit"]) == ("busy", "steps")
            assert 1000 < detail["retry_after_ms"] <= 16_000
        items = peer.ok("batch", ["a", "b"], [16, 1], x[[15, 0]].tobytes())
        assert items[0] == [None, [16, 0, expected[15].tobytes()]]  # it is in memory
        assert items[1][0][0] == "busy"
        assert 1000 < items[1][0][2]["retry_after_ms"] <= 16_000
        # Where one item needs words, Python writes the others too.
        items = peer.ok("batch", ["a", "b"], [99, 1], x[[15, 0]].tobytes())
        assert [error[0] for error, _ in items] == ["gap", "busy"]
        assert items[1][0][2]["limit"] == "steps"
        assert 1000 < items[1][0][2]["retry_after_ms"] <= 16_000
        assert peer.ok("open", ["a", "b"], None, 0) == [[None, [16, 0, 16]], [None, [0, 0, 16]]]
        assert server.control.stats()["num_refused_steps"] == 4
        peer.socket.close()


def test_steps_without_memory_for_their_outputs_are_not_taken_from_the_rate(models, x):
    with serving(models, max_steps_per_s=1) as server:
        peer, struct = Peer(server.endpoints[0]), server.control.shards[0].struct
        peer.ok("open", "a", None, 1024)
        peer.ok("reset", "a", 1)  # from now on it has its ring
        most, struct["budget"]["max_bytes"] = int(struct["budget"]["max_bytes"]), 0
        code, detail = peer.error("step", "a", 2, x[:5].tobytes())
        assert (code, detail["limit"]) == ("busy", "room")
        assert struct["steps"]["paid_until_ns"] == 0
        struct["budget"]["max_bytes"] = most
        assert peer.ok("step", "a", 2, x[:5].tobytes())[0] == 6
        assert struct["steps"]["paid_until_ns"] > 0
        peer.socket.close()


def test_each_shard_has_its_part_of_the_rate(models):
    with serving(models, max_steps_per_s=4, num_shards=2) as server:
        prices = [int(each.struct["steps"]["ns_per_step"]) for each in server.control.shards]
        assert prices == [500_000_000] * 2


def test_a_client_waits_out_a_rate_and_loses_nothing(models, x, expected):
    with serving(models, max_steps_per_s=200) as server:
        begun = time.monotonic()
        with Client(server.endpoints[0], timeout_s=60) as client:
            stream = client.stream("a", window=16)
            xs = np.tile(x, (5, 1))
            y = stream.steps(xs)
            assert y.shape == (320, expected.shape[1])
            assert (y[:64] == expected).all()
            rows = client.rows([f"r{k}" for k in range(40)])
            assert client.batch(rows, x[:40]).shape == (40, expected.shape[1])
        # 360 steps, of which a second's worth may come at once.
        assert time.monotonic() - begun >= (360 - 200 - 16) / 200
        assert server.control.stats()["num_refused_steps"] > 0


def test_a_client_that_may_not_wait_so_long_is_busy_at_once(models, x):
    with (
        serving(models, max_steps_per_s=1) as server,
        Client(server.endpoints[0], timeout_s=2.0) as client,
    ):
        stream = client.stream("a", window=64)
        stream.steps(x[:32])  # half a minute's worth
        for call in (lambda: stream.step(x[0]), lambda: client.step_many({"a": x[0]})):
            begun = time.monotonic()
            with pytest.raises(errors.Busy) as caught:
                call()
            assert caught.value.detail["limit"] == "steps"
            assert caught.value.detail["retry_after_ms"] > 1000
            assert time.monotonic() - begun < 2.0
        assert stream.last_seq == 32


def test_late_steps_raise_and_the_same_call_is_safe(server, x, expected):
    with Client(server.endpoints[0]) as client:
        stream = client.stream("within", window=16)
        stream.step(x[0], within_s=60)
        with pytest.raises(errors.Late, match="its number is still free"):
            stream.step(x[1], within_s=1e-9)
        assert stream.last_seq == 1
        assert (stream.steps(x[1:40], within_s=60) == expected[1:40]).all()
        rows = client.rows(["within"])
        assert (client.batch(rows, x[40:41], within_s=60) == expected[40:41]).all()
        y = client.step_many({"within": x[41]}, within_s=60)["within"]
        assert (y == expected[41]).all()


def test_asyncio_waits_and_is_late_too(server, x, expected):
    async def main():
        async with aio.Client(server.endpoints[0]) as client:
            stream = await client.stream("aio", window=16)
            assert (await stream.step(x[0], within_s=60) == expected[0]).all()
            assert (await stream.steps(x[1:40], within_s=60) == expected[1:40]).all()

    asyncio.run(asyncio.wait_for(main(), 60))
