"""Layer normalisation, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CellNorm", "normalised"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CellNorm:
    """Gains and shifts of a normalised cell; both products are shifted by its biases."""

    gain_ih: Array  # [G*H], of the product with x
    gain_hh: Array  # [G*H], of the product with h
    gain_c: Array  # [H], of the cell state; empty for a GRU
    shift_c: Array  # [H]; empty for a GRU
    epsilon: float  # added to the variance


def normalised(x: Array, epsilon: float) -> Array:
    """Compute ``(x - mean) / sqrt(variance + epsilon)`` over the last axis.

    Source: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450
    (2016), equations 3 and 4: the variance is the mean square of the deviations. The epsilon is
    not in the paper; it stands in its authors' program and in PyTorch's ``layer_norm``.
    """
    deviation = x - x.mean(axis=-1, keepdims=True)
    variance = (deviation**2).mean(axis=-1, keepdims=True)
    result: Array = deviation / np.sqrt(variance + epsilon)
    return result
