"""Results of several runs, of several machines too: a table, and rows of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from statistics import median
from typing import IO, Any

from streamrnn_bench.report.results import Key, Result, aligned, number, ratio_text
from streamrnn_bench.report.runs import Runs

__all__ = ["all_keys", "middle_result", "runs_table", "write_csv"]

_COLUMNS = (
    "runs",
    "machine",
    "cores",
    "commit",
    "began",
    "benchmark",
    "case",
    "value",
    "unit",
    "reference",
    "reference_value",
    "ratio",
)


def all_keys(sides: Sequence[Runs]) -> list[Key]:
    """Return what any side has measured, in the order of the first that has."""
    return list(dict.fromkeys(key for side in sides for key in side.results))


def middle_result(results: Sequence[Result]) -> Result:
    """Return the run whose ratio is the median of all, the lower of two."""
    ordered = sorted(results, key=lambda result: result.ratio)
    return ordered[(len(ordered) - 1) // 2]


def runs_table(sides: Sequence[Runs]) -> str:
    """Format a row for each measurement, with value and ratio of each side."""
    rows = [("case", *(part for side in sides for part in (side.name, "ratio")), "reference")]
    for key in all_keys(sides):
        cells: list[str] = []
        references: list[str] = []
        for side in sides:
            results = side.results.get(key, ())
            if results:
                value = median(result.value for result in results)
                ratio = median(result.ratio for result in results)
                cells += [f"{number(value)} {key[2]}", ratio_text(ratio)]
                references += [result.reference for result in results]
            else:
                cells += ["", ""]
        rows.append((f"{key[0]} {key[1]}", *cells, " or ".join(dict.fromkeys(references))))
    return aligned(rows, left=(0, 2 * len(sides) + 1))


def write_csv(sides: Sequence[Runs], file: IO[str]) -> None:
    """Write a row for each result; what `Result.details` holds becomes columns behind the others.

    A value inside it is named by its path, ``latency_us.99``.
    """
    rows: list[dict[str, Any]] = []
    for side in sides:
        of_side = {
            "runs": side.name,
            "machine": side.machine,
            "cores": side.cores,
            "commit": side.commit,
            "began": side.began,
        }
        for results in side.results.values():
            for result in results:
                row = {name: getattr(result, name) for name in _COLUMNS[len(of_side) :]}
                rows.append({**_flat(result.details), **of_side, **row})
    more = dict.fromkeys(name for row in rows for name in row if name not in _COLUMNS)
    writer = csv.DictWriter(file, [*_COLUMNS, *more])
    writer.writeheader()
    writer.writerows(rows)


def _flat(details: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in details.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
