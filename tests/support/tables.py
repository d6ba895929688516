"""Tables to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["noisy_sine", "write_csv"]


def write_csv(directory: Path, **columns: Any) -> str:
    """Write columns of equal length into a file and return its path."""
    path = directory / "data.csv"
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def noisy_sine(num_rows, seed=0):
    """Return a sine with a period of 19 rows and noise of a tenth of it, float64[num_rows]."""
    t = np.arange(num_rows)
    return np.sin(t / 3) + 0.1 * np.random.default_rng(seed).normal(size=num_rows)
