"""Which connections to cut when libzmq holds too much of what they send.

A message that does not end, or a queue of long ones, lies in libzmq, which bounds neither by bytes
(docs/decisions.md). What the process holds beside its memory budget shows it; how much each
connection has brought is known to TCP.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Mapping

__all__ = ["LOOK_EVERY_MS", "AnonymousMemory", "MemoryWatch", "received_bytes"]

LOOK_EVERY_MS = 50
_COUNT_EVERY_S = 10.0  # what connections have brought, while all is well
_WAIT_S = 1.0  # until what a cut connection had sent has been given back
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux's
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
_BYTES_RECEIVED = struct.Struct("=128xQ")  # where they stand in its struct tcp_info


class AnonymousMemory:
    """How much memory of this process no file backs: the file that tells it, kept open."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def num_bytes(self) -> int:
        """Return how much it is now; 0 where the system does not tell."""
        if self._file is None:
            return 0
        _, resident, shared, *_ = map(int, os.pread(self._file, 256, 0).split())
        return (resident - shared) * _PAGE_BYTES

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class MemoryWatch:
    """Sees that too much is held, and whose it may be.

    Parameters
    ----------
    max_excess_bytes : int
        How much more than what is accounted for may be held.
    accounted : callable
        Returns how many bytes the process should hold, apart from what it held at first.
    held : AnonymousMemory, optional
        How many it holds.
    """

    def __init__(
        self,
        max_excess_bytes: int,
        accounted: Callable[[], int],
        held: AnonymousMemory | None = None,
    ) -> None:
        self._max_excess_bytes = max_excess_bytes
        self._accounted, self._held = accounted, held or AnonymousMemory()
        self._first_bytes = self._held.num_bytes()
        self._stays_bytes = 0  # of an excess, what no cut has given back
        self._cut_at_bytes = 0  # the excess at the last cut
        self._waits_until_s = self._counted_at_s = -float("inf")
        self._is_trimmed = True
        self._before: dict[int, int] = {}

    def look(self, now_s: float, count: Callable[[], Mapping[int, int]]) -> list[int]:
        """Return the connections to cut now: those that have brought most since all was well.

        ``count`` returns how many bytes each connection has brought since it began. Who is cut
        connects again, and a client repeats what was not answered.
        """
        excess = self._excess_bytes()
        if now_s < self._waits_until_s:
            # What was cut is being given back; who connects again and goes on is seen before that.
            if excess <= self._cut_at_bytes + self._max_excess_bytes // 4:
                return []
            return self._cut(now_s, excess, count())
        if not self._is_trimmed:
            if _malloc_trim is not None:
                _malloc_trim(0)
            self._is_trimmed = True
            self._stays_bytes = excess = self._excess_bytes()
        self._stays_bytes = max(0, min(self._stays_bytes, excess))
        if excess - self._stays_bytes > self._max_excess_bytes:
            return self._cut(now_s, excess, count())
        if now_s - self._counted_at_s >= _COUNT_EVERY_S:
            self._counted_at_s = now_s
            self._before = dict(count())
        return []

    def close(self) -> None:
        """Close what it looks at."""
        self._held.close()

    def _excess_bytes(self) -> int:
        return self._held.num_bytes() - self._first_bytes - self._accounted()

    def _cut(self, now_s: float, excess: int, now: Mapping[int, int]) -> list[int]:
        """Return who has brought at least the mean of those who have brought anything."""
        self._waits_until_s, self._is_trimmed = now_s + _WAIT_S, False
        self._cut_at_bytes = excess
        brought = {each: total - self._before.get(each, 0) for each, total in now.items()}
        # A number may have gone to another connection since, which has brought all it has.
        brought = {each: new if new >= 0 else now[each] for each, new in brought.items() if new}
        mean = sum(brought.values()) / max(1, len(brought))
        return [each for each, new in brought.items() if new >= mean]


def received_bytes(one: socket.socket) -> int:
    """Return how many bytes a TCP connection has brought; 0 where the system does not tell."""
    if _TCP_INFO is None:
        return 0
    info = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_RECEIVED.size)
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else 0
