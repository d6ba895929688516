"""Losses on the outputs of the head, with masks for missing targets.

Each pairs with one activation, so that its gradient by the pre-activations is a plain difference
(the canonical links; Bishop, "Pattern Recognition and Machine Learning", 2006, section 4.3.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from streamrnn.errors import TrainingError
from streamrnn.gradients.scratch import Array

__all__ = [
    "LOSSES", "PLAIN", "LossSettings", "Outputs", "activate", "gradient_before",
    "loss_and_gradient", "set_gradient", "sum_of_losses",
]  # fmt: skip

# Loss -> the activation that the head gets.
LOSSES = {
    "mse": "identity",
    "mae": "identity",
    "huber": "identity",
    "pinball": "identity",
    "cross_entropy": "softmax",
    "binary_cross_entropy": "sigmoid",
}


@dataclass(frozen=True)
class LossSettings:
    """What a loss is told beside its name.

    Attributes
    ----------
    quantiles : tuple of float
        Of pinball, the one that each output is; empty: the median.
    delta : float
        Of huber, from which error on the loss is linear, in network units.
    class_weights : tuple of float
        Of the cross-entropies, by class (of the binary one those of 0 and of 1); empty: all 1.
    """

    quantiles: tuple[float, ...] = ()
    delta: float = 1.0
    class_weights: tuple[float, ...] = ()


PLAIN = LossSettings()


def activate(z: Array, activation: str) -> Array:
    """Apply the head's activation to pre-activations, [..., O]."""
    if activation == "tanh":
        return np.asarray(np.tanh(z))
    if activation == "sigmoid":
        return np.asarray(0.5 * np.tanh(0.5 * z) + 0.5)
    if activation == "softmax":
        powers = np.exp(z - z.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    return z


def gradient_before(y: Array, activation: str, grad_y: Array) -> Array:
    """Turn the gradient by the activation's outputs y, [..., O], into that by what enters it."""
    if activation == "tanh":
        return np.asarray(grad_y * (1.0 - y * y))
    if activation == "sigmoid":
        return np.asarray(grad_y * y * (1.0 - y))
    if activation == "softmax":
        return np.asarray(y * (grad_y - (grad_y * y).sum(axis=-1, keepdims=True)))
    return grad_y


def loss_and_gradient(
    loss: str,
    activation: str,
    z: Array,
    target: Array,
    settings: LossSettings = PLAIN,
    num_targets: int | None = None,
) -> tuple[float, Array]:
    """Mean loss over the targets that are present, and its gradient by z, [T, B, O].

    With ``num_targets`` these are some of so many, and it is their part of the mean over all.

    ``mse`` is the mean of squares, behind any activation but softmax; ``mae`` that of magnitudes;
    ``huber`` half the square up to an error of delta and linear beyond (Huber 1964); ``pinball``
    ``q`` times an error above the output, ``1 - q`` times one below, which is least at the quantile
    q (Koenker and Bassett 1978): these three behind identity. ``cross_entropy`` goes behind
    softmax, with targets [T, B, 1] of class indices; ``binary_cross_entropy`` behind sigmoid. A
    target that is NaN is missing: no loss, no gradient. The loss is 0 if all are missing.

    Raises `TrainingError` if the loss is not finite, or loss and activation do not go together.
    """
    outputs = _outputs_of(z)
    value = set_gradient(loss, activation, outputs, target, settings, num_targets)
    return value, outputs.gradient.reshape(z.shape)


class Outputs(NamedTuple):
    """Pre-activations and the gradient by them, contiguous rows of O or more."""

    z: Array
    gradient: Array
    num_outputs: int  # O


def _outputs_of(z: Array) -> Outputs:
    rows = np.ascontiguousarray(z).reshape(-1, z.shape[-1])
    return Outputs(rows, np.empty_like(rows), z.shape[-1])


def set_gradient(
    loss: str,
    activation: str,
    outputs: Outputs,
    target: Array,
    settings: LossSettings = PLAIN,
    num_targets: int | None = None,
) -> float:
    """Return the mean loss, and set its gradient, as `loss_and_gradient` does."""
    total, count = _total(loss, activation, outputs, target, settings, num_targets)
    if not math.isfinite(total):
        raise TrainingError(
            "the loss is not finite: training diverged. Lower learning_rate (to a third) or "
            "clip_norm, and look for extreme values in the data"
        )
    return total * (1.0 / max(count if num_targets is None else num_targets, 1))


def sum_of_losses(
    loss: str, activation: str, z: Array, target: Array, settings: LossSettings = PLAIN
) -> tuple[float, int]:
    """Sum of the loss over the targets that are present, and their number."""
    return _total(loss, activation, _outputs_of(z), target, settings)


_LOSSES_OF_ERRORS = {"mse": 0, "mae": 1, "huber": 2, "pinball": 3}
_ACTIVATIONS = {"identity": 0, "tanh": 1, "sigmoid": 2}  # before these


def _total(
    loss: str,
    activation: str,
    outputs: Outputs,
    target: Array,
    settings: LossSettings,
    num_targets: int | None = None,
) -> tuple[float, int]:
    """Return the sum of losses and its targets; set the gradient of the mean."""
    from streamrnn.gradients import losses  # loads Numba

    if not (LOSSES.get(loss) == activation or (loss == "mse" and activation in _ACTIVATIONS)):
        raise TrainingError(f"loss {loss!r} does not go with the activation {activation!r}")
    z, gradient, num_outputs = outputs
    num_columns = 1 if loss == "cross_entropy" else num_outputs
    # Compiled code takes the targets to be as many as these.
    rows = z, np.ascontiguousarray(target, z.dtype).reshape(len(z), num_columns), gradient
    weights = _weights(loss, settings, num_outputs, z.dtype)
    divisor = -1 if num_targets is None else num_targets
    if loss in _LOSSES_OF_ERRORS:
        kinds = _LOSSES_OF_ERRORS[loss], _ACTIVATIONS[activation]
        found = losses.loss_of_errors(*rows, weights, *kinds, divisor)
    elif loss == "binary_cross_entropy":
        found = losses.binary_cross_entropy(*rows, weights, divisor)
    else:
        found = losses.cross_entropy(*rows, weights, divisor)
    total, count = found
    if count < 0:
        raise TrainingError(f"a target is no class of 0 to {num_outputs - 1}")
    return total, count


@lru_cache
def _weights(loss: str, settings: LossSettings, num_outputs: int, dtype: np.dtype[Any]) -> Array:
    """Return what a compiled loss is told of its settings."""
    if loss in _LOSSES_OF_ERRORS:
        above = np.full(num_outputs, settings.quantiles or 0.5)
        return np.array([settings.delta, *above], dtype)
    num_classes = num_outputs if loss == "cross_entropy" else 2
    return np.full(num_classes, settings.class_weights or 1.0, dtype)
