"""The replay log of a stream: inputs of steps that are not durable yet."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple

from streamrnn_client._session.batch_log import BatchLog, Column
from streamrnn_client.inputs import Array

__all__ = ["MAX_KEPT_BYTES", "MAX_KEPT_STEPS", "LogEntry", "ReplayLog"]

MAX_KEPT_STEPS = 16_384  # of one stream; a second's checkpoint interval at 16,000 steps/s
MAX_KEPT_BYTES = 16 * 2**20  # of one stream


class LogEntry(NamedTuple):
    """Steps `first_seq` to `last_seq`: their encoded inputs in order, or None for a reset."""

    first_seq: int
    last_seq: int
    x: bytes | None

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return self.last_seq + 1 - self.first_seq

    def inputs(self, first_seq: int, last_seq: int) -> bytes | None:
        """Return the encoded inputs of some of them; None for a reset."""
        if self.x is None:
            return None
        row_bytes = len(self.x) // self.num_steps
        start, stop = first_seq - self.first_seq, last_seq + 1 - self.first_seq
        return self.x[start * row_bytes : stop * row_bytes]


class ReplayLog:
    """The inputs of a stream's applied steps above `durable_seq`, in order.

    Before a step beyond `max_steps` (the smaller of the two bounds) some must be on disk.
    `num_older` counts the steps in all entries but an open column.
    """

    __slots__ = ("_column", "_entries", "max_steps", "num_older")

    def __init__(self, row_bytes: int, max_steps: int, max_bytes: int) -> None:
        self._entries: deque[LogEntry | Column] = deque()
        self._column: Column | None = None  # the last entry, while batches go on with it
        self.num_older = 0
        self.max_steps = min(max_steps, max_bytes // row_bytes)

    @property
    def num_steps(self) -> int:
        """Number of steps that are kept."""
        column = self._column
        return self.num_older + (column.last_seq + 1 - column.first_seq if column else 0)

    def is_full(self, num_more: int) -> bool:
        """Return whether so many more steps exceed the bound; one chunk always fits."""
        num_steps = self.num_steps
        return num_steps > 0 and num_steps + num_more > self.max_steps

    def append(self, first_seq: int, num_steps: int, x: Array | None, applied: int) -> None:
        """Keep applied steps, except those up to `applied`, which were kept before."""
        last_seq = first_seq + num_steps - 1
        if last_seq <= applied:
            return
        if first_seq <= applied and x is not None:
            x = x[applied + 1 - first_seq :]
            first_seq = applied + 1
        self._finish_column()
        self._entries.append(LogEntry(first_seq, last_seq, None if x is None else x.tobytes()))
        self.num_older += last_seq - first_seq + 1

    def join(self, log: BatchLog, index: int, next_seq: int) -> None:
        """Take the next steps from a row of a batch log, from its next batch on."""
        column = self._column
        if column and column.log is log and column.is_at(index, next_seq):
            return
        self._finish_column()
        self._column = Column(log, index, next_seq)
        self._entries.append(self._column)

    def _finish_column(self) -> None:
        column, self._column = self._column, None
        if column:
            column.finish()
            self.num_older += column.num_steps
            if not column.num_steps:
                self._entries.pop()

    def forget_after(self, last_seq: int) -> None:
        """Drop the steps above a number, which will be appended anew."""
        self._finish_column()
        entries = self._entries
        while entries and entries[-1].last_seq > last_seq:
            entry = entries.pop()
            self.num_older -= entry.num_steps
            if entry.first_seq <= last_seq:
                x = entry.inputs(entry.first_seq, last_seq)
                entries.append(LogEntry(entry.first_seq, last_seq, x))
                self.num_older += entries[-1].num_steps

    def drop_durable(self, durable_seq: int) -> None:
        """Drop what is on disk; a chunk that is there in part stays whole."""
        entries = self._entries
        while entries and entries[0].last_seq <= durable_seq and entries[0] is not self._column:
            self.num_older -= entries.popleft().num_steps
        if self._column:
            self._column.drop_durable(durable_seq)

    def first_seq(self, default: int) -> int:
        """Return the oldest number that is kept."""
        return self._entries[0].first_seq if self.num_steps else default

    def missing(self, first_seq: int, last_seq: int) -> tuple[int, int] | None:
        """Return the first range of those numbers that is not kept; None if all are."""
        wanted = first_seq
        for entry in self._entries:
            if wanted > last_seq:
                break
            if entry.first_seq > wanted:
                return wanted, min(last_seq, entry.first_seq - 1)
            wanted = max(wanted, entry.last_seq + 1)
        return None if wanted > last_seq else (wanted, last_seq)

    def chunk(self, first_seq: int, max_steps: int) -> LogEntry:
        """Return kept steps from a number on: a reset, or steps up to the next one."""
        entries = self._entries
        index = bisect_left(entries, first_seq, key=lambda entry: entry.last_seq)
        last_seq = first_seq - 1
        parts: list[bytes] = []
        while last_seq - first_seq + 1 < max_steps and index < len(entries):
            entry = entries[index]
            if entry.first_seq > last_seq + 1:
                break
            stop_seq = min(entry.last_seq, first_seq + max_steps - 1)
            inputs = entry.inputs(last_seq + 1, stop_seq)
            if inputs is None and not parts:
                return LogEntry(first_seq, first_seq, None)
            if inputs is None:
                break
            parts.append(inputs)
            last_seq = stop_seq
            index += 1
        return LogEntry(first_seq, last_seq, b"".join(parts))
