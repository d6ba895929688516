"""Activation functions in float64, element by element; NaN stays NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACTIVATIONS",
    "GATE_FUNCTIONS",
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


def log_softmax(x: Array) -> Array:
    """Compute the logarithm of a softmax over the last axis without overflow."""
    shifted = x - x.max(axis=-1, keepdims=True)
    y: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return y


def softplus(x: Array) -> Array:
    """Compute ``log(1 + exp(x))`` without overflow."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def selu(x: Array) -> Array:
    """Scale an elu so that activations normalise themselves.

    Source: G. Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017, which gives both
    constants.
    """
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def gelu(x: Array) -> Array:
    """Compute ``x Phi(x)``, with the normal distribution's Phi.

    Source: D. Hendrycks and K. Gimpel, "Gaussian error linear units", arXiv:1606.08415 (2016).
    """
    erf = np.vectorize(math.erf, otypes=[np.float64])
    y: Array = 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))
    return y


def gelu_tanh(x: Array) -> Array:
    """Compute the approximation of `gelu` by a tanh, of the same source."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def log(x: Array) -> Array:
    """Compute the logarithm, of the least normal float32 for all that is from 0 to that."""
    least = float(np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        y: Array = np.log(np.where((x >= 0) & (x < least), least, x))
    return y


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": _identity,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "relu": relu,
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "selu": selu,
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "softplus": softplus,
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "hard_sigmoid_fifth": hard_sigmoid_fifth,
    "hard_sigmoid_sixth": hard_sigmoid_sixth,
    "hard_swish": lambda x: x * hard_sigmoid_sixth(x),
    "hard_tanh": lambda x: np.clip(x, -1.0, 1.0),
    "log_softmax": log_softmax,
    "exp": np.exp,
    "log": log,
    "abs": np.abs,
    "sqrt": np.errstate(invalid="ignore")(np.sqrt),
    "reciprocal": np.errstate(divide="ignore")(np.reciprocal),
}
"""Those that take no number, by name."""

GATE_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid,
    "hard_sigmoid_fifth": hard_sigmoid_fifth,
    "hard_sigmoid_sixth": hard_sigmoid_sixth,
}
