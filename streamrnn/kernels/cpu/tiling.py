"""A product of any size, covered with tiles."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.cpu.blocks import make_block_cover
from streamrnn.kernels.cpu.plan import Product, Weights, product_at
from streamrnn.kernels.cpu.tiles import MAX_PANELS, MAX_ROWS, SUMS_BYTES, VECTOR_BYTES, tile
from streamrnn.kernels.jit import Linked, jit
from streamrnn.kernels.pointers import address

__all__ = ["continue_sums", "cover_address", "run_product", "set_weights"]


def _make_cover(precision: int) -> Callable[..., Any]:
    def cover(product_address):
        """Cover all panels and rows of a product with tiles, of about equal numbers of rows.

        A panel, or a block of it, stays in the cache for all its rows.
        """
        product = product_at(product_address)
        kind, num_panels, num_rows = product.kind, product.num_panels, product.num_rows
        weights, panel_bytes = product.weights, product.panel_bytes
        start, start_row_bytes = product.start, product.start_row_bytes
        start_panel_bytes = product.start_panel_bytes
        x_pointers, num_x = product.x_pointers, product.num_x
        h_pointers, num_h = product.h_pointers, product.num_h
        out, out_bytes, cell_offset = product.out, product.out_bytes, product.cell_offset
        is_partial, scales = product.is_partial, product.scales
        num_tiles = -(-num_rows // MAX_ROWS)
        few = num_rows // num_tiles
        num_larger = num_rows - few * num_tiles
        together = MAX_PANELS[kind, few + (num_larger > 0)]
        panel = 0
        if product.block_cover:
            panel = _call(product.block_cover, product_address)
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
                    (weights + panel * panel_bytes, panel_bytes),
                    (
                        start + row * start_row_bytes + panel * start_panel_bytes,
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


_LOADED: dict[tuple[bool, int], Linked] = {}  # machine code lives as long as its object


def cover_address(precision: int, in_blocks: bool = False) -> int:
    """Return the address of what covers products of one precision; compile or load it at first.

    ``in_blocks`` asks for what `Product.block_cover` takes.
    """
    key = in_blocks, precision
    if key not in _LOADED:
        make = make_block_cover if in_blocks else _make_cover
        linked = Linked(make(precision), num_arguments=1)
        linked.compile()
        _LOADED[key] = linked
    address = _LOADED[key].address
    assert address is not None  # it has been compiled
    return address


@intrinsic
def _call(typingctx: Any, function: types.Type, argument: types.Type) -> Any:
    """Call the function at an address with one int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        integer = ir.IntType(64)
        kind = ir.FunctionType(integer, [integer])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])

    return types.int64(types.int64, types.int64), codegen


@jit
def run_product(cover: int, product: Product) -> None:
    """Compute a product by the function at ``cover``, of the weights' precision."""
    _call(cover, address(product))


@jit
def set_weights(
    product: Product, kind: int, weights: Weights, first_panel: int, num_panels: int
) -> None:
    """Let a product use some panels of packed weights, and begin at their biases."""
    panel_bytes = weights.panel_bytes
    first = weights.panels + first_panel * panel_bytes
    product.kind, product.num_panels = kind, num_panels
    product.weights, product.panel_bytes = first + weights.first_weight, panel_bytes
    product.start, product.start_row_bytes, product.start_panel_bytes = first, 0, panel_bytes
    product.cell_offset, product.is_partial = 0, 0
    product.scales = first + SUMS_BYTES[kind]


@jit
def continue_sums(product: Product, weights: Weights, sums: int, row_bytes: int) -> None:
    """Let a product with h go on from the sums that a partial product with x has stored."""
    product.weights += weights.first_h_weight - weights.first_weight
    product.start, product.start_row_bytes = sums, row_bytes
    product.start_panel_bytes = SUMS_BYTES[product.kind]
