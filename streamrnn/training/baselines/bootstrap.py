"""Interval of the ratio of two errors on the same rows, by a paired bootstrap.

Whole streams are drawn where there are enough of them, for the rows of a stream are alike. Where
streams share times, what is drawn are blocks of times with the rows of all streams, for what
happens at a time may befall all of them; else blocks of rows (Politis and Romano, "A circular
block-resampling procedure for stationary data", 1992), so long that what is left between them is
little. The interval is one of percentiles, widened for few units as the t distribution widens one
of the normal (Hesterberg, "What teachers should know about the bootstrap", 2015, section 5.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.training.baselines.seasonal import autocorrelation
from streamrnn.training.metrics import of_mean

__all__ = [
    "LEAST_STREAMS", "LEVEL", "Interval", "Units", "choose_units", "ratio_interval", "sums_by_time",
]  # fmt: skip

Doubles = NDArray[np.float64]

LEVEL = 0.95
LEAST_STREAMS = 10  # fewer say too little of how streams differ: blocks of rows then
LEAST_BLOCKS = 5  # fewer say nothing
MAX_UNITS = 1000  # more would only take time: longer blocks and groups of streams are as valid
NUM_DRAWS = 2000
SEED = 0
_MOST = 1e9  # ratio of an error to none


@dataclass(frozen=True)
class Interval:
    """Ratio of one error to another, and between what it lies with probability `LEVEL`."""

    ratio: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the two errors differ beyond chance."""
        return self.high < 1.0 or self.low > 1.0

    @property
    def is_bounded(self) -> bool:
        """Whether there were enough rows to say anything."""
        return self.high < _MOST


@dataclass(frozen=True)
class Units:
    """What is drawn: whole streams, or circular blocks of the streams' rows one after the other."""

    count: int
    length: int  # rows of a block; 0: whole streams
    unit: str = "row"  # or "time", with what all streams have then

    @property
    def text(self) -> str:
        """What a reader is told."""
        if self.length:
            return f"{counted(self.count, 'block')} of {counted(self.length, self.unit)}"
        return counted(self.count, "whole stream")


def choose_units(differences: list[Doubles], horizon: int) -> Units:
    """Choose what is drawn by the differences of two losses: [rows] a stream, NaN where missing.

    Blocks are at least as long as the horizon, twice as long as the autocorrelation of the
    differences reaches, and as long as the third root of the number of rows.
    """
    num_streams = sum(bool(np.any(~np.isnan(values))) for values in differences)
    if num_streams >= LEAST_STREAMS:
        return Units(num_streams, 0)
    joined = np.concatenate(differences)
    num_rows = len(joined)
    least = math.ceil(num_rows ** (1 / 3))
    length = max(1, horizon, 2 * _correlated_rows(joined), least, num_rows // MAX_UNITS)
    return Units(min(num_rows // length, int(np.count_nonzero(~np.isnan(joined)))), length)


def sums_by_time(losses: list[Doubles], moments: list[NDArray[np.intp]]) -> Doubles:
    """Sum the losses of all streams at each time, [times], NaN where none has a target.

    ``moments`` tells which time each row is of, from 0.
    """
    joined, when = np.concatenate(losses), np.concatenate(moments)
    present = ~np.isnan(joined)
    num = int(when.max(initial=-1)) + 1
    sums = np.bincount(when[present], joined[present], num)
    return np.where(np.bincount(when[present], minlength=num) > 0, sums, np.nan)


def _correlated_rows(differences: Doubles) -> int:
    """Return how many rows on the differences are still correlated, at most half of the rows.

    It is the lag before the first pair of lags whose autocorrelations sum to no more than chance
    makes of one (Geyer, "Practical Markov chain Monte Carlo", 1992, section 3.3): of what swings,
    the positive part counts once.
    """
    present = ~np.isnan(differences)
    num_rows = int(np.count_nonzero(present))
    if num_rows < 8:
        return 0
    centred = np.where(present, differences - differences[present].mean(), 0.0)
    r, _ = autocorrelation([centred], num_rows // 4 * 2)
    pairs = r[1::2] + r[2::2]
    quiet = np.flatnonzero(pairs <= 2.0 * math.sqrt(math.log10(num_rows) / num_rows))
    return 2 * int(quiet[0] if len(quiet) else len(pairs))


def ratio_interval(
    metric: str, first: list[Doubles], second: list[Doubles], units: Units
) -> Interval:
    """Return the first error's ratio to the second, with its interval.

    The losses are those of `row_losses`, [rows] a stream, NaN where missing.
    """
    totals = [float(np.nansum(np.concatenate(losses))) for losses in (first, second)]
    ratio = float(_ratios(metric, *(np.array([total]) for total in totals))[0])
    if units.count < LEAST_BLOCKS:
        return Interval(ratio, 0.0, _MOST)
    tables = [_sums(first, units), _sums(second, units)]
    num_drawn = units.count if units.length else len(tables[0])
    chosen = np.random.default_rng(SEED).integers(0, len(tables[0]), (NUM_DRAWS, num_drawn))
    sums = [table[chosen].sum(axis=1) for table in tables]
    tail = _widened_tail(num_drawn)
    low, high = np.quantile(_ratios(metric, *sums), [tail, 1.0 - tail])
    return Interval(ratio, float(low), float(high))


def _sums(losses: list[Doubles], units: Units) -> Doubles:
    """Return the sum of the losses of every unit that may be drawn."""
    if units.length:
        joined = np.nan_to_num(np.concatenate(losses))
        total = np.concatenate([[0.0], np.cumsum(np.concatenate([joined, joined[: units.length]]))])
        return np.asarray(total[units.length :][: len(joined)] - total[: len(joined)])
    sums = np.array([np.nansum(values) for values in losses if np.any(~np.isnan(values))])
    group = np.arange(len(sums)) * min(len(sums), MAX_UNITS) // len(sums)
    return np.asarray(np.bincount(group, sums), np.float64)


def _ratios(metric: str, first: Doubles, second: Doubles) -> Doubles:
    """Return ratios of errors from the sums of losses over the same rows."""
    first, second = np.maximum(first, 0.0), np.maximum(second, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(first == second, 1.0, first / second)
    ratios = np.clip(ratios, 1.0 / _MOST**2, _MOST**2)
    return np.array([of_mean(metric, float(ratio)) for ratio in ratios])


def _widened_tail(num_units: int) -> float:
    """Return the share to cut off at either end, of so many units."""
    normal = NormalDist()
    n = num_units - 1
    z = normal.inv_cdf(0.5 + LEVEL / 2)
    # Quantile of the t distribution (Abramowitz and Stegun, 26.7.5).
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return normal.cdf(-math.sqrt(num_units / n) * t)
