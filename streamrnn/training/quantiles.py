"""Forecasts of quantiles: their errors in a table, what lies between them, how often they cross."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.data.dataset import Dataset
from streamrnn.training.data.forecasts import forecasts_of

__all__ = ["interval_lines", "measure_intervals", "quantile_tables"]

WIDTH = 30  # of a column
_NAME = re.compile(r"(?P<column>.*?)(?:\+(?P<rows>[0-9]+))? q(?P<quantile>[0-9.e-]+)", re.DOTALL)
VERDICTS = {
    "network": "the network is better than every baseline",
    "either": "no difference to the {} can be told, take it, it is simpler",
    "baseline": "use the {}",
}


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


def quantile_tables(
    title: str, rows: str, tables: Mapping[str, Any]
) -> Generator[str, None, set[str]]:
    """Format several quantiles or horizons of a column as one table; return what is in it.

    ``tables`` is what `streamrnn.training.baselines.compare.compare` returns.
    """
    by_column: dict[str, dict[tuple[int, str], str]] = {}
    for target, errors in tables["errors"].items():
        name = _NAME.fullmatch(target) if "pinball" in errors and "coverage" in errors else None
        if name and "use" in tables["comparison"].get(target, {}):
            place = int(name["rows"] or 0), f"q{name['quantile']}"
            by_column.setdefault(name["column"], {})[place] = target
    done: set[str] = set()
    for column, places in by_column.items():
        if len(places) > 1:
            counts = {tables["comparison"][t]["num_targets"] for t in places.values()}
            about = ["pinball loss and share of targets below", rows]
            few = " to ".join(map(str, sorted({min(counts), max(counts)})))
            about.append(f"{few} target{'s' * (counts != {1})}")
            yield f"{title} of {column} ({'; '.join(filter(None, about))}):"
            yield from _cells(column, places, tables)
            done |= set(places.values())
    return done


def _cells(
    column: str, places: Mapping[tuple[int, str], str], tables: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the rows of the table of a column, and under it what to use of each of its cells."""
    quantiles = list(dict.fromkeys(quantile for _, quantile in places))
    yield (
        f"  {'rows ahead':<12}" + "".join(f"{quantile:<{WIDTH}}" for quantile in quantiles).rstrip()
    )
    uses: dict[str, dict[int, list[str]]] = {}
    for ahead in dict.fromkeys(ahead for ahead, _ in places):
        own, best = f"  {ahead:<12}", f"  {'  baseline':<12}"
        for quantile in quantiles:
            target = places.get((ahead, quantile), "")
            if not target:
                continue
            errors, found = tables["errors"][target], tables["comparison"][target]
            own += f"{errors['pinball']:<#10.4g}{errors['coverage']:<{WIDTH - 10}.1%}"
            noun = found["against"][found["best"]]["noun"]
            error = tables["baselines"][found["best"]][target]["pinball"]
            best += f"{error:<#10.4g}{noun:<{WIDTH - 10}}"
            words = VERDICTS[found["use"]].format(noun)
            uses.setdefault(words, {}).setdefault(ahead, []).append(quantile)
        yield own.rstrip()
        yield best.rstrip()
    yield "  baseline: of each the one that the verdict is about, its pinball loss"
    for words, where in uses.items():
        cells = "; ".join(f"+{ahead} {', '.join(own)}" for ahead, own in where.items())
        yield f"verdict on {column}{f' {cells}' if len(uses) > 1 else ''}: {words}"


def interval_lines(intervals: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Format what `measure_intervals` returned as lines of text."""
    for target, found in intervals.items():
        yield (
            f"from q{found['low']:g} to q{found['high']:g} lie {found['coverage']:.1%} of {target} "
            f"({found['high'] - found['low']:.1%} wanted); quantiles cross in "
            f"{found['crossings']:.1%} of the rows"
        )
