"""``streamrnn bench compare A B``: what differs, as far as the noise lets anybody tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from streamrnn_bench.report.noise import Shift, shift_between
from streamrnn_bench.report.results import UNITS_OF_COST, BenchError, Key, Result, aligned, number
from streamrnn_bench.report.runs import Runs

__all__ = ["RUN_NOISE", "Comparison", "compare_runs", "comparison_table"]

RUN_NOISE = 0.03
"""What two runs of one program differ by, though the rounds of each agree: where its memory lies,
which core it got. Rounds of one run do not show it; several runs do."""

_CONFIDENCE = 0.95  # of all verdicts of a table together
_ENOUGH_RUNS = 4  # fewer have no interval


class Comparison(NamedTuple):
    """One measurement of both sides."""

    key: Key
    values: tuple[float, float]
    by: str  # what was compared: ``runs`` or ``rounds``, of the ratio or of the value
    num_samples: tuple[int, int]
    shift: Shift | None  # by how much B is better, as a logarithm
    verdict: str


def compare_runs(a: Runs, b: Runs, run_noise: float = RUN_NOISE) -> list[Comparison]:
    """Compare what both have measured.

    Where both have the same reference, ratios of single rounds are compared, for what slows the
    machine slows both; else values. Verdicts are better, worse, same (within ``run_noise``) or
    cannot tell; all of them together are right with a probability of 95 %. From one run a side only
    a difference above ``run_noise`` counts. Raises a `BenchError` if nothing is common.
    """
    keys = [key for key in a.results if key in b.results]
    if not keys:
        raise BenchError(f"{a.name} and {b.name} have no measurement in common")
    confidence = 1 - (1 - _CONFIDENCE) / len(keys)
    return [_compare(key, a.results[key], b.results[key], confidence, run_noise) for key in keys]


def _compare(
    key: Key, a: Sequence[Result], b: Sequence[Result], confidence: float, run_noise: float
) -> Comparison:
    of_ratio = len({result.reference for result in (*a, *b)}) == 1
    of_runs = min(len(a), len(b)) >= _ENOUGH_RUNS
    if not of_runs and of_ratio:  # only if every round has its reference
        of_ratio = all(len(r.samples) == len(r.reference_samples) for r in (*a, *b))
    first, second = (_goodness(side, of_runs, of_ratio) for side in (a, b))
    shift = shift_between(first, second, confidence)
    numbers = (len(first), len(second))
    by = f"{'runs' if of_runs else 'rounds'}, {'ratio' if of_ratio else 'value'}"
    values = (median(r.value for r in a), median(r.value for r in b))
    verdict = _verdict(shift, 0.0 if of_runs else run_noise, run_noise, numbers)
    return Comparison(key, values, by, numbers, shift, verdict)


def _goodness(results: Sequence[Result], of_runs: bool, of_ratio: bool) -> list[float]:
    """Return logarithms of samples: larger is better."""
    sign = -1 if results[0].unit in UNITS_OF_COST else 1
    pairs: list[tuple[float, float]] = []
    for result in results:
        if of_runs:
            pairs.append((result.value, result.reference_value))
        else:
            references = result.reference_samples if of_ratio else result.samples
            pairs += zip(result.samples, references, strict=True)
    return [
        sign * (math.log(value) - (math.log(reference) if of_ratio else 0.0))
        for value, reference in pairs
    ]


def _verdict(
    shift: Shift | None, needed: float, same_within: float, numbers: tuple[int, int]
) -> str:
    if shift is None:
        return f"cannot tell: {numbers[0]} and {numbers[1]} samples are too few"
    if shift.low > math.log1p(needed):
        return "better"
    if shift.high < -math.log1p(needed):
        return "worse"
    if -math.log1p(same_within) <= shift.low and shift.high <= math.log1p(same_within):
        return "same"
    return "cannot tell"


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Format comparisons as aligned columns."""
    rows = [("case", "A", "B", "better by", "between", "", "verdict")]
    for each in comparisons:
        benchmark, case, unit = each.key
        by, between = "", ""
        if each.shift is not None:
            by = _percent(each.shift.middle)
            between = f"{_percent(each.shift.low)} and {_percent(each.shift.high)}"
        rows.append(
            (
                f"{benchmark} {case}",
                f"{number(each.values[0])} {unit}",
                f"{number(each.values[1])} {unit}",
                by,
                between,
                f"{each.by} {each.num_samples[0]}:{each.num_samples[1]}",
                each.verdict,
            )
        )
    return aligned(rows, left=(0, 5, 6))


def _percent(logarithm: float) -> str:
    return f"{math.expm1(logarithm):+.1%}"
