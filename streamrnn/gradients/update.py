"""What an update does with all parameters, which lie in one vector."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.jit import jit

__all__ = ["clip", "move_average", "sum_of_squares", "update_by_adam", "update_by_momentum"]

_NUM_SUMS = 16  # side by side, whatever the vector width: the order decides the bits


@jit
def sum_of_squares(values) -> float:
    """Return the sum of the squares, in float64."""
    sums = np.zeros(_NUM_SUMS)
    whole = len(values) // _NUM_SUMS * _NUM_SUMS
    for first in range(0, whole, _NUM_SUMS):
        for k in range(_NUM_SUMS):
            value = np.float64(values[first + k])
            sums[k] += value * value
    total = 0.0
    for k in range(_NUM_SUMS):
        total += sums[k]
    for k in range(whole, len(values)):
        value = np.float64(values[k])
        total += value * value
    return total


@jit
def clip(gradient, max_norm) -> float:
    """Shorten the gradient to a norm, if it is longer and finite; return its norm before."""
    norm = math.sqrt(sum_of_squares(gradient))
    if max_norm < norm < np.inf:
        share = gradient.dtype.type(max_norm / norm)
        for k in range(len(gradient)):
            gradient[k] *= share
    return norm


@jit
def update_by_adam(parameters, gradient, mean, square, decay, settings) -> None:
    """Make one step of Adam; all are [num_parameters], or ``decay`` is empty.

    ``settings`` [6] are of the parameters' type: the share of the gradient that its mean
    takes; what is kept of the mean square, and what of the gradient's is added; the root of its
    correction; epsilon; the rate, divided by the mean's correction. ``decay`` is what each
    parameter loses of itself. What comes to a subnormal number is 0: some processors take a hundred
    times longer over them.
    """
    mode = enter_float_mode()
    to_mean, keep_square, to_square = settings[0], settings[1], settings[2]
    root, epsilon, rate = settings[3], settings[4], settings[5]
    for k in range(len(parameters)):
        slope = gradient[k]
        mean[k] += (slope - mean[k]) * to_mean
        square[k] = square[k] * keep_square + slope * slope * to_square
        parameter = parameters[k]
        if len(decay):
            parameter -= parameter * decay[k]
        parameters[k] = parameter - rate * mean[k] / (math.sqrt(square[k]) / root + epsilon)
    leave_float_mode(mode)


@jit
def update_by_momentum(parameters, gradient, velocity, decay, momentum, rate) -> None:
    """Make one step of gradient descent; arguments are as in `update_by_adam`."""
    mode = enter_float_mode()
    for k in range(len(parameters)):
        velocity[k] = velocity[k] * momentum + gradient[k]
        parameter = parameters[k]
        if len(decay):
            parameter -= parameter * decay[k]
        parameters[k] = parameter - rate * velocity[k]
    leave_float_mode(mode)


@jit
def move_average(average, values, share) -> None:
    """Let an average go a share of the way to values."""
    for k in range(len(average)):
        average[k] += share * (values[k] - average[k])
