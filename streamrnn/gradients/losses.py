"""Losses with their gradients, and what goes back into an embedding: row by row."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np
from numba.core import types
from numba.extending import overload

from streamrnn.kernels.activations import LN2, LN2_REST, LOG2E, ROUND
from streamrnn.kernels.jit import jit

__all__ = [
    "HUBER", "IDENTITY", "MAGNITUDES", "PINBALL", "SIGMOID", "SQUARES", "TANH", "add_rows",
    "binary_cross_entropy", "cross_entropy", "loss_of_errors",
]  # fmt: skip

_LOG2E, _ROUND, _LN2, _LN2_REST = (np.float32(v) for v in (LOG2E, ROUND, LN2, LN2_REST))
_LEAST = np.float32(-87.0)  # exp stays a normal number
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
_C3, _C4, _C5, _C6, _C7 = (np.float32(1.0 / math.factorial(k)) for k in range(3, 8))
LEAST_SHARE = math.exp(-60.0)


def _exp(x):
    """Return exp(x) for x up to 0; in float32 the same bits everywhere, in a loop's vectors."""
    raise NotImplementedError


@overload(_exp, inline="always")
def _exp_of(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def of_float32(x):
        x = _LEAST if x < _LEAST else x
        shifted = x * _LOG2E + _ROUND
        whole = shifted - _ROUND
        r = (x - whole * _LN2) - whole * _LN2_REST
        p = _C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7)))
        p = _ONE + r * (_ONE + r * (_HALF + r * p))
        return p * np.int32((np.int32(whole) + 127) << 23).view(np.float32)

    return of_float32


# A loss of errors, and the activation before it.
SQUARES, MAGNITUDES, HUBER, PINBALL = range(4)
IDENTITY, TANH, SIGMOID = range(3)


@jit
def _share_of(target, num_targets):
    """Return what a target's part of the mean is, over so many or, -1, those that are there."""
    count = num_targets
    if count < 0:
        count = 0
        for i in range(len(target)):
            for j in range(target.shape[1]):
                count += target[i, j] == target[i, j]
    return target.dtype.type(1.0 / max(count, 1))


@jit
def cross_entropy(z, target, gradient, weights, num_targets):
    """Set the gradient by z of the mean loss, and return the sum of losses and its targets.

    ``z`` and ``gradient`` are [N, O or more], ``target`` [N, O or 1], NaN where there is none;
    ``num_targets`` is what the mean is taken over, -1: those that are here. So all here do.

    These targets are classes; ``weights`` [O] those of the classes, or of all 1. One that is no
    class ends it: -1 targets, then. A share below exp(-60) is as good as that, and its products are
    no subnormal numbers.
    """
    num_outputs = len(weights)
    total, count, part = 0.0, 0, _share_of(target, num_targets)
    for i in range(len(z)):
        given = target[i, 0]
        if given != given:
            gradient[i, :num_outputs] = 0.0
            continue
        if not 0 <= given < num_outputs:
            return total, -1
        largest = z[i, 0]
        for j in range(1, num_outputs):
            largest = max(largest, z[i, j])
        for j in range(num_outputs):
            gradient[i, j] = _exp(z[i, j] - largest)
        power_sum = 0.0
        for j in range(num_outputs):
            power_sum += np.float64(gradient[i, j])
        index = int(given)
        weight = weights[index]
        inverse = gradient.dtype.type(weight / power_sum)
        least = gradient.dtype.type(LEAST_SHARE) * weight
        for j in range(num_outputs):
            share = gradient[i, j] * inverse
            gradient[i, j] = least if share < least else share
        gradient[i, index] -= weight
        for j in range(num_outputs):
            gradient[i, j] *= part
        total += weight * (math.log(power_sum) - np.float64(z[i, index] - largest))
        count += 1
    return total, count


@jit
def binary_cross_entropy(z, target, gradient, weights, num_targets):
    """Do the same behind a sigmoid; ``weights`` are those of 0 and of 1."""
    num_outputs = target.shape[1]
    total, count, part = 0.0, 0, _share_of(target, num_targets)
    for i in range(len(z)):
        for j in range(num_outputs):
            given = target[i, j]
            if given != given:
                gradient[i, j] = 0.0
                continue
            value, weight = np.float64(z[i, j]), weights[1] if given > 0.5 else weights[0]
            power = math.exp(-abs(value))  # log(1 + exp(z)) - target z, without overflow
            y = (1.0 if value >= 0.0 else power) / (1.0 + power)
            total += weight * (max(value, 0.0) + math.log1p(power) - given * value)
            gradient[i, j] = z.dtype.type(weight * (y - given)) * part
            count += 1
    return total, count


@jit
def loss_of_errors(z, target, gradient, weights, kind, activation, num_targets):
    """Do the same for a loss of errors behind an activation.

    ``weights`` are delta of Huber's loss, and of pinball those of errors above, [1 + O].
    """
    num_outputs = target.shape[1]
    delta, above = weights[0], weights[1:]
    zero, one = z.dtype.type(0.0), z.dtype.type(1.0)
    half = z.dtype.type(0.5)
    total, count, part = 0.0, 0, _share_of(target, num_targets)
    for i in range(len(z)):
        for j in range(num_outputs):
            given = target[i, j]
            if given != given:
                gradient[i, j] = zero
                continue
            y, to_y = z[i, j], one
            if activation == TANH:
                y = math.tanh(y)
                to_y = one - y * y
            elif activation == SIGMOID:
                y = half * math.tanh(half * y) + half
                to_y = y * (one - y)
            error = y - given
            if kind == SQUARES:
                term, slope = np.float64(error) * np.float64(error), error + error
            elif kind == HUBER:
                slope = min(max(error, -delta), delta)
                term = np.float64(slope * (error - half * slope))
            else:  # of magnitudes, by side
                weight = one
                if kind == PINBALL:
                    weight = one - above[j] if error > zero else above[j]
                slope = zero if error == zero else math.copysign(weight, error)
                term = np.float64(weight * abs(error))
            total += term
            gradient[i, j] = slope * to_y * part
            count += 1
    return total, count


@jit
def add_rows(sums, places, rows) -> None:
    """Add each row, [N, E], to the one of ``sums``, [V, E], whose number ``places`` [N] holds."""
    for i in range(len(places)):
        place = places[i]
        for j in range(rows.shape[1]):
            sums[place, j] += rows[i, j]
