"""What the kernels do to weights in fewer bits: slow and obvious."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIGMOID_FACTOR", "rounded_to_bfloat16"]

SIGMOID_FACTOR = -math.log2(math.e)  # of gates that end in a sigmoid


def rounded_to_bfloat16(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to the nearest of eight significant bits, ties to even."""
    mantissa, exponent = np.frexp(values.astype(np.float32).astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)
