"""A model as the GPU's kernels see it: an array of weights, a plan, and rows of scratch.

A stream's *record* has the CPU's layout (`RowLayout`), so a stream's state can move. Its *row* here
is a record, and behind it a second place for each layer's h: a step reads the h of one half and
writes that of the other, for other blocks still read the old one. Which half is the newer one the
host knows, a bit a stream, and tells with the slot: a *code* is ``slot << 1 | half``. Within a
batch the halves change roles at every step.

Where the CPU's plan holds addresses, this one holds places in arrays of float32. It is a `Header`,
then tables of `Input`, of `Layer` and of the outputs' levels: structs that the host fills by name.
The kernels read the same fields as numbers of one int64 array, by constants: records compile to the
same loads, but each table would then be an array of its own, seven parameters more of every kernel.

A matrix is packed as [k][unit][sum]: for every element of x or of h one run of columns, which are
the sums of the first unit, then those of the second; a GRU has four sums a unit as an LSTM does, of
which each matrix leaves one out. Units are padded to a multiple of 16, and k to one of `DEPTH`:
with -0, whose product with the 0 that x and h are padded with is -0, the only number that changes
no sum. For tensor cores it is [k][gate][unit], padded with 0, in words: in bfloat16 a word holds
the weights of two neighbouring k, and `DEPTH` counts words.

A row of scratch (*work*) holds features, then what one product of a layer computes for the next.
Its padding is 0, and stays so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.activations import ACTIVATIONS, IDENTITY
from streamrnn.kernels.cuda.products import (
    READS_H,
    READS_X,
    Cell,
    Product,
    check_for_gpu,
    head_of,
    products_of,
)
from streamrnn.kernels.cuda.ptx import NUM_PACKED, pack_words
from streamrnn.kernels.gates import padded
from streamrnn.kernels.precisions import LEAST_INT8_SCALE
from streamrnn.kernels.row_layout import RowLayout, first_row
from streamrnn.kernels.structs import I64, Struct
from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec

__all__ = ["DEPTH", "GpuLayer", "GpuPlan", "Header", "Input", "Layer"]

DEPTH = 16  # elements of k that a tile takes at once


class Header(Struct):
    """What begins a plan. All places and sizes are in float32, or in int64 of the plan."""

    record_size: I64
    row_size: I64
    work_size: I64
    num_inputs: I64
    output_size: I64
    features: I64  # in a row of work
    inputs: I64  # place in the plan: Input[num_inputs]
    levels: I64  # place in the plan: [output_size]
    values: I64  # of the weights: [num_inputs, 2], center and fill
    centers: I64  # of the weights: [output_size]
    fills: I64  # of the weights: [output_size], added where no level is remembered yet
    num_products: I64
    products: I64  # place in the plan: Layer[num_products], the head last


class Layer(Struct):
    """One product of a layer, or the head; the outputs' levels lie behind the last."""

    layer_row_size: I64  # the same as in the header: a kernel of one layer is given this alone
    layer_work_size: I64
    x_row_size: I64  # of the rows that x lies in, if those are the streams', or 0;
    x_other: I64  # and from the old half there to the new one
    num_x: I64
    num_h: I64
    size: I64  # units
    num_units: I64  # the same, padded
    state: I64  # of h in the stream's row,
    other: I64  # from there to its other half,
    cell: I64  # and of an LSTM's c
    out: I64  # of what it computes for the next product, in a row of work
    scratch: I64  # of what its layer's products compute, in a row of work
    peepholes: I64  # of the weights: [num_units, 4], for i, f and o
    bias: I64
    x_weights: I64
    h_weights: I64
    scales: I64  # [num_units, sums], of int8 weights
    norms: I64  # blocks for layer normalisation
    layer_centers: I64  # the same as in the header
    layer_fills: I64  # the same as in the header
    state_size: I64  # of the h that it computes, padded; or 0
    num_outputs: I64  # numbers of y that it writes, or 0


class Input(Struct):
    """One input."""

    input_kind: I64
    feature: I64  # index of its first feature
    memory: I64  # of its remembered value in the row, or -1
    missing: I64
    is_difference: I64
    starts_known: I64
    num_categories: I64
    embedding: I64  # of the weights: [num_categories, embedding_size], or -1
    embedding_size: I64


def _places(struct: type[Struct]) -> list[int]:
    """Return the place of each field in the struct's int64."""
    return [field[1] // 8 for field in (struct.dtype.fields or {}).values()]


LAYER_SIZE, INPUT_SIZE = Layer.dtype.itemsize // 8, Input.dtype.itemsize // 8
# fmt: off
(
    RECORD_SIZE, ROW_SIZE, WORK_SIZE, NUM_INPUTS, OUTPUT_SIZE, FEATURES, INPUTS, LEVELS, VALUES,
    CENTERS, FILLS, NUM_PRODUCTS, PRODUCTS,
) = _places(Header)
(
    LAYER_ROW_SIZE, LAYER_WORK_SIZE, X_ROW_SIZE, X_OTHER, NUM_X, NUM_H, SIZE, NUM_UNITS, STATE,
    OTHER, CELL, OUT, SCRATCH, PEEPHOLES, BIAS, X_WEIGHTS, H_WEIGHTS, SCALES, NORMS,
    LAYER_CENTERS, LAYER_FILLS, STATE_SIZE, NUM_OUTPUTS,
) = _places(Layer)
(
    INPUT_KIND, FEATURE, MEMORY, MISSING, IS_DIFFERENCE, STARTS_KNOWN, NUM_CATEGORIES, EMBEDDING,
    EMBEDDING_SIZE,
) = _places(Input)
# fmt: on


@dataclass(frozen=True)
class GpuLayer:
    """What the host must know of one product: where it is in the plan, and some fields."""

    cell: Cell
    reads: int  # `READS_X`, `READS_SCRATCH` or `READS_H`
    is_last: bool  # of its layer: computes the new h
    place: int
    num_x: int
    num_h: int
    size: int
    num_units: int
    state: int
    other: int
    out: int
    bias: int
    x_weights: int
    h_weights: int
    scales: int


class GpuPlan:
    """Packs a model for the GPU, on the host.

    Scales are folded into the first and last matrices, as on the CPU; ``precision`` is that of the
    products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``; or ``"int8"``, that of the weights.

    Attributes
    ----------
    precision : str
        Of the products: ``"float32"`` for int8 weights, whose whole numbers are kept as float32.
    header : Header
    words : ndarray of int64
        The plan: header and tables.
    weights : ndarray of float32
        All that is loaded: matrices, biases, embeddings, centers, fills.
    layers : list of GpuLayer
    head : GpuLayer or None
    head_activation : int
        `IDENTITY` without a head.
    first_record : ndarray of float32, shape (record_size,)
        Of a stream that has seen nothing.
    record_size, row_size, work_size : int
        Floats of a stream's record, of its row and of a row of scratch.
    is_plain : bool
        Whether all cells are PyTorch's.
    has_transforms, has_features : bool
        Whether x is not the first layer's input as it comes; and whether it must be written to a
        row of scratch first: transformed, or padded.
    """

    def __init__(self, model: Model, precision: str = "float32") -> None:
        spec, layout = model.spec, RowLayout(model.spec)
        self._is_int8 = precision == "int8"
        self.precision = "float32" if self._is_int8 else precision
        self._parts: list[NDArray[np.float32]] = []
        self._num_weights = 0
        check_for_gpu(spec)
        self.is_plain = all(layer.is_plain for layer in spec.chain)
        parameters = {
            name: np.asarray(value, dtype=np.float64) for name, value in model.parameters.items()
        }
        by_layer = [products_of(spec, parameters, index) for index in range(len(spec.chain))]
        self.first_record = first_row(model)
        self.record_size = layout.row_bytes // 4
        self.row_size = self.record_size + sum(padded(layer.output_size) for layer in spec.chain)
        self.has_transforms = not layout.inputs_are_features
        self.has_features = self.has_transforms or spec.num_features % DEPTH > 0
        scratch = padded(spec.num_features) * self.has_features
        self.work_size = scratch + sum(each.scratch_size for some in by_layer for each in some)
        self.head_activation = ACTIVATIONS[spec.head.activation] if spec.head else IDENTITY

        inputs = self._inputs(model, layout, parameters)
        self.header = header = Header.one()
        header["record_size"], header["row_size"] = self.record_size, self.row_size
        header["work_size"], header["features"] = self.work_size, 0
        header["num_inputs"], header["output_size"] = spec.num_inputs, spec.output_size
        header["values"] = self._add(
            np.stack([layout.inputs["center"], layout.inputs["fill"]], axis=1)
        )
        header["centers"] = self._add(layout.output_centers)
        header["fills"] = self._add(layout.output_fills)
        heads = [head_of(spec, parameters)] if spec.head is not None else []
        products = [product for some in by_layer for product in some] + heads
        if self._is_int8:
            products = [_scaled(product) for product in products]
        rows = np.zeros(len(products), Layer.dtype)
        header["inputs"] = Header.dtype.itemsize // 8
        header["products"] = header["inputs"] + spec.num_inputs * INPUT_SIZE
        header["num_products"] = len(products)
        header["levels"] = header["products"] + len(products) * LAYER_SIZE
        for product, row in zip(products, rows, strict=True):
            self._pack(product, row)
        self._place(spec, layout, by_layer, rows, scratch)
        self.layers = [
            GpuLayer(
                product.cell,
                product.reads,
                not product.scratch_size,
                int(header["products"]) + index * LAYER_SIZE,
                *(int(rows[index][field.name]) for field in fields(GpuLayer)[4:]),
            )
            for index, product in enumerate(products)
        ]
        self.head = self.layers.pop() if heads else None
        levels = np.where(layout.output_levels >= 0, layout.output_levels // 4, -1)
        tables = (np.array([header]), inputs, rows, levels)
        self.words = np.concatenate([table.view(np.int64).reshape(-1) for table in tables])
        self.weights = np.concatenate(self._parts)
        del self._parts, self._num_weights

    def _place(
        self,
        spec: ModelSpec,
        layout: RowLayout,
        by_layer: list[list[Product]],
        rows: NDArray[np.void],
        scratch: int,
    ) -> None:
        """Say where each product finds x and h, and where it puts what it computes."""
        rows["layer_row_size"], rows["layer_work_size"] = self.row_size, self.work_size
        rows["layer_centers"], rows["layer_fills"] = self.header["centers"], self.header["fills"]
        numbers, second, below = iter(rows), self.record_size, None
        for offset, layer, some in zip(layout.h_offsets, spec.chain, by_layer, strict=True):
            first_scratch = scratch
            for product in some:
                row = next(numbers)
                row["state"], row["other"] = offset // 4, second - offset // 4
                row["cell"] = row["state"] + padded(layer.output_size)
                row["scratch"], row["out"] = first_scratch, scratch
                scratch += product.scratch_size
                row["state_size"] = 0 if product.scratch_size else padded(layer.output_size)
                if product.reads == READS_H:
                    row["x_row_size"], row["x_other"] = self.row_size, -row["other"]
                elif below is not None and product.reads == READS_X:
                    row["x_row_size"], row["x_other"] = self.row_size, below
            below, second = second - offset // 4, second + padded(layer.output_size)
        if spec.head is not None:
            row = next(numbers)
            row["x_row_size"], row["x_other"] = self.row_size, below
        rows[-1]["num_outputs"] = spec.output_size

    def _inputs(
        self, model: Model, layout: RowLayout, parameters: dict[str, NDArray[np.float64]]
    ) -> NDArray[np.void]:
        """Return the table of inputs, and append their embeddings to the weights."""
        table = np.zeros(model.spec.num_inputs, Input.dtype)
        table["input_kind"] = layout.inputs["kind"]
        for name in (
            "feature", "missing", "is_difference", "starts_known", "num_categories",
            "embedding_size",
        ):  # fmt: skip
            table[name] = layout.inputs[name]
        memory = layout.inputs["memory"]
        table["memory"] = np.where(memory >= 0, memory // 4, -1)
        table["embedding"] = -1
        for item, row in zip(model.spec.inputs, table, strict=True):
            if item.embedding_size:
                row["embedding"] = self._add(parameters[f"embedding.{item.name}.weight"])
        return table

    def _add(self, values: NDArray[np.generic]) -> int:
        """Append values to the weights and return their place, a multiple of 16."""
        place = self._num_weights
        part = np.zeros(padded(values.size), dtype=np.float32)
        part[: values.size] = values.reshape(-1)
        self._parts.append(part)
        self._num_weights += part.size
        return place

    def _pack(self, product: Product, row: Any) -> None:
        """Append a product's matrices to the weights, and fill in its sizes and places."""
        cell, biases, factors = product.cell, product.biases, np.array(product.factors)
        size, num_units, num_sums = len(biases[0]), padded(len(biases[0])), len(biases)
        row["size"], row["num_units"] = size, num_units
        if product.norm is not None:
            row["norms"] = self._add(product.norm)
            return
        bias = np.zeros((num_units, num_sums))
        bias[:size] = np.stack(list(biases), axis=1) * factors + np.array(product.addends)
        row["num_x"], row["num_h"] = product.x_weights.shape[1], product.h_weights.shape[1]
        matrices = []  # [k, unit, gate]
        for weights, gates in zip(
            (product.x_weights, product.h_weights), map(list, cell.gates), strict=True
        ):
            matrix = np.zeros((weights.shape[1], num_units, len(gates)))
            by_gate = weights.reshape(len(gates), size, -1) * factors[gates, None, None]
            matrix[:, :size] = by_gate.transpose(2, 1, 0)
            matrices.append(matrix)
        if cell.is_scaled:
            scale = _int8_scale(bias, matrices, cell)
            row["scales"] = self._add(scale)
            bias = bias / scale
            matrices = [
                np.rint(matrix / scale[:, list(gates)]) + 0.0  # int8 knows no -0
                for matrix, gates in zip(matrices, cell.gates, strict=True)
            ]
        row["bias"] = self._add(bias)
        if product.peepholes is not None:
            row["peepholes"] = self._add(product.peepholes)
        row["x_weights"], row["h_weights"] = (
            self._add(self._packed(matrix, list(gates), num_sums))
            for matrix, gates in zip(matrices, cell.gates, strict=True)
        )

    def _packed(
        self, matrix: NDArray[np.float64], gates: list[int], num_sums: int
    ) -> NDArray[np.float32]:
        """Return a matrix [k, unit, gate] as the tiles read it."""
        num_k, num_units, num_gates = matrix.shape
        depth = DEPTH * NUM_PACKED[self.precision]
        num_padded = -(-num_k // depth) * depth
        if self.precision == "float32":
            packed = np.zeros((num_padded, num_units, num_sums))
            packed[:num_k, :, gates] = matrix
            packed[num_k:] = -0.0
            return pack_words(packed, self.precision)
        packed = np.zeros((num_padded, num_gates, num_units))
        packed[:num_k] = matrix.transpose(0, 2, 1)
        words = pack_words(packed, self.precision)
        # As `tensor_cores` copies them: [stage][unit/8][gate][8 units][DEPTH words].
        words = words.reshape(-1, DEPTH, num_gates, num_units // 8, 8)
        return words.transpose(0, 3, 2, 4, 1)


def _scaled(product: Product) -> Product:
    """Return a product whose weights become int8; what only normalises has none."""
    if product.norm is not None:
        return product
    return replace(product, cell=replace(product.cell, is_scaled=True))


def _int8_scale(
    bias: NDArray[np.float64], matrices: list[NDArray[np.float64]], cell: Cell
) -> NDArray[np.float64]:
    """Return what each sum is in multiples of, [units, sums]: see `streamrnn.kernels.cpu.pack`."""
    scale = np.zeros_like(bias)
    for matrix, gates in zip(matrices, cell.gates, strict=True):
        largest = np.abs(matrix).max(axis=0, initial=0.0) / 127
        scale[:, list(gates)] = np.maximum(scale[:, list(gates)], largest)
    least = LEAST_INT8_SCALE * np.maximum(np.abs(bias), 1.0)
    return np.where(scale == 0, 1.0, np.maximum(scale, least))
