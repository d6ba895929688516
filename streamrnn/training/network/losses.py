"""Losses on the outputs of the head, with masks for missing targets.

Each pairs with one activation, so that its gradient by the pre-activations is a plain difference
(the canonical links; Bishop, "Pattern Recognition and Machine Learning", 2006, section 4.3.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamrnn.errors import TrainingError
from streamrnn.gradients.scratch import Array

__all__ = [
    "LOSSES", "PLAIN", "LossSettings", "activate", "gradient_before", "loss_and_gradient",
    "sum_of_losses",
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
    total, count, gradient = _total(loss, activation, z, target, settings)
    if not math.isfinite(total):
        raise TrainingError(
            "the loss is not finite: training diverged. Lower learning_rate (to a third) or "
            "clip_norm, and look for extreme values in the data"
        )
    share = 1.0 / max(count if num_targets is None else num_targets, 1)
    gradient *= share
    return total * share, gradient


def sum_of_losses(
    loss: str, activation: str, z: Array, target: Array, settings: LossSettings = PLAIN
) -> tuple[float, int]:
    """Sum of the loss over the targets that are present, and their number."""
    total, count, _ = _total(loss, activation, z, target, settings)
    return total, count


def _total(
    loss: str, activation: str, z: Array, target: Array, settings: LossSettings
) -> tuple[float, int, Array]:
    if (loss, activation) in _COMPILED:
        return _compiled_total(loss, z, target, settings)
    present = ~np.isnan(target)
    count = int(np.count_nonzero(present))
    known = np.where(present, target, 0.0).astype(z.dtype)
    weights = np.array(settings.class_weights, z.dtype)
    if loss in ("mae", "huber", "pinball") and activation == "identity":
        error = np.where(present, known - z, 0.0).astype(z.dtype)
        terms, slope = _of_errors(loss, error, settings)
        return float(terms.sum()), count, slope.astype(z.dtype)
    if loss == "mse" and activation != "softmax":
        y = activate(z, activation)
        error = np.where(present, y - known, 0.0).astype(z.dtype)
        slope = 2.0 * error
        if activation == "tanh":
            slope *= 1.0 - y * y
        elif activation == "sigmoid":
            slope *= y * (1.0 - y)
        return float(np.vdot(error, error)), count, slope
    if loss == "binary_cross_entropy" and activation == "sigmoid":
        # log(1 + exp(z)) - target z, without overflow.
        terms = np.logaddexp(0.0, z) - known * z
        gradient = np.where(present, activate(z, activation) - known, 0.0).astype(z.dtype)
        if len(weights):
            weight = weights[known.astype(np.int64)]
            terms, gradient = terms * weight, gradient * weight
        return float(terms[present].sum()), count, gradient
    raise TrainingError(f"loss {loss!r} does not go with the activation {activation!r}")


_COMPILED = {("mse", "identity"), ("cross_entropy", "softmax")}


def _compiled_total(
    loss: str, z: Array, target: Array, settings: LossSettings
) -> tuple[float, int, Array]:
    from streamrnn.gradients.losses import cross_entropy, squares  # loads Numba

    z, known = np.ascontiguousarray(z), np.ascontiguousarray(target, z.dtype)
    gradient = np.empty_like(z)
    if loss == "mse":
        return *squares(z.ravel(), known.ravel(), gradient.ravel()), gradient
    num_outputs = z.shape[-1]
    by_row = gradient.reshape(-1, num_outputs)
    weights = np.array(settings.class_weights, z.dtype)
    total, count = cross_entropy(z.reshape(-1, num_outputs), known.ravel(), weights, by_row)
    if count < 0:
        raise TrainingError(f"a target is no class of 0 to {num_outputs - 1}")
    return total, count, gradient


def _of_errors(loss: str, error: Array, settings: LossSettings) -> tuple[Array, Array]:
    """Return the losses of errors, target minus output, and their slopes by the output."""
    if loss == "huber":
        bounded = np.clip(error, -settings.delta, settings.delta)
        return bounded * (error - 0.5 * bounded), -bounded
    if loss == "mae":
        return np.abs(error), -np.sign(error)
    above = np.array(settings.quantiles or 0.5, error.dtype)  # the weight of a target above
    slope = np.where(error > 0, -above, np.where(error < 0, 1.0 - above, 0.0))
    return -slope * error, slope
