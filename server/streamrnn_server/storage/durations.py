"""How long the disk takes, counted in buckets."""

from __future__ import annotations

import bisect

__all__ = ["Durations"]

_BOUNDS_S = tuple(2.0**k / 1024 for k in range(16))  # 1 ms to 32 s


class Durations:
    """A histogram of times; written by one thread, read by any.

    Attributes
    ----------
    bounds_s : tuple of float
        Upper ends of the buckets but the last, which has none.
    counts : list of int
    sum_s : float
    """

    bounds_s = _BOUNDS_S

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, passed_s: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(_BOUNDS_S, passed_s)] += 1
        self.sum_s += passed_s
