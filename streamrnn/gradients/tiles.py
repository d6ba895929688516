"""The trainer's tiles: some units of some rows, in registers, from products to what is kept.

The forward tile is the engine's (`streamrnn.kernels.cpu.tiles`) with another end, which keeps the
gates. The backward tile takes the products with the gradients of the step behind it, and ends in
the derivatives of its own gates, which it stores in their place. `product_tile` is a plain product
of rows with packed weights; `outer_tile` adds up products over time, for the gradients of weights.

Every sum runs over k in ascending order by fused multiply-adds, in every tile alike: its bits
depend neither on the tile, nor on how rows are shared among threads, nor on the vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.gradients.cells import BACKWARD, FORWARD, TILE_KINDS
from streamrnn.kernels.cpu.tiles import MAX_ROWS, Sums, Tile, max_panels
from streamrnn.kernels.cpu.vectors import DOUBLE, FLOAT, INT, Emitter, keep_rolled
from streamrnn.kernels.gates import DENSE
from streamrnn.kernels.precisions import FLOAT32
from streamrnn.kernels.vector_width import WIDTH

__all__ = [
    "advance_tile", "backward_tile", "forward_tile", "most_panels", "most_rows", "outer_tile",
    "product_tile",
]  # fmt: skip

Words = dict[str, ir.Value]
Shape = tuple[int, int]  # rows, panels

# What each tile is told, in this order; all are int64, and addresses are of the first row.
FORWARD_WORDS = (
    "weights", "panel_bytes", "biases", "row_bytes", "x", "num_x", "h", "num_h", "new_h", "gates",
    "slot_bytes", "c", "new_c", "tanh_c", "unit_offset",
)  # fmt: skip
BACKWARD_WORDS = (
    "weights", "panel_bytes", "grad_h", "next_gates", "num_k", "gates", "slot_bytes", "h", "new_h",
    "row_bytes", "c", "tanh_c", "carried", "unit_offset", "num_slots",
)  # fmt: skip
PRODUCT_WORDS = (
    "weights", "panel_bytes", "start", "start_row_bytes", "start_panel_bytes", "rows", "row_bytes",
    "num_k", "out", "out_row_bytes",
)  # fmt: skip
OUTER_WORDS = ("a", "a_row_bytes", "v", "v_row_bytes", "out", "out_row_bytes", "num_k")


def most_rows(element_bytes: int) -> int:
    """Return how many rows the largest tiles have: float64 takes two registers a vector."""
    return MAX_ROWS if element_bytes == 4 else max(1, MAX_ROWS // 2)


def most_panels(kind: int, num_rows: int, element_bytes: int) -> int:
    """Return how many panels, or vectors of an outer product, a tile of so many rows takes."""
    return min(4, max_panels(kind, num_rows)) if element_bytes == 4 else 1


def _shapes(kind: int, element_bytes: int) -> list[tuple[int, int]]:
    return [
        (rows, panels)
        for rows in range(1, most_rows(element_bytes) + 1)
        for panels in (1, 2, 4)
        if panels <= most_panels(kind, rows, element_bytes)
    ]


class _CellPart:
    """Reads and writes what a cell's step keeps, for one or two vectors of units side by side."""

    def __init__(self, tile: Tile, words: Words, places: Sequence[tuple[int, int]]) -> None:
        self.e = Emitter(tile.builder, len(places), tile.e.element)
        self.words, self.places, self.vector_bytes = words, places, tile.vector_bytes

    def load(self, name: str, gate: int = 0) -> ir.Value:
        """Load some values of all places."""
        return self.e.join([self.e.load(place) for place in self._addresses(name, gate)])

    def store(self, value: ir.Value, name: str, gate: int = 0) -> None:
        """Store some values of all places."""
        for vector, place in zip(self.e.split(value), self._addresses(name, gate), strict=True):
            self.e.store(vector, place)

    def store_state(self, value: ir.Value, name: str, gate: int = 0) -> None:
        """Store what the next step reads."""
        if name in ("new_h", "new_c"):
            self.store(value, name)

    def sums_of(self, sums: Sums, gate: int) -> ir.Value:
        """Return the accumulators of a gate."""
        return self.e.join([sums[r][p][gate] for r, p in self.places])

    def _addresses(self, name: str, gate: int) -> list[ir.Value]:
        b, slot = self.e.builder, self.words["slot_bytes"]
        row_bytes = slot
        if name in ("h", "new_h"):
            row_bytes = self.words["row_bytes"]
        elif name == "gates":
            row_bytes = self.words["gates_row_bytes"]
        first = b.add(self.words[name], self.words["unit_offset"])
        first = b.add(first, b.mul(slot, INT(gate)))
        return [
            b.add(b.add(first, b.mul(row_bytes, INT(r))), INT(p * self.vector_bytes))
            for r, p in self.places
        ]


def _parts(tile: Tile, words: Words) -> list[_CellPart]:
    """Cut a tile into vectors, two at a time: one would wait for itself, more find no room."""
    places = [(r, p) for r in range(tile.num_rows) for p in range(tile.num_panels)]
    return [_CellPart(tile, words, places[i : i + 2]) for i in range(0, len(places), 2)]


def _rows_at(tile: Tile, first: ir.Value, row_bytes: ir.Value) -> list[ir.Value]:
    b = tile.builder
    return [b.add(first, b.mul(row_bytes, INT(r))) for r in range(tile.num_rows)]


def _panels_at(tile: Tile, words: Words) -> list[ir.Value]:
    b = tile.builder
    steps = [b.mul(words["panel_bytes"], INT(p)) for p in range(tile.num_panels)]
    return [b.add(words["weights"], step) for step in steps]


def _emit_forward(
    b: ir.IRBuilder, cell: int, element: ir.Type, shape: Shape, words: Words, keeps: bool = True
) -> None:
    tile = Tile(b, FLOAT32, TILE_KINDS[cell], shape[0], shape[1], element)
    num_gates = tile.shape.num_accumulators
    words = words | {"gates_row_bytes": b.mul(words["slot_bytes"], INT(num_gates))}
    sums = tile.start(words["biases"], INT(0), words["panel_bytes"])
    panels = _panels_at(tile, words)
    for name, gates in (("x", tile.shape.x_gates), ("h", tile.shape.h_gates)):
        rows = _rows_at(tile, words[name], words["row_bytes"])
        sums, panels = tile.multiply(sums, panels, rows, words[f"num_{name}"], gates)
    for part in _parts(tile, words):
        joined = [part.sums_of(sums, gate) for gate in range(num_gates)]
        FORWARD[cell](part.e, joined, part.load, part.store if keeps else part.store_state)


def _emit_advance(b: ir.IRBuilder, cell: int, element: ir.Type, shape: Shape, words: Words) -> None:
    """Emit the same, but keep the new state alone."""
    _emit_forward(b, cell, element, shape, words, keeps=False)


def _emit_backward(
    b: ir.IRBuilder, cell: int, element: ir.Type, shape: Shape, words: Words
) -> None:
    tile = Tile(b, FLOAT32, DENSE, shape[0], shape[1], element)
    words = words | {"gates_row_bytes": b.mul(words["slot_bytes"], words["num_slots"])}
    first = b.add(words["grad_h"], words["unit_offset"])
    sums = tile.start(first, words["slot_bytes"], INT(tile.vector_bytes))
    rows = _rows_at(tile, words["next_gates"], words["gates_row_bytes"])
    sums, _ = tile.multiply(sums, _panels_at(tile, words), rows, words["num_k"], (0,))
    for part in _parts(tile, words):
        BACKWARD[cell](part.e, part.sums_of(sums, 0), part.load, part.store)


def _emit_product(b: ir.IRBuilder, cell: int, element: ir.Type, shape: Shape, words: Words) -> None:
    tile = Tile(b, FLOAT32, DENSE, shape[0], shape[1], element)
    sums = tile.start(words["start"], words["start_row_bytes"], words["start_panel_bytes"])
    rows = _rows_at(tile, words["rows"], words["row_bytes"])
    sums, _ = tile.multiply(sums, _panels_at(tile, words), rows, words["num_k"], (0,))
    tile.store_sums(sums, (words["out"], words["out_row_bytes"], INT(0)))


def _emit_outer(b: ir.IRBuilder, cell: int, element: ir.Type, shape: Shape, words: Words) -> None:
    """Emit ``out[r][u] += a[k][r] * v[k][u]`` over all k."""
    e = Emitter(b, element=element)
    num_rows, num_vectors = shape
    vector_bytes = WIDTH * e.element_bytes
    each = [(r, u) for r in range(num_rows) for u in range(num_vectors)]

    def place(r: int, u: int) -> ir.Value:
        row = b.add(words["out"], b.mul(words["out_row_bytes"], INT(r)))
        return b.add(row, INT(u * vector_bytes))

    starts = [e.load(place(r, u)) for r, u in each]
    before = b.block
    head, body, after = (b.append_basic_block(f"k_{name}") for name in ("head", "body", "after"))
    b.branch(head)
    b.position_at_end(head)
    k, a, v = (b.phi(INT) for _ in range(3))
    sums = [b.phi(e.vector) for _ in each]
    for phi, first in zip((k, a, v, *sums), (INT(0), words["a"], words["v"], *starts), strict=True):
        phi.add_incoming(first, before)
    b.cbranch(b.icmp_signed("<", k, words["num_k"]), body, after)

    b.position_at_end(body)
    vectors = [e.load(b.add(v, INT(u * vector_bytes))) for u in range(num_vectors)]
    factors = [e.splat(e.load_scalar(b.add(a, INT(r * e.element_bytes)))) for r in range(num_rows)]
    added = [e.fma(factors[r], vectors[u], phi) for (r, u), phi in zip(each, sums, strict=True)]
    k.add_incoming(b.add(k, INT(1)), body)
    a.add_incoming(b.add(a, words["a_row_bytes"]), body)
    v.add_incoming(b.add(v, words["v_row_bytes"]), body)
    for phi, value in zip(sums, added, strict=True):
        phi.add_incoming(value, body)
    keep_rolled(b.branch(head))
    b.position_at_end(after)
    for (r, u), phi in zip(each, sums, strict=True):
        e.store(phi, place(r, u))


def _make_tile(name: str, names: Sequence[str], emit: Callable[..., None]) -> Any:
    """Return the intrinsic ``tile(cell, element_bytes, num_rows, num_panels, words)``.

    ``cell`` and ``element_bytes`` (4 or 8) are literal. There is one for up to `most_rows` rows,
    and 1, 2 or 4 up to `most_panels` panels; another combination does nothing.
    """

    def function(module: ir.Module, cell: int, element: ir.Type, shape: Shape) -> ir.Function:
        kind = ir.FunctionType(ir.VoidType(), [INT] * len(names))
        title = f"streamrnn_{name}_{cell}_{shape[0]}x{shape[1]}"
        made = ir.Function(module, kind, title)
        made.linkage = "internal"
        made.attributes.add("noinline")  # see `streamrnn.kernels.cpu.tiles`
        made.attributes.add("nounwind")
        builder = ir.IRBuilder(made.append_basic_block("entry"))
        emit(builder, cell, element, shape, dict(zip(names, made.args, strict=True)))
        builder.ret_void()
        return made

    def tile(
        typingctx: Any, cell: Any, element_bytes: Any, num_rows: Any, num_panels: Any, words: Any
    ) -> Any:
        chosen, size = cell.literal_value, element_bytes.literal_value
        element = FLOAT if size == 4 else DOUBLE
        tile_kind = TILE_KINDS[chosen] if names is FORWARD_WORDS else DENSE

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            key = builder.add(builder.mul(args[2], INT(8)), args[3])
            values = [builder.extract_value(args[4], i) for i in range(len(names))]
            done = builder.append_basic_block("tile_done")
            switch = builder.switch(key, done)
            for rows, panels in _shapes(tile_kind, size):
                block = builder.append_basic_block(f"tile_{rows}x{panels}")
                switch.add_case(INT(rows * 8 + panels), block)
                builder.position_at_end(block)
                made = function(builder.module, chosen, element, (rows, panels))
                builder.call(made, values)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        group = types.containers.UniTuple(types.int64, len(names))
        return types.void(cell, element_bytes, types.int64, types.int64, group), codegen

    return intrinsic(prefer_literal=True)(tile)


forward_tile = _make_tile("forward", FORWARD_WORDS, _emit_forward)
advance_tile = _make_tile("advance", FORWARD_WORDS, _emit_advance)
backward_tile = _make_tile("backward", BACKWARD_WORDS, _emit_backward)
product_tile = _make_tile("product", PRODUCT_WORDS, _emit_product)
outer_tile = _make_tile("outer", OUTER_WORDS, _emit_outer)
