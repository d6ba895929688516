"""All panels and rows of a product, covered with tiles."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.cpu.tiles import MAX_PANELS, MAX_ROWS, VECTOR_BYTES, tile
from streamrnn.kernels.jit import Linked, jit

__all__ = ["cover_address", "run_tiles"]

_NUM_ARGUMENTS = 17


def _make_cover(precision: int) -> Callable[..., Any]:
    def cover(
        kind,
        num_panels,
        num_rows,
        first_weight,
        panel_bytes,
        first_start,
        start_row_bytes,
        start_panel_bytes,
        x_pointers,
        num_x,
        h_pointers,
        num_h,
        out,
        out_bytes,
        cell_offset,
        is_partial,
        scales,
    ):
        """Do what `run_tiles` says, with its arguments one by one."""
        num_tiles = -(-num_rows // MAX_ROWS)
        few = num_rows // num_tiles
        num_larger = num_rows - few * num_tiles
        together = MAX_PANELS[kind, few + (num_larger > 0)]
        panel = 0
        while panel < num_panels:
            while panel + together > num_panels:
                together //= 2
            row = 0
            for index in range(num_tiles):
                tile_rows = few + (index < num_larger)
                tile(
                    precision,
                    kind,
                    tile_rows,
                    together,
                    (first_weight + panel * panel_bytes, panel_bytes),
                    (
                        first_start + row * start_row_bytes + panel * start_panel_bytes,
                        start_row_bytes,
                        start_panel_bytes,
                    ),
                    (x_pointers + 8 * row, num_x, h_pointers + 8 * row, num_h),
                    (
                        out + row * out_bytes,
                        out_bytes,
                        panel * VECTOR_BYTES,
                        cell_offset,
                        is_partial,
                        scales + panel * panel_bytes,
                    ),
                )
                row += tile_rows
            panel += together
        return 0

    return cover


_LOADED: dict[int, Linked] = {}  # machine code lives as long as its object


def cover_address(precision: int) -> int:
    """Return where the compiled function lies that covers a product with tiles.

    Parameters
    ----------
    precision : int
        Of the weights: `FLOAT32`, `BFLOAT16` or `INT8`.

    Returns
    -------
    int
        What `run_tiles` takes. Compiled, or loaded from the cache, when first asked for.
    """
    if precision not in _LOADED:
        linked = Linked(_make_cover(precision), _NUM_ARGUMENTS)
        linked.compile()
        _LOADED[precision] = linked
    address = _LOADED[precision].address
    assert address is not None  # it has been compiled
    return address


@intrinsic
def _call(typingctx: Any, address: types.Type, arguments: types.Type) -> Any:
    """Call the function at an address with a tuple of int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        integer = ir.IntType(64)
        kind = ir.FunctionType(integer, [integer] * _NUM_ARGUMENTS)
        function = builder.inttoptr(args[0], kind.as_pointer())
        values = [builder.extract_value(args[1], i) for i in range(_NUM_ARGUMENTS)]
        return builder.call(function, values)

    group = types.containers.UniTuple(types.int64, _NUM_ARGUMENTS)
    return types.int64(types.int64, group), codegen


@jit
def run_tiles(cover, kind, num_panels, num_rows, weights, start, inputs, target):
    """Cover all panels and rows with tiles, of about equal numbers of rows.

    A panel stays in the cache for all its rows.

    Parameters
    ----------
    cover : int64
        From `cover_address`, for the weights' precision.
    kind : int64
        `DENSE`, `GRU` or `LSTM`.
    num_panels, num_rows : int64
        How many there are in all.
    weights, start, inputs, target : tuple of int64
        As in `tile`, for panel 0 and row 0.
    """
    first_weight, panel_bytes = weights
    first_start, start_row_bytes, start_panel_bytes = start
    x_pointers, num_x, h_pointers, num_h = inputs
    out, out_bytes, _, cell_offset, is_partial, scales = target
    _call(
        cover,
        (
            kind,
            num_panels,
            num_rows,
            first_weight,
            panel_bytes,
            first_start,
            start_row_bytes,
            start_panel_bytes,
            x_pointers,
            num_x,
            h_pointers,
            num_h,
            out,
            out_bytes,
            cell_offset,
            is_partial,
            scales,
        ),
    )
