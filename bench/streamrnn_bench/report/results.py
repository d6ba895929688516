"""Benchmark results: one row a measurement, as a table and as JSON lines."""

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

__all__ = [
    "ERROR_UNIT",
    "BenchError",
    "Result",
    "commit",
    "header",
    "processor",
    "table",
    "write_json",
]


class BenchError(StreamRNNError):
    """A measurement cannot be made, or a result to be measured is wrong."""


@dataclass(frozen=True)
class Result:
    """One measurement and its reference, both of the same run and in the same unit."""

    benchmark: str  # ``step``, ``roundtrip``, ``throughput``, ``client``, ``scale``, ``durability``
    case: str  # such as ``"lstm 64->128 B=48 float32 cpu"``
    value: float
    unit: str  # of a rate (``"GFLOP/s"``), or of a time or memory (``"us"``, ``"KiB"``)
    reference: str  # ``fma_peak``, ``cache_bandwidth``, ``libzmq_echo``, ...
    reference_value: float
    # The table only shows these two; nothing fails below the target ratio.
    target: float | None = field(default=None, compare=False)
    note: str = field(default="", compare=False)

    @property
    def ratio(self) -> float:
        """Quotient to the reference for rates, its inverse for costs: above 1 is better."""
        if self.unit in _UNITS_OF_COST:
            return self.reference_value / self.value
        return self.value / self.reference_value

    def to_dict(self) -> dict[str, str | float]:
        """Return the object that `write_json` writes."""
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


ERROR_UNIT = "off"
"""The unit of an error that is more than its tolerance: such a result is wrong."""
_UNITS_OF_COST = ("s", "ms", "us", "ns", "KiB", ERROR_UNIT)


@cache
def commit() -> str:
    """Return the abbreviated git commit, with ``+`` if files differ from it.

    Without a repository it is the version.
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


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def header() -> str:
    """Describe the machine, the sources and the time in one line."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    now = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    return (
        f"{processor()}, {usable} cores, vectors of {WIDTH} float32; "
        f"Python {platform.python_version()} on {platform.system()}; commit {commit()}; {now}"
    )


def processor() -> str:
    """Return the name of the machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(results: Iterable[Result]) -> str:
    """Format results as aligned columns: case, value, reference, ratio, target."""
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
    """Format three significant digits, and thousands in groups."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def write_json(results: Iterable[Result], file: IO[str]) -> None:
    """Write one JSON object a line."""
    for result in results:
        file.write(json.dumps(result.to_dict()) + "\n")
