"""The activations: operation by operation those of the CPU, `activations` and `cell_ends`.

So both sides give the same bits wherever their sums have. The mathematics library of the GPU would
be as accurate, but its exp and tanh go through approximate instructions whose bits NVIDIA does not
promise from one architecture to the next; a division is rounded to nearest on all.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import cuda

from streamrnn.kernels import activations as constants
from streamrnn.kernels.activations import RELU, SIGMOID, TANH
from streamrnn.kernels.cuda.compiler import device_function
from streamrnn.kernels.gates import GRU

__all__ = ["activate", "exp", "sigmoid", "step_unit", "tanh"]

_float, _index = np.float32, np.uint64
_int = np.int32
_ZERO, _ONE = _float(0.0), _float(1.0)
_MAX_EXPONENT = _float(constants.MAX_EXPONENT)
_LOG2E, _LOG2E_REST = _float(constants.LOG2E), _float(constants.LOG2E_REST)
_MINUS_LOG2E, _MINUS_LOG2E_REST = _float(-constants.LOG2E), _float(-constants.LOG2E_REST)
_ROUND = _float(constants.ROUND)
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = (_float(value) for value in constants.EXP2)
_MAX_GATE = _float(118.0)
_TANH_BOUND = _float(constants.TANH_BOUND)
_P0, _P1, _P2, _P3, _P4 = (_float(value) for value in constants.TANH_P)
_Q0, _Q1, _Q2, _Q3, _Q4 = (_float(value) for value in constants.TANH_Q)


@device_function
def _clamp(x, bound):
    """Limit x to +-bound; a NaN stays one."""
    if x > bound:
        return bound
    if x < -bound:
        return -bound
    return x


@device_function
def _exp_fraction(fraction):
    """Return 2^fraction for -1/2 to 1/2."""
    p = cuda.fma(_E6, fraction, _E5)
    p = cuda.fma(p, fraction, _E4)
    p = cuda.fma(p, fraction, _E3)
    p = cuda.fma(p, fraction, _E2)
    p = cuda.fma(p, fraction, _E1)
    return cuda.fma(p, fraction, _E0)


@device_function
def _power_of_two(shifted):
    """Return 2^n for n + _ROUND; what comes of a NaN is a finite number."""
    return _int(((shifted.view(_int) + 127) & 255) << 23).view(_float)


@device_function
def exp(x):
    """Return exp(x), x limited to where both it and its reciprocal are normal."""
    x = _clamp(x, _MAX_EXPONENT)
    shifted = cuda.fma(x, _LOG2E, _ROUND)
    whole = shifted - _ROUND
    fraction = cuda.fma(x, _LOG2E_REST, cuda.fma(x, _LOG2E, -whole))
    return _exp_fraction(fraction) * _power_of_two(shifted)


@device_function
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    x = _clamp(x, _MAX_EXPONENT)
    shifted = cuda.fma(x, _MINUS_LOG2E, _ROUND)
    whole = shifted - _ROUND
    fraction = cuda.fma(x, _MINUS_LOG2E_REST, cuda.fma(x, _MINUS_LOG2E, -whole))
    return _ONE / cuda.fma(_exp_fraction(fraction), _power_of_two(shifted), _ONE)


@device_function
def _gate_power(t):
    """Return 2^t for a gate's sum, whose weights hold `GATE_FACTOR`; at most 2^118."""
    t = _clamp(t, _MAX_GATE)
    shifted = t + _ROUND
    fraction = t - (shifted - _ROUND)
    return _exp_fraction(fraction) * _power_of_two(shifted)


@device_function
def _gate_denominator(t):
    """Return 1 + 2^t: what the gate scales is divided by it."""
    t = _clamp(t, _MAX_GATE)
    shifted = t + _ROUND
    fraction = t - (shifted - _ROUND)
    return cuda.fma(_exp_fraction(fraction), _power_of_two(shifted), _ONE)


@device_function
def _tanh_above(x):
    """Return x P(x^2), for a clamped x."""
    square = x * x
    p = cuda.fma(_P4, square, _P3)
    p = cuda.fma(p, square, _P2)
    p = cuda.fma(p, square, _P1)
    return x * cuda.fma(p, square, _P0)


@device_function
def _tanh_below(x):
    """Return Q(x^2), for a clamped x."""
    square = x * x
    q = cuda.fma(_Q4, square, _Q3)
    q = cuda.fma(q, square, _Q2)
    q = cuda.fma(q, square, _Q1)
    return cuda.fma(q, square, _Q0)


@device_function
def tanh(x):
    """Return tanh(x) as x P(x^2) / Q(x^2)."""
    x = _clamp(x, _TANH_BOUND)
    return _tanh_above(x) / _tanh_below(x)


@device_function
def _lstm_cell(enter, keep, candidate, c):
    """Return c' = f c + i g, of the sums of i and f, times `GATE_FACTOR`, and of g."""
    candidate = _clamp(candidate, _TANH_BOUND)
    below = _tanh_below(candidate) * _gate_denominator(enter)
    entering = _tanh_above(candidate) / below
    return c / _gate_denominator(keep) + entering


@device_function
def _lstm_output(out, new_c):
    """Return h' = o tanh(c'), of the sum of o times `GATE_FACTOR`."""
    x = _clamp(new_c, _TANH_BOUND)
    return _tanh_above(x) / (_tanh_below(x) * _gate_denominator(out))


@device_function
def _gru_output(reset, update, from_x, from_h, h):
    """Return h' = (1 - z) n + z h, with n = tanh(n_x + r n_h).

    ``reset`` and ``update`` are the sums of r and z, times `GATE_FACTOR`; ``from_x`` and ``from_h``
    the two sums of n.
    """
    x = _clamp(from_h / _gate_denominator(reset) + from_x, _TANH_BOUND)
    below = _tanh_below(x)
    above = cuda.fma(_tanh_above(x), _gate_power(update), h * below)
    return above / (below * _gate_denominator(update))


@device_function
def step_unit(kind, sums, h, slab, c_place):
    """Return the new h of a unit of a GRU or an LSTM; an LSTM's c in the slab is replaced."""
    if kind == GRU:
        return _gru_output(sums[0], sums[1], sums[2], sums[3], h)
    new_c = _lstm_cell(sums[0], sums[1], sums[2], slab[_index(c_place)])
    slab[_index(c_place)] = new_c
    return _lstm_output(sums[3], new_c)


@device_function
def activate(kind, x):
    """Apply `IDENTITY`, `TANH`, `SIGMOID` or `RELU`, which need no other element."""
    if kind == TANH:
        return tanh(x)
    if kind == SIGMOID:
        return sigmoid(x)
    if kind == RELU and x < _ZERO:
        return _ZERO
    return x
