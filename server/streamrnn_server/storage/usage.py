"""How many bytes each user's streams and snapshots take on disk, and the most one may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from streamrnn.state.record import HEAD_BYTES, RecordHead, head_bytes_of
from streamrnn.state.store import SNAPSHOTS, STREAMS, Change, StateStore

__all__ = ["DiskUsage"]


class DiskUsage:
    """Counts bytes of records by their owners; exact after each commit.

    Written by the thread that commits, read by any.

    Parameters
    ----------
    store : StateStore
        Read whole.
    max_bytes : int
        What one user may take; it is checked before something new is begun, so that a user may come
        above it by what is on its way, and by what his streams grow.
    """

    def __init__(self, store: StateStore, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._num_bytes: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        for table in (STREAMS, SNAPSHOTS):
            for _, data in store.items(table):
                self._num_bytes[_owner_of(data)] += len(data)

    def commit(self, store: StateStore, changes: Iterable[Change], clock_s: int) -> None:
        """Make changes durable, and count them if they are; raises what the store does."""
        self._pending.clear()
        store.commit(changes, clock_s, self._note)
        self._num_bytes.update(self._pending)

    def _note(self, old: bytes | None, new: bytes | memoryview | None) -> None:
        if old is not None:
            self._pending[_owner_of(old)] -= len(old)
        if new is not None:
            self._pending[_owner_of(new)] += len(new)

    def num_bytes(self, user: str) -> int:
        """Return what a user's records take."""
        return self._num_bytes[user]

    def is_full(self, user: str) -> bool:
        """Tell whether a user may begin nothing new on disk."""
        return user != "" and self._num_bytes[user] >= self.max_bytes

    def reason(self, user: str) -> str:
        """Say why `is_full`."""
        return (
            f"your streams and snapshots take {self._num_bytes[user]} bytes of at most "
            f"{self.max_bytes}: close some of them"
        )


def _owner_of(record: bytes | memoryview) -> str:
    """Return whose a record is; empty if nobody's, or it is damaged."""
    if len(record) < HEAD_BYTES:
        return ""
    head = np.frombuffer(record, RecordHead.dtype, 1).view(np.recarray)[0]
    names = (head["id_bytes"], head["model_bytes"], head["arithmetic_bytes"])
    begin = head_bytes_of(head) + sum(map(int, names))
    return bytes(record[begin : begin + int(head["owner_bytes"])]).decode(errors="replace")
