"""The most load that a server takes with p99 below a bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from streamrnn_bench.report.results import BenchError

__all__ = ["Capacity", "Trial", "find_most"]

_NUM_CONFIRMATIONS = 3
_MAX_STEPS_DOWN = 10


class Trial(NamedTuple):
    """One load and what it has shown."""

    amount: float  # of streams, or of steps a second
    p99_us: float
    reason: str  # why it is too much; empty: it is not

    @property
    def is_within(self) -> bool:
        """Whether the server has taken the load."""
        return not self.reason


class Capacity(NamedTuple):
    """The most that was within the bound, and how sure that is."""

    amount: float
    tolerance: float  # a load greater by this share was too much, in the search or afterwards
    confirmations: Sequence[Trial]  # of that amount, after the search
    trials: Sequence[Trial]  # all
    is_limit: bool  # no load was too much: the amount is what the search was allowed

    @property
    def p99_us(self) -> float:
        """The median of the confirmations' p99."""
        return median(trial.p99_us for trial in self.confirmations)


def find_most(
    measure: Callable[[float], Trial],
    start: float,
    least: float,
    most: float,
    tolerance: float,
    whole: int = 0,
) -> Capacity:
    """Double or halve until the bound lies between, halve the ratio, confirm.

    ``whole`` is what amounts are multiples of, 0 for any. A load that was found in the search must
    be within the bound in most of three more; else the next smaller one is confirmed. A
    `BenchError` if even ``least`` is too much.
    """
    trials: list[Trial] = []

    def attempt(amount: float) -> Trial:
        trials.append(measure(amount))
        return trials[-1]

    low, high, amount = 0.0, math.inf, _rounded(min(max(start, least), most), whole)
    while True:
        if attempt(amount).is_within:
            low = amount
        else:
            high = amount
        if low >= most or (low > 0 and high <= low * (1 + tolerance)):
            break
        if low == 0:
            if high <= least:
                raise BenchError(f"even {least:,.0f} is too much: {trials[-1].reason}")
            following = max(high / 2, least)
        else:
            following = min(2 * low, most) if high == math.inf else math.sqrt(low * high)
        following = _rounded(following, whole)
        if low > 0 and not low < following < high:  # there is nothing between them
            break
        amount = following
    for _ in range(_MAX_STEPS_DOWN):
        confirmations = [attempt(low) for _ in range(_NUM_CONFIRMATIONS)]
        if sum(trial.is_within for trial in confirmations) > _NUM_CONFIRMATIONS // 2:
            return Capacity(low, tolerance, confirmations, trials, is_limit=high == math.inf)
        high, low = low, _rounded(low / (1 + tolerance), whole)
        if low < least or low >= high:
            break
    raise BenchError(
        "no load is confirmed: what was within the bound once is too much the next time; measure "
        f"for longer, or on a quieter machine (the last: {trials[-1].reason})"
    )


def _rounded(amount: float, whole: int) -> float:
    return max(round(amount / whole), 1) * whole if whole else amount
