"""Streams being replayed: many of one model step together, each through its own entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import StoreError
from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import check_input, step_rows
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, int64_array, load_i64, store_i64
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.virtual_memory import address_of, struct_address
from streamrnn.state.journal import ChangeKind, Entry, EntryHead
from streamrnn.state.journal_table import EntryTable, data_of, entry_at, entry_head_at
from streamrnn.state.record import NUMBERED, UNNUMBERED, StreamRecord
from streamrnn.state.verify import id_text
from streamrnn_client.protocol import MAX_SEQ, MAX_WINDOW
from streamrnn_server.shard.memory.digest import REFUSED_DIGEST, RESET_DIGEST, digest_of
from streamrnn_server.shard.memory.kept_inputs import (
    KeptInputs,
    clear_inputs,
    copy_inputs,
    keep_input,
    kept_bytes,
    num_inputs,
    take_inputs,
)

__all__ = ["Replayed", "ReplayedStream", "apply_entries"]


@dataclass
class ReplayedStream:
    """A stream, and what is to be done to it.

    Attributes
    ----------
    table : EntryTable
        Where its entries are.
    k : int
        Its index there.
    record : StreamRecord or None
        What it begins with; None where the first entry opens it.
    num_entries : int
        What its record lacks: so many, from the first on.
    incarnation : int
        Of these entries.
    window : int
    model : int
        Index among those served.
    """

    table: EntryTable
    k: int
    record: StreamRecord | None
    num_entries: int = 0
    incarnation: int = 0
    window: int = 1
    model: int = 0

    @property
    def stream(self) -> bytes:
        """The canonical id."""
        return self.table.streams[self.k]

    @property
    def address(self) -> int:
        """Where the addresses of its entries are."""
        return self.table.address + 8 * self.table.bounds[self.k]

    def entry(self, k: int) -> Entry:
        """Return the k-th of its entries."""
        return entry_at(self.table.places[self.table.bounds[self.k] + k])

    def find_window(self) -> int:
        """Return its window; raises StoreError if it can have none such."""
        if self.record is not None:
            return self.record.window
        opened = self.entry(0)
        if opened.kind != ChangeKind.OPEN or 1 << min(opened.seq, 62) > MAX_WINDOW:
            raise self.damage(f"it begins with {opened!r}")
        return 1 << opened.seq

    def damage(self, words: str) -> StoreError:
        """Return the error that a journal which says this of it deserves."""
        where = f"{self.table.segment.path}: stream {id_text(self.stream)!r}"
        return StoreError(f"the journal is damaged: {where}: {words}")


class _Running(Struct):
    """A stream whose entries are applied: addresses, and its numbers so far."""

    row: I64
    digests: I64
    outputs: I64
    window: I64
    next: I64  # where the address of the entry is that is to be applied next
    end: I64
    num_changes: I64
    numbering: I64
    last_seq: I64
    owner: I64  # the entry that says whose it is; 0: the record does
    is_open: I64


class _Work(Struct):
    """What streams of one model have in common."""

    plan: I64
    initial_row: I64
    state_bytes: I64
    max_kept: I64
    x_bytes: I64
    y_bytes: I64
    spare: I64  # room for outputs that are not kept
    rows: I64  # room for addresses, as many as there are steps at once
    xs: I64
    ys: I64


class _Ring(NamedTuple):
    """A stream's places among digests and outputs."""

    first: int
    window: int

    def places(self, last_seq: int, num: int) -> NDArray[np.int64]:
        """Return those of the last steps, the oldest first."""
        return self.first + np.arange(last_seq - num + 1, last_seq + 1) % self.window


class _Memory(NamedTuple):
    """What streams are replayed in, side by side."""

    rows: NDArray[np.float32]
    digests: NDArray[np.int64]
    outputs: NDArray[np.uint8]
    rings: list[_Ring]
    running: NDArray[np.void]


_running_at, _work_at = pointer_to(_Running), pointer_to(_Work)
_RUNNING_BYTES = _Running.dtype.itemsize
_NUMBERS = ("num_changes", "numbering", "last_seq", "owner")


class Replayed:
    """Steps streams of one model.

    Parameters
    ----------
    program : Program
        Its scratch is used.
    max_kept : int
        How many inputs are kept of a stream, behind its state.
    """

    def __init__(self, program: Program, max_kept: int = 0) -> None:
        self._program, self._max_kept = program, max_kept
        self._x_bytes, self._y_bytes = 4 * program.spec.num_inputs, 4 * program.spec.output_size
        self._row_bytes = program.row_bytes + kept_bytes(max_kept, self._x_bytes)

    def bytes_of(self, stream: ReplayedStream) -> int:
        """Return how much memory a stream takes."""
        return self._row_bytes + stream.window * (8 + self._y_bytes)

    def replay(
        self,
        streams: list[ReplayedStream],
        name: str,
        fingerprint: str,
        arithmetic: str,
        clock_s: int,
    ) -> Iterator[tuple[bytes, StreamRecord]]:
        """Apply the entries of streams.

        Yields
        ------
        stream : bytes
        record : StreamRecord

        Raises
        ------
        StoreError
            If an entry cannot have been made.
        """
        memory = self._make_memory(streams)
        for k, stream in enumerate(streams):
            if stream.record is not None:
                self._bring_back(stream.record, memory, k)
        self._apply(streams, memory.running)
        numbers = (memory.running[name].tolist() for name in _NUMBERS)
        for k, (num_changes, numbering, last_seq, owner) in enumerate(zip(*numbers, strict=True)):
            stream, ring = streams[k], memory.rings[k]
            num_ring = min(ring.window, last_seq) if numbering == NUMBERED else 0
            num_outputs = _num_outputs(stream, last_seq, num_ring)
            has_outputs = ring.window > 1 and num_ring > 0
            record = StreamRecord(
                stream=stream.stream,
                model=name,
                fingerprint=fingerprint,
                arithmetic=arithmetic,
                owner=_owner_of(stream, owner),
                numbering=numbering,
                window=ring.window,
                last_seq=last_seq,
                clock_s=clock_s,
                row=memory.rows[k, : self._program.row_bytes // 4].astype("<f4").tobytes(),
                digests=memory.digests[ring.places(last_seq, num_ring)],
                outputs=memory.outputs[ring.places(last_seq, num_outputs)]
                if has_outputs
                else np.zeros((0, 0), np.uint8),
                incarnation=stream.incarnation,
                num_changes=num_changes,
                inputs=self._inputs(memory, k),
            )
            yield stream.stream, record

    def _make_memory(self, streams: list[ReplayedStream]) -> _Memory:
        num, row_bytes = len(streams), self._row_bytes
        rows = aligned_floats(num * row_bytes // 4).reshape(num, row_bytes // 4)
        windows = np.array([stream.window for stream in streams])
        firsts = np.cumsum(windows) - windows
        digests = np.zeros(windows.sum(), np.int64)
        outputs = np.zeros((windows.sum(), self._y_bytes), np.uint8)
        running = np.zeros(num, _Running.dtype)
        running["row"] = address_of(rows) + row_bytes * np.arange(num)
        running["digests"] = address_of(digests) + 8 * firsts
        running["outputs"] = address_of(outputs) + self._y_bytes * firsts
        running["window"] = windows
        running["next"] = [stream.address for stream in streams]
        running["end"] = running["next"] + [8 * stream.num_entries for stream in streams]
        rings = list(map(_Ring, firsts.tolist(), windows.tolist()))
        return _Memory(rows, digests, outputs, rings, running)

    def _apply(self, streams: list[ReplayedStream], running: NDArray[np.void]) -> None:
        program, work = self._program, _Work.one()
        initial_row = np.ascontiguousarray(program.initial_row)
        spare = np.zeros((MAX_BATCH_ROWS, self._y_bytes), np.uint8)
        room = np.zeros((3, MAX_BATCH_ROWS), np.int64)
        work["plan"], work["initial_row"] = program.plan_address, address_of(initial_row)
        work["state_bytes"], work["max_kept"] = program.row_bytes, self._max_kept
        work["x_bytes"], work["y_bytes"] = self._x_bytes, self._y_bytes
        work["spare"] = address_of(spare)
        work["rows"], work["xs"], work["ys"] = map(address_of, room)
        at_work = np.arange(len(streams))
        args = address_of(running), address_of(at_work), len(streams)
        bad = apply_entries(struct_address(work), *args)
        if bad >= 0:
            stream, state = streams[bad], running[bad]
            entry = stream.entry((int(state["next"]) - stream.address) // 8)
            kind = ChangeKind(entry.kind).name
            raise stream.damage(f"after step {state['last_seq']} it has {kind} {entry.seq}")

    def _bring_back(self, record: StreamRecord, memory: _Memory, k: int) -> None:
        """Let a stream be what its record says."""
        numbers = record.num_changes, record.numbering, record.last_seq, 0, 1
        memory.running[[*_NUMBERS, "is_open"]][k] = numbers
        memory.rows[k, : len(record.row) // 4] = np.frombuffer(record.row, "<f4")
        ring = memory.rings[k]
        memory.digests[ring.places(record.last_seq, len(record.digests))] = record.digests
        if record.outputs.size:
            memory.outputs[ring.places(record.last_seq, len(record.outputs))] = record.outputs
        if self._max_kept:
            inputs = np.frombuffer(record.inputs or b"\0", np.uint8)
            num = len(record.inputs) // self._x_bytes
            take_inputs(self._kept(memory, k), address_of(inputs), num)

    def _inputs(self, memory: _Memory, k: int) -> bytes:
        """Return the inputs that a stream keeps, the oldest first."""
        if not self._max_kept:
            return b""
        kept = self._kept(memory, k)
        inputs = np.zeros(num_inputs(kept) * self._x_bytes, np.uint8)
        if len(inputs):
            copy_inputs(kept, address_of(inputs))
        return inputs.tobytes()

    def _kept(self, memory: _Memory, k: int) -> KeptInputs:
        at = int(memory.running["row"][k]) + self._program.row_bytes
        return KeptInputs(at, self._max_kept, self._x_bytes)


def _num_outputs(stream: ReplayedStream, last_seq: int, num_ring: int) -> int:
    """Return of how many of the last steps the outputs are known."""
    record = stream.record
    before = 0 if record is None else record.last_seq - len(record.outputs)
    return min(num_ring, last_seq - before)


def _owner_of(stream: ReplayedStream, entry: int) -> str:
    if entry:
        return entry_at(entry).data.decode(errors="replace")
    return "" if stream.record is None else stream.record.owner


@jit
def apply_entries(work_at: int, running_at: int, at_work_at: int, num_streams: int) -> int:
    """Apply the entries of streams, one step of each after the other.

    Returns
    -------
    int
        Index of a stream whose next entry cannot have been made; -1 if there is none.
    """
    work = _work_at(work_at)
    at_work, bad = int64_array(at_work_at, num_streams), -1
    before = enter_float_mode()
    while num_streams > 0 and bad < 0:
        left = num_taken = 0
        for k in range(num_streams):
            stream = _running_at(running_at + _RUNNING_BYTES * at_work[k])
            found = _advance(work, stream)
            if found < 0:
                bad = at_work[k]
                break
            if found > 0:
                at_work[left] = at_work[k]
                left += 1
                _take_step(work, stream, num_taken)
                num_taken += 1
                if num_taken == MAX_BATCH_ROWS:
                    _step(work, num_taken)
                    num_taken = 0
        _step(work, num_taken)
        num_streams = left
    leave_float_mode(before)
    return bad


@jit
def _step(work: _Work, num: int) -> None:
    if num > 0:
        rows, xs, ys = (
            int64_array(work.rows, num),
            int64_array(work.xs, num),
            int64_array(work.ys, num),
        )
        step_rows(plan_at(work.plan), rows, xs, ys, num)


@jit
def _advance(work: _Work, stream: _Running) -> int:
    """Apply entries up to a step; return 1 if there is one, 0 at the end, -1 if one is wrong."""
    while stream.next < stream.end:
        place = load_i64(stream.next)
        entry = entry_head_at(place)
        if entry.num_changes > stream.num_changes:  # else it is of a group that is there twice
            if entry.kind == ChangeKind.STEP:
                is_input = entry.data_bytes == work.x_bytes
                is_input = is_input and check_input(plan_at(work.plan), data_of(place), 1) < 0
                return 1 if is_input and _take_number(stream, entry, 0) else -1
            if not _change(work, stream, place):
                return -1
        stream.next += 8
    return 0


@jit
def _change(work: _Work, stream: _Running, place: int) -> bool:
    """Apply an entry that is no step; tell whether it can have been made."""
    entry = entry_head_at(place)
    if entry.kind == ChangeKind.OPEN:
        if stream.is_open:
            return False
        stream.is_open, stream.owner = 1, place
        _begin(work, stream)
    elif entry.kind == ChangeKind.RESET:
        # A step that was refused because the state turned NaN has had a number.
        last_seq = stream.last_seq
        if not _take_number(stream, entry, 1):
            return False
        _begin(work, stream)
        if entry.seq > last_seq + 1:
            store_i64(stream.digests + 8 * ((entry.seq - 1) % stream.window), REFUSED_DIGEST)
        if entry.seq > 0:
            store_i64(stream.digests + 8 * (entry.seq % stream.window), RESET_DIGEST)
    elif entry.kind == ChangeKind.OWNER and stream.is_open:
        stream.owner = place
    else:
        return False
    stream.num_changes = entry.num_changes
    return True


@jit
def _begin(work: _Work, stream: _Running) -> None:
    """Let a stream have the state before a first step."""
    copy_bytes(stream.row, work.initial_row, work.state_bytes)
    if work.max_kept > 0:
        clear_inputs(_kept_of(work, stream))


@jit
def _kept_of(work: _Work, stream: _Running) -> KeptInputs:
    return KeptInputs(stream.row + work.state_bytes, work.max_kept, work.x_bytes)


@jit
def _take_number(stream: _Running, entry: EntryHead, most_skipped: int) -> bool:
    """Take the number of a step or reset; tell whether it can have it."""
    seq = entry.seq
    other = UNNUMBERED if seq > 0 else NUMBERED
    if not stream.is_open or seq > MAX_SEQ or stream.numbering == other:
        return False
    if seq > 0:
        if seq <= stream.last_seq or seq > stream.last_seq + 1 + most_skipped:
            return False
        stream.last_seq, stream.numbering = seq, NUMBERED
    stream.num_changes = entry.num_changes
    return True


@jit
def _take_step(work: _Work, stream: _Running, k: int) -> None:
    """Let a stream's next step be the k-th of those that are computed together."""
    place = load_i64(stream.next)
    stream.next += 8
    seq, x, at = entry_head_at(place).seq, data_of(place), 0
    y = work.spare + work.y_bytes * k
    if seq == 0:
        stream.numbering = UNNUMBERED
    else:
        at = seq % stream.window
        store_i64(stream.digests + 8 * at, digest_of(x, work.x_bytes))
        if stream.window > 1:
            y = stream.outputs + work.y_bytes * at
    if work.max_kept > 0:
        keep_input(_kept_of(work, stream), x)
    store_i64(work.rows + 8 * k, stream.row)
    store_i64(work.xs + 8 * k, x)
    store_i64(work.ys + 8 * k, y)
