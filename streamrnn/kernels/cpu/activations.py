"""The activations, on vectors of float32 in registers.

There is no vector mathematics library under numba everywhere, so these are ours. Measured over all
of their ranges against float64: sigmoid within 1.5e-7, tanh within 2.9e-7, exp within 1.4e-7
(relative; `tests/kernels/test_activations.py`, which has the others too). A NaN stays a NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from streamrnn.kernels import activations as a
from streamrnn.kernels.activations import (
    EXP2,
    IDENTITY,
    LOG2E,
    LOG2E_REST,
    LOG_SOFTMAX,
    MAX_EXPONENT,
    PRELU,
    RELU,
    ROUND,
    SIGMOID,
    SOFTMAX,
    TANH,
    TANH_BOUND,
    TANH_P,
    TANH_Q,
)
from streamrnn.kernels.cpu.vectors import VECTOR, Emitter
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_f32, store_f32
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["activate", "emit_gate_parts", "emit_tanh_parts"]

_ZERO = np.float32(0.0)
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_GELU_SQUARE, _GELU_FACTOR = 0.044715, 0.7978845608028654  # sqrt(2 / pi)


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


def _emit_sigmoid(e: Emitter, x: ir.Value, slope: ir.Value | None = None) -> ir.Value:
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


def _emit_tanh(e: Emitter, x: ir.Value, slope: ir.Value | None = None) -> ir.Value:
    p, q = emit_tanh_parts(e, x)
    return e.builder.fdiv(p, q)


def _emit_relu(e: Emitter, x: ir.Value, slope: ir.Value | None = None) -> ir.Value:
    return _emit_bounded(e, x, 0.0, None)


def _emit_bounded(e: Emitter, x: ir.Value, low: float, high: float | None) -> ir.Value:
    """Emit x within bounds; a NaN stays a NaN."""
    b = e.builder
    bound = e.constant(low)
    x = b.select(b.fcmp_ordered("<", x, bound), bound, x)
    if high is None:
        return x
    bound = e.constant(high)
    return b.select(b.fcmp_ordered(">", x, bound), bound, x)


def _emit_exp(e: Emitter, x: ir.Value, slope: ir.Value | None = None) -> ir.Value:
    p, s = _emit_exp_parts(e, x, 1.0)
    return e.builder.fmul(p, s)


def _emit_where_above(e: Emitter, x: ir.Value, otherwise: ir.Value) -> ir.Value:
    """Emit x where it is above 0 (or a NaN), else the other."""
    return e.builder.select(e.builder.fcmp_ordered("<=", x, e.constant(0.0)), otherwise, x)


def _emit_prelu(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    return _emit_where_above(e, x, e.builder.fmul(x, slope))


def _emit_elu(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    power = e.builder.fsub(_emit_exp(e, x), e.constant(1.0))
    return _emit_where_above(e, x, e.builder.fmul(power, slope))


def _emit_selu(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    return e.builder.fmul(_emit_elu(e, x, e.constant(_SELU_ALPHA)), e.constant(_SELU_SCALE))


def _emit_silu(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    return e.builder.fmul(x, _emit_sigmoid(e, x))


def _emit_gelu(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    b = e.builder
    t = b.fmul(x, e.constant(0.7071067811865476))
    inside = e.clamp(t, a.ERF_BOUND)
    square = b.fmul(inside, inside)
    above = b.fmul(inside, e.horner(a.ERF_P, square))
    erf = b.fdiv(above, e.horner(a.ERF_Q, square))
    for sign, order in ((1.0, ">="), (-1.0, "<=")):
        reached = b.fcmp_ordered(order, t, e.constant(sign * a.ERF_BOUND))
        erf = b.select(reached, e.constant(sign), erf)
    return b.fmul(b.fmul(x, e.constant(0.5)), b.fadd(erf, e.constant(1.0)))


def _emit_gelu_tanh(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    b = e.builder
    inner = e.fma(b.fmul(x, x), e.constant(_GELU_SQUARE), e.constant(1.0))
    t = _emit_tanh(e, b.fmul(b.fmul(x, e.constant(_GELU_FACTOR)), inner))
    return b.fmul(b.fmul(x, e.constant(0.5)), b.fadd(t, e.constant(1.0)))


def _emit_log1p(e: Emitter, u: ir.Value) -> ir.Value:
    """Emit log(1 + u) for u from -0.3 to 1."""
    above = e.builder.fmul(u, e.horner(a.LOG1P_P, u))
    return e.builder.fdiv(above, e.horner(a.LOG1P_Q, u))


def _emit_softplus(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    b = e.builder
    is_below = b.fcmp_ordered("<", x, e.constant(0.0))
    power = _emit_exp(e, b.select(is_below, x, b.fneg(x)))
    return b.fadd(b.select(is_below, e.constant(0.0), x), _emit_log1p(e, power))


def _emit_softsign(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    b = e.builder
    size = b.select(b.fcmp_ordered("<", x, e.constant(0.0)), b.fneg(x), x)
    return b.fdiv(x, b.fadd(size, e.constant(1.0)))


def _emit_hard_sigmoid(e: Emitter, x: ir.Value, factor: float) -> ir.Value:
    line = e.fma(x, e.constant(factor), e.constant(0.5))
    return _emit_bounded(e, line, 0.0, 1.0)


def _emit_whole_log(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    """Emit log(x), of the least normal number for what is less; a NaN below 0."""
    b = e.builder
    least, infinity = e.constant(a.LEAST_NORMAL), e.constant(float("inf"))
    log = _emit_log(e, b.select(b.fcmp_ordered("<", x, least), least, x))
    log = b.select(b.fcmp_ordered("==", x, infinity), x, log)
    return b.select(b.fcmp_ordered("<", x, e.constant(0.0)), e.constant(float("nan")), log)


def _emit_abs(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    return e.as_floats(e.builder.and_(e.as_lanes(x), e.lanes(0x7FFFFFFF)))


def _emit_sqrt(e: Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    kind = ir.FunctionType(VECTOR, [VECTOR])
    root = cgutils.get_or_insert_function(e.builder.module, kind, f"llvm.sqrt.v{WIDTH}f32")
    return e.builder.call(root, [x])


def _emit_where(e: Emitter, order: str, x: ir.Value, bound: ir.Value) -> ir.Value:
    return e.builder.select(e.builder.fcmp_ordered(order, x, bound), bound, x)


_Emit = Callable[[Emitter, ir.Value, ir.Value], ir.Value]
_EMITTED: dict[int, _Emit] = {
    TANH: _emit_tanh,
    SIGMOID: _emit_sigmoid,
    RELU: _emit_relu,
    a.RELU6: lambda e, x, slope: _emit_bounded(e, x, 0.0, 6.0),
    PRELU: _emit_prelu,
    a.ELU: _emit_elu,
    a.SELU: _emit_selu,
    a.SILU: _emit_silu,
    a.GELU: _emit_gelu,
    a.GELU_TANH: _emit_gelu_tanh,
    a.SOFTPLUS: _emit_softplus,
    a.SOFTSIGN: _emit_softsign,
    a.HARD_SIGMOID_FIFTH: lambda e, x, slope: _emit_hard_sigmoid(e, x, 1.0 / 5.0),
    a.HARD_SIGMOID_SIXTH: lambda e, x, slope: _emit_hard_sigmoid(e, x, 1.0 / 6.0),
    a.HARD_SWISH: lambda e, x, slope: e.builder.fmul(x, _emit_hard_sigmoid(e, x, 1.0 / 6.0)),
    a.HARD_TANH: lambda e, x, slope: _emit_bounded(e, x, -1.0, 1.0),
    a.EXP: _emit_exp,
    a.LOG: _emit_whole_log,
    a.ABS: _emit_abs,
    a.SQRT: _emit_sqrt,
    a.RECIPROCAL: lambda e, x, slope: e.builder.fdiv(e.constant(1.0), x),
    a.AT_LEAST: lambda e, x, slope: _emit_where(e, "<", x, slope),
    a.AT_MOST: lambda e, x, slope: _emit_where(e, ">", x, slope),
}
_WITH_SLOPE = (PRELU, a.ELU, a.AT_LEAST, a.AT_MOST)
_OFTEN = (TANH, SIGMOID, RELU)  # loops of their own
_SELDOM = tuple(kind for kind in _EMITTED if kind not in _OFTEN)
_EXP = a.EXP


@intrinsic(prefer_literal=True)
def _apply(typingctx: Any, kind: types.Type, address: types.Type) -> Any:
    """Apply one activation to the `WIDTH` floats at an address, in place."""
    if not isinstance(kind, types.IntegerLiteral):
        return None
    emit = _EMITTED[kind.literal_value]

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        e.store(emit(e, e.load(args[1], align=4), None), args[1], align=4)
        return context.get_dummy_value()

    return types.void(kind, types.int64), codegen


@intrinsic
def _apply_seldom(typingctx: Any, kind: types.Type, address: types.Type, slope: types.Type) -> Any:
    """Apply any of the other activations to the `WIDTH` floats at an address, in place."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        done = builder.append_basic_block("activated")
        choice = builder.switch(args[0], done)
        for kind_ in _SELDOM:
            block = builder.append_basic_block(f"activation_{kind_}")
            choice.add_case(ir.IntType(64)(kind_), block)
            builder.position_at_end(block)
            e = Emitter(builder)
            slopes = e.load(args[2], align=4) if kind_ in _WITH_SLOPE else None
            e.store(_EMITTED[kind_](e, e.load(args[1], align=4), slopes), args[1], align=4)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def _of_scalar(typingctx: Any, is_log: types.Type, x: types.Type) -> Any:
    """Compute exp(x), or with the literal 1 the logarithm of a normal x above 0, or of a NaN."""
    if not isinstance(is_log, types.IntegerLiteral):
        return None
    chosen = _emit_log if is_log.literal_value else _emit_exp

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        return builder.extract_element(chosen(e, e.splat(args[1])), ir.IntType(64)(0))

    return types.float32(is_log, types.float32), codegen


def _emit_log(e: Emitter, x: ir.Value) -> ir.Value:
    """Emit log(x) = k ln 2 + log(m), with m from sqrt(1/2) to sqrt(2), of a normal x or a NaN."""
    b = e.builder
    bits = e.as_lanes(x)
    k = b.ashr(b.sub(bits, e.lanes(0x3F3504F3)), e.lanes(23))
    m = e.as_floats(b.sub(bits, b.shl(k, e.lanes(23))))
    whole = b.sitofp(k, x.type)
    rest = e.fma(whole, e.constant(a.LN2_REST), _emit_log1p(e, b.fsub(m, e.constant(1.0))))
    log = e.fma(whole, e.constant(a.LN2), rest)
    return b.select(b.fcmp_unordered("uno", x, x), x, log)


@jit
def activate(kind, address, size, slopes):
    """Apply an activation, by its number, to the ``size`` float32 of a row, in place.

    The row must have room up to the next multiple of the vector width: that is overwritten, with
    what the activation makes of it. ``slopes`` is the address of as many numbers, for those that
    take one.
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
    elif kind == LOG_SOFTMAX:
        _log_softmax(address, size)
    elif kind != IDENTITY:
        for i in range(0, size, WIDTH):
            _apply_seldom(kind, address + 4 * i, slopes + 4 * i)


@jit
def _largest(address, size):
    """Return the largest of a row; a NaN may become it, and comes out of the sum anyway."""
    largest = load_f32(address)
    for i in range(1, size):
        value = load_f32(address + 4 * i)
        if not value <= largest:
            largest = value
    return largest


@jit
def _softmax(address, size):
    """Replace a row by ``exp(x - max x)`` over its sum; sums run in ascending order."""
    largest = _largest(address, size)
    for i in range(size):
        store_f32(address + 4 * i, load_f32(address + 4 * i) - largest)
    for i in range(0, size, WIDTH):
        _apply(_EXP, address + 4 * i)
    total = load_f32(address)
    for i in range(1, size):
        total += load_f32(address + 4 * i)
    for i in range(size):
        store_f32(address + 4 * i, load_f32(address + 4 * i) / total)


@jit
def _log_softmax(address, size):
    """Replace a row by ``x - max x - log sum exp(x - max x)``; the sum runs in ascending order."""
    largest = _largest(address, size)
    total = _ZERO
    for i in range(size):
        total += _of_scalar(0, load_f32(address + 4 * i) - largest)
    logarithm = _of_scalar(1, total)
    for i in range(size):
        store_f32(address + 4 * i, (load_f32(address + 4 * i) - largest) - logarithm)
