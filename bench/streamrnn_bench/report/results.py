"""Benchmark results: one row a measurement, as a table and as JSON lines."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import llvmlite.binding as llvm

import streamrnn
from streamrnn.errors import StreamRNNError
from streamrnn.kernels.vector_width import WIDTH

__all__ = [
    "ERROR_UNIT",
    "UNITS_OF_COST",
    "BenchError",
    "Key",
    "Result",
    "aligned",
    "commit",
    "environment",
    "header",
    "number",
    "processor",
    "ratio_text",
    "table",
    "write_json",
]

Key = tuple[str, str, str]
"""Benchmark, case and unit."""


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
    # Of single rounds, for `streamrnn bench compare`: the two values are their medians.
    samples: tuple[float, ...] = field(default=(), compare=False)
    reference_samples: tuple[float, ...] = field(default=(), compare=False)  # of the same rounds
    # What else was measured. The page draws ``series`` (a name) over ``streams``, ``latency_us``
    # (by percentile: ``{"50": 12.5, "99.9": 80.0}``) and ``breakdown_us`` (by part of a step);
    # ``reference_series`` and ``reference_latency_us`` are those of the reference.
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> Key:
        """What is the same measurement in two runs."""
        return self.benchmark, self.case, self.unit

    @property
    def ratio(self) -> float:
        """Quotient to the reference for rates, its inverse for costs: above 1 is better."""
        if self.unit in UNITS_OF_COST:
            return self.reference_value / self.value
        return self.value / self.reference_value

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `write_json` writes."""
        more = {
            "samples": list(self.samples),
            "reference_samples": list(self.reference_samples),
            "details": dict(self.details),
            "target": self.target,
            "note": self.note,
        }
        return {
            "benchmark": self.benchmark,
            "case": self.case,
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": self.reference_value,
            "ratio": self.ratio,
            "commit": commit(),
            **{name: value for name, value in more.items() if value},
            **environment(),
        }


ERROR_UNIT = "off"
"""The unit of an error that is more than its tolerance: such a result is wrong."""
UNITS_OF_COST = ("s", "ms", "us", "ns", "KiB", "bits a character", ERROR_UNIT)


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


@cache
def environment() -> dict[str, str | int]:
    """Return where and when this process measures, and with which versions."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": processor(),
        "cores": usable or 1,
        "vector_floats": WIDTH,
        "python": platform.python_version(),
        "system": platform.system(),
        "began": datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
    }


def header() -> str:
    """Describe the machine, the sources and the time in one line."""
    of = environment()
    return (
        f"{of['machine']}, {of['cores']} cores, vectors of {of['vector_floats']} float32; "
        f"Python {of['python']} on {of['system']}; commit {commit()}; {of['began']}"
    )


@cache
def processor() -> str:
    """Return the name of the machine's processor, and its microarchitecture.

    In a virtual machine the name alone may be that of a whole family.
    """
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    kind = re.sub(r"^znver(\d)$", r"Zen \1", llvm.get_host_cpu_name())
    return name if kind in ("", "generic", name) else f"{name} ({kind})"


def table(results: Iterable[Result]) -> str:
    """Format results as aligned columns: case, value, reference, ratio, target."""
    rows = [("case", "value", "reference", "", "ratio", "target", ""), *map(_cells, results)]
    return aligned(rows, left=(0, 3, 6))


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> str:
    """Align columns of text to the right, those of ``left`` to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
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
        f"{number(result.value)} {result.unit}",
        f"{number(result.reference_value)} {result.unit}",
        result.reference,
        ratio_text(result.ratio),
        "" if result.target is None else f">= {result.target:.2f}",
        result.note,
    )


def number(value: float) -> str:
    """Format three significant digits, and thousands in groups."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def ratio_text(ratio: float) -> str:
    """Format two decimals, or as many as a small ratio needs."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def write_json(results: Iterable[Result], file: IO[str]) -> None:
    """Write one JSON object a line."""
    for result in results:
        file.write(json.dumps(result.to_dict()) + "\n")
