"""How a step of each cell ends, forward and backward: the element-wise parts.

A cell takes its sums and what it kept of the step before, and names what it keeps of this one. On
the way back it takes the loss's gradient by h' and what was kept, and gives the gradients by its
sums. ``load`` and ``store`` take a name and, of gates, which one.

=====  ==========================  =========================================
cell   gates kept                  gradients that take their place
=====  ==========================  =========================================
LSTM   i, f, g, o                  by the sums of each
GRU    the sum n_h, r, z, n        by those of n_h, r, z, n_x
RNN    none                        by its sum
=====  ==========================  =========================================

So those by the sums with h lie side by side, and those by the sums with x (`H_SLOTS`, `X_SLOTS`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from streamrnn.gradients.activations import emit_sigmoid, emit_tanh
from streamrnn.kernels.cpu.vectors import Emitter
from streamrnn.kernels.gates import DENSE, GRU, LSTM

__all__ = ["BACKWARD", "CELLS", "FORWARD", "GATES", "H_SLOTS", "NUM_SLOTS", "TILE_KINDS", "X_SLOTS"]

# A cell: what the trainer's tiles are made for.
RNN_TANH, RNN_RELU, GRU_CELL, LSTM_CELL = range(4)
CELLS = {"rnn_tanh": RNN_TANH, "rnn_relu": RNN_RELU, "gru": GRU_CELL, "lstm": LSTM_CELL}
TILE_KINDS = (DENSE, DENSE, GRU, LSTM)
GATES = {"rnn_tanh": (), "rnn_relu": (), "gru": ("", "r", "z", "n"), "lstm": ("i", "f", "g", "o")}
NUM_SLOTS = (1, 1, 4, 4)
H_SLOTS = ((0,), (0,), (1, 2, 0), (0, 1, 2, 3))
X_SLOTS = ((0,), (0,), (1, 2, 3), (0, 1, 2, 3))
"""By cell: how many gates are kept, and where those of each of PyTorch's rows of gates are."""

Load = Callable[..., ir.Value]
Store = Callable[..., None]


def _forward_lstm(e: Emitter, sums: Sequence[ir.Value], load: Load, store: Store) -> None:
    """Emit ``c' = f c + i g`` and ``h' = o tanh(c')``."""
    b = e.builder
    i, f, o = (emit_sigmoid(e, sums[gate]) for gate in (0, 1, 3))
    g = emit_tanh(e, sums[2])
    c = e.fma(f, load("c"), b.fmul(i, g))
    tanh_c = emit_tanh(e, c)
    for k, gate in enumerate((i, f, g, o)):
        store(gate, "gates", k)
    store(c, "new_c")
    store(tanh_c, "tanh_c")
    store(b.fmul(o, tanh_c), "new_h")


def _backward_lstm(e: Emitter, grad_h: ir.Value, load: Load, store: Store) -> None:
    """Emit the gradients by the sums; by c they are carried to the step before."""
    b, one = e.builder, e.constant(1.0)
    i, f, g, o = (load("gates", k) for k in range(4))
    tanh_c = load("tanh_c")
    to_c = b.fmul(grad_h, o)
    grad_c = e.fma(to_c, e.fma(b.fneg(tanh_c), tanh_c, one), load("carried"))
    store(b.fmul(b.fmul(to_c, tanh_c), b.fsub(one, o)), "gates", 3)
    to_i = b.fmul(grad_c, i)
    store(b.fmul(b.fmul(to_i, g), b.fsub(one, i)), "gates", 0)
    store(b.fmul(to_i, e.fma(b.fneg(g), g, one)), "gates", 2)
    to_f = b.fmul(grad_c, f)
    store(b.fmul(b.fmul(to_f, load("c")), b.fsub(one, f)), "gates", 1)
    store(to_f, "carried")


def _forward_gru(e: Emitter, sums: Sequence[ir.Value], load: Load, store: Store) -> None:
    """Emit ``n = tanh(n_x + r n_h)`` and ``h' = n + z (h - n)``."""
    b = e.builder
    r, z = (emit_sigmoid(e, sums[gate]) for gate in (0, 1))
    n = emit_tanh(e, e.fma(r, sums[3], sums[2]))
    for k, gate in enumerate((sums[3], r, z, n)):
        store(gate, "gates", k)
    store(e.fma(z, b.fsub(load("h"), n), n), "new_h")


def _backward_gru(e: Emitter, grad_h: ir.Value, load: Load, store: Store) -> None:
    """Emit the gradients by the sums; what h' gets past n is carried to the step before."""
    b, one = e.builder, e.constant(1.0)
    grad_h = b.fadd(grad_h, load("carried"))
    n_h, r, z, n = (load("gates", k) for k in range(4))
    to_n = b.fmul(b.fmul(grad_h, b.fsub(one, z)), e.fma(b.fneg(n), n, one))
    to_n_h = b.fmul(to_n, r)
    to_z = b.fmul(grad_h, z)
    store(b.fmul(b.fmul(to_n_h, n_h), b.fsub(one, r)), "gates", 1)
    store(b.fmul(b.fmul(to_z, b.fsub(load("h"), n)), b.fsub(one, z)), "gates", 2)
    store(to_n_h, "gates", 0)
    store(to_n, "gates", 3)
    store(to_z, "carried")


def _forward_tanh(e: Emitter, sums: Sequence[ir.Value], load: Load, store: Store) -> None:
    store(emit_tanh(e, sums[0]), "new_h")


def _backward_tanh(e: Emitter, grad_h: ir.Value, load: Load, store: Store) -> None:
    h = load("new_h")
    store(e.builder.fmul(grad_h, e.fma(e.builder.fneg(h), h, e.constant(1.0))), "gates", 0)


def _forward_relu(e: Emitter, sums: Sequence[ir.Value], load: Load, store: Store) -> None:
    is_below = e.builder.fcmp_ordered("<", sums[0], e.constant(0.0))  # a NaN stays a NaN
    store(e.builder.select(is_below, e.constant(0.0), sums[0]), "new_h")


def _backward_relu(e: Emitter, grad_h: ir.Value, load: Load, store: Store) -> None:
    is_above = e.builder.fcmp_ordered(">", load("new_h"), e.constant(0.0))
    store(e.builder.select(is_above, grad_h, e.constant(0.0)), "gates", 0)


FORWARD = (_forward_tanh, _forward_relu, _forward_gru, _forward_lstm)
BACKWARD = (_backward_tanh, _backward_relu, _backward_gru, _backward_lstm)
