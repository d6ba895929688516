"""Layer normalisation, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CellNorm", "normalised"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CellNorm:
    """What a normalised cell multiplies and adds. The shifts of both products are its biases.

    Attributes
    ----------
    gain_ih, gain_hh : ndarray of float64, [G*H]
        Of the product with x, and of the one with h.
    gain_c, shift_c : ndarray of float64, [H]
        Of the cell state; empty for a GRU.
    epsilon : float
        What is added to the variance.
    """

    gain_ih: Array
    gain_hh: Array
    gain_c: Array
    shift_c: Array
    epsilon: float


def normalised(x: Array, epsilon: float) -> Array:
    """Compute ``(x - mean) / sqrt(variance + epsilon)`` over the last axis.

    Source: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450
    (2016), equations 3 and 4: the variance is the mean square of the deviations. The epsilon is
    not in the paper; it stands in its authors' program and in PyTorch's ``layer_norm``.

    Parameters
    ----------
    x : ndarray of float64, [B, D]
        Sums of one layer.
    epsilon : float
        Above 0.

    Returns
    -------
    ndarray of float64, [B, D]
    """
    deviation = x - x.mean(axis=-1, keepdims=True)
    variance = (deviation**2).mean(axis=-1, keepdims=True)
    result: Array = deviation / np.sqrt(variance + epsilon)
    return result
