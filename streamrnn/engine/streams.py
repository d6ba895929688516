"""Streams of an engine, and the row number of each."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.device import GENERATION_SHIFT, SLOT_MASK
from streamrnn.errors import StreamError
from streamrnn.kernels.virtual_memory import reserve

__all__ = ["StreamTable"]


class StreamTable:
    """Stream ids and their row numbers. Not thread-safe.

    ``marks`` [max_streams + 1, 2] has each slot's generation and the call that it was last in; at
    the end the number of calls. See `streamrnn.engine.device.check_call`.
    """

    def __init__(self, max_streams: int) -> None:
        self.marks = reserve(16 * (max_streams + 1)).view(np.int64).reshape(-1, 2)
        self._generations = self.marks[:, 0]
        self._max_streams = max_streams
        self._rows: dict[Hashable, int] = {}
        self._free: list[int] = []
        self._next_slot = 0

    def __len__(self) -> int:
        """Return the number of streams."""
        return len(self._rows)

    def __contains__(self, stream: Hashable) -> bool:
        """Return whether there is such a stream."""
        return stream in self._rows

    def resolve(self, streams: Iterable[Hashable]) -> tuple[NDArray[np.int64], list[Hashable]]:
        """Return the row numbers of streams, and those streams that had none until now.

        The rows of new streams have undefined contents. A `StreamError` if not all of them fit;
        none has been given a row then.
        """
        rows, started = self._rows, list[Hashable]()
        try:
            numbers = [rows[s] if s in rows else self._start(s, started) for s in streams]
        except StreamError:
            for stream in started:
                self.forget(stream)
            raise
        return np.array(numbers, dtype=np.int64), started

    def slots(self, streams: Iterable[Hashable]) -> NDArray[np.int64]:
        """Return the slots of streams; an unknown one raises a `StreamError`."""
        rows = self._rows
        try:
            return np.array([rows[s] & SLOT_MASK for s in streams], dtype=np.int64)
        except KeyError as error:
            raise StreamError(
                f"stream {error.args[0]!r} is unknown; it has not been stepped, or it has been "
                "closed"
            ) from None

    def forget(self, stream: Hashable) -> None:
        """Free a stream's row; an unknown one raises a `StreamError`."""
        slot = int(self.slots([stream])[0])
        del self._rows[stream]
        self._generations[slot] += 1
        self._free.append(slot)

    def _start(self, stream: Hashable, started: list[Hashable]) -> int:
        if self._free:
            slot = self._free.pop()
        elif self._next_slot < self._max_streams:
            slot = self._next_slot
            self._next_slot += 1
        else:
            raise StreamError(
                f"no room for stream {stream!r}: all {self._max_streams} streams are in use; "
                "close some, or make the engine with a larger max_streams"
            )
        self._generations[slot] += 1
        row = int(self._generations[slot]) << GENERATION_SHIFT | slot
        self._rows[stream] = row
        started.append(stream)
        return row
