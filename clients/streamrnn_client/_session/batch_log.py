"""What a client keeps of batches: one array a batch, not one object for each of its streams.

A stream's part of it is a `Column`, which stands among the other pieces of the stream (`_kept`).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import sub

from streamrnn_client.inputs import Array

__all__ = ["Column", "Shared"]


class Shared:
    """The inputs of the same streams, one batch after the other.

    A batch's array is dropped when all streams have its step on disk. When most streams have let go
    of their columns, the others' are copied out, so that a stream at rest does not hold them all.

    Parameters
    ----------
    num_streams : int
        Rows of each batch.

    Attributes
    ----------
    first, end : int
        Number of the first batch that is kept, and of the next one.
    is_whole : bool
        Whether the next batch belongs to an open column of every stream.
    num_older : int
        The most steps that one of the streams keeps besides its open column.
    last_seqs : list of int
        The streams' numbers in the last batch.
    durable_seqs : sequence of int
        And what was on disk then.
    """

    __slots__ = (
        "_held",
        "_num_held",
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
        self._held = [0] * num_streams  # columns of each stream
        self._num_held = 0  # streams that have one
        # Which columns there are, and the arrays: replaced as one, for other threads' sake.
        self._part: tuple[Sequence[int], list[Array]] = (range(num_streams), [])

    @property
    def is_copied_out(self) -> bool:
        """Whether some columns are gone, so that no batch can be added."""
        return len(self._part[0]) < len(self._held)

    def begin(self, seqs: Sequence[int], num_older: int) -> None:
        """Take note that every stream has an open column, and its number in the next batch."""
        self._offsets = [seq - self.end for seq in seqs]
        self.num_older = num_older
        self.durable_seqs = ()
        self.is_whole = True

    def has_room(self, max_steps: int) -> bool:
        """Tell whether it is certain that every stream may keep one more step."""
        return self.is_whole and self.num_older + self.end - self.first < max_steps

    def append(self, x: Array, last_seqs: list[int]) -> None:
        """Keep a batch: an array [num_streams, num_inputs] that nobody changes any more."""
        self._part[1].append(x)
        self.end += 1
        self.last_seqs = last_seqs

    def forget(self, durable_seqs: Sequence[int], num_older: int) -> None:
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

    def hold(self, index: int) -> None:
        """Count a column more."""
        self._num_held += self._held[index] == 0
        self._held[index] += 1

    def let_go(self, index: int) -> None:
        """Count a column less; copy the others out if they have become few."""
        self._held[index] -= 1
        if self._held[index]:
            return
        self._num_held -= 1
        columns, arrays = self._part
        if self.is_whole or 2 * self._num_held > len(columns):
            return
        # Threads may do this at once, for different streams: what each of them makes is enough.
        held = [place for place, index in enumerate(columns) if self._held[index]]
        self._part = [columns[place] for place in held], [x[held] for x in arrays]


class Column:
    """Steps of one stream in the batches of a `Shared`, one after the other.

    Parameters
    ----------
    shared : Shared
        The column begins with the next batch there, and goes on with every batch until it ends.
    index : int
        The stream's row.
    first_seq : int
        Number of the stream's step in that next batch.
    """

    __slots__ = ("_end", "_first", "_index", "_offset", "num_steps", "shared")

    def __init__(self, shared: Shared, index: int, first_seq: int) -> None:
        shared.hold(index)
        self.shared = shared
        self.num_steps = 0  # once it has ended
        self._index = index
        self._first = shared.end
        self._end: int | None = None
        self._offset = first_seq - shared.end

    def __del__(self) -> None:
        if self._end is None:
            self.shared.is_whole = False
        self.shared.let_go(self._index)

    @property
    def first_seq(self) -> int:
        """Number of the first step that is kept; above `last_seq` if none is."""
        return self._offset + max(self._first, self.shared.first)

    @property
    def last_seq(self) -> int:
        """Number of the last step."""
        return self._offset + (self.shared.end if self._end is None else self._end) - 1

    def is_at(self, index: int, next_seq: int) -> bool:
        """Tell whether it goes on with a row of the next batch, and with a number."""
        return self._index == index and self._end is None and self.last_seq + 1 == next_seq

    def finish(self) -> None:
        """Let it end with the last batch."""
        self.num_steps = self.last_seq + 1 - self.first_seq
        self._end = self.shared.end
        self.shared.is_whole = False

    def forget(self, durable_seq: int) -> None:
        """Let it begin after a step."""
        self._first = max(self._first, min(durable_seq + 1 - self._offset, self.shared.end))

    def inputs(self, first_seq: int, last_seq: int) -> bytes:
        """Return the encoded inputs of some of its steps."""
        start, stop = first_seq - self._offset, last_seq + 1 - self._offset
        return self.shared.rows(self._index, start, stop)
