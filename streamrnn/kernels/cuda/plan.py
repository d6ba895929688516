"""A model as the GPU's kernels see it: an array of weights, a plan, and rows of scratch.

A stream's row has the CPU's layout (`RowLayout`), so a stream's state can move. Where the CPU's
plan holds addresses, this one holds places in arrays of float32. It is a `Header`, then tables of
`Input`, of levels and of `Layer`: structs that the host fills by name. The kernels read the same
fields as numbers of one int64 array, by constants: records compile to the same loads, but each
table would then be an array of its own, seven parameters more of every kernel.

A matrix is packed as [k][unit][sum]: for every element of x or of h one run of columns, which are
the sums of the first unit, then those of the second; a GRU has four sums a unit as an LSTM does, of
which each matrix leaves one out. Units are padded to a multiple of 16, and k to one of `DEPTH`:
with -0, whose product with the 0 that x and h are padded with is -0, the only number that changes
no sum. For tensor cores it is [k][gate][unit], padded with 0, in words: in bfloat16 a word holds
the weights of two neighbouring k, and `DEPTH` counts words.

A row of scratch (*work*) holds the new h of every layer at its place in the stream's row, then
features, then the head's output. Its padding is 0, and stays so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DeviceError, SpecError
from streamrnn.kernels.activations import ACTIVATIONS, IDENTITY
from streamrnn.kernels.cuda.ptx import NUM_PACKED, pack_words
from streamrnn.kernels.gates import (
    DENSE,
    GATE_FORMS,
    GRU,
    LSTM,
    SHAPES,
    gate_biases,
    head_matrices,
    layer_matrices,
    padded,
    scaled_x_weights,
)
from streamrnn.kernels.row_layout import RowLayout
from streamrnn.kernels.structs import I64, Struct
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec, ModelSpec

__all__ = ["BLEND", "DEPTH", "FORM", "PLAIN", "RESET", "Cell", "GpuLayer", "GpuPlan"]
__all__ += ["Header", "Input", "Layer"]

DEPTH = 16  # elements of k that a tile takes at once

# What becomes of a product's sums: PyTorch's cells, or an activation; a cell of another form; the
# two launches of a GRU that resets h before the product.
PLAIN, FORM, RESET, BLEND = range(4)


@dataclass(frozen=True)
class Cell:
    """What a kernel of one layer computes; each has a kernel of its own.

    Attributes
    ----------
    kind : int
        Of its columns: `DENSE` has one a unit, `GRU` and `LSTM` four.
    activation : int
        Of a dense one.
    end : int
        `PLAIN`, `FORM`, `RESET` or `BLEND`.
    is_hard : bool
        Whether gates are hard sigmoids, unless it is plain.
    """

    kind: int
    activation: int = IDENTITY
    end: int = PLAIN
    is_hard: bool = False

    @property
    def gates(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which of a unit's columns the matrices for x and for h have."""
        if self.end == RESET:
            return (0, 1), (0, 1)
        return SHAPES[self.kind].x_gates, SHAPES[self.kind].h_gates


class Header(Struct):
    """What begins a plan. All places and sizes are in float32, or in int64 of the plan."""

    row_size: I64
    work_size: I64
    num_inputs: I64
    output_size: I64
    last_h: I64
    has_head: I64
    head_activation: I64
    head: I64  # of the head's output in a row of work
    features: I64  # in a row of work
    inputs: I64  # place in the plan: Input[num_inputs]
    levels: I64  # place in the plan: [output_size]
    values: I64  # of the weights: [num_inputs, 2], center and fill
    centers: I64  # of the weights: [output_size]
    has_transforms: I64  # x is not the first layer's input as it comes
    num_layers: I64
    layers: I64  # place in the plan: Layer[num_layers + 1], the head last


class Layer(Struct):
    """One layer, or the head."""

    row_size: I64  # the same as in the header: a kernel of one layer is given this alone
    work_size: I64
    num_x: I64
    num_h: I64
    size: I64  # units
    num_units: I64  # the same, padded
    state: I64  # of h in the stream's row,
    cell: I64  # and of an LSTM's c
    out: I64  # of what it computes, in a row of work
    reset_h: I64  # of r h in a row of work, and behind it the sums of z
    peepholes: I64  # of the weights: [num_units, 4], for i, f and o
    bias: I64
    x_weights: I64
    h_weights: I64
    activation: I64
    state_size: I64  # of h alone, padded; 0 for the head
    kind: I64  # of the tile


class Input(Struct):
    """One input."""

    input_kind: I64
    feature: I64  # index of its first feature
    memory: I64  # of its remembered value in the row, or -1
    missing: I64
    is_difference: I64
    num_categories: I64
    embedding: I64  # of the weights: [num_categories, embedding_size], or -1
    embedding_size: I64


def _places(struct: type[Struct]) -> list[int]:
    """Return the place of each field in the struct's int64."""
    return [field[1] // 8 for field in (struct.dtype.fields or {}).values()]


LAYER_SIZE, INPUT_SIZE = Layer.dtype.itemsize // 8, Input.dtype.itemsize // 8
# fmt: off
(
    ROW_SIZE, WORK_SIZE, NUM_INPUTS, OUTPUT_SIZE, LAST_H, HAS_HEAD, HEAD_ACTIVATION, HEAD,
    FEATURES, INPUTS, LEVELS, VALUES, CENTERS, HAS_TRANSFORMS, NUM_LAYERS, LAYERS,
) = _places(Header)
(
    LAYER_ROW_SIZE, LAYER_WORK_SIZE, NUM_X, NUM_H, SIZE, NUM_UNITS, STATE, CELL, OUT, RESET_H,
    PEEPHOLES, BIAS, X_WEIGHTS, H_WEIGHTS, ACTIVATION, STATE_SIZE, KIND,
) = _places(Layer)
(
    INPUT_KIND, FEATURE, MEMORY, MISSING, IS_DIFFERENCE, NUM_CATEGORIES, EMBEDDING, EMBEDDING_SIZE,
) = _places(Input)
# fmt: on


@dataclass(frozen=True)
class GpuLayer:
    """What the host must know of one product: where it is in the plan, and some fields."""

    cell: Cell
    reads_x: bool  # the layer's, or else what the product before it has computed
    is_last: bool  # of its layer: computes the new h
    place: int
    num_x: int
    num_h: int
    size: int
    num_units: int
    state: int
    out: int
    bias: int
    x_weights: int
    h_weights: int


@dataclass(frozen=True)
class _Product:
    """One launch of a layer, before it is packed."""

    cell: Cell
    biases: Sequence[NDArray[np.float64]]  # one for each sum of a unit
    x_weights: NDArray[np.float64]  # [G * H, I]
    h_weights: NDArray[np.float64]
    factors: tuple[float, ...] = (1.0,)  # of each sum's weights and bias,
    addends: tuple[float, ...] | float = -0.0  # and of the bias then; -0 changes none, 0 a -0
    reads_x: bool = True
    scratch_size: int = 0  # floats for what it computes, unless that is the layer's new h
    peepholes: NDArray[np.float64] | None = None  # [H, 4]


def _products_of(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]], index: int
) -> list[_Product]:
    """Return what a layer is made of; raise a `DeviceError` for a form that a GPU does not have."""
    layer = spec.chain[index]
    if {layer.cell_activation, layer.output_activation} != {"tanh"}:
        raise DeviceError(
            f'layer {index} is {layer.describe()}; this form runs on the CPU only, use device="cpu"'
        )
    if layer.is_plain or layer.layer_norm:
        kind, activation, biases, x_weights, h_weights = layer_matrices(spec, parameters, index)
        factors = SHAPES[kind].factors
        return [_Product(Cell(kind, activation), biases, x_weights, h_weights, factors)]

    def own(name: str) -> NDArray[np.float64]:
        return parameters[f"{name}_l{index}"]

    size, is_hard = layer.hidden_size, layer.gate_activation != LayerSpec.gate_activation
    x_weights, h_weights = scaled_x_weights(spec, parameters, index), own("weight_hh")
    a, b = GATE_FORMS[layer.gate_activation]
    if layer.cell == "lstm":
        biases = gate_biases(LSTM, size, own("bias_ih"), own("bias_hh"))
        peepholes = np.zeros((size, 4))
        if layer.peepholes:
            peepholes[:, :3] = a * np.stack([own(f"weight_c{gate}") for gate in "ifo"], axis=1)
        form = _Product(
            Cell(LSTM, end=FORM, is_hard=is_hard),
            *(biases, x_weights, h_weights, (a, a, 1.0, a), (b, b, 0.0, b)),
            scratch_size=padded(size) if layer.projection_size else 0,
            peepholes=peepholes,
        )
        if not layer.projection_size:
            return [form]
        no_biases, nothing = np.zeros(layer.projection_size), np.zeros((layer.projection_size, 0))
        return [
            form,
            _Product(Cell(DENSE), [no_biases], own("weight_hr"), nothing, reads_x=False),
        ]

    factors, addends = (a, a, 1.0, 1.0), (b, b, 0.0, 0.0)
    if layer.reset_after:
        biases = gate_biases(GRU, size, own("bias_ih"), own("bias_hh"))
        cell = Cell(GRU, end=FORM, is_hard=is_hard)
        return [_Product(cell, biases, x_weights, h_weights, factors, addends)]
    biases = list((own("bias_ih") + own("bias_hh")).reshape(3, size))
    gates = slice(0, 2 * size)
    reset = _Product(
        Cell(GRU, end=RESET, is_hard=is_hard),
        [*biases[:2], np.zeros(size), np.zeros(size)],
        *(x_weights[gates], h_weights[gates], factors, addends),
        scratch_size=2 * padded(size),
    )
    new = slice(2 * size, None)
    cell = Cell(DENSE, end=BLEND, is_hard=is_hard)
    return [reset, _Product(cell, biases[2:], x_weights[new], h_weights[new])]


def check_for_gpu(spec: ModelSpec) -> None:
    """Raise `DeviceError` unless a model is a stack of recurrent layers, with a head or without."""
    try:
        _ = spec.chain
    except SpecError as error:
        raise DeviceError(f'{error}; such models run on the CPU only, use device="cpu"') from None
    if any(item.shape for item in spec.inputs):
        raise DeviceError('an input has a shape, which runs on the CPU only; use device="cpu"')
    if spec.mask_value is not None:
        raise DeviceError('the model masks steps, on the CPU only; use device="cpu"')


class GpuPlan:
    """Packs a model for the GPU, on the host.

    Scales are folded into the first and last matrices, as on the CPU; ``precision`` is that of the
    products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.

    Attributes
    ----------
    header : Header
    words : ndarray of int64
        The plan: header and tables.
    weights : ndarray of float32
        All that is loaded: matrices, biases, embeddings, centers.
    layers : list of GpuLayer
    head : GpuLayer or None
    row_size, work_size : int
        Floats of a stream's row and of a row of scratch.
    is_plain : bool
        Whether all cells are PyTorch's.
    has_features : bool
        Whether x must be written to a row of scratch first: transformed, or padded.
    """

    def __init__(self, model: Model, precision: str = "float32") -> None:
        spec, layout = model.spec, RowLayout(model.spec)
        self._precision = precision
        self._parts: list[NDArray[np.float32]] = []
        self._num_weights = 0
        parameters = {
            name: np.asarray(value, dtype=np.float64) for name, value in model.parameters.items()
        }
        check_for_gpu(spec)
        by_layer = [_products_of(spec, parameters, index) for index in range(len(spec.layers))]
        self.is_plain = all(layer.is_plain for layer in spec.chain)
        if not self.is_plain and precision != "float32":
            layer = next(layer for layer in spec.chain if not layer.is_plain)
            raise DeviceError(
                f"layer {spec.chain.index(layer)} is {layer.describe()}; on a GPU this form runs "
                f"in float32 only, not in {precision}"
            )
        self.has_features = not layout.inputs_are_features or spec.num_features % DEPTH > 0
        self.row_size = layout.row_bytes // 4
        features = self.row_size
        head = features + padded(spec.num_features) * self.has_features
        scratch = head + (padded(spec.output_size) if spec.head else 0)
        products = [product for some in by_layer for product in some]
        self.work_size = scratch + sum(product.scratch_size for product in products)

        inputs = self._inputs(model, layout, parameters)
        levels = np.where(layout.output_levels >= 0, layout.output_levels // 4, -1)
        self.header = header = Header.one()
        header["row_size"], header["work_size"] = self.row_size, self.work_size
        header["num_inputs"], header["output_size"] = spec.num_inputs, spec.output_size
        header["last_h"] = layout.h_offsets[-1] // 4
        header["has_head"] = spec.head is not None
        header["head_activation"] = ACTIVATIONS[spec.head.activation] if spec.head else IDENTITY
        header["head"], header["features"] = head, features
        header["inputs"] = Header.dtype.itemsize // 8
        header["levels"] = header["inputs"] + spec.num_inputs * INPUT_SIZE
        header["values"] = self._add(
            np.stack([layout.inputs["center"], layout.inputs["fill"]], axis=1)
        )
        header["centers"] = self._add(layout.output_centers)
        header["has_transforms"] = not layout.inputs_are_features
        header["num_layers"] = len(products)
        header["layers"] = header["levels"] + levels.size

        if spec.head is not None:
            products.append(_Product(Cell(DENSE), *head_matrices(spec, parameters)))
        rows = np.zeros(len(products), Layer.dtype)
        rows["row_size"], rows["work_size"] = self.row_size, self.work_size
        for product, row in zip(products, rows, strict=True):
            self._pack(product, row)
        numbers = iter(rows)
        for offset, layer, some in zip(layout.h_offsets, spec.chain, by_layer, strict=True):
            for product in some:
                row = next(numbers)
                row["state"] = row["out"] = offset // 4
                row["cell"] = row["state"] + padded(layer.output_size)
                if product.scratch_size:
                    row["out"], scratch = scratch, scratch + product.scratch_size
                else:
                    row["state_size"] = padded(layer.output_size)
            row["reset_h"] = scratch - sum(product.scratch_size for product in some)
        if spec.head is not None:
            rows[-1]["out"] = head
        self.layers = [
            GpuLayer(
                product.cell,
                product.reads_x,
                not product.scratch_size,
                int(header["layers"]) + index * LAYER_SIZE,
                *(int(rows[index][field.name]) for field in fields(GpuLayer)[4:]),
            )
            for index, product in enumerate(products)
        ]
        self.head = self.layers.pop() if spec.head is not None else None
        tables = (np.array([header]), inputs, levels, rows)
        self.words = np.concatenate([table.view(np.int64).reshape(-1) for table in tables])
        self.weights = np.concatenate(self._parts)
        del self._parts, self._num_weights

    def _inputs(
        self, model: Model, layout: RowLayout, parameters: dict[str, NDArray[np.float64]]
    ) -> NDArray[np.void]:
        """Return the table of inputs, and append their embeddings to the weights."""
        table = np.zeros(model.spec.num_inputs, Input.dtype)
        table["input_kind"] = layout.inputs["kind"]
        for name in ("feature", "missing", "is_difference", "num_categories", "embedding_size"):
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

    def _pack(self, product: _Product, row: Any) -> None:
        """Append a product's matrices to the weights, and fill in its sizes and places."""
        cell, biases, factors = product.cell, product.biases, np.array(product.factors)
        size, num_units, num_sums = len(biases[0]), padded(len(biases[0])), len(biases)
        bias = np.zeros((num_units, num_sums))
        bias[:size] = np.stack(list(biases), axis=1) * factors + np.array(product.addends)
        row["kind"], row["activation"] = cell.kind, cell.activation
        row["size"], row["num_units"] = size, num_units
        row["bias"] = self._add(bias)
        if product.peepholes is not None:
            row["peepholes"] = self._add(product.peepholes)
        row["num_x"], row["num_h"] = product.x_weights.shape[1], product.h_weights.shape[1]
        for name, weights, gates in zip(
            ("x_weights", "h_weights"),
            (product.x_weights, product.h_weights),
            cell.gates,
            strict=True,
        ):
            num_k = weights.shape[1]
            by_gate = weights.reshape(len(gates), size, num_k) * factors[list(gates), None, None]
            depth = DEPTH * NUM_PACKED[self._precision]
            num_padded = -(-num_k // depth) * depth
            if self._precision == "float32":
                packed = np.zeros((num_padded, num_units, num_sums))
                packed[:num_k, :size, list(gates)] = by_gate.transpose(2, 1, 0)
                packed[num_k:] = -0.0
                row[name] = self._add(pack_words(packed, self._precision))
                continue
            packed = np.zeros((num_padded, len(gates), num_units))
            packed[:num_k, :, :size] = by_gate.transpose(2, 0, 1)
            words = pack_words(packed, self._precision)
            # As `tensor_cores` copies them: [stage][unit/8][gate][8 units][DEPTH words].
            words = words.reshape(-1, DEPTH, len(gates), num_units // 8, 8)
            row[name] = self._add(words.transpose(0, 3, 2, 4, 1))
