"""What a benchmark finds: one row a measurement, as a table for people and as JSON for programs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO

import streamrnn
from streamrnn.errors import StreamRNNError
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["BenchError", "Result", "commit", "header", "processor", "table", "write_json"]


class BenchError(StreamRNNError):
    """A measurement cannot be made, or what was to be measured is wrong."""


@dataclass(frozen=True)
class Result:
    """One measurement beside its reference, both of the same run.

    Attributes
    ----------
    benchmark : str
        ``step``, ``roundtrip``, ``throughput``, ``scale`` or ``durability``.
    case : str
        What was measured, such as ``"lstm 64->128 B=48 float32 cpu"``.
    value, reference_value : float
        Both in `unit`.
    unit : str
        Of a rate (``"GFLOP/s"``), or of a time or memory (``"us"``, ``"KiB"``).
    reference : str
        What it is compared with: ``fma_peak``, ``cache_bandwidth``, ``libzmq_echo``, ...
    target : float or None
        The ratio that the project wants to show, for the table only. Nothing fails below it.
    note : str
        A few words for the table only.
    """

    benchmark: str
    case: str
    value: float
    unit: str
    reference: str
    reference_value: float
    target: float | None = field(default=None, compare=False)
    note: str = field(default="", compare=False)

    @property
    def ratio(self) -> float:
        """How many times better than the reference: of rates the quotient, of costs its inverse."""
        if self.unit in _UNITS_OF_COST:
            return self.reference_value / self.value
        return self.value / self.reference_value

    def to_dict(self) -> dict[str, str | float]:
        """Return the object that `write_json` writes.

        Returns
        -------
        dict
            benchmark, case, value, unit, reference, reference_value, ratio, commit.
        """
        return {
            "benchmark": self.benchmark,
            "case": self.case,
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": self.reference_value,
            "ratio": self.ratio,
            "commit": commit(),
        }


_UNITS_OF_COST = ("s", "ms", "us", "ns", "KiB")


@cache
def commit() -> str:
    """Return which sources are measured.

    Returns
    -------
    str
        The abbreviated git commit, with ``+`` if files differ from it; without a repository the
        version.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return streamrnn.__version__
    try:
        name = _git(root, "rev-parse", "--short=10", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return streamrnn.__version__
    return name + "+" * bool(changed)


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def header() -> str:
    """Describe the machine, the sources and the moment.

    Returns
    -------
    str
        One line.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    now = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    return (
        f"{processor()}, {usable} cores, vectors of {WIDTH} float32; "
        f"Python {platform.python_version()} on {platform.system()}; commit {commit()}; {now}"
    )


def processor() -> str:
    """Return the name of the machine's processor.

    Returns
    -------
    str
    """
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(results: Iterable[Result]) -> str:
    """Lay results out for people.

    Parameters
    ----------
    results : iterable of Result
        Rows, in this order.

    Returns
    -------
    str
        Lines of aligned columns: case, value, reference, ratio, and the target where there is one.
    """
    rows = [("case", "value", "reference", "", "ratio", "target", ""), *map(_cells, results)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    left = (0, 3, 6)
    lines = []
    for row in rows:
        cells = (
            text.ljust(width) if k in left else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.case,
        f"{_number(result.value)} {result.unit}",
        f"{_number(result.reference_value)} {result.unit}",
        result.reference,
        f"{result.ratio:.2f}",
        "" if result.target is None else f">= {result.target:.2f}",
        result.note,
    )


def _number(value: float) -> str:
    """Write three significant digits, and thousands in groups."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def write_json(results: Iterable[Result], file: IO[str]) -> None:
    """Write one JSON object a line.

    Parameters
    ----------
    results : iterable of Result
        What to write.
    file : text file
        Where to.
    """
    for result in results:
        file.write(json.dumps(result.to_dict()) + "\n")
