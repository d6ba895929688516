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

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.activations import ACTIVATIONS, IDENTITY
from streamrnn.kernels.cuda.ptx import NUM_PACKED, pack_words
from streamrnn.kernels.gates import DENSE, SHAPES, head_matrices, layer_matrices, padded
from streamrnn.kernels.row_layout import RowLayout
from streamrnn.kernels.structs import I64, Struct
from streamrnn.model.model import Model

__all__ = ["DEPTH", "GpuLayer", "GpuPlan", "Header", "Input", "Layer"]

DEPTH = 16  # elements of k that a tile takes at once


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
    state: I64  # of h in the stream's row; an LSTM's c follows it
    out: I64  # of the new h in a row of work
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
    LAYER_ROW_SIZE, LAYER_WORK_SIZE, NUM_X, NUM_H, SIZE, NUM_UNITS, STATE, OUT, BIAS, X_WEIGHTS,
    H_WEIGHTS, ACTIVATION, STATE_SIZE, KIND,
) = _places(Layer)
(
    INPUT_KIND, FEATURE, MEMORY, MISSING, IS_DIFFERENCE, NUM_CATEGORIES, EMBEDDING, EMBEDDING_SIZE,
) = _places(Input)
# fmt: on


@dataclass(frozen=True)
class GpuLayer:
    """What the host must know to launch one layer: where it is in the plan, and some fields."""

    place: int
    kind: int
    activation: int
    num_x: int
    num_h: int
    size: int
    num_units: int
    state: int
    out: int


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
        self.has_features = not layout.inputs_are_features or spec.num_features % DEPTH > 0
        self.row_size = layout.row_bytes // 4
        features = self.row_size
        head = features + padded(spec.num_features) * self.has_features
        self.work_size = head + (padded(spec.output_size) if spec.head else 0)

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
        header["num_layers"] = len(spec.layers)
        header["layers"] = header["levels"] + levels.size

        rows = np.zeros(len(spec.layers) + (spec.head is not None), Layer.dtype)
        rows["row_size"], rows["work_size"] = self.row_size, self.work_size
        for index, layer in enumerate(spec.layers):
            kind, activation, biases, x_weights, h_weights = layer_matrices(spec, parameters, index)
            self._pack(rows[index], kind, biases, x_weights, h_weights)
            rows[index]["state"] = rows[index]["out"] = layout.h_offsets[index] // 4
            rows[index]["activation"] = activation
            rows[index]["state_size"] = padded(layer.hidden_size)
        if spec.head is not None:
            self._pack(rows[-1], DENSE, *head_matrices(spec, parameters))
            rows[-1]["out"] = head
        self.layers = [
            GpuLayer(place, *(int(row[field.name]) for field in fields(GpuLayer)[1:]))
            for place, row in zip(itertools.count(int(header["layers"]), LAYER_SIZE), rows)
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

    def _pack(
        self,
        row: Any,
        kind: int,
        biases: Sequence[NDArray[np.float64]],
        x_weights: NDArray[np.float64],
        h_weights: NDArray[np.float64],
    ) -> None:
        """Append a layer's matrices to the weights, and fill in its sizes and places."""
        shape = SHAPES[kind]
        size, num_units = len(biases[0]), padded(len(biases[0]))
        factors = np.array(shape.factors)
        bias = np.zeros((num_units, shape.num_accumulators))
        bias[:size] = np.stack(list(biases), axis=1) * factors
        row["kind"], row["size"], row["num_units"] = kind, size, num_units
        row["bias"] = self._add(bias)
        row["num_x"], row["num_h"] = x_weights.shape[1], h_weights.shape[1]
        for name, weights, gates in (
            ("x_weights", x_weights, shape.x_gates),
            ("h_weights", h_weights, shape.h_gates),
        ):
            num_k = weights.shape[1]
            by_gate = weights.reshape(len(gates), size, num_k) * factors[list(gates), None, None]
            depth = DEPTH * NUM_PACKED[self._precision]
            num_padded = -(-num_k // depth) * depth
            if self._precision == "float32":
                packed = np.zeros((num_padded, num_units, shape.num_accumulators))
                packed[:num_k, :size, list(gates)] = by_gate.transpose(2, 1, 0)
                packed[num_k:] = -0.0
            else:
                packed = np.zeros((num_padded, len(gates), num_units))
                packed[:num_k, :, :size] = by_gate.transpose(2, 0, 1)
            row[name] = self._add(pack_words(packed, self._precision))
