"""The precisions that weights are stored in, or products computed in, by device."""

from __future__ import annotations

__all__ = ["BFLOAT16", "DEVICE_PRECISIONS", "FLOAT32", "INT8", "PRECISIONS", "PRECISION_NAMES"]

FLOAT32, BFLOAT16, INT8 = range(3)
PRECISIONS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
PRECISION_NAMES = tuple(PRECISIONS)
"""How the CPU stores weights."""

DEVICE_PRECISIONS = {"cpu": PRECISION_NAMES, "cuda": ("float32", "tf32", "bfloat16")}
"""On a GPU tf32 and bfloat16 are of both factors of each product, on tensor cores."""
