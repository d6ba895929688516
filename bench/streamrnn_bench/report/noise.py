"""What two sets of noisy samples tell about their difference.

The Hodges-Lehmann estimate of a shift, the median of all differences of pairs, and its exact
interval from the distribution of the Mann-Whitney statistic (Hollander, Wolfe and Chicken,
Nonparametric Statistical Methods, chapter 4). It assumes no distribution, and a few rounds that
somebody disturbed move it little.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MAX_SAMPLES", "Shift", "shift_between"]

MAX_SAMPLES = 64
"""More samples than these are thinned out: the distribution takes the product of both numbers."""


class Shift(NamedTuple):
    """By how much the second set lies above the first, in their unit."""

    middle: float
    low: float
    high: float


def shift_between(first: ArrayLike, second: ArrayLike, confidence: float) -> Shift | None:
    """Estimate the shift between two sets of independent samples, with its interval.

    Returns None where there are too few samples for an interval of that confidence.
    """
    a, b = _thinned(first), _thinned(second)
    if not len(a) or not len(b):
        return None
    differences = np.sort(np.subtract.outer(b, a).ravel())
    below = np.cumsum(_mann_whitney(len(a), len(b)))
    # So many of the differences may lie outside on either side.
    num_outside = int(np.searchsorted(below, (1 - confidence) / 2, side="right"))
    if num_outside < 1:
        return None
    return Shift(
        float(np.median(differences)),
        float(differences[num_outside - 1]),
        float(differences[-num_outside]),
    )


def _thinned(samples: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if len(values) <= MAX_SAMPLES:
        return values
    return values[np.linspace(0, len(values) - 1, MAX_SAMPLES).astype(int)]


@cache
def _mann_whitney(num_first: int, num_second: int) -> NDArray[np.float64]:
    """Return P(U = u), u = 0 to the product of both numbers, if both sets are of one kind."""
    of_second = [np.ones(1)] * (num_second + 1)  # with none of the first set
    for m in range(1, num_first + 1):
        row = [np.ones(1)]
        for n in range(1, num_second + 1):
            # The largest of all belongs to the first set, and is above n of the second, or not.
            both = np.zeros(m * n + 1)
            both[n : n + len(of_second[n])] += m / (m + n) * of_second[n]
            both[: len(row[n - 1])] += n / (m + n) * row[n - 1]
            row.append(both)
        of_second = row
    return of_second[num_second]
