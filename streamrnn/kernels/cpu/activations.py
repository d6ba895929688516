"""The activations, on vectors of float32 in registers.

There is no vector mathematics library under numba everywhere, so these are ours. Measured over all
of their ranges against float64: sigmoid within 1.5e-7, tanh within 2.9e-7, exp within 1.4e-7
(relative; `tests/kernels/test_activations.py`). A NaN stays a NaN.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.activations import (
    EXP2,
    LOG2E,
    LOG2E_REST,
    MAX_EXPONENT,
    RELU,
    ROUND,
    SIGMOID,
    SOFTMAX,
    TANH,
    TANH_BOUND,
    TANH_P,
    TANH_Q,
)
from streamrnn.kernels.cpu.vectors import Emitter
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_f32, store_f32
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["activate", "emit_gate_parts", "emit_tanh_parts"]

_EXP = SOFTMAX + 1


def _emit_exp2_parts(
    e: Emitter, shifted: ir.Value, fraction: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return p and s, a power of two, with ``2^x = p s``.

    ``shifted`` is x + ROUND, and ``fraction`` what x lacks to the integer that this rounds it to.
    Multiplying by s, instead of adding to the exponent's bits, lets a NaN in p through.
    """
    b = e.builder
    power = b.add(b.shl(e.as_lanes(shifted), e.lanes(23)), e.lanes(0x3F800000))
    return e.horner(EXP2, fraction), e.as_floats(power)


def _emit_exp_parts(e: Emitter, x: ir.Value, sign: float) -> tuple[ir.Value, ir.Value]:
    """Return p and s, a power of two, with ``exp(sign * x) = p s``."""
    b = e.builder
    x = e.clamp(x, MAX_EXPONENT)
    shifted = e.fma(x, e.constant(sign * LOG2E), e.constant(ROUND))
    whole = b.fsub(shifted, e.constant(ROUND))
    fraction = e.fma(x, e.constant(sign * LOG2E), b.fneg(whole))
    fraction = e.fma(x, e.constant(sign * LOG2E_REST), fraction)
    return _emit_exp2_parts(e, shifted, fraction)


def emit_gate_parts(e: Emitter, t: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit ``2^t`` and ``1 + 2^t`` for a gate: what it scales is divided by the second.

    t is the gate's sum times `GATE_FACTOR`, which is folded into its weights. The results are at
    most 2^118: the denominator may still be multiplied by one of `emit_tanh_parts`.
    """
    b = e.builder
    t = e.clamp(t, 118.0)
    shifted = b.fadd(t, e.constant(ROUND))
    fraction = b.fsub(t, b.fsub(shifted, e.constant(ROUND)))
    p, s = _emit_exp2_parts(e, shifted, fraction)
    return b.fmul(p, s), e.fma(p, s, e.constant(1.0))


def _emit_sigmoid(e: Emitter, x: ir.Value) -> ir.Value:
    p, s = _emit_exp_parts(e, x, -1.0)
    return e.builder.fdiv(e.constant(1.0), e.fma(p, s, e.constant(1.0)))


def emit_tanh_parts(e: Emitter, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit p and q with ``tanh(x) = p / q``: ``x P(x^2)`` and ``Q(x^2)``, of degree 4 each.

    q is from 1 to 303.
    """
    b = e.builder
    x = e.clamp(x, TANH_BOUND)
    square = b.fmul(x, x)
    return b.fmul(x, e.horner(TANH_P, square)), e.horner(TANH_Q, square)


def _emit_tanh(e: Emitter, x: ir.Value) -> ir.Value:
    p, q = emit_tanh_parts(e, x)
    return e.builder.fdiv(p, q)


def _emit_relu(e: Emitter, x: ir.Value) -> ir.Value:
    zero = e.constant(0.0)
    return e.builder.select(e.builder.fcmp_ordered("<", x, zero), zero, x)


def _emit_exp(e: Emitter, x: ir.Value) -> ir.Value:
    p, s = _emit_exp_parts(e, x, 1.0)
    return e.builder.fmul(p, s)


_EMITTED = {TANH: _emit_tanh, SIGMOID: _emit_sigmoid, RELU: _emit_relu, _EXP: _emit_exp}


@intrinsic(prefer_literal=True)
def _apply(typingctx: Any, kind: types.Type, address: types.Type) -> Any:
    """Apply one activation to the `WIDTH` floats at an address, in place."""
    if not isinstance(kind, types.IntegerLiteral):
        return None
    emit = _EMITTED[kind.literal_value]

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        e.store(emit(e, e.load(args[1], align=4)), args[1], align=4)
        return context.get_dummy_value()

    return types.void(kind, types.int64), codegen


@jit
def activate(kind, address, size):
    """Apply an activation, by its number, to the ``size`` float32 of a row, in place.

    The row must have room up to the next multiple of the vector width: that is overwritten.
    """
    if kind == TANH:
        for i in range(0, size, WIDTH):
            _apply(TANH, address + 4 * i)
    elif kind == SIGMOID:
        for i in range(0, size, WIDTH):
            _apply(SIGMOID, address + 4 * i)
    elif kind == RELU:
        for i in range(0, size, WIDTH):
            _apply(RELU, address + 4 * i)
    elif kind == SOFTMAX:
        _softmax(address, size)


@jit
def _softmax(address, size):
    """Replace a row by ``exp(x - max x)`` over its sum; sums run in ascending order."""
    largest = load_f32(address)
    for i in range(1, size):
        value = load_f32(address + 4 * i)
        if not value <= largest:  # a NaN becomes the largest, and with it every output
            largest = value
    for i in range(size):
        store_f32(address + 4 * i, load_f32(address + 4 * i) - largest)
    for i in range(0, size, WIDTH):
        _apply(_EXP, address + 4 * i)
    total = load_f32(address)
    for i in range(1, size):
        total += load_f32(address + 4 * i)
    for i in range(size):
        store_f32(address + 4 * i, load_f32(address + 4 * i) / total)
