"""Products whose weights come from memory, block after block.

A block is a run of k in the panels of one tile. It stays in the second-level cache while all rows
go over it, and meanwhile each tile asks for its share of the next block. Between blocks the
accumulators wait as float32, just as they would have stayed in registers: the order of every sum,
and so its bits, are those of one tile over the whole panel.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, product_at
from streamrnn.kernels.cpu.tiles import (
    MAX_PANELS,
    MAX_ROWS,
    SUMS_BYTES,
    VECTOR_BYTES,
    WEIGHT_BYTES,
    Tile,
    TileShape,
    call_tile,
)
from streamrnn.kernels.cpu.vectors import INT
from streamrnn.kernels.gates import SHAPES
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["BLOCK_SUMS_BYTES", "BLOCK_TILES", "make_block_cover"]

# Fewer rows leave the loads of a tile no room for more of them.
_MIN_ROWS = MAX_ROWS // 2 + 1
# One tile alone is bound by memory: it asks for its own weights, as far ahead as memory is away.
_AHEAD_BYTES = 16 << 10
_LINE_BYTES = 64

# Panels of a tile, at most: with four, what it asks for would leave too few registers.
_MAX_PANELS = np.minimum(MAX_PANELS, 2)
# A tile takes as many panels as the largest one beside it can.
BLOCK_TILES: list[TileShape] = sorted(
    {
        (kind, rows, int(_MAX_PANELS[kind, min(rows + more, MAX_ROWS)]))
        for kind in SHAPES
        for rows in range(_MIN_ROWS, MAX_ROWS + 1)
        for more in (0, 1)
    }
)
# Of the accumulators that wait between two blocks.
BLOCK_SUMS_BYTES = MAX_BATCH_ROWS * max(int(SUMS_BYTES[kind]) * n for kind, _, n in BLOCK_TILES)
_NUM_GATES = np.array([len(SHAPES[kind].x_gates) for kind in sorted(SHAPES)])  # of x, and of h

_GROUPS = (2, 3, 6, 6, 2)  # words of `_block_tile`: weights, start, inputs, target, ahead


def _emit_block(
    tile: Tile,
    weights: Sequence[ir.Value],
    start: Sequence[ir.Value],
    inputs: Sequence[ir.Value],
    target: Sequence[ir.Value],
    ahead: Sequence[ir.Value],
) -> None:
    """Emit a tile over a run of k, from x or h or both."""
    b = tile.builder
    panels = [b.add(weights[0], b.mul(weights[1], INT(p))) for p in range(tile.num_panels)]
    x_table, first_x, num_x, h_table, first_h, num_h = inputs
    x_rows, h_rows = tile.load_pointers(x_table), tile.load_pointers(h_table)
    phases = (
        (x_rows, first_x, num_x, tile.shape.x_gates),
        (h_rows, first_h, num_h, tile.shape.h_gates),
    )
    sums, line = tile.start(*start), ahead[0]
    for rows, first, num, gates in phases:
        skipped = b.mul(first, INT(_k_bytes(tile)))
        panels = [b.add(panel, skipped) for panel in panels]
        begins = [_plain(b, b.add(row, b.mul(first, INT(4)))) for row in rows]
        ask = _ask(tile, line, ahead[1], weights[1])
        sums, panels = tile.multiply(sums, panels, begins, num, gates, ask)
        line = b.add(line, b.mul(num, ahead[1]))
    tile.end(sums, h_rows, target, weights[1])


def _plain(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Return an address of which LLVM does not know how it came about.

    Else it adds it up anew at every k, and accumulators no longer find a register.
    """
    kind = ir.FunctionType(INT, [INT])
    return builder.asm(kind, "", "=r,0", [address], side_effect=False)


def _k_bytes(tile: Tile) -> int:
    """Return the bytes of a panel's weights for one k, as many of x as of h."""
    return len(tile.shape.x_gates) * WIDTH * int(WEIGHT_BYTES[tile.precision])


def _ask(
    tile: Tile, address: ir.Value, step: ir.Value, panel_bytes: ir.Value
) -> Callable[[ir.Value], None]:
    """Return what asks for the lines of one k, in each panel."""
    b = tile.builder
    num_lines = -(-_k_bytes(tile) // _LINE_BYTES)

    def ask(k: ir.Value) -> None:
        line = b.add(address, b.mul(k, step))
        for p in range(tile.num_panels):
            place = b.add(line, b.mul(panel_bytes, INT(p)))
            for n in range(num_lines):
                tile.e.prefetch(b.add(place, INT(n * _LINE_BYTES)))

    return ask


@intrinsic(prefer_literal=True)
def _block_tile(
    typingctx: Any,
    precision: types.Type,
    kind: types.Type,
    num_rows: types.Type,
    num_panels: types.Type,
    weights: types.Type,
    start: types.Type,
    inputs: types.Type,
    target: types.Type,
    ahead: types.Type,
) -> Any:
    """Compute a block of one tile; the arguments are those of `tile`, but for two.

    ``inputs`` are (x_pointers, first_x, num_x, h_pointers, first_h, num_h), of which ``first_h`` is
    0 where ``num_x`` is not; ``weights`` begin with x's first ones. ``ahead`` is what to ask for:
    where, and how much further at each k.
    """
    return call_tile("block", precision, _GROUPS, BLOCK_TILES, _emit_block)


def make_block_cover(precision: int) -> Callable[..., Any]:
    """Return what covers a product in blocks, for `Linked`: address of the product -> panels done.

    It leaves alone what has too few rows, and the panels after those that tiles can take together.
    """

    def cover_blocks(product_address):
        product = product_at(product_address)
        num_tiles = -(-product.num_rows // MAX_ROWS)
        few = product.num_rows // num_tiles
        if few < _MIN_ROWS:
            return 0
        num_larger = product.num_rows - few * num_tiles
        kind, num_x, num_k = product.kind, product.num_x, product.num_x + product.num_h
        together = _MAX_PANELS[kind, few + (num_larger > 0)]
        k_bytes = _NUM_GATES[kind] * WIDTH * WEIGHT_BYTES[precision]
        sums_bytes, panel_bytes = SUMS_BYTES[kind], product.panel_bytes
        num_blocks = 1
        if num_tiles > 1:
            num_blocks = max(together * num_k * k_bytes // product.block_bytes, 1)
        block_k = -(-num_k // num_blocks)
        num_covered = product.num_panels // together * together
        for panel in range(0, num_covered, together):
            weights = product.weights + panel * panel_bytes
            end = np.int64(0)
            while True:
                first, end = end, min(end + block_k, num_k)
                first_x, end_x = min(first, num_x), min(end, num_x)
                start = product.start + panel * product.start_panel_bytes
                start_row_bytes, start_panel_bytes = (
                    product.start_row_bytes,
                    product.start_panel_bytes,
                )
                if first > 0:
                    start, start_row_bytes = product.block_sums, together * sums_bytes
                    start_panel_bytes = sums_bytes
                out, out_bytes, unit_offset = product.out, product.out_bytes, panel * VECTOR_BYTES
                is_partial = product.is_partial
                ahead, ahead_bytes = weights + together * panel_bytes, k_bytes // num_tiles
                if end < num_k:
                    out, out_bytes, unit_offset = product.block_sums, together * sums_bytes, 0
                    is_partial = 1
                    ahead = weights + end * k_bytes
                elif num_tiles == 1:
                    ahead = weights + _AHEAD_BYTES
                elif panel + together == num_covered:
                    ahead, ahead_bytes = weights, 0
                row = 0
                for index in range(num_tiles):
                    tile_rows = few + (index < num_larger)
                    _block_tile(
                        precision,
                        kind,
                        tile_rows,
                        together,
                        (weights, panel_bytes),
                        (start + row * start_row_bytes, start_row_bytes, start_panel_bytes),
                        (
                            product.x_pointers + 8 * row,
                            first_x,
                            end_x - first_x,
                            product.h_pointers + 8 * row,
                            first - first_x,
                            (end - end_x) - (first - first_x),
                        ),
                        (
                            out + row * out_bytes,
                            out_bytes,
                            unit_offset,
                            product.cell_offset,
                            is_partial,
                            product.scales + panel * panel_bytes,
                        ),
                        (ahead, ahead_bytes),
                    )
                    ahead += (end - first) * ahead_bytes
                    row += tile_rows
                if end == num_k:
                    break
        return num_covered

    return cover_blocks
