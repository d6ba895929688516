"""How a cell ends: the element-wise part after its sums, on vectors in registers.

Gates and tanh are kept as fractions until they meet, so that few divisions remain. Divisions are
correctly rounded, the same on every processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from streamrnn.kernels.cpu.activations import emit_gate_parts, emit_tanh_parts
from streamrnn.kernels.cpu.vectors import Emitter

__all__ = ["emit_gru", "emit_lstm"]


def emit_gru(e: Emitter, sums: Sequence[ir.Value], h: ir.Value) -> ir.Value:
    """Emit h' = (1 - z) n + z h, with n = tanh(n_x + r n_h).

    ``sums`` are of r and z, times `GATE_FACTOR`; of n_x; of n_h. With ``n = p / q`` and
    ``z = 1 / (1 + u)`` it is ``(p u + h q) / (q (1 + u))``: two divisions for three activations.
    """
    b = e.builder
    _, reset_below = emit_gate_parts(e, sums[0])
    power, update_below = emit_gate_parts(e, sums[1])
    p, q = emit_tanh_parts(e, b.fadd(b.fdiv(sums[3], reset_below), sums[2]))
    above = e.fma(p, power, b.fmul(h, q))
    return b.fdiv(above, b.fmul(q, update_below))


def emit_lstm(e: Emitter, sums: Sequence[ir.Value], c: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit h' = o tanh(c') and c' = f c + i g: three divisions for five activations.

    ``sums`` are of i, f, g and o; all but that of g times `GATE_FACTOR`.
    """
    b = e.builder
    (_, enter_below), (_, keep_below), (_, out_below) = (
        emit_gate_parts(e, sums[gate]) for gate in (0, 1, 3)
    )
    p, q = emit_tanh_parts(e, sums[2])
    entering = b.fdiv(p, b.fmul(q, enter_below))
    new_c = b.fadd(b.fdiv(c, keep_below), entering)
    p, q = emit_tanh_parts(e, new_c)
    return b.fdiv(p, b.fmul(q, out_below)), new_c
