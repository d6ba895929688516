"""Expiry of streams on disk, by a clock that runs only while a server does."""

from __future__ import annotations

import time

import numpy as np

from streamrnn.errors import RecordError
from streamrnn.state.record import HEAD_BYTES, RecordHead, decode_record
from streamrnn.state.store import STREAMS, TOMBSTONES, Change, StateStore

__all__ = ["Expiry", "read_tombstone"]

_MAX_LOOKED_AT = 2_000
_TOMBSTONE_LIVES = 10  # times as long as a stream


def read_tombstone(tombstone: bytes) -> tuple[int, str]:
    """Return what is still known of a stream that has expired.

    Returns
    -------
    clock_s : int
        When its record was written, the last time.
    owner : str
        Whose it was; empty if nobody's.

    Raises
    ------
    RecordError
        If it is damaged.
    """
    try:
        clock_s, _, owner = tombstone.decode().partition(" ")
        return int(clock_s), owner
    except ValueError as error:
        raise RecordError(f"a tombstone is damaged: {tombstone[:80]!r}") from error


def _clock_in(record: bytes, now_s: int) -> int:
    if len(record) < HEAD_BYTES:
        return now_s
    return int(np.frombuffer(record, RecordHead.dtype, 1)["clock_s"][0])


class Expiry:
    """Decides which streams have outlived ``--time-to-live``.

    No wall clock is read anywhere: its jumps, and the time that a server was down, would kill
    streams that nobody had a chance to step. The directory carries its own count of seconds.
    """

    def __init__(self, clock_s: int, time_to_live_s: int) -> None:
        self._offset_s = clock_s - time.monotonic()
        self._time_to_live_s = time_to_live_s
        self._places = {STREAMS: b"", TOMBSTONES: b""}
        self.num_expired = 0

    def now_s(self) -> int:
        """Return the directory's clock.

        Returns
        -------
        int
            Seconds; it never goes back.
        """
        return int(time.monotonic() + self._offset_s)

    def has_expired(self, clock_s: int) -> bool:
        """Tell whether a stream has outlived its time."""
        return 0 < self._time_to_live_s < self.idle_s(clock_s)

    def idle_s(self, clock_s: int) -> int:
        """Return how long a stream has been unused.

        Returns
        -------
        int
            Seconds of serving.
        """
        return self.now_s() - clock_s

    def due(self, store: StateStore) -> list[Change]:
        """Return what is to be deleted among the next few streams and tombstones.

        Returns
        -------
        list of change
            Empty if nothing has expired.
        """
        if self._time_to_live_s == 0:
            return []
        changes: list[Change] = []
        now_s = self.now_s()
        for key, record in self._next(store, STREAMS):
            clock_s = _clock_in(record, now_s)
            if not self.has_expired(clock_s):
                continue
            try:
                owner = decode_record(record).owner
            except RecordError:  # nor can its clock be believed, and it is not nobody's
                continue
            changes.append((STREAMS, key, None))
            changes.append((TOMBSTONES, key, f"{clock_s} {owner}".encode()))
        self.num_expired += len(changes) // 2
        for key, tombstone in self._next(store, TOMBSTONES):
            try:
                idle_s = self.idle_s(read_tombstone(tombstone)[0])
            except RecordError:
                continue
            if idle_s > (1 + _TOMBSTONE_LIVES) * self._time_to_live_s:
                changes.append((TOMBSTONES, key, None))
        return changes

    def _next(self, store: StateStore, table: int) -> list[tuple[bytes, bytes]]:
        found = []
        for item in store.items(table, self._places[table]):
            found.append(item)
            if len(found) == _MAX_LOOKED_AT:
                break
        self._places[table] = found[-1][0] + b"\0" if len(found) == _MAX_LOOKED_AT else b""
        return found
