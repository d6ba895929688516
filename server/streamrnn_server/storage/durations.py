"""How long the disk takes, counted in buckets."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

__all__ = ["Durations"]

_BOUNDS_S = tuple(2.0**k / 1024 for k in range(16))  # 1 ms to 32 s


class Durations:
    """A histogram of times; written by one thread, read by any.

    Parameters
    ----------
    bounds_s : sequence of float
        Upper ends of the buckets but the last, which has none; by default of commits to a disk.

    Attributes
    ----------
    bounds_s : sequence of float
    counts : list of int
    sum_s : float
    """

    def __init__(self, bounds_s: Sequence[float] = _BOUNDS_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def note(self, passed_s: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(self.bounds_s, passed_s)] += 1
        self.sum_s += passed_s
