"""Activation functions in float64, element by element; NaN stays NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GATE_FUNCTIONS",
    "HEAD_ACTIVATIONS",
    "hard_sigmoid_fifth",
    "hard_sigmoid_sixth",
    "relu",
    "sigmoid",
    "softmax",
]

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    """Compute ``1 / (1 + exp(-x))`` without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def hard_sigmoid_fifth(x: Array) -> Array:
    """Compute ``max(0, min(1, x / 5 + 1/2))``.

    Source: the definition of Theano and of Keras 2, and ONNX's ``HardSigmoid`` with its default
    ``alpha=0.2, beta=0.5``.
    """
    return np.clip(0.2 * x + 0.5, 0.0, 1.0)


def hard_sigmoid_sixth(x: Array) -> Array:
    """Compute ``relu6(x + 3) / 6``.

    Source: A. Howard et al., "Searching for MobileNetV3", ICCV 2019, section 5.2; PyTorch's
    ``hardsigmoid`` and Keras 3's ``hard_sigmoid``.
    """
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


def relu(x: Array) -> Array:
    """Compute ``max(x, 0)``."""
    return np.maximum(x, 0.0)


def softmax(x: Array) -> Array:
    """Compute ``exp(x) / sum(exp(x))`` over the last axis without overflow."""
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

GATE_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid,
    "hard_sigmoid_fifth": hard_sigmoid_fifth,
    "hard_sigmoid_sixth": hard_sigmoid_sixth,
}
