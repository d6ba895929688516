"""Marks of streams that live at another server now, as they stand on disk."""

from __future__ import annotations

from typing import NamedTuple

from streamrnn.errors import RecordError
from streamrnn.state.store import MOVED, StateStore

__all__ = ["Departure", "departure_of"]


class Departure(NamedTuple):
    """Where a stream has gone, and how far it had come here.

    Attributes
    ----------
    endpoint : str
        Of the other server's shard.
    incarnation, num_changes : int
        Of its record: a journal that has no more than that has nothing of it.
    owner : str
        Whose it is; empty if nobody's.
    """

    endpoint: str
    incarnation: int
    num_changes: int
    owner: str

    def encode(self) -> bytes:
        """Return the mark."""
        return f"{self.incarnation} {self.num_changes} {self.endpoint} {self.owner}".encode()


def departure_of(store: StateStore, stream: bytes) -> Departure | None:
    """Return where a stream has gone; None if it has not.

    Raises
    ------
    RecordError
        If the mark is damaged.
    StoreError
        If it cannot be read.
    """
    mark = store.get(MOVED, stream)
    if mark is None:
        return None
    try:
        incarnation, num_changes, endpoint, owner = mark.decode().split(" ", 3)
        return Departure(endpoint, int(incarnation), int(num_changes), owner)
    except ValueError as error:
        raise RecordError(f"the mark of where it has gone is damaged: {mark[:80]!r}") from error
