"""Replay of journals that a test has made: what is applied, held back, refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import StoreError
from streamrnn.kernels.cpu.program import Program
from streamrnn.state.journal import (
    ChangeKind,
    Entry,
    SegmentHead,
    SegmentWriter,
    encode_entry,
    segment_paths,
)
from streamrnn.state.record import NUMBERED, decode_record, encode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client.protocol import ErrorCode, canonical_id
from streamrnn_server.event_log import EventLog
from streamrnn_server.storage import replay
from streamrnn_server.storage.record_lookup import ServedModel
from streamrnn_server.storage.replay import SET_ASIDE, UNDER_WAY, Replay, all_arithmetics
from tests.support.models import random_model

NUM_INPUTS, WINDOW_LOG2 = 3, 2
MODEL = random_model(np.random.default_rng(3), [("gru", 8)], NUM_INPUTS, 2)
X = np.random.default_rng(5).standard_normal((40, NUM_INPUTS)).astype(np.float32)
A = canonical_id("a")


# Where they are first asked for: nothing may be compiled while tests are collected.
@functools.cache
def programs():
    return {"m": Program(MODEL)}


def own_arithmetic():
    return programs()["m"].arithmetic


def served_now():
    row_bytes, y_bytes = programs()["m"].row_bytes, 4 * MODEL.spec.output_size
    sizes = row_bytes, y_bytes, own_arithmetic(), 4 * NUM_INPUTS
    return [ServedModel("m", MODEL.fingerprint, *sizes)]


def own_head():
    return SegmentHead(1, 0, 1, own_arithmetic(), (("m", MODEL.fingerprint),))


class Journal:
    """A state directory with a journal that a test writes."""

    def __init__(self, directory):
        self.directory = directory / "journal"
        self.directory.mkdir()
        self.store = StateStore(directory, max_bytes=2**24)
        self.log = io.StringIO()
        self.sequence = 0

    def write(self, *entries, head=None):
        segment = SegmentWriter(self.directory, head or own_head())
        segment.append(self.sequence, len(entries), b"".join(map(encode_entry, entries)))
        segment.close()
        self.sequence += 1
        return segment.path

    def replay(self, served=None, with_programs=None, arithmetic=None):
        arithmetic = arithmetic or own_arithmetic()
        served = [model._replace(arithmetic=arithmetic) for model in served or served_now()]
        args = (self.store, self.directory, served, with_programs or programs())
        return Replay(*args, EventLog(stream=self.log)).run()

    def record(self, stream=A):
        data = self.store.get(STREAMS, stream)
        return None if data is None else decode_record(data)

    @property
    def segments(self):
        return segment_paths(self.directory)


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path)
    yield made
    made.store.close()


def opened(incarnation=1, stream=A):
    return Entry(ChangeKind.OPEN, 0, stream, incarnation, 1, WINDOW_LOG2, b"")


def stepped(first, last, incarnation=1, stream=A, offset=0):
    """Return the entries of steps; step k is the change k + 1."""
    return [
        Entry(ChangeKind.STEP, 0, stream, incarnation, k + 1, k, X[k - 1 + offset].tobytes())
        for k in range(first, last + 1)
    ]


def row_after(x):
    engine = Engine(MODEL)
    engine.steps("s", x)
    return decode_record(engine.export_state("s")).row


def test_entries_above_the_record_are_applied(journal):
    journal.write(opened(), *stepped(1, 6))
    assert journal.replay() == {}
    record = journal.record()
    assert (record.last_seq, record.numbering, record.window) == (6, NUMBERED, 4)
    assert (record.incarnation, record.num_changes) == (1, 7)
    assert record.row == row_after(X[:6])
    outputs = Engine(MODEL).steps("s", X[:6])
    assert record.outputs.tobytes() == outputs[2:].tobytes()
    assert journal.segments == []
    journal.write(*stepped(5, 9))  # some of them twice
    journal.replay()
    assert journal.record().row == row_after(X[:9])
    assert journal.record().num_changes == 10


def test_inputs_are_kept_again(journal):
    served = [model._replace(max_kept=3) for model in served_now()]
    journal.write(opened(), *stepped(1, 2))
    journal.replay(served)
    assert journal.record().inputs == X[:2].tobytes()
    journal.write(*stepped(3, 6))
    journal.replay(served)
    assert journal.record().inputs == X[3:6].tobytes()
    assert journal.record().row == row_after(X[:6])
    journal.write(Entry(ChangeKind.RESET, 0, A, 1, 8, 7, b""), *stepped(8, 8))
    journal.replay(served)
    assert journal.record().inputs == X[7:8].tobytes()
    journal.write(*stepped(9, 10))
    journal.replay()
    assert journal.record().inputs == b""


@pytest.mark.parametrize(("num_left", "num_more"), [(0, 1), (1, 1), (1, 3), (4, 1)])
def test_outputs_that_a_record_has_no_more_do_not_come_back(journal, num_left, num_more):
    journal.write(opened(), *stepped(1, 6))
    journal.replay()
    record = journal.record()
    shorter = dataclasses.replace(record, outputs=record.outputs[4 - num_left :])
    journal.store.commit([(STREAMS, A, encode_record(shorter))], 0)
    journal.write(*stepped(7, 6 + num_more))
    journal.replay()
    kept = min(num_left + num_more, 4)
    expected = Engine(MODEL).steps("s", X[: 6 + num_more])[-kept:]
    assert journal.record().outputs.tobytes() == expected.tobytes()
    assert len(journal.record().digests) == 4


def test_a_segment_that_a_crash_left_without_a_head_goes_too(journal):
    paths = [journal.directory / own_head()._replace(number=k).file_name for k in range(2)]
    paths[0].write_bytes(b"")
    journal.replay()
    assert journal.segments == []
    paths[0].write_bytes(b"SRNJ")
    kept = journal.write(opened(), *stepped(1, 3), head=own_head()._replace(arithmetic="abacus"))
    journal.replay()
    assert journal.segments == [kept]


def test_a_group_that_is_there_twice_is_applied_once(journal):
    entries = [opened(), *stepped(1, 3)]
    journal.write(*entries)
    journal.sequence = 0
    journal.write(*entries, *stepped(4, 5), head=own_head()._replace(number=2))
    journal.replay()
    assert journal.record().row == row_after(X[:5])


def test_the_streams_before_one_of_the_same_id_do_not_touch_its_record(journal):
    journal.write(opened(2), *stepped(1, 2, 2, offset=20))
    journal.replay()
    before = journal.record()
    closed = Entry(ChangeKind.CLOSE, 0, A, 1, 11, 0, b"")
    journal.write(opened(), *stepped(1, 9), closed, opened(2), *stepped(1, 3, 2, offset=20))
    journal.replay()
    assert before.row == row_after(X[20:22])
    assert journal.record().row == row_after(X[20:23])
    assert journal.record().incarnation == 2


def test_a_closed_stream_is_deleted_and_one_being_closed_does_not_come_back(journal):
    b = canonical_id("b")
    journal.write(opened(), *stepped(1, 2), opened(stream=b), *stepped(1, 2, stream=b))
    journal.replay()
    journal.store.commit([(STREAMS, b, None)], 0)
    journal.write(*stepped(3, 3), Entry(ChangeKind.CLOSE, 0, A, 1, 5, 0, b""))
    journal.write(*stepped(3, 4, stream=b), head=own_head()._replace(number=2))
    assert journal.replay() == {}
    assert journal.record(A) is None
    assert journal.record(b) is None
    assert journal.segments == []


def test_a_change_that_is_missing_is_damage(journal):
    journal.write(opened(), *stepped(1, 2))
    journal.replay()
    journal.write(*stepped(4, 5))
    with pytest.raises(StoreError, match="change 5 follows on 3"):
        journal.replay()
    assert journal.record().last_seq == 2
    assert len(journal.segments) == 1


@pytest.mark.parametrize(
    "entries",
    [
        [opened()._replace(seq=9)],
        [opened(), *stepped(1, 1), stepped(2, 2)[0]._replace(seq=3)],
        [opened(), stepped(1, 1)[0]._replace(data=bytes(4))],
        [opened(), stepped(1, 1)[0]._replace(data=np.full(3, np.inf, np.float32).tobytes())],
        [opened(), stepped(1, 1)[0]._replace(seq=2**62 + 1)],
        [opened(), *stepped(1, 1), stepped(2, 2)[0]._replace(seq=0)],
        [opened(), stepped(1, 1)[0]._replace(kind=ChangeKind.OPEN)],
    ],
)
def test_entries_that_no_server_makes_are_damage(journal, entries):
    journal.write(*entries)
    with pytest.raises(StoreError, match="journal is damaged"):
        journal.replay()
    assert journal.record() is None
    assert len(journal.segments) == 1


def test_a_number_that_was_refused_for_nan_is_skipped_by_a_reset(journal):
    reset = Entry(ChangeKind.RESET, 0, A, 1, 4, 4, b"")
    after = [each._replace(num_changes=each.num_changes - 1) for each in stepped(5, 6)]
    journal.write(opened(), *stepped(1, 2), reset, *after)
    journal.replay()
    assert journal.record().last_seq == 6
    assert journal.record().row == row_after(X[4:6])


@pytest.mark.parametrize("is_opened_again", [False, True])
def test_a_stream_that_was_closed_does_not_come_back_from_a_segment_that_is_kept(
    journal, is_opened_again
):
    b, c = canonical_id("b"), canonical_id("c")
    head = own_head()._replace(models=(*own_head().models, ("old", "ab" * 32)))
    others = [each._replace(model=1) for each in (opened(stream=b), *stepped(1, 2, stream=b))]
    journal.write(opened(), others[0], *stepped(1, 3), head=head)
    journal.write(*others[1:], *stepped(4, 5), head=head._replace(number=2))
    journal.write(opened(stream=c), head=head._replace(number=3))
    assert journal.replay().keys() == {b}
    assert journal.record().last_seq == 5
    records = [(STREAMS, key, None) for key in (A, c)]
    journal.store.commit(records, 0)  # closed, and checkpoints have dropped what was told of it
    if is_opened_again:
        journal.write(opened(2), *stepped(1, 1, 2), head=own_head()._replace(epoch=2))
    assert journal.replay().keys() == {b}
    assert (journal.record() is not None) == is_opened_again
    assert journal.record(c) is None
    served = [*served_now(), served_now()[0]._replace(name="old", fingerprint="ab" * 32)]
    two = {**programs(), "old": programs()["m"]}
    assert journal.replay(served=served, with_programs=two) == {}
    assert journal.record(b).last_seq == 2
    assert (journal.record() is not None) == is_opened_again
    assert list(journal.directory.iterdir()) == []


def test_a_crash_as_a_segment_is_written_anew_leaves_it_as_it_was(journal, monkeypatch):
    head = own_head()._replace(models=(*own_head().models, ("old", "ab" * 32)))
    b = opened(stream=canonical_id("b"))._replace(model=1)
    path = journal.write(opened(), b, *stepped(1, 3), head=head)
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "sync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            journal.replay()
    assert path.read_bytes() == content
    assert len(list(journal.directory.iterdir())) == 3  # and whose replay was under way
    assert journal.replay().keys() == {b.stream}
    assert list(journal.directory.iterdir()) == [path]
    assert len(path.read_bytes()) < len(content)


def test_a_segment_of_models_that_are_computed_differently_is_replayed(journal):
    both = all_arithmetics([own_arithmetic(), f"{own_arithmetic()}-layers1", own_arithmetic()])
    assert both == f"{own_arithmetic()};{own_arithmetic()}-layers1"
    journal.write(opened(), *stepped(1, 3), head=own_head()._replace(arithmetic=both))
    assert journal.replay() == {}
    assert (journal.record().last_seq, journal.record().arithmetic) == (3, own_arithmetic())


def test_other_arithmetic_and_other_models_are_held_and_drained_later(journal):
    b = canonical_id("b")
    journal.write(opened(), *stepped(1, 3), head=own_head()._replace(arithmetic="abacus"))
    other = own_head()._replace(shard=1, models=(("old", "ab" * 32), *own_head().models))
    journal.sequence = 0
    journal.write(
        opened(stream=b),
        *(each._replace(model=1) for each in (opened(stream=A + b"2"),)),
        head=other,
    )
    held = journal.replay()
    assert {key: error.code for key, error in held.items()} == {
        A: ErrorCode.MISMATCH,
        b: ErrorCode.MISMATCH,
    }
    assert held[A].detail["stored_arithmetic"] == "abacus"
    assert held[b].detail["stored_model"] == "old"
    assert journal.record(A) is None
    assert journal.record(A + b"2") is not None
    assert len(journal.segments) == 2
    assert "to drain it" in journal.log.getvalue()
    assert journal.replay(arithmetic="abacus").keys() == {b}
    assert journal.record().last_seq == 3
    assert len(journal.segments) == 1


def test_a_closed_stream_of_a_model_that_is_served_no_more_is_not_held(journal):
    b = canonical_id("b")
    journal.write(opened(), *stepped(1, 2), opened(stream=b), *stepped(1, 2, stream=b))
    journal.replay()
    journal.write(
        *(Entry(ChangeKind.CLOSE, 0, A, 1, 4, 0, b""), *stepped(3, 3, stream=b)),
        *(opened(stream=A + b"2"), Entry(ChangeKind.CLOSE, 0, A + b"2", 1, 2, 0, b"")),
        head=own_head()._replace(models=(("old", "ab" * 32),)),
    )
    for _ in range(2):
        assert journal.replay().keys() == {b}
        assert journal.record(A) is None
        assert journal.record(b).last_seq == 2


@pytest.mark.parametrize("is_opened_again", [False, True])
def test_a_close_reaches_steps_of_a_model_that_is_served_no_more_in_the_segment_before(
    journal, is_opened_again
):
    b, c = canonical_id("b"), canonical_id("c")
    old = own_head()._replace(models=(("old", "ab" * 32), *own_head().models))
    journal.write(
        *(opened(), *stepped(1, 2), opened(stream=b), *stepped(1, 2, stream=b)),
        *(opened(stream=c), *stepped(1, 2, stream=c)),
        head=old,
    )
    # A is closed as it is, c when it was swapped: its record was of the other version then.
    new = [each._replace(model=1) for each in stepped(4, 5, stream=c)]
    close = Entry(ChangeKind.CLOSE, 0, A, 1, 4, 0, b"")
    again = [each._replace(model=1) for each in (opened(2), *stepped(1, 1, 2))]
    journal.write(
        *(close, *stepped(3, 3, stream=b), *new, close._replace(stream=c, num_changes=7, model=1)),
        *(again if is_opened_again else ()),
        head=old._replace(number=2),
    )
    for _ in range(2):
        assert journal.replay().keys() == {b}
        assert (journal.record() is not None) == is_opened_again
        assert journal.record(c) is None
    served = [*served_now(), served_now()[0]._replace(name="old", fingerprint="ab" * 32)]
    assert journal.replay(served=served, with_programs={**programs(), "old": programs()["m"]}) == {}
    assert journal.record(b).last_seq == 3
    assert (journal.record() is not None) == is_opened_again
    assert journal.record(c) is None
    assert journal.segments == []


def test_nothing_is_left_of_a_swapped_stream_that_was_being_closed(journal):
    """What it was before the swap is in the journal, and its record is deleted."""
    journal.write(opened(), *stepped(1, 2))
    journal.write(*stepped(4, 5), head=own_head()._replace(number=2))  # the swap was change 4
    assert journal.replay() == {}
    assert journal.record() is None
    assert journal.segments == []


def test_a_record_of_another_incarnation_is_not_gone_on_with(journal):
    journal.write(opened(), *stepped(1, 2))
    journal.replay()
    journal.write(*stepped(3, 4, incarnation=2))
    with pytest.raises(StoreError, match="change 4 follows on 3"):
        journal.replay()
    assert journal.record().last_seq == 2
    assert len(journal.segments) == 1


def test_a_damaged_record_holds_its_stream_back(journal):
    journal.store.commit([(STREAMS, A, b"no record")], 0)
    journal.write(opened(), *stepped(1, 3))
    assert journal.replay()[A].code == ErrorCode.DAMAGED
    assert journal.store.get(STREAMS, A) == b"no record"
    assert len(journal.segments) == 1


def test_a_record_of_another_model_is_not_stepped(journal):
    journal.write(opened(), *stepped(1, 3))
    journal.replay()
    record = journal.record()
    other = record.__class__(**{**vars(record), "fingerprint": "ab" * 32})
    journal.store.commit([(STREAMS, A, encode_record(other))], 0)
    journal.write(*stepped(4, 5))
    assert journal.replay()[A].code == ErrorCode.DAMAGED
    assert journal.record().last_seq == 3


class Killed(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def killing(monkeypatch, stream):
    """Let every replay end when it would write a stream."""
    commit = Replay._commit

    def kill(self, model, part):
        if any(each.stream == stream for each in part):
            raise Killed
        commit(self, model, part)

    with monkeypatch.context() as patch:
        patch.setattr(Replay, "_commit", kill)
        yield


def test_a_stream_that_kills_the_start_twice_is_set_aside_and_named(journal, monkeypatch):
    streams = [canonical_id(f"s{k}") for k in range(5)]
    for k, stream in enumerate(streams):
        journal.write(
            opened(stream=stream), *stepped(1, 4, stream=stream), head=own_head()._replace(number=k)
        )
    with killing(monkeypatch, streams[2]):
        for _ in range(2):
            with pytest.raises(Killed):
                journal.replay()
        held = journal.replay()
    assert list(held) == [streams[2]]
    assert "set aside" in held[streams[2]].detail["reason"]
    assert "s2" in journal.log.getvalue()
    assert [journal.record(each) is not None for each in streams] == [True, True, False, True, True]
    assert journal.segments[0].name == own_head()._replace(number=2).file_name
    assert list(journal.replay()) == [streams[2]]  # and stays so
    (journal.directory / SET_ASIDE).unlink()
    assert journal.replay() == {}
    assert journal.record(streams[2]).row == row_after(X[:4])
    assert journal.segments == []


def test_a_disk_that_is_full_at_every_start_sets_nobody_aside(journal, monkeypatch):
    journal.write(opened(), *stepped(1, 4))
    with monkeypatch.context() as patch:

        def fail(*_):
            raise StoreError("No space left on device")

        patch.setattr(journal.store, "commit", fail)
        for _ in range(4):
            with pytest.raises(StoreError, match="No space left"):
                journal.replay()
    assert journal.replay() == {}
    assert journal.record().last_seq == 4


def test_of_one_that_is_set_aside_nothing_is_held_when_its_record_has_all(journal):
    journal.write(opened(), *stepped(1, 4))
    journal.replay()
    journal.write(*stepped(3, 4))
    (journal.directory / SET_ASIDE).write_text(json.dumps({"streams": [A.hex()]}))
    assert journal.replay() == {}
    assert journal.segments == []
    assert not (journal.directory / SET_ASIDE).exists()


def test_of_many_that_were_under_way_the_one_that_kills_is_found(journal, monkeypatch):
    streams = [canonical_id(f"s{k}") for k in range(5)]
    entries = [e for s in streams for e in (opened(stream=s), *stepped(1, 4, stream=s))]
    journal.write(*entries)
    with killing(monkeypatch, streams[2]):
        for _ in range(2):
            with pytest.raises(Killed):
                journal.replay()
            assert json.loads((journal.directory / UNDER_WAY).read_text())["streams"]
        assert list(journal.replay()) == [streams[2]]
    assert journal.record(streams[4]) is not None


def test_memory_is_bounded_by_replaying_some_streams_at_a_time(journal, monkeypatch):
    monkeypatch.setattr(replay, "_MAX_BYTES", 3000)
    streams = [canonical_id(f"s{k}") for k in range(30)]
    entries = [e for s in streams for e in (opened(stream=s), *stepped(1, 2, stream=s))]
    journal.write(*entries)
    sizes = []
    commit = Replay._commit

    def commit_and_note(self, model, part):
        sizes.append(len(part))
        commit(self, model, part)

    monkeypatch.setattr(Replay, "_commit", commit_and_note)
    journal.replay()
    assert sum(sizes) == 30
    assert 1 < max(sizes) < 30
    assert all(journal.record(each).row == row_after(X[:2]) for each in streams)


def test_whose_a_stream_is_comes_from_the_journal(journal):
    owner = Entry(ChangeKind.OWNER, 0, A, 1, 2, 0, b"bob")
    journal.write(opened()._replace(data=b"alice"))
    journal.replay()
    assert journal.record().owner == "alice"
    journal.write(owner)
    journal.replay()
    assert journal.record().owner == "bob"
