"""The tile: some units of some streams, from their inputs to their new state, in registers.

One emitter makes every tile. A tile computes `WIDTH` units (a *panel*), or several panels, for
``rows`` streams. Its accumulators start at the bias, take the products with x in the order of k,
then those with h in the order of k, each by one fused multiply-add, and end in the cell's
element-wise part. Since that order is the same for every tile, the bits of an output depend
neither on the tile nor on who else is in it.

A packed panel is a run of vectors: the biases of its accumulators; for each element of x one
vector a gate; for each element of h one vector a gate (see `pack`). Gates of the same units stand
side by side, so the cell's element-wise part finds them all in one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.activations import (
    GATE_FACTOR,
    emit_gate_parts,
    emit_reciprocal,
    emit_tanh_parts,
)
from streamrnn.kernels.simd import INT, VECTOR, Emitter
from streamrnn.kernels.simd_width import WIDTH

__all__ = ["DENSE", "GRU", "LSTM", "MAX_PANELS", "MAX_ROWS", "SHAPES", "VECTOR_BYTES", "tile"]

VECTOR_BYTES = 4 * WIDTH
DENSE, GRU, LSTM = range(3)


@dataclass(frozen=True)
class Shape:
    """How one kind of tile uses its vectors.

    Attributes
    ----------
    num_accumulators : int
        Vectors a row and panel.
    x_gates, h_gates : tuple of int
        Which accumulator each packed vector of an element of x, or of h, is added to.
    factors : tuple of float
        What the weights and biases of each accumulator are multiplied by.
    """

    num_accumulators: int
    x_gates: tuple[int, ...]
    h_gates: tuple[int, ...]
    factors: tuple[float, ...]


_GATE = GATE_FACTOR
# GRU keeps the two halves of its candidate apart: the reset gate scales only the one from h.
SHAPES = {
    DENSE: Shape(1, (0,), (0,), (1.0,)),
    GRU: Shape(4, (0, 1, 2), (0, 1, 3), (_GATE, _GATE, 1.0, 1.0)),
    LSTM: Shape(4, (0, 1, 2, 3), (0, 1, 2, 3), (_GATE, _GATE, 1.0, _GATE)),
}


def _emit_gru(e: Emitter, sums: Sequence[ir.Value], h: ir.Value) -> ir.Value:
    """Return h' = (1 - z) n + z h, with n = tanh(n_x + r n_h).

    With ``n = p / q`` and ``z = 1 / (1 + u)`` it is ``(p u + h q) / (q (1 + u))``: two reciprocals
    for three activations.
    """
    b = e.builder
    _, reset_below = emit_gate_parts(e, sums[0])
    reset = emit_reciprocal(e, reset_below)
    power, update_below = emit_gate_parts(e, sums[1])
    p, q = emit_tanh_parts(e, e.fma(reset, sums[3], sums[2]))
    above = e.fma(p, power, b.fmul(h, q))
    return b.fmul(above, emit_reciprocal(e, b.fmul(q, update_below)))


def _emit_lstm(e: Emitter, sums: Sequence[ir.Value], c: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return h' = o tanh(c') and c' = f c + i g: three reciprocals for five activations."""
    b = e.builder
    (_, enter_below), (_, keep_below), (_, out_below) = (
        emit_gate_parts(e, sums[gate]) for gate in (0, 1, 3)
    )
    p, q = emit_tanh_parts(e, sums[2])
    entering = b.fmul(p, emit_reciprocal(e, b.fmul(q, enter_below)))
    new_c = e.fma(emit_reciprocal(e, keep_below), c, entering)
    p, q = emit_tanh_parts(e, new_c)
    return b.fmul(p, emit_reciprocal(e, b.fmul(q, out_below))), new_c


class _Tile:
    """Emits one tile. See `tile` for the arguments."""

    def __init__(self, builder: ir.IRBuilder, kind: int, num_rows: int, num_panels: int) -> None:
        self.e = Emitter(builder)
        self.builder = builder
        self.shape = SHAPES[kind]
        self.num_rows = num_rows
        self.num_panels = num_panels

    def panel_bytes(self, num_x: ir.Value, num_h: ir.Value) -> ir.Value:
        """Return the bytes from one packed panel to the next."""
        b = self.builder
        x_vectors = b.mul(num_x, INT(len(self.shape.x_gates)))
        h_vectors = b.mul(num_h, INT(len(self.shape.h_gates)))
        vectors = b.add(b.add(x_vectors, h_vectors), INT(self.shape.num_accumulators))
        return b.mul(vectors, INT(VECTOR_BYTES))

    def load_pointers(self, table: ir.Value) -> list[ir.Value]:
        """Load one address a row from an array of addresses."""
        b = self.builder
        pointer = b.inttoptr(table, INT.as_pointer())
        return [b.load(b.gep(pointer, [INT(r)])) for r in range(self.num_rows)]

    def start(self, panels: Sequence[ir.Value]) -> list[list[list[ir.Value]]]:
        """Return the accumulators [row][panel][gate], set to the biases."""
        biases = [
            [
                self.e.load(self.builder.add(panel, INT(g * VECTOR_BYTES)))
                for g in range(self.shape.num_accumulators)
            ]
            for panel in panels
        ]
        return [[list(bias) for bias in biases] for _ in range(self.num_rows)]

    def multiply(
        self,
        sums: list[list[list[ir.Value]]],
        panels: Sequence[ir.Value],
        rows: Sequence[ir.Value],
        count: ir.Value,
        gates: tuple[int, ...],
    ) -> tuple[list[list[list[ir.Value]]], list[ir.Value]]:
        """Emit the loop over k: ``sums[gate] += row[k] * weights[k][gate]``.

        Returns the new accumulators, and where in each panel the weights of this phase end.
        """
        b = self.builder
        step = len(gates) * VECTOR_BYTES
        before = b.block
        head = b.append_basic_block("k_head")
        body = b.append_basic_block("k_body")
        after = b.append_basic_block("k_after")
        b.branch(head)

        b.position_at_end(head)
        k = b.phi(INT)
        k.add_incoming(INT(0), before)
        phis = [
            [[b.phi(VECTOR) for _ in accumulators] for accumulators in row_sums]
            for row_sums in sums
        ]
        for r, p, g in self._each_accumulator():
            phis[r][p][g].add_incoming(sums[r][p][g], before)
        b.cbranch(b.icmp_signed("<", k, count), body, after)

        b.position_at_end(body)
        current = [[list(accumulators) for accumulators in row_sums] for row_sums in phis]
        offset = b.mul(k, INT(step))
        weights = [
            [
                self.e.load(b.add(b.add(panel, offset), INT(j * VECTOR_BYTES)))
                for j in range(len(gates))
            ]
            for panel in panels
        ]
        element_offset = b.mul(k, INT(4))
        for r in range(self.num_rows):
            element = self.e.splat(self.e.load_scalar(b.add(rows[r], element_offset)))
            for p in range(self.num_panels):
                for j, gate in enumerate(gates):
                    current[r][p][gate] = self.e.fma(element, weights[p][j], current[r][p][gate])
        k.add_incoming(b.add(k, INT(1)), body)
        for r, p, g in self._each_accumulator():
            phis[r][p][g].add_incoming(current[r][p][g], body)
        b.branch(head)

        b.position_at_end(after)
        size = b.mul(count, INT(step))
        return phis, [b.add(panel, size) for panel in panels]

    def _each_accumulator(self) -> list[tuple[int, int, int]]:
        return [
            (r, p, g)
            for r in range(self.num_rows)
            for p in range(self.num_panels)
            for g in range(self.shape.num_accumulators)
        ]


# Rows and panels of the tiles that exist: as many accumulators as the registers hold (32 of AVX-512
# and NEON, 16 of AVX2) beside a vector of weights a gate. Few rows take several panels together,
# because the latency of an addition needs eight or more sums under way.
MAX_ROWS = 3 if WIDTH == 8 else 6
_NUM_ACCUMULATORS = 4 * MAX_ROWS


def _max_panels(kind: int, num_rows: int) -> int:
    gates = SHAPES[kind].num_accumulators
    fitting = _NUM_ACCUMULATORS // (gates * num_rows)
    return max(1, 2 ** min(fitting.bit_length() - 1, 1 if gates == 4 else 2))


MAX_PANELS = np.array(
    [[_max_panels(kind, max(rows, 1)) for rows in range(MAX_ROWS + 1)] for kind in sorted(SHAPES)]
)
_ALL_TILES = [
    (kind, rows, panels)
    for kind in sorted(SHAPES)
    for rows in range(1, MAX_ROWS + 1)
    for panels in (1, 2, 4)
    if panels <= MAX_PANELS[kind, rows]
]


def _emit_tile(builder: ir.IRBuilder, shape: tuple[int, int, int], args: Sequence[Any]) -> None:
    """Emit one tile at the builder's place; ``args`` as in `tile`, from the weights on."""
    weights, x_table, num_x, h_table, num_h, unit, cell_offset, out, out_stride = args
    kind = shape[0]
    emitted = _Tile(builder, *shape)
    e, b = emitted.e, builder
    panel_bytes = emitted.panel_bytes(num_x, num_h)
    panels = [b.add(weights, b.mul(panel_bytes, INT(p))) for p in range(emitted.num_panels)]
    x_rows, h_rows = emitted.load_pointers(x_table), emitted.load_pointers(h_table)
    sums = emitted.start(panels)
    bias_bytes = INT(emitted.shape.num_accumulators * VECTOR_BYTES)
    panels = [b.add(panel, bias_bytes) for panel in panels]
    sums, panels = emitted.multiply(sums, panels, x_rows, num_x, emitted.shape.x_gates)
    sums, panels = emitted.multiply(sums, panels, h_rows, num_h, emitted.shape.h_gates)
    for r in range(emitted.num_rows):
        out_row = b.add(out, b.mul(out_stride, INT(r)))
        for p in range(emitted.num_panels):
            offset = b.add(unit, INT(p * VECTOR_BYTES))
            h_address = b.add(h_rows[r], offset)
            c_address = b.add(h_address, cell_offset)
            if kind == DENSE:
                new_h = sums[r][p][0]
            elif kind == GRU:
                new_h = _emit_gru(e, sums[r][p], e.load(h_address))
            else:
                new_h, new_c = _emit_lstm(e, sums[r][p], e.load(c_address))
                e.store(new_c, c_address)
            e.store(new_h, b.add(out_row, offset))


@intrinsic
def tile(
    typingctx: Any,
    kind: types.Type,
    num_rows: types.Type,
    num_panels: types.Type,
    weights: types.Type,
    x_pointers: types.Type,
    num_x: types.Type,
    h_pointers: types.Type,
    num_h: types.Type,
    unit_offset: types.Type,
    cell_offset: types.Type,
    out: types.Type,
    out_stride: types.Type,
) -> Any:
    """Compute one tile.

    Parameters
    ----------
    kind, num_rows, num_panels : int64
        `DENSE`, `GRU` or `LSTM`; how many streams, 1 to `MAX_ROWS`; how many panels at once: a
        power of two up to ``MAX_PANELS[kind, num_rows]``. Another combination does nothing.
    weights : int64
        Address of the first packed panel; the others follow it.
    x_pointers, h_pointers : int64
        Addresses of int64[num_rows]: where each stream's x (float32[num_x]) and h
        (float32[num_h]) lie. `DENSE` reads h only if num_h is above 0.
    num_x, num_h : int64
        Elements of x and of h that count.
    unit_offset : int64
        Bytes from the start of h to the first unit of this tile.
    cell_offset : int64
        Bytes from h to c in a stream's row (LSTM). c is replaced in place: no other tile reads
        these units of it.
    out, out_stride : int64
        Where the new h goes: ``out + row * out_stride + unit_offset``. It must not overlap h,
        which tiles of later panels still read.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        key = builder.add(builder.mul(args[0], INT(8)), args[1])
        key = builder.add(builder.mul(key, INT(8)), args[2])
        done = builder.append_basic_block("tile_done")
        switch = builder.switch(key, done)
        for shape in _ALL_TILES:
            kind, rows, panels = shape
            block = builder.append_basic_block(f"tile_{kind}_{rows}x{panels}")
            switch.add_case(INT((kind * 8 + rows) * 8 + panels), block)
            builder.position_at_end(block)
            _emit_tile(builder, shape, args[3:])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 12), codegen
