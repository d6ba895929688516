"""A network beside the baselines on the same rows, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.baselines.bootstrap import (
    LEVEL,
    Interval,
    Units,
    choose_units,
    ratio_interval,
    sums_by_time,
)
from streamrnn.training.baselines.families import Fitted
from streamrnn.training.baselines.target import Baseline, Prediction, Target, targets_of
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.split import overlap
from streamrnn.training.data.streams import rows_of_streams, times_of_rows
from streamrnn.training.metrics import SECOND, of_mean, row_losses

__all__ = [
    "Outcome", "Rival", "compare", "decide", "judge", "measures", "paired_interval", "percent",
    "sides", "verdict",
]  # fmt: skip

Doubles = NDArray[np.float64]

BLOCK_ELEMENTS = 4_000_000
LEAST = 0.0001  # percent that a report tells apart
MOST = 100_000  # percent that it tells as a number
_LEVEL = f"{LEVEL:.0%} interval".replace("%", " %")
NUMBERS = {"rmse": "rmse", "mae": "mean absolute error", "pinball": "pinball loss"}


@dataclass
class Outcome:
    """Losses of one predictor on the rows of a part."""

    metric: str
    losses: list[Doubles] = field(default_factory=list)  # [rows] a stream, NaN where missing
    second: float = 0.0  # sum over the rows of the measure that is shown beside it

    @property
    def measures(self) -> dict[str, float]:
        """The metric, and the measure beside it."""
        joined = np.concatenate(self.losses)
        count = max(int(np.count_nonzero(~np.isnan(joined))), 1)
        second = SECOND[self.metric]
        return {
            self.metric: of_mean(self.metric, float(np.nansum(joined)) / count),
            second: of_mean(second, self.second / count),
        }


def judge(
    dataset: Dataset,
    target: Target,
    part: str,
    predict: Callable[[Stream, slice], Prediction],
) -> Outcome:
    """Run a predictor over the rows of a part."""
    outcome = Outcome(target.metric)
    length = max(1, BLOCK_ELEMENTS // max(target.num_classes, 1))
    for stream in dataset.streams:
        rows = stream.rows(part)
        losses = np.full(max(0, rows.stop - rows.start), np.nan)
        for start in range(rows.start, rows.stop, length):
            block = slice(start, min(start + length, rows.stop))
            truth = target.truth(stream, block)
            found = predict(stream, block)
            values, known = found.values, truth
            if not target.num_classes:
                values, known = values * target.scale, truth * target.scale
            own = row_losses(target.metric, values, known, target.quantile)
            losses[block.start - rows.start : block.stop - rows.start] = own
            if found.classes is not None:
                outcome.second += float(np.count_nonzero(found.classes == truth))
            else:
                other = row_losses(SECOND[target.metric], values, known, target.quantile)
                outcome.second += float(np.nansum(other))
        outcome.losses.append(losses)
    return outcome


def measures(
    dataset: Dataset, part: str, network: Callable[[Target, Stream, slice], Prediction]
) -> dict[str, dict[str, float]]:
    """Measure a network on a part: by target, the metric and the measure beside it."""
    found = {}
    for target in targets_of(dataset.config, dataset.spec):
        found[target.name] = judge(dataset, target, part, partial(network, target)).measures
    return found


def compare(
    dataset: Dataset,
    part: str,
    network: Callable[[Target, Stream, slice], Prediction],
    fitted: Fitted,
) -> dict[str, Any]:
    """Judge a network and the fitted baselines on the same rows.

    Returns JSON types: ``errors`` (target -> measure), ``baselines`` (name -> target -> measure),
    and ``comparison``: for every target the ``metric``, the ``num_targets``, for every baseline of
    ``against`` its ``label``, what was ``drawn``, and ``ratio``, ``low`` and ``high``, the
    network's error as a multiple of the baseline's; the ``best`` baseline and what to ``use`` as
    `decide` tells them; and the ``verdict``. A target without a value is left out.
    """
    errors: dict[str, dict[str, float]] = {}
    by_name: dict[str, dict[str, dict[str, float]]] = {}
    comparison = {}
    for target in targets_of(dataset.config, dataset.spec):
        own = judge(dataset, target, part, partial(network, target))
        num_targets = int(sum(np.count_nonzero(~np.isnan(losses)) for losses in own.losses))
        if not num_targets:
            continue
        errors[target.name] = own.measures
        moments = _shared_moments(dataset, target, part)
        rivals = []
        for baseline in fitted[target.name]:
            other = judge(dataset, target, part, baseline.predict)
            by_name.setdefault(baseline.name, {})[target.name] = other.measures
            interval, units = _interval(target, own.losses, other.losses, moments)
            error = other.measures[target.metric]
            rivals.append(Rival(baseline, error, interval, units.text))
        best, use = decide(rivals)
        comparison[target.name] = {
            "metric": target.metric,
            "num_targets": num_targets,
            "against": {rival.baseline.name: rival.to_dict() for rival in rivals},
            "best": best.baseline.name,
            "use": use,
            "verdict": verdict(target.metric, own.measures[target.metric], rivals),
        }
    return {"errors": errors, "baselines": by_name, "comparison": comparison}


def paired_interval(
    dataset: Dataset, target: Target, part: str, own: list[Doubles], other: list[Doubles]
) -> tuple[Interval, str]:
    """Return one error as a multiple of another on the rows of a part, and what was drawn."""
    interval, units = _interval(target, own, other, _shared_moments(dataset, target, part))
    return interval, units.text


def _interval(
    target: Target,
    own: list[Doubles],
    other: list[Doubles],
    moments: list[NDArray[np.intp]] | None,
) -> tuple[Interval, Units]:
    if moments is not None:
        own, other = [sums_by_time(own, moments)], [sums_by_time(other, moments)]
    units = choose_units([a - b for a, b in zip(own, other, strict=True)], target.horizon)
    if moments is not None:
        units = replace(units, unit="time")
    return ratio_interval(target.metric, own, other, units), units


def _shared_moments(dataset: Dataset, target: Target, part: str) -> list[NDArray[np.intp]] | None:
    """Return the number of each target's time, [rows] a stream; None if streams share none.

    Dates are shared where streams overlap; other numbers only where they were split at common ones,
    for most of them count a stream's own rows.
    """
    config, table = dataset.config, dataset.table
    if not config.time:
        return None
    if config.split_by != "date" and table.column(config.time).times is None:
        return None
    times = times_of_rows(table, config.time)
    assert times is not None  # there is a column
    index = rows_of_streams(table, config.time, config.group)
    of_targets, known = [], {}
    for stream in dataset.streams:
        rows = stream.rows(part)
        ahead = index[stream.name][rows.start + target.horizon : rows.stop + target.horizon]
        of_targets.append(times[ahead])
        known[stream.name] = ahead[~np.isnan(target.truth(stream, rows))]
    if sum(len(own) > 0 for own in known.values()) < 2 or not overlap(times, known):
        return None
    return _numbered(of_targets)


def _numbered(times: list[Doubles]) -> list[NDArray[np.intp]]:
    """Return times numbered from 0; by a stream's usual step where hardly two have the same."""
    joined = np.concatenate(times)
    different, index = np.unique(joined, return_inverse=True)
    step = np.median(np.concatenate([np.diff(own) for own in times]))
    if 2 * len(different) > len(joined) and step > 0:
        _, index = np.unique(np.round((joined - different[0]) / step), return_inverse=True)
    return np.split(index, np.cumsum([len(own) for own in times])[:-1])


@dataclass(frozen=True)
class Rival:
    """A baseline and how the network compares with it."""

    baseline: Baseline
    error: float
    interval: Interval  # of the network's error as a multiple of the baseline's
    drawn: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "label": self.baseline.label,
            "noun": self.baseline.noun,
            "drawn": self.drawn,
            "ratio": self.interval.ratio,
            "low": self.interval.low,
            "high": self.interval.high,
        }


def decide(rivals: list[Rival]) -> tuple[Rival, str]:
    """Return the baseline that matters, and what is to be used.

    ``baseline``, if one is better than the network beyond chance; ``network``, if it is better than
    the best of them beyond chance; else ``either``.
    """
    better = [rival for rival in rivals if rival.interval.low > 1.0]
    best = min(better or rivals, key=lambda rival: (rival.error, rival.baseline.rank))
    if better:
        return best, "baseline"
    return best, "network" if best.interval.is_clear else "either"


def verdict(metric: str, own: float, rivals: list[Rival]) -> str:
    """Say in one sentence what to use; where no difference can be told, what is simpler."""
    what = NUMBERS.get(metric, "cross-entropy")
    best, use = decide(rivals)
    name, found = best.baseline.noun, best.interval
    if use == "baseline" and found.ratio > MOST / 100:  # as where the target never changes
        return (
            f"use the {name}: its {what} is {best.error:#.4g}, next to nothing beside "
            f"{own:#.4g} of the network"
        )
    if use == "baseline":
        # Of the network's error: how much smaller the baseline's is.
        share, low, high = (percent(1.0 - 1.0 / r) for r in (found.ratio, found.low, found.high))
        return (
            f"use the {name}: its {what} {best.error:#.4g} is {share} smaller than the network's, "
            f"{_LEVEL} {low} to {high}"
        )
    words, low, high = sides(found)
    than = "than" if words.endswith("er") else "as"
    compared = f"{what} {own:#.4g} is {words} {than} {best.error:#.4g} of the"
    if use == "either":
        told, bounds = "no difference can be told", f"{_LEVEL} {low} to {high}"
        if not found.is_bounded:
            told = "too few rows to tell"
            bounds = f"with no interval from {best.drawn}"
        return f"{told}: the network's {compared} {name}, {bounds}; take the simpler, the {name}"
    return (
        f"the network is better than every baseline: its {compared} best of them, the {name}, "
        f"{_LEVEL} {low} to {high}"
    )


def sides(found: Interval) -> tuple[str, str, str]:
    """Return how much smaller or larger the network's error is, and from what to what."""
    side, sign = ("smaller", -1.0) if found.ratio <= 1.0 else ("larger", 1.0)
    ends = (found.low, found.high) if found.ratio > 1.0 else (found.high, found.low)
    share, low, high = (percent(sign * (ratio - 1.0)) for ratio in (found.ratio, *ends))
    words = f"the same within {LEAST} %" if share == "0 %" else f"{share} {side}"
    return words, low, high


def percent(share: float) -> str:
    """Format a share, with a decimal where there would be only zeros or ones, or more."""
    hundredths = 100.0 * share
    size = abs(hundredths)
    if size < LEAST:
        return "0 %"
    if size < 0.095:
        return f"{hundredths:.4f}".rstrip("0") + " %" if size < 0.0095 else f"{hundredths:.2f} %"
    if size > MOST:  # beside an error of next to nothing, as where a target never changes
        return f"more than {MOST:,} %"
    return f"{hundredths:.{0 if size >= 9.5 else 1}f} %"
