"""All panels and rows of a product, covered with tiles."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from streamrnn.kernels.jit import jit, linked
from streamrnn.kernels.tiles import MAX_PANELS, MAX_ROWS, VECTOR_BYTES, tile

__all__ = ["run_tiles"]


@linked(num_arguments=16)
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
):
    """Do what `run_tiles` says, with its arguments one by one: they cross to another unit."""
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
                ),
            )
            row += tile_rows
        panel += together
    return 0


@jit
def run_tiles(kind, num_panels, num_rows, weights, start, inputs, target):
    """Cover all panels and rows with tiles, of about equal numbers of rows.

    A panel stays in the cache for all its rows.

    Parameters
    ----------
    kind : int64
        `DENSE`, `GRU` or `LSTM`.
    num_panels, num_rows : int64
        How many there are in all.
    weights, start, inputs, target : tuple of int64
        As in `tile`, for panel 0 and row 0.
    """
    cover(
        kind,
        num_panels,
        num_rows,
        weights[0],
        weights[1],
        start[0],
        start[1],
        start[2],
        inputs[0],
        inputs[1],
        inputs[2],
        inputs[3],
        target[0],
        target[1],
        target[3],
        target[4],
    )
