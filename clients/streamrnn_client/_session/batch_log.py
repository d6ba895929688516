"""The replay log of batches: one array a batch, not one object a stream.

A stream's part of it is a `Column`, one of the entries of the stream's `ReplayLog`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import sub

from streamrnn_client.inputs import Array

__all__ = ["BatchLog", "Column"]


class BatchLog:
    """The inputs of the same streams, batch after batch.

    A batch's array is dropped when all streams have its step on disk. When most streams have
    removed their columns, the others' are copied out, so that one idle stream does not keep all
    arrays.

    `first` and `end` number the first batch that is kept and the next one. `is_whole` says whether
    the next batch belongs to an open column of every stream, `num_older` how many steps one stream
    keeps at most besides its open column.
    """

    __slots__ = (
        "_num_columns",
        "_num_streams",
        "_offsets",
        "_part",
        "durable_seqs",
        "end",
        "first",
        "is_whole",
        "last_seqs",
        "num_older",
    )

    def __init__(self, num_streams: int) -> None:
        self.first = self.end = 0
        self.is_whole = False
        self.num_older = 0
        self.last_seqs: list[int] = []
        self.durable_seqs: Sequence[int] = ()
        self._offsets: list[int] = []
        self._num_columns = [0] * num_streams  # columns of each stream
        self._num_streams = 0  # streams that have one
        # Which columns there are, and the arrays: replaced as one, for other threads' sake.
        self._part: tuple[Sequence[int], list[Array]] = (range(num_streams), [])

    @property
    def is_compacted(self) -> bool:
        """Whether some columns are gone, so that no batch can be added."""
        return len(self._part[0]) < len(self._num_columns)

    def begin(self, seqs: Sequence[int], num_older: int) -> None:
        """Give every stream an open column, with its number in the next batch."""
        self._offsets = [seq - self.end for seq in seqs]
        self.num_older = num_older
        self.durable_seqs = ()
        self.is_whole = True

    def has_capacity(self, max_steps: int) -> bool:
        """Return whether every stream can certainly keep one more step."""
        return self.is_whole and self.num_older + self.end - self.first < max_steps

    def append(self, x: Array, last_seqs: list[int]) -> None:
        """Keep a batch: an array [num_streams, num_inputs] that is not changed any more."""
        self._part[1].append(x)
        self.end += 1
        self.last_seqs = last_seqs

    def drop_durable(self, durable_seqs: Sequence[int], num_older: int) -> None:
        """Drop the batches that all streams have on disk."""
        self.durable_seqs = durable_seqs
        self.num_older = num_older
        first = min(self.end, 1 + min(map(sub, durable_seqs, self._offsets)))
        if first > self.first:
            del self._part[1][: first - self.first]
            self.first = first

    def rows(self, index: int, start: int, stop: int) -> bytes:
        """Return a stream's inputs in the batches from `start` to before `stop`."""
        columns, arrays = self._part
        place = columns.index(index)
        return b"".join([x[place] for x in arrays[start - self.first : stop - self.first]])

    def add_column(self, index: int) -> None:
        """Count one more column of a stream."""
        self._num_streams += self._num_columns[index] == 0
        self._num_columns[index] += 1

    def remove_column(self, index: int) -> None:
        """Count one column less; copy the others out if few are left."""
        self._num_columns[index] -= 1
        if self._num_columns[index]:
            return
        self._num_streams -= 1
        columns, arrays = self._part
        if self.is_whole or 2 * self._num_streams > len(columns):
            return
        # Threads may do this at once, for different streams: what each of them makes is enough.
        used = [place for place, index in enumerate(columns) if self._num_columns[index]]
        self._part = [columns[place] for place in used], [x[used] for x in arrays]


class Column:
    """Steps of one stream in the batches of a `BatchLog`, one after the other.

    It begins with the next batch there, step `first_seq`, and grows with every batch until it ends.
    """

    __slots__ = ("_end", "_first", "_index", "_offset", "log", "num_steps")

    def __init__(self, log: BatchLog, index: int, first_seq: int) -> None:
        log.add_column(index)
        self.log = log
        self.num_steps = 0  # once it has ended
        self._index = index
        self._first = log.end
        self._end: int | None = None
        self._offset = first_seq - log.end

    def __del__(self) -> None:
        if self._end is None:
            self.log.is_whole = False
        self.log.remove_column(self._index)

    @property
    def first_seq(self) -> int:
        """Number of the first step that is kept; above `last_seq` if none is."""
        return self._offset + max(self._first, self.log.first)

    @property
    def last_seq(self) -> int:
        """Number of the last step."""
        return self._offset + (self.log.end if self._end is None else self._end) - 1

    def is_at(self, index: int, next_seq: int) -> bool:
        """Return whether its next step is a row of the next batch with this number."""
        return self._index == index and self._end is None and self.last_seq + 1 == next_seq

    def finish(self) -> None:
        """End it with the last batch."""
        self.num_steps = self.last_seq + 1 - self.first_seq
        self._end = self.log.end
        self.log.is_whole = False

    def drop_durable(self, durable_seq: int) -> None:
        """Begin after a step that is on disk."""
        self._first = max(self._first, min(durable_seq + 1 - self._offset, self.log.end))

    def inputs(self, first_seq: int, last_seq: int) -> bytes:
        """Return the encoded inputs of some of its steps."""
        start, stop = first_seq - self._offset, last_seq + 1 - self._offset
        return self.log.rows(self._index, start, stop)
