"""The activations and cells: operation by operation those of the CPU.

So both sides give the same bits wherever their sums have. The mathematics library of the GPU would
be as accurate, but its exp and tanh go through approximate instructions whose bits NVIDIA does not
promise from one architecture to the next; a division is rounded to nearest on all.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from streamrnn.kernels import activations as constants
from streamrnn.kernels.activations import RELU, SIGMOID, TANH
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.compiler import device_function
from streamrnn.kernels.cuda.plan import BLEND, FORM, RESET, Cell
from streamrnn.kernels.gates import DENSE, GRU, LSTM

__all__ = ["activate", "exp", "gru_output", "lstm_cell", "lstm_output", "make_write_unit"]
__all__ += ["sigmoid", "step_unit", "tanh"]

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
def lstm_cell(enter, keep, candidate, c):
    """Return c' = f c + i g, of the sums of i and f, times `GATE_FACTOR`, and of g."""
    candidate = _clamp(candidate, _TANH_BOUND)
    below = _tanh_below(candidate) * _gate_denominator(enter)
    entering = _tanh_above(candidate) / below
    return c / _gate_denominator(keep) + entering


@device_function
def lstm_output(out, new_c):
    """Return h' = o tanh(c'), of the sum of o times `GATE_FACTOR`."""
    x = _clamp(new_c, _TANH_BOUND)
    return _tanh_above(x) / (_tanh_below(x) * _gate_denominator(out))


@device_function
def gru_output(reset, update, from_x, from_h, h):
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
        return gru_output(sums[0], sums[1], sums[2], sums[3], h)
    new_c = lstm_cell(sums[0], sums[1], sums[2], slab[_index(c_place)])
    slab[_index(c_place)] = new_c
    return lstm_output(sums[3], new_c)


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


def _make_gate(is_hard: bool) -> Any:
    """Return the gate of a sum, which the weights have brought to the form it takes."""

    @device_function
    def hard(t):
        if t > _ONE:
            return _ONE
        if t < _ZERO:
            return _ZERO
        return t

    @device_function
    def soft(t):
        return _ONE / _gate_denominator(t)

    return hard if is_hard else soft


def _make_blend(is_hard: bool) -> Any:
    """Return ``(1 - z) tanh(candidate) + z h``, of the sum of z."""
    gate = _make_gate(True)

    @device_function
    def hard(update, candidate, h):
        n = tanh(candidate)
        return cuda.fma(gate(update), h - n, n)

    @device_function
    def soft(update, candidate, h):
        x = _clamp(candidate, _TANH_BOUND)
        below = _tanh_below(x)
        above = cuda.fma(_tanh_above(x), _gate_power(update), h * below)
        return above / (below * _gate_denominator(update))

    return hard if is_hard else soft


def make_write_unit(cell: Cell) -> Any:
    """Return the device function that makes a unit's sums what they become.

    Its arguments: ``layer``, ``weights``, ``slab`` and ``work`` as in `make_layer_kernel`;
    ``stream`` and ``scratch``, where the row begins in slab and work; ``unit``; its four sums, of
    which a dense one has the first.
    """
    kind, activation = cell.kind, cell.activation
    gate, blend = _make_gate(cell.is_hard), _make_blend(cell.is_hard)

    @device_function
    def write_dense(layer, weights, slab, work, stream, scratch, unit, s0, s1, s2, s3):
        work[_index(scratch + layer[_index(p.OUT)] + unit)] = activate(activation, s0)

    @device_function
    def write_plain(layer, weights, slab, work, stream, scratch, unit, s0, s1, s2, s3):
        h = slab[_index(stream + layer[_index(p.STATE)] + unit)]
        new_h = step_unit(kind, (s0, s1, s2, s3), h, slab, stream + layer[_index(p.CELL)] + unit)
        work[_index(scratch + layer[_index(p.OUT)] + unit)] = new_h

    @device_function
    def write_lstm_form(layer, weights, slab, work, stream, scratch, unit, s0, s1, s2, s3):
        c_place = stream + layer[_index(p.CELL)] + unit
        peephole = layer[_index(p.PEEPHOLES)] + 4 * unit
        c = slab[_index(c_place)]
        enter = gate(cuda.fma(weights[_index(peephole)], c, s0))
        keep = gate(cuda.fma(weights[_index(peephole + 1)], c, s1))
        new_c = cuda.fma(keep, c, enter * tanh(s2))
        slab[_index(c_place)] = new_c
        out = gate(cuda.fma(weights[_index(peephole + 2)], new_c, s3))
        work[_index(scratch + layer[_index(p.OUT)] + unit)] = out * tanh(new_c)

    @device_function
    def write_gru_form(layer, weights, slab, work, stream, scratch, unit, s0, s1, s2, s3):
        h = slab[_index(stream + layer[_index(p.STATE)] + unit)]
        new_h = blend(s1, cuda.fma(gate(s0), s3, s2), h)
        work[_index(scratch + layer[_index(p.OUT)] + unit)] = new_h

    @device_function
    def write_reset(layer, weights, slab, work, stream, scratch, unit, s0, s1, s2, s3):
        """Write r h, which is multiplied next, and the sum of z."""
        out = scratch + layer[_index(p.OUT)] + unit
        h = slab[_index(stream + layer[_index(p.STATE)] + unit)]
        work[_index(out)] = cuda.fma(gate(s0), h, _ZERO)
        work[_index(out + layer[_index(p.NUM_UNITS)])] = s1

    @device_function
    def write_blend(layer, weights, slab, work, stream, scratch, unit, s0, s1, s2, s3):
        update = scratch + layer[_index(p.RESET_H)] + layer[_index(p.NUM_UNITS)] + unit
        h = slab[_index(stream + layer[_index(p.STATE)] + unit)]
        new_h = blend(work[_index(update)], s0, h)
        work[_index(scratch + layer[_index(p.OUT)] + unit)] = new_h

    if cell.end == FORM:
        return write_lstm_form if kind == LSTM else write_gru_form
    if cell.end in (RESET, BLEND):
        return write_reset if cell.end == RESET else write_blend
    return write_dense if kind == DENSE else write_plain
