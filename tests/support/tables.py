"""Tables to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NILE", "book", "noisy_sine", "write_csv"]

# Annual flow of the Nile at Aswan, 1871 to 1970, in 10^8 m^3 (Cobb 1978).
NILE = [
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994,
    1020, 960, 1180, 799, 958, 1140, 1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100,
    774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969, 831, 726,
    456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845,
    744, 796, 1040, 759, 781, 865, 845, 944, 984, 897, 822, 1010, 771, 676,
    649, 846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050,
    918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718,
    714, 740,
]  # fmt: skip


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


def book(num_sentences: int = 60, seed: int = 0) -> str:
    """Return sentences of a small grammar, in which some words decide the next ones."""
    rng = np.random.default_rng(seed)
    text = []
    for _ in range(num_sentences):
        noun, verb = [("cat", "sits"), ("cats", "sit")][rng.integers(2)]
        text.append(f"The {noun} on the {rng.choice(['mat', 'roof', 'wall'])} {verb}.\n")
    return "".join(text)
