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

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.cpu.cell_outputs import emit_gru, emit_lstm
from streamrnn.kernels.cpu.vectors import FLOAT, INT, Emitter, keep_rolled
from streamrnn.kernels.gates import DENSE, GRU, SHAPES
from streamrnn.kernels.precisions import FLOAT32, INT8
from streamrnn.kernels.vector_width import WIDTH

__all__ = [
    "ALL_TILES", "MAX_PANELS", "MAX_ROWS", "SUMS_BYTES", "VECTOR_BYTES", "WEIGHT_BYTES", "Sums",
    "Tile", "TileShape", "call_tile", "max_panels", "tile",
]  # fmt: skip

VECTOR_BYTES = 4 * WIDTH
Sums = list[list[list[ir.Value]]]  # accumulators [row][panel][gate]
TileShape = tuple[int, int, int]  # kind, rows and panels of a tile
WEIGHT_BYTES = np.array([4, 2, 1])  # by precision
# Of one panel's accumulators: of its biases, and of the sums that a partial tile leaves.
SUMS_BYTES = np.array([SHAPES[kind].num_accumulators * VECTOR_BYTES for kind in sorted(SHAPES)])


class Tile:
    """Emits one tile. See `tile` for the arguments.

    ``element`` is that of the sums and of what is multiplied; weights that are no float32 are only
    for `FLOAT`.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        precision: int,
        kind: int,
        num_rows: int,
        num_panels: int,
        element: ir.Type = FLOAT,
    ) -> None:
        self.e = Emitter(builder, element=element)
        self.vector_bytes = WIDTH * self.e.element_bytes
        self.builder = builder
        self.precision = precision
        self.kind = kind
        self.shape = SHAPES[kind]
        self.num_rows = num_rows
        self.num_panels = num_panels

    def load_pointers(self, table: ir.Value) -> list[ir.Value]:
        """Load one address a row from an array of addresses."""
        b = self.builder
        pointer = b.inttoptr(table, INT.as_pointer())
        return [b.load(b.gep(pointer, [INT(r)])) for r in range(self.num_rows)]

    def start(self, first: ir.Value, row_stride: ir.Value, panel_stride: ir.Value) -> Sums:
        """Load the accumulators [row][panel][gate]: from the biases, or from earlier sums."""
        b = self.builder
        rows = [b.add(first, b.mul(row_stride, INT(r))) for r in range(self.num_rows)]
        starts = [
            [b.add(row, b.mul(panel_stride, INT(p))) for p in range(self.num_panels)]
            for row in rows
        ]
        gates = range(self.shape.num_accumulators)
        return [
            [
                [self.e.load(b.add(start, INT(g * self.vector_bytes))) for g in gates]
                for start in row
            ]
            for row in starts
        ]

    def multiply(
        self,
        sums: Sums,
        panels: Sequence[ir.Value],
        rows: Sequence[ir.Value],
        count: ir.Value,
        gates: tuple[int, ...],
        beside: Callable[[ir.Value], None] | None = None,
    ) -> tuple[Sums, list[ir.Value]]:
        """Emit the loop over k: ``sums[gate] += row[k] * weights[k][gate]``.

        ``beside`` emits what else is done for a k. Returns the new accumulators, and where in each
        panel the weights of this phase end.
        """
        b = self.builder
        step = len(gates) * self._weights_bytes()
        before = b.block
        head = b.append_basic_block("k_head")
        body = b.append_basic_block("k_body")
        after = b.append_basic_block("k_after")
        b.branch(head)

        b.position_at_end(head)
        k = b.phi(INT)
        k.add_incoming(INT(0), before)
        phis = [
            [[b.phi(self.e.vector) for _ in accumulators] for accumulators in row_sums]
            for row_sums in sums
        ]
        for r, p, g in self._each_accumulator():
            phis[r][p][g].add_incoming(sums[r][p][g], before)
        b.cbranch(b.icmp_signed("<", k, count), body, after)

        b.position_at_end(body)
        current = [[list(accumulators) for accumulators in row_sums] for row_sums in phis]
        if beside is not None:
            beside(k)
        offset = b.mul(k, INT(step))
        weights = [self.load_weights(b.add(panel, offset), len(gates)) for panel in panels]
        element_offset = b.mul(k, INT(self.e.element_bytes))
        for r in range(self.num_rows):
            element = self.e.splat(self.e.load_scalar(b.add(rows[r], element_offset)))
            for p in range(self.num_panels):
                for j, gate in enumerate(gates):
                    current[r][p][gate] = self.e.fma(element, weights[p][j], current[r][p][gate])
        k.add_incoming(b.add(k, INT(1)), body)
        for r, p, g in self._each_accumulator():
            phis[r][p][g].add_incoming(current[r][p][g], body)
        keep_rolled(b.branch(head))  # unrolled it is no faster, and the registers run out

        b.position_at_end(after)
        size = b.mul(count, INT(step))
        return phis, [b.add(panel, size) for panel in panels]

    def load_weights(self, address: ir.Value, num_gates: int) -> list[ir.Value]:
        """Load the weights of one element for every gate, and widen them to float32."""
        b, e = self.builder, self.e
        places = [b.add(address, INT(j * self._weights_bytes())) for j in range(num_gates)]
        if self.precision == FLOAT32:
            return [e.load(place) for place in places]
        if self.precision == INT8:
            return [e.load_int8(place) for place in places]
        # Two vectors share one of twice their width, lane by lane: low halves and high halves.
        weights: list[ir.Value] = []
        for place in places[: num_gates // 2 * 2 : 2]:
            weights += e.load_bfloat16_pair(place)
        if num_gates % 2:
            weights.append(e.load_bfloat16(places[-1]))
        return weights

    def _weights_bytes(self) -> int:
        """Return the bytes of a vector's weights."""
        if self.precision == FLOAT32:
            return self.vector_bytes
        return WIDTH * int(WEIGHT_BYTES[self.precision])

    def end(
        self,
        sums: Sums,
        h_rows: Sequence[ir.Value],
        target: Sequence[ir.Value],
        panel_bytes: ir.Value,
    ) -> None:
        """Store the accumulators, or what becomes of them. ``target`` is that of `tile`."""
        if self.kind == DENSE and self.precision != INT8:
            self.store_sums(sums, target)
            return
        is_partial = self.builder.icmp_signed("!=", target[4], INT(0))
        with self.builder.if_else(is_partial) as (then, otherwise):
            with then:
                self.store_sums(sums, target)
            with otherwise:
                sums = self.scaled(sums, target[5], panel_bytes)
                if self.kind == DENSE:
                    self.store_sums(sums, target)
                else:
                    self.finish(sums, h_rows, target)

    def scaled(self, sums: Sums, scales: ir.Value, panel_bytes: ir.Value) -> Sums:
        """Return the accumulators in the model's units: int8 weights are whole numbers."""
        if self.precision != INT8:
            return sums
        b = self.builder
        panels = [b.add(scales, b.mul(panel_bytes, INT(p))) for p in range(self.num_panels)]
        scaled = [[list(panel) for panel in row] for row in sums]
        for r, p, g in self._each_accumulator():
            scale = self.e.load(b.add(panels[p], INT(g * VECTOR_BYTES)))
            scaled[r][p][g] = b.fmul(sums[r][p][g], scale)
        return scaled

    def store_sums(self, sums: Sums, target: Sequence[ir.Value]) -> None:
        """Store the accumulators as they are, side by side."""
        b = self.builder
        out, stride, unit_offset = target[:3]
        num_gates = self.shape.num_accumulators
        first = b.add(out, b.mul(unit_offset, INT(num_gates)))
        for r, p, g in self._each_accumulator():
            row = b.add(first, b.mul(stride, INT(r)))
            self.e.store(sums[r][p][g], b.add(row, INT((p * num_gates + g) * VECTOR_BYTES)))

    def finish(
        self,
        sums: Sums,
        h_rows: Sequence[ir.Value],
        target: Sequence[ir.Value],
    ) -> None:
        """Turn the accumulators into the new h, and c.

        Two vectors at a time: one would wait for itself, and more would not find room.
        """
        places = [(r, p) for r in range(self.num_rows) for p in range(self.num_panels)]
        for i in range(0, len(places), 2):
            self._finish_some(places[i : i + 2], sums, h_rows, target)

    def _finish_some(
        self,
        places: Sequence[tuple[int, int]],
        sums: Sums,
        h_rows: Sequence[ir.Value],
        target: Sequence[ir.Value],
    ) -> None:
        """Finish the vectors of some rows and panels, side by side."""
        b, e = self.builder, Emitter(self.builder, len(places))
        out, stride, unit_offset, cell_offset = target[:4]
        offsets = [b.add(unit_offset, INT(p * VECTOR_BYTES)) for _, p in places]
        rows = [(r, offset) for (r, _), offset in zip(places, offsets, strict=True)]
        outs = [b.add(b.add(out, b.mul(stride, INT(r))), offset) for r, offset in rows]
        hs = [b.add(h_rows[r], offset) for r, offset in rows]
        gates = range(self.shape.num_accumulators)
        joined = [e.join([sums[r][p][gate] for r, p in places]) for gate in gates]
        if self.kind == GRU:
            new_h = emit_gru(e, joined, e.join([e.load(h) for h in hs]))
        else:
            cells = [b.add(h, cell_offset) for h in hs]
            new_h, new_c = emit_lstm(e, joined, e.join([e.load(cell) for cell in cells]))
            for vector, cell in zip(e.split(new_c), cells, strict=True):
                e.store(vector, cell)
        for vector, place in zip(e.split(new_h), outs, strict=True):
            e.store(vector, place)

    def _each_accumulator(self) -> list[tuple[int, int, int]]:
        return [
            (r, p, g)
            for r in range(self.num_rows)
            for p in range(self.num_panels)
            for g in range(self.shape.num_accumulators)
        ]


# Rows and panels of the tiles that exist: as many as leave the loops over k in registers (32 of
# AVX-512 and NEON, 16 of AVX2). Few rows take several panels together: the latency of an addition
# needs eight or more sums under way, and a cache gives more to four places that are read at once
# than to one or two.
MAX_ROWS = 3 if WIDTH == 8 else 6
_NUM_REGISTERS = 16 if WIDTH == 8 else 32


def max_panels(kind: int, num_rows: int) -> int:
    """Return how many panels a tile of so many rows takes at most."""
    # A single row uses each vector of weights once, straight from memory.
    a_panel = len(SHAPES[kind].h_gates) * (num_rows + (num_rows > 1))
    return max([1] + [panels for panels in (2, 4, 8) if panels * a_panel < _NUM_REGISTERS])


MAX_PANELS = np.array(
    [[max_panels(kind, max(rows, 1)) for rows in range(MAX_ROWS + 1)] for kind in sorted(SHAPES)]
)
ALL_TILES: list[TileShape] = [
    (kind, rows, panels)
    for kind in sorted(SHAPES)
    for rows in range(1, MAX_ROWS + 1)
    for panels in (1, 2, 4, 8)
    if panels <= MAX_PANELS[kind, rows]
]


_GROUPS = (2, 3, 4, 6)  # words of the arguments of `tile`: weights, start, inputs, target


def _tile_function(
    module: ir.Module,
    name: str,
    precision: int,
    shape: TileShape,
    words: Sequence[int],
    emit: Callable[..., None],
) -> ir.Function:
    """Return one tile as a function of its own, of so many words in each group of arguments.

    Together in one function, the tiles' loops would share LLVM's register allocation, which then
    keeps some accumulators in memory.
    """
    kind, num_rows, num_panels = shape
    name = f"streamrnn_{name}_{precision}_{kind}_{num_rows}x{num_panels}"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT] * sum(words)), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    ends = np.cumsum(words)
    groups = [list(function.args[end - n : end]) for n, end in zip(words, ends, strict=True)]
    emit(Tile(builder, precision, *shape), *groups)
    builder.ret_void()
    return function


def call_tile(
    name: str,
    precision: types.Type,
    words: Sequence[int],
    shapes: Sequence[TileShape],
    emit: Callable[..., None],
) -> Any:
    """Return what numba wants of an intrinsic that calls the tile of a shape.

    Its arguments are precision, kind, rows and panels, then the groups of words. A shape that is
    none of ``shapes`` does nothing.
    """
    if not isinstance(precision, types.IntegerLiteral):
        return None
    chosen = precision.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        key = builder.add(builder.mul(args[1], INT(8)), args[2])
        key = builder.add(builder.mul(key, INT(16)), args[3])
        done = builder.append_basic_block("tile_done")
        values = [
            builder.extract_value(group, i)
            for group, count in zip(args[4:], words, strict=True)
            for i in range(count)
        ]
        switch = builder.switch(key, done)
        for shape in shapes:
            kind, rows, panels = shape
            block = builder.append_basic_block(f"{name}_{kind}_{rows}x{panels}")
            switch.add_case(INT((kind * 8 + rows) * 16 + panels), block)
            builder.position_at_end(block)
            function = _tile_function(builder.module, name, chosen, shape, words, emit)
            builder.call(function, values)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    groups = [types.containers.UniTuple(types.int64, count) for count in words]
    return types.void(precision, *(types.int64,) * 3, *groups), codegen


def _emit_tile(
    tile_: Tile,
    weights: Sequence[ir.Value],
    start: Sequence[ir.Value],
    inputs: Sequence[ir.Value],
    target: Sequence[ir.Value],
) -> None:
    """Emit one tile at its builder's place."""
    b = tile_.builder
    x_table, num_x, h_table, num_h = inputs
    x_rows, h_rows = tile_.load_pointers(x_table), tile_.load_pointers(h_table)
    panels = [b.add(weights[0], b.mul(weights[1], INT(p))) for p in range(tile_.num_panels)]
    sums = tile_.start(*start)
    sums, panels = tile_.multiply(sums, panels, x_rows, num_x, tile_.shape.x_gates)
    sums, panels = tile_.multiply(sums, panels, h_rows, num_h, tile_.shape.h_gates)
    tile_.end(sums, h_rows, target, weights[1])


@intrinsic(prefer_literal=True)
def tile(  # noqa: D417 - the typing context is numba's to pass
    typingctx: Any,
    precision: types.Type,
    kind: types.Type,
    num_rows: types.Type,
    num_panels: types.Type,
    weights: types.Type,
    start: types.Type,
    inputs: types.Type,
    target: types.Type,
) -> Any:
    """Compute one tile.

    Parameters
    ----------
    precision : literal int
        How the weights are stored: `FLOAT32`, `BFLOAT16` or `INT8`.
    kind, num_rows, num_panels : int64
        `DENSE`, `GRU` or `LSTM`; how many streams, 1 to `MAX_ROWS`; how many panels at once: a
        power of two up to ``MAX_PANELS[kind, num_rows]``. Another combination does nothing.
    weights : (address, panel_bytes)
        Of the first panel's first product, and how far it is to the next panel's.
    start : (address, row_bytes, panel_bytes)
        Where the accumulators' first values lie: the biases (the same for every row), or the sums
        that a partial tile has left.
    inputs : (x_pointers, num_x, h_pointers, num_h)
        Addresses of int64[num_rows], where each stream's x and h lie, and how many float32 of
        each count. `DENSE` reads h only if num_h is above 0.
    target : (out, out_bytes, unit_offset, cell_offset, is_partial, scales)
        The new h of row r goes to ``out + r * out_bytes + unit_offset``. It must not overlap h,
        which tiles of later panels still read. ``unit_offset`` is the bytes from the start of h
        to the first unit of this tile, ``cell_offset`` those from h to c in a stream's row (LSTM):
        c is replaced in place, for no other tile reads these units of it. With ``is_partial`` the
        accumulators themselves are stored, each panel's side by side. ``scales`` is the address
        of what the first panel's accumulators are multiplied by in the end (int8 only).
    """
    return call_tile("tile", precision, _GROUPS, ALL_TILES, _emit_tile)
