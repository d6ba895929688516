"""A series of the benchmark, and the question that is asked of it."""

from __future__ import annotations

from dataclasses import dataclass

from streamrnn_bench.training.prepare import Prepare

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """One table out of a package, and the question that is asked of it."""

    name: str
    kind: str  # the two of a kind are a pair
    package: str  # on PyPI, pinned
    files: tuple[tuple[str, str], ...]  # in its wheel, each with its SHA-256
    prepare: Prepare
    sha256: str  # of the table, as CSV
    predict: str
    horizon: int = 1  # rows
    time: str = "time"
    group: str = ""
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)

    @property
    def split_by(self) -> str:
        """Streams are cut at common dates, so that none knows another's future."""
        return "date" if self.group else "time"
