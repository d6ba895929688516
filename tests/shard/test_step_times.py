"""Single steps are timed, of every kind, and nothing of it grows."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.virtual_memory import address_of, struct_address
from streamrnn_client.protocol import canonical_id
from streamrnn_client.protocol.identity import hash64
from streamrnn_server.shard.memory.step_times import (
    NUM_STEP_TIMES,
    StepTime,
    StepTimes,
    begin_gather,
    begin_kernel,
    begin_timing,
    end_encode,
    end_kernel,
    end_timing,
    is_timed,
    note_batch_of,
    note_reply,
)
from tests.support.models import random_model
from tests.support.peer import served

NUM_INPUTS = 3
MODEL = random_model(np.random.default_rng(3), [("lstm", 24)], NUM_INPUTS, 2)
X = np.random.default_rng(5).standard_normal((8, NUM_INPUTS)).astype(np.float32)
ORDER = ("received_ns", "decoded_ns", "committed_ns", "reply_ns", "encoded_ns", "sent_ns")
times_at = pointer_to(StepTimes)


@jit
def _one_in(num_streams: int, num_steps: int) -> int:
    number = 0
    for stream in range(num_streams):
        for seq in range(1, num_steps + 1):
            number += is_timed(stream * 7919 + 12345, seq)
    return number


@jit
def _pass(at: int, request: int, steps: int) -> int:
    times = times_at(at)
    number = begin_timing(times, request, request, 1, 5, -3)
    for _ in range(steps):
        begin_gather(times)
        begin_kernel(times)
        end_kernel(times)
        for _ in range(3):  # streams of one message, in one batch
            note_batch_of(times, number, request, 12, times.computed_ns + 7)
    return number


@jit
def _finish(at: int, number: int, request: int) -> None:
    times = times_at(at)
    note_reply(times, number, request)
    end_encode(times, number, request)
    end_timing(times, number, request, 1, 0, 1, 1)


@pytest.fixture
def ring():
    """A `StepTimes` and its records."""
    times, records = StepTimes.one(), np.zeros(NUM_STEP_TIMES, StepTime.dtype)
    times["records"] = address_of(records)
    return times, records


def test_one_step_in_a_thousand_is_timed_of_one_stream_and_of_many():
    for num_streams, num_steps in ((1, 10**6), (10**6, 1), (1000, 1000)):
        assert 850 < _one_in(num_streams, num_steps) < 1110  # 977 and 4 deviations


def test_the_ring_is_bounded_and_a_record_is_its_last_messages(ring):
    times, records = ring
    at = struct_address(times)
    slow = _pass(at, 64, 1)
    for k in range(3 * NUM_STEP_TIMES):
        _finish(at, _pass(at, 128 + 64 * k, 2), 128 + 64 * k)
    before = records.copy()
    assert times["num_under_way"] == 1
    _finish(at, slow, 64)  # another message has its record
    assert (records == before).all()
    assert times["num_under_way"] == 0
    assert times["number"] == 3 * NUM_STEP_TIMES + 1
    assert len(set(records["request"])) == NUM_STEP_TIMES
    assert (records["request"] > 128 + 64 * 2 * NUM_STEP_TIMES - 64).all()
    assert (records["num_batches"] == 2).all()
    assert (records["num_rows"] == 24).all()
    assert (records["unread_ns"] == 0).all()
    assert (records["commit_ns"] == 14).all()


def timed_streams(number, seq=1):
    """Return ids of streams whose step of that number is timed."""
    found = []
    for k in itertools.count():
        name = f"stream {k}"
        if is_timed(_low(name), seq):
            found.append(name)
            if len(found) == number:
                return found


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_steps_of_all_kinds_are_timed_with_what_they_are(tmp_path, durability):
    single, chunk, *batch = timed_streams(5)
    with served({"m": MODEL}, tmp_path, durability=durability) as peer:
        began_ns = time.monotonic_ns()
        peer.ok("open", [single, chunk, *batch], None, 16)
        sent = {"step": peer.send("step", single, 1, X[0].tobytes())}
        peer.receive()
        sent["again"] = peer.send("step", single, 1, X[0].tobytes())
        peer.receive()
        sent["chunk"] = peer.send("step", chunk, 1, X[:5].tobytes())
        peer.receive()
        sent["batch"] = peer.send("batch", batch, [1, 1, 1], X[:3].tobytes())
        peer.receive()
        peer.ok("reset", chunk, 6)
        # Its number is wrong: the step with this number is the next but one.
        seq = next(seq for seq in itertools.count(9) if is_timed(_low(chunk), seq))
        sent["refused"] = peer.send("step", chunk, seq, X[0].tobytes())
        assert peer.receive()[1] is not None
        told = peer.ok("stats", "step_times")
        assert peer.error("stats", "other")[0] == "bad_params"
    assert told["durability"] == durability
    columns = told["step_times"]
    stamps = np.array([columns[name] for name in ORDER])
    assert (np.diff(stamps, axis=0) >= 0).all()
    assert ((began_ns < stamps) & (stamps < time.monotonic_ns())).all()
    computed_ns = sum(np.array(columns[f"{name}_ns"]) for name in ("gather", "kernel", "commit"))
    assert (computed_ns <= stamps[2] - stamps[1]).all()
    names = ("num_steps", "num_items", "num_batches", "num_rows", "seq")
    found = {m: [columns[n][k] for n in names] for k, m in enumerate(columns["msgid"])}
    assert [found.pop(sent[kind]) for kind in ("step", "again", "chunk", "batch", "refused")] == [
        [1, 1, 1, 1, 1],
        [1, 1, 0, 0, 1],
        [5, 1, 5, 5, 1],
        [1, 3, 1, 3, 1],
        [1, 1, 0, 0, seq],
    ]
    assert not found
    codes = dict(zip(columns["msgid"], columns["code"], strict=True))
    assert {m for m, code in codes.items() if code} == {sent["refused"]}
    if durability == "always":  # nobody learns of a step before it is on disk
        waited_ns = (stamps[3] - stamps[2])[columns["msgid"].index(sent["step"])]
        assert waited_ns > 0


def _low(stream):
    return hash64(canonical_id(stream)) & 0xFFFF_FFFF
