"""Outputs that a client says it has are dropped, and nothing else is."""

from __future__ import annotations

import functools
import itertools
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn import Engine
from streamrnn.state.record import decode_record, encode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client.protocol import canonical_id
from tests.support.models import random_model
from tests.support.peer import Peer, served, step

NUM_INPUTS, NUM_OUTPUTS = 3, 2
MODEL = random_model(np.random.default_rng(3), [("lstm", 24)], NUM_INPUTS, NUM_OUTPUTS)
X = np.random.default_rng(5).standard_normal((60, NUM_INPUTS)).astype(np.float32)
names = (f"stream {k}" for k in itertools.count())


@functools.cache
def outputs():
    """Where it is first asked for: nothing may be compiled while tests are collected."""
    return Engine(MODEL).steps("s", X)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    with served({"m": MODEL}, tmp_path_factory.mktemp("state")) as peer:
        yield peer


def apply(peer, stream, seq, received=None, num_steps=1):
    """Apply steps, or ask for them again; their outputs must be those."""
    x, more = X[seq - 1 : seq - 1 + num_steps], [] if received is None else [received]
    y = peer.ok("step", stream, seq, x.tobytes(), *more)[2]
    expected = outputs()[seq - 1 : seq - 1 + num_steps]
    np.testing.assert_array_equal(np.frombuffer(y, np.float32).reshape(num_steps, -1), expected)


def stale(peer, stream, seq, num_steps=1):
    """Return the oldest output that is told, where a step's is gone."""
    x = X[seq - 1 : seq - 1 + num_steps]
    code, detail = peer.error("step", stream, seq, x.tobytes())
    assert (code, detail["got"]) == ("stale", seq)
    return detail["oldest"]


def oldest(peer, stream):
    return peer.ok("open", stream, None, 0, True)[3]


def test_outputs_that_were_received_are_gone_and_the_others_are_not(peer):
    name = next(names)
    assert peer.ok("open", name, None, 8, True) == [0, 0, 8, 1]
    for seq in range(1, 13):
        apply(peer, name, seq)
    assert oldest(peer, name) == stale(peer, name, 4) == 5
    apply(peer, name, 13, received=10)
    assert oldest(peer, name) == 11
    for seq in range(6, 11):
        assert stale(peer, name, seq) == 11
    assert stale(peer, name, 9, num_steps=6) == 11  # though the last of them would be new
    apply(peer, name, 11, num_steps=4)
    assert peer.ok("open", name, None, 8) == [14, 0, 8]


def test_another_input_is_a_conflict_as_long_as_its_digest_is_kept(peer):
    name = next(names)
    peer.ok("open", name, None, 8)
    for seq in range(1, 11):
        apply(peer, name, seq, received=seq - 1)
    for seq in range(3, 11):
        code, detail = peer.error("step", name, seq, X[30].tobytes())
        assert (code, detail["seq"]) == ("conflict", seq)
    assert peer.error("step", name, 2, X[30].tobytes())[0] == "stale"


def test_it_never_falls_and_never_exceeds_the_last_step(peer):
    name = next(names)
    peer.ok("open", name, None, 8)
    apply(peer, name, 1, received=2**63 - 1)
    apply(peer, name, 1)  # before it there was no step
    apply(peer, name, 2, received=1)
    apply(peer, name, 3, received=0)
    assert oldest(peer, name) == 2
    apply(peer, name, 3, received=2**62)  # who repeats a step tells nothing else by that
    apply(peer, name, 3, received=3)
    assert oldest(peer, name) == 2
    apply(peer, name, 4, received=3)
    assert oldest(peer, name) == stale(peer, name, 3) == 4


def test_a_request_that_is_refused_tells_nothing(peer):
    name = next(names)
    peer.ok("open", name, None, 8)
    for seq in range(1, 6):
        apply(peer, name, seq)
    assert peer.error("step", name, 7, X[6].tobytes(), 5)[0] == "gap"
    assert peer.error("step", name, 5, X[6].tobytes(), 5)[0] == "conflict"
    assert peer.error("step", name, 6, X[5].tobytes()[:-1], 5)[0] == "wrong_length"
    bad = np.full(NUM_INPUTS, np.inf, np.float32)
    assert peer.error("step", name, 6, bad.tobytes(), 5)[0] == "bad_value"
    assert peer.error("reset", name, 7, 5)[0] == "gap"
    apply(peer, name, 1)


def test_a_reset_tells_it_too_and_can_come_again(peer):
    name = next(names)
    peer.ok("open", name, None, 8)
    for seq in range(1, 6):
        apply(peer, name, seq)
    assert peer.ok("reset", name, 6, 4) == [6, 0]
    assert stale(peer, name, 4) == 5
    apply(peer, name, 5)
    assert peer.ok("reset", name, 6, 6) == [6, 0]
    assert peer.ok("reset", name, 6) == [6, 0]  # there is no output of it to be kept
    assert oldest(peer, name) == 5


@pytest.mark.parametrize("columns", [True, False])
def test_a_batch_tells_it_for_each_stream(peer, columns):
    a, b, c = (next(names) for _ in range(3))
    peer.ok("open", [a, b, c], None, 8)
    for seq in range(1, 5):
        x = np.stack([X[seq - 1]] * 3).tobytes()
        received = [0, 2, 3] if seq == 4 else None
        peer.ok("batch", [a, b, c], [seq] * 3, x, columns, received)
    assert [oldest(peer, each) for each in (a, b, c)] == [1, 3, 4]
    opened = peer.ok("open", [a, b, c], None, 8, True)
    assert opened == [[None, [4, 0, 8, each]] for each in (1, 3, 4)]


def test_many_streams_of_which_one_cannot_be_opened_are_told_as_well(peer):
    name, other = next(names), next(names)
    peer.ok("open", name, None, 8)
    apply(peer, name, 1)
    record = decode_record(peer.ok("export", name))
    damaged = bytearray(encode_record(record))
    damaged[100] ^= 1
    assert peer.error("open", other, None, 8, bytes(damaged))[0] == "damaged"
    results = peer.ok("open", [name, "x"], "m", 8, True)
    assert [result for _, result in results] == [[1, 0, 8, 1], [0, 0, 8, 1]]


def test_with_window_1_the_last_output_follows_from_the_state(peer):
    name = next(names)
    assert peer.ok("open", name, None, 1, True) == [0, 0, 1, 1]
    for seq in range(1, 4):
        apply(peer, name, seq, received=seq)
        apply(peer, name, seq, received=seq)
        assert oldest(peer, name) == seq


def test_unnumbered_steps_have_nothing_to_be_received(peer):
    name = next(names)
    peer.ok("open", name, None, 8)
    for k in range(3):
        y = peer.ok("step", name, 0, X[k].tobytes(), 7)[2]
        np.testing.assert_array_equal(np.frombuffer(y, np.float32), outputs()[k])
    assert oldest(peer, name) == 1


def test_what_is_written_and_moved_is_what_is_kept(tmp_path):
    with served({"m": MODEL}, tmp_path / "state") as peer:
        peer.ok("open", "a", None, 8)
        for seq in range(1, 13):
            apply(peer, "a", seq, received=10 if seq == 12 else None)
        record = decode_record(peer.ok("export", "a"))
        assert (len(record.digests), record.outputs.shape) == (8, (2, 4 * NUM_OUTPUTS))
        np.testing.assert_array_equal(record.outputs.view(np.float32), outputs()[10:12])
        assert peer.ok("import", "b", encode_record(record), None)[0] == 12
        assert peer.ok("import", "b", encode_record(record), None)[0] == 12
        assert peer.ok("sync", None) is True
    store = StateStore(tmp_path / "state", read_only=True)
    for key in (canonical_id("a"), canonical_id("b")):
        data = store.get(STREAMS, key)
        assert data is not None
        written = decode_record(data)
        assert (written.outputs == record.outputs).all()
        assert (written.digests == record.digests).all()
    store.close()
    with served({"m": MODEL}, tmp_path / "state") as peer:
        for name in ("a", "b"):
            assert peer.ok("open", name, None, 8, True) == [12, 12, 8, 11]
            assert stale(peer, name, 10) == 11
            assert peer.error("step", name, 6, X[30].tobytes())[0] == "conflict"
            apply(peer, name, 11, num_steps=3)


def test_what_is_replayed_from_the_journal_is_kept_until_it_is_received(tmp_path):
    options = {"durability": "always"}
    with served({"m": MODEL}, tmp_path / "state", **options) as peer:
        peer.ok("open", ["a", "b"], None, 8)
        for seq in range(1, 13):
            apply(peer, "a", seq, received=seq - 1)
        assert peer.ok("sync", None) is True
        for seq in range(13, 15):
            apply(peer, "a", seq, received=seq - 1)
        for seq in range(1, 13):
            apply(peer, "b", seq, received=seq - 1)
        shutil.copytree(tmp_path / "state", tmp_path / "crash")
    with served({"m": MODEL}, tmp_path / "crash", **options) as peer:
        assert peer.ok("open", "a", None, 8, True) == [14, 14, 8, 12]
        assert peer.ok("open", "b", None, 8, True) == [12, 12, 8, 5]
        apply(peer, "a", 12, num_steps=3)
        apply(peer, "b", 5, num_steps=8)


@settings(max_examples=150, deadline=None)
@given(
    window_log2=st.integers(0, 4),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["step", "step", "step", "chunk", "reset", "again", "move"]),
            st.integers(0, 20),  # how far back
            st.none() | st.integers(0, 60),  # received
        ),
        max_size=25,
    ),
)
def test_what_is_kept_is_what_a_plain_list_says(peer, window_log2, changes):
    window, name, engine = 1 << window_log2, next(names), Engine(MODEL)
    peer.ok("open", name, None, window)
    engine.rows(["s"])
    done: list[Any] = [(None, None)]  # inputs and outputs by number
    received = 0

    def note(told, seq):
        nonlocal received
        if told is not None and told < seq:  # else it is said to be repeated
            received = max(received, told)

    def first():
        if window == 1:
            return max(len(done) - 1, 1)
        return max(len(done) - window, received + 1, 1)

    for what, number, told in changes:
        more = [] if told is None else [told]
        last = len(done) - 1
        if what in ("step", "chunk"):
            num_steps = 1 if what == "step" else min(window, 3)
            x = X[number : number + num_steps]
            y = peer.ok("step", name, last + 1, x.tobytes(), *more)[2]
            note(told, last + 1)
            done += zip(x, np.frombuffer(y, np.float32).reshape(num_steps, -1), strict=True)
            np.testing.assert_array_equal([each for _, each in done[-num_steps:]],
                                          engine.steps("s", x))  # fmt: skip
        elif what == "reset":
            peer.ok("reset", name, last + 1, *more)
            done.append((None, None))
            note(told, last + 1)
            engine.reset("s")
        elif what == "move":
            record = peer.ok("export", name)
            peer.ok("close", name)
            peer.ok("import", name, record, None)
            received = max(received, first() - 1) if window > 1 else received
        elif last - number > max(last - window, 0) and done[last - number][0] is not None:
            seq = last - number
            x, y = done[seq]
            error, result = peer.call("step", name, seq, x.tobytes(), *more)
            if seq < first():
                assert (error[0], error[2]["oldest"]) == ("stale", first())
            else:
                np.testing.assert_array_equal(np.frombuffer(result[2], np.float32), y)
                note(told, seq)
        if last := len(done) - 1:
            assert oldest(peer, name) == first()
    peer.ok("close", name)


def test_a_peer_of_before_is_answered_as_before(peer):
    name = next(names)
    assert isinstance(peer, Peer)
    assert peer.ok("open", name, None, 8) == [0, 0, 8]
    assert step(peer, name, 1, X[0])[:2] == (1, 0)
    assert peer.ok("open", [name], None, 8) == [[None, [1, 0, 8]]]
