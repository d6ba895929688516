"""Activation functions in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEAD_ACTIVATIONS", "relu", "sigmoid", "softmax"]

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    """Compute ``1 / (1 + exp(-x))`` without overflow; NaN stays NaN.

    Parameters
    ----------
    x : ndarray of float64
        Any shape.

    Returns
    -------
    ndarray of float64
        The same shape.
    """
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def relu(x: Array) -> Array:
    """Compute ``max(x, 0)``; NaN stays NaN.

    Parameters
    ----------
    x : ndarray of float64
        Any shape.

    Returns
    -------
    ndarray of float64
        The same shape.
    """
    return np.maximum(x, 0.0)


def softmax(x: Array) -> Array:
    """Compute ``exp(x) / sum(exp(x))`` over the last axis without overflow.

    Parameters
    ----------
    x : ndarray of float64, [..., O]
        Scores.

    Returns
    -------
    ndarray of float64, [..., O]
        Probabilities; each row sums to 1.
    """
    e: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Array = e / e.sum(axis=-1, keepdims=True)
    return y


def _identity(x: Array) -> Array:
    return x


HEAD_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": _identity,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softmax": softmax,
}
