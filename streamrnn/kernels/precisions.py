"""The precisions that weights are stored in, or products computed in, by device."""

from __future__ import annotations

__all__ = ["BFLOAT16", "DEVICE_PRECISIONS", "FLOAT32", "INT8", "LEAST_INT8_SCALE", "PRECISIONS"]
__all__ += ["PRECISION_NAMES"]

FLOAT32, BFLOAT16, INT8 = range(3)
PRECISIONS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
PRECISION_NAMES = tuple(PRECISIONS)
"""How the CPU stores weights."""

LEAST_INT8_SCALE = 2.0**-126
"""Of int8 weights: a bias over it is a normal float32 again."""

DEVICE_PRECISIONS = {"cpu": PRECISION_NAMES, "cuda": ("float32", "tf32", "bfloat16", "int8")}
"""On a GPU tf32 and bfloat16 are of both factors of each product, on tensor cores."""
