"""Reading of what `streamrnn bench --json` wrote: one file or several of one side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamrnn_bench.report.results import BenchError, Key, Result, commit, environment

__all__ = ["Runs", "read_runs", "runs_of"]

_MAX_BYTES = 64 << 20
_TEXTS = ("benchmark", "case", "unit", "reference")
_NUMBERS = ("value", "reference_value")
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Runs:
    """Runs of one program on one machine, as their files tell."""

    name: str
    results: Mapping[Key, Sequence[Result]]  # one for each run, in the order of the files
    machine: str
    cores: str
    commit: str
    began: str  # the first

    def renamed(self, name: str) -> Runs:
        """Return the same runs with another name."""
        return replace(self, name=name)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.machine}, {self.cores} cores; commit {self.commit}; {self.began}"
        )


def read_runs(path: Path) -> Runs:
    """Read a file of JSON lines, or all ``*.jsonl`` of a directory.

    Raises a `BenchError` that names file and line if one is not what `write_json` writes.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise BenchError(f"{path}: no file *.jsonl in this directory")
    results: dict[Key, list[Result]] = {}
    told: dict[str, list[str]] = {"machine": [], "cores": [], "commit": [], "began": []}
    for file in files:
        for where, found in _objects(file):
            result = _result(where, found)
            results.setdefault(result.key, []).append(result)
            for name, values in told.items():
                value = str(found.get(name, _UNKNOWN))
                if value not in values:
                    values.append(value)
    if not results:
        raise BenchError(f"{path}: holds no result")
    return Runs(
        path.stem if path.is_file() else path.name,
        results,
        began=min(told.pop("began")),
        **{name: " and ".join(values) for name, values in told.items()},
    )


def runs_of(results: Iterable[Result]) -> Runs:
    """Return what this process has measured."""
    of_cases: dict[Key, list[Result]] = {}
    for result in results:
        of_cases.setdefault(result.key, []).append(result)
    of = {name: str(value) for name, value in environment().items()}
    return Runs("this run", of_cases, of["machine"], of["cores"], commit(), of["began"])


def _objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise BenchError(f"{file}: more than {_MAX_BYTES >> 20} MiB; not a file of results")
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{file}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BenchError(f"{where}: not JSON: {error}") from error
        if not isinstance(found, dict):
            raise BenchError(f"{where}: expected an object of one measurement")
        yield where, found


def _result(where: str, found: Mapping[str, Any]) -> Result:
    for name in _TEXTS:
        if not isinstance(found.get(name), str):
            raise BenchError(f"{where}: {name!r} is {found.get(name)!r}, expected a text")
    for name in _NUMBERS:
        if not _is_positive(found.get(name)):
            raise BenchError(f"{where}: {name!r} is {found.get(name)!r}, expected a number above 0")
    details, target = found.get("details", {}), found.get("target", 0)
    if not isinstance(details, dict):
        raise BenchError(f"{where}: 'details' is no object")
    return Result(
        benchmark=found["benchmark"],
        case=found["case"],
        value=float(found["value"]),
        unit=found["unit"],
        reference=found["reference"],
        reference_value=float(found["reference_value"]),
        target=float(target) if _is_positive(target) else None,
        note=str(found.get("note", "")),
        samples=_samples(where, found, "samples"),
        reference_samples=_samples(where, found, "reference_samples"),
        details=details,
    )


def _samples(where: str, found: Mapping[str, Any], name: str) -> tuple[float, ...]:
    given = found.get(name, [])
    if not isinstance(given, list) or not all(map(_is_positive, given)):
        raise BenchError(f"{where}: {name!r} is no list of numbers above 0")
    return tuple(map(float, given))


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
