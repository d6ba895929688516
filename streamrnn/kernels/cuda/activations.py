"""The activations and cells: operation by operation those of the CPU.

So both sides give the same bits wherever their sums have. The mathematics library of the GPU would
be as accurate, but its exp and tanh go through approximate instructions whose bits NVIDIA does not
promise from one architecture to the next; a division is rounded to nearest on all.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, int64

from streamrnn.kernels import activations as constants
from streamrnn.kernels.activations import RELU, SIGMOID, SOFTMAX, TANH
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.compiler import device_function
from streamrnn.kernels.cuda.products import BLEND, FORM, HEAD, PLAIN, RESET, Cell
from streamrnn.kernels.cuda.ptx import add, i32, multiply
from streamrnn.kernels.gates import DENSE, GRU, LSTM

__all__ = ["activate", "exp", "gru_output", "half_of", "lstm_cell", "lstm_output"]
__all__ += [
    "make_blend",
    "make_gate",
    "make_write_unit",
    "place_of_h",
    "place_of_row",
    "place_of_x",
    "put_of",
    "sigmoid",
    "tanh",
]

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
def activate(kind, x):
    """Apply `IDENTITY`, `TANH`, `SIGMOID` or `RELU`, which need no other element."""
    if kind == TANH:
        return tanh(x)
    if kind == SIGMOID:
        return sigmoid(x)
    if kind == RELU and x < _ZERO:
        return _ZERO
    return x


def make_gate(is_hard: bool) -> Any:
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


def make_blend(is_hard: bool) -> Any:
    """Return ``(1 - z) tanh(candidate) + z h``, of the sum of z."""
    gate = make_gate(True)

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


@device_function
def _write_h(arrays, place, unit, h):
    """Put a unit's new h where others will read it, and where the caller wants it."""
    layer, _, slab, _, y = arrays
    _, old, other, _, out = place
    slab[_index(old + other + unit)] = h
    if layer[_index(p.NUM_OUTPUTS)] > 0:
        y[_index(out + unit)] = h


@device_function
def _write_scratch(arrays, place, unit, value):
    """Put what a unit has computed where the layer's next product reads it."""
    layer, _, _, work, _ = arrays
    _, _, _, scratch, _ = place
    work[_index(scratch + layer[_index(p.OUT)] + unit)] = value


def put_of(cell: Cell) -> Any:
    """Return the device function ``(arrays, place, unit, value)`` that writes what a cell shows."""
    return _write_scratch if cell.to_scratch else _write_h


def make_write_unit(cell: Cell) -> Any:
    """Return the device function that makes a unit's sums what they become.

    Its arguments: ``arrays``, which are layer, weights, slab, work and y as in `make_layer_kernel`;
    ``place``, what `place_of_row` has returned; ``unit``; its four sums, of which a dense one has
    the first.
    """
    kind, activation = cell.kind, cell.activation
    gate, blend, put = make_gate(cell.is_hard), make_blend(cell.is_hard), put_of(cell)

    @device_function
    def write_dense(arrays, place, unit, s0, s1, s2, s3):
        put(arrays, place, unit, activate(activation, s0))

    @device_function
    def write_gru(arrays, place, unit, s0, s1, s2, s3):
        _, _, slab, _, _ = arrays
        _, old, _, _, _ = place
        _write_h(arrays, place, unit, gru_output(s0, s1, s2, s3, slab[_index(old + unit)]))

    @device_function
    def write_lstm(arrays, place, unit, s0, s1, s2, s3):
        layer, _, slab, _, _ = arrays
        stream, _, _, _, _ = place
        c_place = stream + layer[_index(p.CELL)] + unit
        new_c = lstm_cell(s0, s1, s2, slab[_index(c_place)])
        slab[_index(c_place)] = new_c
        _write_h(arrays, place, unit, lstm_output(s3, new_c))

    @device_function
    def write_lstm_form(arrays, place, unit, s0, s1, s2, s3):
        layer, weights, slab, _, _ = arrays
        stream, _, _, _, _ = place
        c_place = stream + layer[_index(p.CELL)] + unit
        peephole = layer[_index(p.PEEPHOLES)] + 4 * unit
        c = slab[_index(c_place)]
        enter = gate(cuda.fma(weights[_index(peephole)], c, s0))
        keep = gate(cuda.fma(weights[_index(peephole + 1)], c, s1))
        new_c = cuda.fma(keep, c, enter * tanh(s2))
        slab[_index(c_place)] = new_c
        out = gate(cuda.fma(weights[_index(peephole + 2)], new_c, s3))
        put(arrays, place, unit, out * tanh(new_c))

    @device_function
    def write_gru_form(arrays, place, unit, s0, s1, s2, s3):
        _, _, slab, _, _ = arrays
        _, old, _, _, _ = place
        h = slab[_index(old + unit)]
        reset = gate(s0)
        _write_h(arrays, place, unit, blend(s1, cuda.fma(s3, reset, s2), h))

    @device_function
    def write_reset(arrays, place, unit, s0, s1, s2, s3):
        """Write r h, which is multiplied next, and the sum of z."""
        layer, _, slab, work, _ = arrays
        _, old, _, scratch, _ = place
        out = scratch + layer[_index(p.OUT)] + unit
        work[_index(out)] = cuda.fma(gate(s0), slab[_index(old + unit)], _ZERO)
        work[_index(out + layer[_index(p.NUM_UNITS)])] = s1

    @device_function
    def write_blend(arrays, place, unit, s0, s1, s2, s3):
        layer, _, slab, work, _ = arrays
        _, old, _, scratch, _ = place
        update = scratch + layer[_index(p.SCRATCH)] + layer[_index(p.NUM_UNITS)] + unit
        h = slab[_index(old + unit)]
        _write_h(arrays, place, unit, blend(work[_index(update)], s0, h))

    @device_function
    def write_output(arrays, place, unit, s0, s1, s2, s3):
        """Write a number of y; a softmax is left to a launch of its own."""
        layer, weights, slab, _, y = arrays
        stream, _, _, _, out = place
        value = s0
        if activation != SOFTMAX:
            value = activate(activation, value)
            value = add(value, weights[_index(layer[_index(p.LAYER_CENTERS)] + unit)])
            level = layer[_index(p.LAYER_SIZE + unit)]
            if level >= 0:
                known = slab[_index(stream + level)]
                fill = weights[_index(layer[_index(p.LAYER_FILLS)] + unit)]
                value = add(value, fill if math.isnan(known) else known)
        y[_index(out + unit)] = value

    plain = {DENSE: write_dense, GRU: write_gru, LSTM: write_lstm}
    form = {GRU: write_gru_form, LSTM: write_lstm_form}
    others = {RESET: write_reset, BLEND: write_blend, HEAD: write_output}
    by_kind = {PLAIN: plain, FORM: form}.get(cell.end)
    write = by_kind[kind] if by_kind else others[cell.end]
    if not cell.is_scaled:
        return write

    @device_function
    def write_scaled(arrays, place, unit, s0, s1, s2, s3):
        layer, weights, _, _, _ = arrays
        if kind == DENSE:
            s0 = multiply(s0, weights[_index(layer[_index(p.SCALES)] + unit)])
        else:
            scales = layer[_index(p.SCALES)] + 4 * unit
            s0 = multiply(s0, weights[_index(scales)])
            s1 = multiply(s1, weights[_index(scales + 1)])
            s2 = multiply(s2, weights[_index(scales + 2)])
            s3 = multiply(s3, weights[_index(scales + 3)])
        write(arrays, place, unit, s0, s1, s2, s3)

    return write_scaled


@device_function
def half_of(code, step):
    """Return in which half the newest h lies before a step: 0 or 1."""
    return (code ^ step) & 1


@device_function
def place_of_x(layer, slots, row, step, x_start, x_stride):
    """Return where a row's input begins in x, which may be the newer h of the layer below."""
    code = int64(slots[_index(row)])
    in_row = (1 - half_of(code, step)) * layer[_index(p.X_OTHER)]
    return x_start + row * x_stride + (code >> 1) * layer[_index(p.X_ROW_SIZE)] + in_row


@device_function
def place_of_h(layer, slots, row, step):
    """Return where a row's old h begins in the slab."""
    code = int64(slots[_index(row)])
    in_row = layer[_index(p.STATE)] + half_of(code, step) * layer[_index(p.OTHER)]
    return (code >> 1) * layer[_index(p.LAYER_ROW_SIZE)] + in_row


@device_function
def place_of_row(layer, slots, row, step, y_start, y_stride):
    """Return what `make_write_unit` must know of a batch's row.

    Where its stream begins in the slab, its old h and its new one; where it begins in work; where
    its outputs begin in y.
    """
    code = int64(slots[_index(row)])
    stream = (code >> 1) * layer[_index(p.LAYER_ROW_SIZE)]
    first, other = stream + layer[_index(p.STATE)], layer[_index(p.OTHER)]
    if half_of(code, step):
        first, other = first + other, -other
    scratch = row * layer[_index(p.LAYER_WORK_SIZE)]
    return stream, first, i32(other), scratch, y_start + row * y_stride
