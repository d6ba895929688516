"""Losses with their gradients, and what goes back into an embedding: row by row."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np
from numba.core import types
from numba.extending import overload

from streamrnn.kernels.activations import LN2, LN2_REST, LOG2E, ROUND
from streamrnn.kernels.jit import jit

__all__ = ["add_rows", "cross_entropy", "squares"]

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


@jit
def cross_entropy(z, target, weights, gradient):
    """Set the gradient by z, [N, O], of the sum of losses, and return the sum and its targets.

    ``target`` [N] holds classes, NaN where there is none; ``weights`` [O] those of the classes, or
    nothing. A target that is no class ends it: -1 targets, then. A share below exp(-60) is as good
    as that, and its products are no subnormal numbers.
    """
    num_rows, num_outputs = z.shape
    total, num_targets = 0.0, 0
    for i in range(num_rows):
        given = target[i]
        if given != given:
            gradient[i] = 0.0
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
        weight = weights[index] if len(weights) else gradient.dtype.type(1.0)
        inverse = gradient.dtype.type(weight / power_sum)
        least = gradient.dtype.type(LEAST_SHARE) * weight
        for j in range(num_outputs):
            share = gradient[i, j] * inverse
            gradient[i, j] = least if share < least else share
        gradient[i, index] -= weight
        total += weight * (math.log(power_sum) - np.float64(z[i, index] - largest))
        num_targets += 1
    return total, num_targets


@jit
def squares(z, target, gradient):
    """Set the gradient by z of the sum of squared errors; return the sum and the targets, all [N].

    Where a target is NaN there is none.
    """
    total, num_targets = 0.0, 0
    for k in range(len(z)):
        given = target[k]
        is_there = given == given
        error = z[k] - given if is_there else z.dtype.type(0.0)
        gradient[k] = error + error
        total += np.float64(error) * np.float64(error)
        num_targets += is_there
    return total, num_targets


@jit
def add_rows(sums, places, rows) -> None:
    """Add each row, [N, E], to the one of ``sums``, [V, E], whose number ``places`` [N] holds."""
    for i in range(len(places)):
        place = places[i]
        for j in range(rows.shape[1]):
            sums[place, j] += rows[i, j]
