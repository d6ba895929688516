"""A layer's way over a chunk of time, and back: every row and panel covered with tiles.

Compiled once for each cell and element (float32, float64), when it is first used. All works on a
`LayerPass`, which says where things lie; rows of the batch may be shared among threads.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba.extending import overload, register_jitable

from streamrnn.gradients.cells import CELLS, NUM_SLOTS, TILE_KINDS
from streamrnn.gradients.tiles import (
    advance_tile,
    backward_tile,
    forward_tile,
    most_panels,
    most_rows,
    outer_tile,
    product_tile,
)
from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.gates import DENSE
from streamrnn.kernels.jit import Linked
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["LayerPass", "OuterSum", "Product", "backward", "forward", "outer_sum", "product"]

_BLOCK_STEPS = 128  # rows of both factors of an outer product that stay in the cache
_BLOCK_ROWS = 24  # of a product, which stay in the cache for all panels


class LayerPass(Struct):
    """Where a layer's chunk lies: T steps of B rows; P panels of `WIDTH` units, Hp in all.

    Addresses are of step 0, and ``*_step_bytes`` lead to the next one. Rows of gates, c and
    gradients hold whole panels, gate by gate; those of xh are h of the step before, 1, and x.
    """

    num_rows: I64
    num_panels: I64
    hidden_size: I64
    num_x: I64
    weights: I64  # packed panels: biases, those for x, those for h
    panel_bytes: I64
    first_weight: I64
    back_weights: I64  # packed panels, [k, WIDTH], for k along the gates' rows
    num_back: I64  # k of these
    xh: I64  # [T + 1, B, S]
    xh_row_bytes: I64
    x_offset: I64
    gates: I64  # [T, B, G * Hp]; backward: their gradients
    c: I64  # [T + 1, B, Hp], LSTM
    tanh_c: I64  # [T, B, Hp], LSTM
    grad_h: I64  # [T, B, Hp]
    carried: I64  # [B, Hp]: what goes on to the step before beside the product
    num_steps: I64  # T


class Product(Struct):
    """``out = start + rows @ weights``, packed by `WIDTH` columns.

    The start of each row is ``start_row_bytes`` after the one before: 0 for biases.
    """

    num_panels: I64
    num_k: I64
    weights: I64
    panel_bytes: I64
    start: I64
    start_row_bytes: I64
    start_panel_bytes: I64
    rows: I64
    row_bytes: I64
    out: I64
    out_row_bytes: I64


class OuterSum(Struct):
    """``out[r][u] += sum over k of a[k][r] * v[k][u]``, u in vectors of `WIDTH`."""

    num_panels: I64  # vectors
    num_k: I64
    a: I64
    a_row_bytes: I64
    v: I64
    v_row_bytes: I64
    out: I64
    out_row_bytes: I64


_pass_at = pointer_to(LayerPass)
_product_at = pointer_to(Product)
_outer_at = pointer_to(OuterSum)


def _forward_words(cell: int, element_bytes: int) -> Callable[..., Any]:
    vector_bytes, num_slots = WIDTH * element_bytes, NUM_SLOTS[cell]

    def words(p, t, row, panel):
        at = t * p.num_rows + row
        slot, row_bytes = p.num_panels * vector_bytes, p.xh_row_bytes
        weights = p.weights + panel * p.panel_bytes
        xh, c = p.xh + at * row_bytes, p.c + at * slot
        return (
            weights + p.first_weight,
            p.panel_bytes,
            weights,
            row_bytes,
            xh + p.x_offset,
            p.num_x,
            xh,
            p.hidden_size,
            xh + p.num_rows * row_bytes,
            p.gates + at * slot * num_slots,
            slot,
            c,
            c + p.num_rows * slot,
            p.tanh_c + at * slot,
            panel * vector_bytes,
        )

    return words


def _backward_words(cell: int, element_bytes: int) -> Callable[..., Any]:
    vector_bytes, num_slots = WIDTH * element_bytes, NUM_SLOTS[cell]

    def words(p, t, row, panel):
        at = t * p.num_rows + row
        slot, row_bytes = p.num_panels * vector_bytes, p.xh_row_bytes
        panel_bytes = p.num_back * vector_bytes
        xh, gates = p.xh + at * row_bytes, p.gates + at * slot * num_slots
        return (
            p.back_weights + panel * panel_bytes,
            panel_bytes,
            p.grad_h + at * slot,
            gates + p.num_rows * slot * num_slots,
            p.num_back if t + 1 < p.num_steps else 0,
            gates,
            slot,
            xh,
            xh + p.num_rows * row_bytes,
            row_bytes,
            p.c + at * slot,
            p.tanh_c + at * slot,
            p.carried + row * slot,
            panel * vector_bytes,
            num_slots,
        )

    return words


def _product_words(cell: int, element_bytes: int) -> Callable[..., Any]:
    vector_bytes = WIDTH * element_bytes

    def words(p, t, row, panel):
        return (
            p.weights + panel * p.panel_bytes,
            p.panel_bytes,
            p.start + row * p.start_row_bytes + panel * p.start_panel_bytes,
            p.start_row_bytes,
            p.start_panel_bytes,
            p.rows + row * p.row_bytes,
            p.row_bytes,
            p.num_k,
            p.out + row * p.out_row_bytes + panel * vector_bytes,
            p.out_row_bytes,
        )

    return words


def _outer_words(cell: int, element_bytes: int) -> Callable[..., Any]:
    vector_bytes = WIDTH * element_bytes

    def words(p, k, row, panel):
        return (
            p.a + k * p.a_row_bytes + row * element_bytes,
            p.a_row_bytes,
            p.v + k * p.v_row_bytes + panel * vector_bytes,
            p.v_row_bytes,
            p.out + row * p.out_row_bytes + panel * vector_bytes,
            p.out_row_bytes,
            min(_BLOCK_STEPS, p.num_k - k),
        )

    return words


# What a pass covers with tiles: the tile, and what one is told of a step, a row and a panel.
_FORWARD, _ADVANCE, _BACKWARD, _PRODUCT, _OUTER = range(5)
_TILES = {
    _FORWARD: (forward_tile, _forward_words),
    _ADVANCE: (advance_tile, _forward_words),
    _BACKWARD: (backward_tile, _backward_words),
    _PRODUCT: (product_tile, _product_words),
    _OUTER: (outer_tile, _outer_words),
}


def _cover(way, cell, element_bytes, p, t, first_row, end_row):
    """Cover some rows, and all panels, of step t with tiles of about equal numbers of rows.

    A panel stays in the cache for all its rows. The first three are literal.
    """
    raise NotImplementedError


@overload(_cover, prefer_literal=True)
def _cover_with(way, cell, element_bytes, p, t, first_row, end_row):
    of_cell, size = cell.literal_value, element_bytes.literal_value
    tile, words_of = _TILES[way.literal_value]
    words = register_jitable(words_of(of_cell, size))
    kind = TILE_KINDS[of_cell] if words_of is _forward_words else DENSE
    max_rows = most_rows(size)
    most = tuple(most_panels(kind, max(rows, 1), size) for rows in range(max_rows + 1))

    def cover(way, cell, element_bytes, p, t, first_row, end_row):
        num_rows = end_row - first_row
        num_tiles = -(-num_rows // max_rows)
        few = num_rows // num_tiles
        num_larger = num_rows - few * num_tiles
        panel, together = 0, most[few + (num_larger > 0)]
        while panel < p.num_panels:
            while panel + together > p.num_panels:
                together //= 2
            row = first_row
            for index in range(num_tiles):
                tile_rows = few + (index < num_larger)
                tile(of_cell, size, tile_rows, together, words(p, t, row, panel))
                row += tile_rows
            panel += together

    return cover


def _make_forward(cell: int, element_bytes: int, keeps: int) -> Callable[..., Any]:
    def forward(address, first_step, end_step, first_row, end_row):
        """Compute some steps of some rows; x and the state before them are there.

        With ``keeps`` there is what the way back takes afterwards, else the states alone.
        """
        p = _pass_at(address)
        mode = enter_float_mode()
        for t in range(first_step, end_step):
            if keeps:
                _cover(_FORWARD, cell, element_bytes, p, t, first_row, end_row)
            else:
                _cover(_ADVANCE, cell, element_bytes, p, t, first_row, end_row)
        leave_float_mode(mode)
        return 0

    return forward


def _make_backward(cell: int, element_bytes: int) -> Callable[..., Any]:
    def backward(address, first_step, end_step, first_row, end_row):
        """Go back from the end through some steps of some rows.

        The gates' gradients of step ``end_step`` are there, unless that is the chunk's end.
        """
        p = _pass_at(address)
        mode = enter_float_mode()
        for t in range(end_step - 1, first_step - 1, -1):
            _cover(_BACKWARD, cell, element_bytes, p, t, first_row, end_row)
        leave_float_mode(mode)
        return 0

    return backward


def _make_product(element_bytes: int) -> Callable[..., Any]:
    def product(address, first_row, end_row):
        """Compute some rows of a product, a few at a time with all panels."""
        p = _product_at(address)
        mode = enter_float_mode()
        for row in range(first_row, end_row, _BLOCK_ROWS):
            end = min(row + _BLOCK_ROWS, end_row)
            _cover(_PRODUCT, 0, element_bytes, p, 0, row, end)
        leave_float_mode(mode)
        return 0

    return product


def _make_outer(element_bytes: int) -> Callable[..., Any]:
    def outer_sum(address, first_row, end_row):
        """Add to some rows of the result."""
        p = _outer_at(address)
        mode = enter_float_mode()
        for k in range(0, p.num_k, _BLOCK_STEPS):
            _cover(_OUTER, 0, element_bytes, p, k, first_row, end_row)
        leave_float_mode(mode)
        return 0

    return outer_sum


_LOADED: list[Linked] = []  # machine code lives as long as its object


def _linked(function: Callable[..., Any], num_arguments: int) -> Callable[..., int]:
    """Compile or load a function of addresses and numbers, to be called without the GIL."""
    made = Linked(function, num_arguments)
    made.compile()
    _LOADED.append(made)
    call: Callable[..., int] = made.ctypes
    return call


@functools.cache
def forward(cell: str, itemsize: int, keeps: bool) -> Callable[..., int]:
    """Return ``forward(pass, first_step, end_step, first_row, end_row)`` of a cell."""
    return _linked(_make_forward(CELLS[cell], itemsize, int(keeps)), 5)


@functools.cache
def backward(cell: str, itemsize: int) -> Callable[..., int]:
    """Return ``backward(pass, first_step, end_step, first_row, end_row)`` of a cell."""
    return _linked(_make_backward(CELLS[cell], itemsize), 5)


@functools.cache
def product(itemsize: int) -> Callable[..., int]:
    """Return ``product(address, first_row, end_row)``."""
    return _linked(_make_product(itemsize), 3)


@functools.cache
def outer_sum(itemsize: int) -> Callable[..., int]:
    """Return ``outer_sum(address, first_row, end_row)``."""
    return _linked(_make_outer(itemsize), 3)
