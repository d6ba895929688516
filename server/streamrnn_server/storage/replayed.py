"""Streams being replayed: many of one model step together, each through its own entries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import StoreError
from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import check_input, step_rows
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.state.journal import ChangeKind, Entry
from streamrnn.state.record import FRESH, NUMBERED, UNNUMBERED, StreamRecord
from streamrnn_client.protocol import MAX_SEQ, MAX_WINDOW
from streamrnn_server.shard.memory.digest import RESET_DIGEST, digest_of

__all__ = ["Replayed", "ReplayedStream"]


@dataclass
class ReplayedStream:
    """A stream, and what is to be done to it.

    Attributes
    ----------
    stream : bytes
        The canonical id.
    model : int
        Index among those served.
    entries : list of Entry
        What is above its record, in order.
    record : StreamRecord or None
        What it begins with; None where the first entry opens it.
    where : str
        For errors.
    """

    stream: bytes
    model: int
    entries: list[Entry]
    record: StreamRecord | None
    where: str = ""

    def is_without_gap(self) -> bool:
        """Tell whether each change follows on the one before."""
        first = 0 if self.record is None else self.record.num_changes
        incarnation = self.entries[-1].incarnation
        number = first
        for entry in self.entries:
            if entry.incarnation != incarnation or entry.model != self.entries[-1].model:
                return False
            if entry.num_changes > number + 1:
                return False
            number = max(number, entry.num_changes)  # a group may be there twice
        return True

    def window(self) -> int:
        """Return its window; raises StoreError if it can have none such."""
        if self.record is not None:
            return self.record.window
        opened = self.entries[0]
        if opened.kind != ChangeKind.OPEN or 1 << min(opened.seq, 62) > MAX_WINDOW:
            raise StoreError(f"the journal is damaged: {self.where}: it begins with {opened!r}")
        return 1 << opened.seq


class _Running:
    """A stream whose entries are applied: places in `Replayed`'s arrays, and its numbers."""

    def __init__(
        self,
        given: ReplayedStream,
        row: NDArray[np.float32],
        digests: NDArray[np.int64],
        outputs: NDArray[np.uint8],
    ) -> None:
        self.given, self.row, self.digests, self.outputs = given, row, digests, outputs
        self.window = given.window()
        self.left = deque(given.entries)
        self.is_open = given.record is not None
        self.numbering, self.last_seq, self.owner = FRESH, 0, ""
        self.incarnation = given.entries[0].incarnation
        self.num_changes = 0
        record = given.record
        if record is not None:
            row[:] = np.frombuffer(record.row, "<f4")
            self.numbering, self.last_seq = record.numbering, record.last_seq
            self.owner, self.num_changes = record.owner, record.num_changes
            num_ring = len(record.digests)
            places = np.arange(record.last_seq - num_ring + 1, record.last_seq + 1) % self.window
            digests[places] = record.digests
            if record.outputs.size:
                outputs[places] = record.outputs

    def fail(self, entry: Entry) -> StoreError:
        """Return the error of an entry that cannot have been made."""
        return StoreError(
            f"the journal is damaged: {self.given.where}: after step {self.last_seq} it has "
            f"{ChangeKind(entry.kind).name} {entry.seq}"
        )

    def number(self, entry: Entry, most_skipped: int) -> None:
        """Take an entry's number."""
        seq = entry.seq
        is_mixed = self.numbering == (UNNUMBERED if seq > 0 else NUMBERED)
        if not self.is_open or seq > MAX_SEQ or is_mixed:
            raise self.fail(entry)
        if seq > 0:
            # A step that was refused because the state turned NaN has had a number.
            if not self.last_seq < seq <= self.last_seq + 1 + most_skipped:
                raise self.fail(entry)
            self.last_seq, self.numbering = seq, NUMBERED
        self.num_changes = entry.num_changes


class Replayed:
    """Steps streams of one model.

    Parameters
    ----------
    program : Program
        Its scratch is used.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._x_bytes, self._y_bytes = 4 * program.spec.num_inputs, 4 * program.spec.output_size

    def bytes_of(self, stream: ReplayedStream) -> int:
        """Return how much memory a stream takes."""
        return self._program.row_bytes + stream.window() * (8 + self._y_bytes)

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
        running = self._begin(streams)
        at_work = running
        while at_work:
            at_work = [each for each in at_work if self._advance(each)]
            self._step(at_work)
        for each in running:
            is_numbered = each.numbering == NUMBERED
            num_ring = min(each.window, each.last_seq) if is_numbered else 0
            places = np.arange(each.last_seq - num_ring + 1, each.last_seq + 1) % each.window
            has_outputs = each.window > 1 and num_ring > 0
            yield (
                each.given.stream,
                StreamRecord(
                    stream=each.given.stream,
                    model=name,
                    fingerprint=fingerprint,
                    arithmetic=arithmetic,
                    owner=each.owner,
                    numbering=each.numbering,
                    window=each.window,
                    last_seq=each.last_seq,
                    clock_s=clock_s,
                    row=each.row.astype("<f4").tobytes(),
                    digests=each.digests[places],
                    outputs=each.outputs[places]
                    if has_outputs
                    else np.zeros((num_ring, 0), np.uint8),
                    incarnation=each.incarnation,
                    num_changes=each.num_changes,
                ),
            )

    def _begin(self, streams: list[ReplayedStream]) -> list[_Running]:
        num_floats = self._program.row_bytes // 4
        rows = aligned_floats(len(streams) * num_floats).reshape(len(streams), num_floats)
        windows = [stream.window() for stream in streams]
        digests = np.zeros(sum(windows), np.int64)
        outputs = np.zeros((sum(windows), self._y_bytes), np.uint8)
        running, at = [], 0
        for stream, row, window in zip(streams, rows, windows, strict=True):
            end = at + window
            running.append(_Running(stream, row, digests[at:end], outputs[at:end]))
            at = end
        return running

    def _advance(self, stream: _Running) -> bool:
        """Apply a stream's entries up to its next step; tell whether there is one."""
        while stream.left:
            entry = stream.left[0]
            if entry.num_changes <= stream.num_changes:
                stream.left.popleft()  # of a group that is there twice
                continue
            if entry.kind == ChangeKind.STEP:
                if len(entry.data) != self._x_bytes:
                    raise stream.fail(entry)
                return True
            self._apply(stream, entry)
            stream.left.popleft()
        return False

    def _apply(self, stream: _Running, entry: Entry) -> None:
        if entry.kind == ChangeKind.OPEN:
            if stream.is_open:
                raise stream.fail(entry)
            stream.is_open, stream.num_changes = True, entry.num_changes
            stream.row[:] = self._program.initial_row
            stream.owner = entry.data.decode(errors="replace")
        elif entry.kind == ChangeKind.RESET:
            stream.number(entry, 1)
            stream.row[:] = self._program.initial_row
            if entry.seq > 0:
                stream.digests[entry.seq % stream.window] = RESET_DIGEST
        elif stream.is_open and entry.kind == ChangeKind.OWNER:
            stream.owner = entry.data.decode(errors="replace")
        else:
            raise stream.fail(entry)
        stream.num_changes = entry.num_changes

    def _step(self, streams: list[_Running]) -> None:
        """Take the next step of each stream."""
        num = len(streams)
        if num == 0:
            return
        entries = [stream.left.popleft() for stream in streams]
        xs = np.frombuffer(b"".join(entry.data for entry in entries), np.uint8)
        rows, ys, digests = np.zeros((3, num), np.int64)
        spare = np.zeros((num, self._y_bytes), np.uint8)
        for k, (stream, entry) in enumerate(zip(streams, entries, strict=True)):
            stream.number(entry, 0)
            rows[k] = address_of(stream.row)
            is_kept = entry.seq > 0 and stream.window > 1
            ys[k] = address_of(stream.outputs[entry.seq % stream.window] if is_kept else spare[k])
            if entry.seq == 0:
                stream.numbering = UNNUMBERED
        bad = _step_batch(
            self._program.plan_address,
            address_of(rows),
            address_of(xs),
            self._x_bytes,
            address_of(ys),
            address_of(digests),
            num,
        )
        if bad >= 0:
            raise streams[bad].fail(entries[bad])
        for stream, entry, digest in zip(streams, entries, digests.tolist(), strict=True):
            if entry.seq > 0:
                stream.digests[entry.seq % stream.window] = digest


@jit
def _step_batch(
    plan_address: int, rows: int, x: int, x_bytes: int, ys: int, digests: int, num: int
) -> int:
    """Step streams, and digest their inputs; return the first whose input is none, or -1."""
    plan = plan_at(plan_address)
    for k in range(num):
        if check_input(plan, x + k * x_bytes, 1) >= 0:
            return k
    before = enter_float_mode()
    xs = int64_array(digests, num)
    for k in range(num):
        xs[k] = x + k * x_bytes
    for first in range(0, num, MAX_BATCH_ROWS):
        some = min(MAX_BATCH_ROWS, num - first)
        step_rows(
            plan,
            int64_array(rows + 8 * first, some),
            int64_array(digests + 8 * first, some),
            int64_array(ys + 8 * first, some),
            some,
        )
    leave_float_mode(before)
    for k in range(num):
        xs[k] = digest_of(x + k * x_bytes, x_bytes)
    return -1
