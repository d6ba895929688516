"""Seasonal naive forecast: the value one period ago.

The period is given, or found in the training part by autocorrelation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.training.baselines.target import (
    Prediction,
    Target,
    first_known,
    held_values,
    known_whole,
)
from streamrnn.training.data.dataset import Dataset, Stream

__all__ = ["Seasonal", "autocorrelation", "find_period"]

Doubles = NDArray[np.float64]

MAX_PERIOD = 1_000_000
MAX_ROWS = 1 << 18  # of a stream, in which a period is looked for
LEAST_AUTOCORRELATION = 0.15
MAX_PEAKS = 8


@dataclass(frozen=True)
class Seasonal:
    """The value of the same row of the period before; the last known one where there is none."""

    name: ClassVar[str] = "seasonal"
    noun: ClassVar[str] = "seasonal naive forecast"
    rank: ClassVar[int] = 2
    target: Target
    period: int  # rows

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return f"seasonal naive, period of {counted(self.period, 'row')}"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> Seasonal | None:
        """Return it if the target is a number among the inputs, and there is a period."""
        source = target.source
        if target.num_classes or source is None:
            return None
        item = dataset.spec.inputs[source]
        period = dataset.config.season or find_period(
            [
                held_values(item, stream, source, stream.stops[0] + target.horizon)[
                    first_known(stream, source) :
                ][-MAX_ROWS:]
                for stream in dataset.streams
                if stream.stops[0]  # else nothing of it is for training
            ]
        )
        return cls(target, period) if period else None

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        source = self.target.source
        assert source is not None  # fit and from_dict have seen to it
        known = held_values(self.target.spec.inputs[source], stream, source, rows.stop)
        back = -self.target.horizon % self.period
        index = np.arange(rows.start, rows.stop)
        is_known = index - back >= first_known(stream, source)
        then = np.where(is_known, index - back, index)
        return Prediction(self.target.to_network(stream, rows, known[then]))

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {"period": self.period}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> Seasonal:
        """Take it back, or raise `ModelFileError`."""
        return cls(target, known_whole(plain, "period", 1, MAX_PERIOD))


def find_period(series: list[Doubles]) -> int:
    """Find the period of some series, in rows; 0 if there is none.

    Periods are where their common autocorrelation has peaks that are no chance (beyond its standard
    error times what the largest of so many normal deviates is), after a trend was taken away by a
    line or by taking changes. The period is the one over which the series change least, or an
    earlier one that is as good but for chance. At least three must lie in the longest series.
    """
    longest = max((len(values) for values in series), default=0)
    series = [values for values in series if len(values) > 2]
    levels = [_unrounded(_without_line(values), values) for values in series]
    changes = [_unrounded(np.diff(values) - np.diff(values).mean(), values) for values in series]
    spreads: dict[int, float] = {}
    for period in [*_peaks(levels, longest // 3), *_peaks(changes, longest // 3)]:
        reach = max(1, period // 50)  # a peak of noisy values may stand a little aside
        for near in range(period - reach, period + reach + 1, -(-reach // 10)):
            if 2 <= near <= longest // 3 and near not in spreads:
                spreads[near] = _spread(series, near)
    least = min(spreads.values(), default=0.0)
    rounding = 1e-12 * max(spreads.values(), default=0.0)
    as_good = 1.0 + max(0.1, 3.0 * np.sqrt(6.0 / max(sum(map(len, series)), 1)))
    good = [period for period, spread in spreads.items() if spread <= as_good * least + rounding]
    if not good:
        return 0
    # The neighbours are nearly as good where a series is smooth: of those the best.
    last = max(min(good) + 2, min(good) * 5 // 4)
    _, period = min((s, p) for p, s in spreads.items() if min(good) <= p <= last)
    return period


def _without_line(values: Doubles) -> Doubles:
    t = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(t @ values) / (float(t @ t) or 1.0)
    return np.asarray(values - values.mean() - slope * t)


def _unrounded(centred: Doubles, values: Doubles) -> Doubles:
    """Return zeros where there is nothing but the rounding of float32 inputs."""
    is_rounding = centred.std() <= 1e-6 * np.abs(values).max()
    return np.zeros_like(centred) if is_rounding else centred


def autocorrelation(series: list[Doubles], max_lag: int) -> tuple[Doubles, int]:
    """Return the common autocorrelation of centred series for the lags 0 to ``max_lag``.

    And the number of rows. It is all zeros if the series are constant.
    """
    products = np.zeros(max_lag + 1)
    for values in series:
        size = 1 << (2 * len(values)).bit_length()
        spectrum = np.fft.rfft(values, size)
        own = np.fft.irfft(spectrum * np.conj(spectrum), size)[: min(max_lag + 1, len(values))]
        products[: len(own)] += own
    num_rows = sum(len(values) for values in series)
    return products / (float(products[0]) or 1.0), num_rows


def _peaks(series: list[Doubles], max_lag: int) -> list[int]:
    """Return the lags of the highest and first peaks of an autocorrelation that are no chance."""
    if max_lag < 2:
        return []
    r, num_rows = autocorrelation(series, max_lag + 1)
    lags = np.arange(2, max_lag + 1)
    # A smooth series is like itself a few rows on: first it must have become unlike itself. What
    # chance does to later lags follows from how long that takes (Bartlett 1946).
    pairs = sum(np.maximum(len(values) - np.arange(max_lag + 2), 0) for values in series)
    unbiased = r * num_rows / np.maximum(pairs, 1)
    unlike = np.flatnonzero(r <= 0.0)
    if not len(unlike) or unlike[0] == 0:  # never, or constant
        return []
    error = np.sqrt((1.0 + 2.0 * np.sum(r[1 : unlike[0] + 1] ** 2)) / num_rows)
    num_independent = max(2.0, max_lag / unlike[0])
    chance = (0.5 + np.sqrt(2.0 * np.log(num_independent))) * error
    is_peak = (unbiased[lags] >= unbiased[lags - 1]) & (unbiased[lags] > unbiased[lags + 1])
    is_peak &= (lags > unlike[0]) & (r[lags] > max(LEAST_AUTOCORRELATION, chance))
    peaks = lags[is_peak]
    highest = peaks[np.argsort(-unbiased[peaks], kind="stable")][:MAX_PEAKS]
    # The first ones too: of a period that is no whole number, multiples are a little higher.
    return sorted({*highest.tolist(), *peaks[:MAX_PEAKS].tolist()})


def _spread(series: list[Doubles], period: int) -> float:
    """Return the variance of the changes over a period."""
    changes = [values[period:] - values[:-period] for values in series if len(values) > period]
    return float(np.var(np.concatenate(changes)))
