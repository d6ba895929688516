"""Sigmoid and tanh on vectors in registers, in float32 and in float64.

In float32 they are the engine's. In float64 both come from a power of two, whose polynomial is the
exponential series: within 4e-16 of 1, which is what gradients are checked with.
"""

from __future__ import annotations

import math

from llvmlite import ir

from streamrnn.kernels.cpu.activations import emit_gate_parts, emit_tanh_parts
from streamrnn.kernels.cpu.vectors import DOUBLE, Emitter

__all__ = ["emit_sigmoid", "emit_tanh"]

_ROUND = 1.5 * 2.0**52  # adding it leaves the nearest integer in the low bits
_EXP2 = [math.log(2.0) ** k / math.factorial(k) for k in range(15)]
_MAX_POWER = 1000.0


def emit_sigmoid(e: Emitter, t: ir.Value) -> ir.Value:
    """Emit the sigmoid of a gate; t is its sum times `GATE_FACTOR`."""
    one = e.constant(1.0)
    if e.element is DOUBLE:
        return e.builder.fdiv(one, e.builder.fadd(_emit_exp2(e, t), one))
    return e.builder.fdiv(one, emit_gate_parts(e, t)[1])


def emit_tanh(e: Emitter, x: ir.Value) -> ir.Value:
    """Emit tanh(x)."""
    b = e.builder
    if e.element is DOUBLE:
        power = _emit_exp2(e, b.fmul(x, e.constant(2.0 * math.log2(math.e))))
        below = b.fadd(power, e.constant(1.0))
        return b.fsub(e.constant(1.0), b.fdiv(e.constant(2.0), below))
    p, q = emit_tanh_parts(e, x)
    return b.fdiv(p, q)


def _emit_exp2(e: Emitter, t: ir.Value) -> ir.Value:
    """Emit 2^t in float64; a NaN stays a NaN."""
    b = e.builder
    t = e.clamp(t, _MAX_POWER)
    shifted = b.fadd(t, e.constant(_ROUND))
    fraction = b.fsub(t, b.fsub(shifted, e.constant(_ROUND)))
    whole = b.shl(e.as_lanes(shifted), e.lanes(52))
    power = e.as_floats(b.add(whole, e.lanes(1023 << 52)))
    return b.fmul(e.horner(_EXP2, fraction), power)
