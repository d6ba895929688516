"""How often targets lie between quantiles, and how often quantiles cross."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.data.dataset import Dataset
from streamrnn.training.data.forecasts import forecasts_of

__all__ = ["interval_lines", "measure_intervals"]


def measure_intervals(
    dataset: Dataset, z: Mapping[str, NDArray[Any]], part: str = "test"
) -> dict[str, dict[str, float]]:
    """Measure, by target, the interval from its lowest to its highest quantile on a part.

    ``z`` are the network's outputs, [T, O], of every stream by its name. Each quantile is learned
    by itself and nothing keeps them in order: ``crossings`` is the share of the rows in which a
    higher quantile lies below a lower one. ``coverage`` is the share of the targets within.
    """
    found = {}
    numbered = enumerate(forecasts_of(dataset.config))
    for target, group in groupby(numbered, lambda item: item[1].target_name):
        own = list(group)
        levels = [forecast.quantile for _, forecast in own if forecast.quantile is not None]
        if len(levels) < 2:
            continue
        outputs = [o for o, _ in own]
        streams = [stream for stream in dataset.streams if stream.name in z]
        guess = np.concatenate([z[s.name][s.rows(part)][:, outputs] for s in streams])
        truth = np.concatenate([s.target[s.rows(part), outputs[0]] for s in streams])
        guess, truth = guess[~np.isnan(truth)], truth[~np.isnan(truth)]
        if not len(truth):
            continue
        is_within = (guess[:, 0] <= truth) & (truth <= guess[:, -1])
        crosses = (np.diff(guess, axis=1) < 0).any(axis=1)
        found[target] = {
            "low": levels[0],
            "high": levels[-1],
            "coverage": float(is_within.mean()),
            "crossings": float(crosses.mean()),
        }
    return found


def interval_lines(intervals: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Format what `measure_intervals` returned as lines of text."""
    for target, found in intervals.items():
        yield (
            f"from q{found['low']:g} to q{found['high']:g} lie {found['coverage']:.1%} of {target} "
            f"({found['high'] - found['low']:.1%} wanted); quantiles cross in "
            f"{found['crossings']:.1%} of the rows"
        )
