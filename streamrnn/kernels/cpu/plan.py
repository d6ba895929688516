"""One loaded model as the compiled code sees it: a small table of sizes, offsets and addresses.

There is one compiled program for all models. Sizes, cells and offsets are data in the plan; only
the tiles' shapes are constants of the machine code, so the cache on disk serves every model and no
request ever waits for a compilation.

A stream's row is float32, a multiple of 64 bytes: one float for each input that must be remembered
(NaN: nothing seen yet), padded to 16; then for each layer h, and c for an LSTM, each padded to 16
with zeros (an h that is a projection has its own width).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DeviceError, InputError
from streamrnn.kernels.cpu.activations import IDENTITY, RELU, SIGMOID, SOFTMAX, TANH
from streamrnn.kernels.cpu.pack import aligned_floats, pack, padded
from streamrnn.kernels.cpu.staged.pack import Stager, num_blocks
from streamrnn.kernels.cpu.tiles import BFLOAT16, DENSE, FLOAT32, GRU, INT8, LSTM, SHAPES
from streamrnn.kernels.cpu.tiling import cover_address
from streamrnn.kernels.vector_width import WIDTH
from streamrnn.model.model import Model
from streamrnn.model.spec import MAX_LAYERS, InputSpec, LayerSpec, ModelSpec

__all__ = [
    "MAX_BATCH_ROWS",
    "PLAN_WORDS",
    "PRECISIONS",
    "Program",
    "head_matrices",
    "is_staged",
    "layer_matrices",
]

MAX_BATCH_ROWS = 96  # rows of a batch: a multiple of every tile's rows

# Words of a plan.
(
    NUM_INPUTS,
    OUTPUT_SIZE,
    ROW_BYTES,
    INPUT_IS_TOKEN,
    INITIAL_ROW_ADDRESS,
    NUM_LAYERS,
    INPUTS_ARE_FEATURES,  # x can be read as it comes: nothing to transform
    INPUT_TABLE,  # address of int64[num_inputs, INPUT_WORDS]
    INPUT_VALUES,  # address of float32[num_inputs, 2]: center, fill
    FEATURES,  # address of float32[MAX_BATCH_ROWS, feature stride], scratch
    FEATURE_STRIDE,  # bytes
    HIDDEN,  # address of float32[MAX_BATCH_ROWS, hidden stride], scratch: new h, head's output
    HIDDEN_STRIDE,  # bytes
    X_POINTERS,  # address of int64[MAX_BATCH_ROWS], scratch
    H_POINTERS,  # address of int64[MAX_BATCH_ROWS], scratch
    ROWS,  # address of int64[MAX_BATCH_ROWS], scratch
    YS,  # address of int64[MAX_BATCH_ROWS], scratch
    STAGED_POINTERS,  # address of int64[MAX_BATCH_ROWS], scratch
    SEQUENCE,  # address of float32[MAX_BATCH_ROWS, hidden stride], a layer's h of each step
    SUMS,  # address of float32[MAX_BATCH_ROWS, sums stride], accumulators after the x phase
    SUMS_STRIDE,  # bytes
    LEVELS,  # address of float32[MAX_BATCH_ROWS, level stride], what was remembered at a step
    LEVEL_STRIDE,  # bytes
    LAST_H,  # bytes from the row to the last layer's h
    LAST_SIZE,  # its elements
    COVER,  # address of the function that covers a product with tiles
    HEAD_WEIGHTS,  # address, or 0 without a head
    HEAD_PANEL_BYTES,
    HEAD_FIRST_WEIGHT,
    HEAD_ACTIVATION,
    HEAD_PANELS,
    OUTPUT_LEVELS,  # address of int64[output_size]: bytes to the remembered level, or -1
    OUTPUT_CENTERS,  # address of float32[output_size]
    OUTPUTS_ARE_PLAIN,  # no level and no center to add
    FIRST_LAYER,  # where the layers' words begin
) = range(35)

# Words of one layer.
(
    KIND,
    ACTIVATION,
    WEIGHTS,  # address of the first panel
    PANEL_BYTES,
    FIRST_WEIGHT,  # bytes from a panel's start to its weights for x
    FIRST_H_WEIGHT,  # and for h
    NUM_X,
    HIDDEN_SIZE,
    H_OFFSET,
    NUM_PANELS,
    STAGES,  # address of a staged layer's table, which has its weights, or 0 for a fused one
    LAYER_WORDS,
) = range(12)

# Words of one input.
(
    INPUT_KIND,
    FEATURE,  # index of its first feature
    MEMORY,  # bytes from the row to its remembered value, or -1
    MISSING,
    IS_DIFFERENCE,
    NUM_CATEGORIES,
    EMBEDDING,  # address of float32[num_categories, embedding_size], or 0
    EMBEDDING_SIZE,
    INPUT_WORDS,
) = range(9)
NUMERIC, CATEGORICAL, TOKEN = range(3)
MISSING_ERROR, MISSING_HOLD, MISSING_MEAN, MISSING_MASK = range(4)

PLAN_WORDS = FIRST_LAYER + MAX_LAYERS * LAYER_WORDS

_ARITHMETIC_VERSION = 2  # to be raised whenever any output's bits change
PRECISIONS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
_INPUT_KINDS = {"numeric": NUMERIC, "categorical": CATEGORICAL, "token": TOKEN}
_MISSING = {
    "error": MISSING_ERROR,
    "hold": MISSING_HOLD,
    "mean": MISSING_MEAN,
    "mask": MISSING_MASK,
}
_ACTIVATIONS = {"identity": IDENTITY, "tanh": TANH, "sigmoid": SIGMOID, "softmax": SOFTMAX}
_CELLS = {
    "rnn_tanh": (DENSE, TANH),
    "rnn_relu": (DENSE, RELU),
    "gru": (GRU, IDENTITY),
    "lstm": (LSTM, IDENTITY),
}


def _feature_scales(spec: ModelSpec) -> NDArray[np.float64]:
    """Return what each column of the first layer's matrix is divided by."""
    scales = []
    for item in spec.inputs:
        scales += [item.scale] + [1.0] * (item.num_features - 1)
    return np.array(scales)


def _biases(
    kind: int, hidden_size: int, x_bias: NDArray[np.float64], h_bias: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return one bias for each accumulator of a tile."""
    if kind != GRU:
        return list((x_bias + h_bias).reshape(-1, hidden_size))
    x, h = x_bias.reshape(3, hidden_size), h_bias.reshape(3, hidden_size)
    return [x[0] + h[0], x[1] + h[1], x[2], h[2]]


def is_staged(layer: LayerSpec) -> bool:
    """Return whether a layer takes the staged path, because no fused tile knows its form.

    Parameters
    ----------
    layer : LayerSpec
        Any.

    Returns
    -------
    bool
    """
    return not layer.is_plain


def _scaled_x_weights(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]], index: int
) -> NDArray[np.float64]:
    """Return a layer's ``weight_ih``, with the inputs' scales folded into the first one's."""
    weights = parameters[f"weight_ih_l{index}"]
    return weights if index else weights / _feature_scales(spec)


def layer_matrices(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]], index: int
) -> tuple[int, int, list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Return what a layer computes with, for any device to pack.

    Parameters
    ----------
    spec : ModelSpec
        What is fixed about the model.
    parameters : mapping of str to ndarray of float64
        The model's.
    index : int
        Which layer, from 0.

    Returns
    -------
    kind, activation : int
        Of the tile, and what follows it.
    biases : list of ndarray of float64, shape (H,)
        One for each accumulator.
    x_weights, h_weights : ndarray of float64, shape (G * H, I) and (G * H, H)
        The inputs' scales are folded into the first layer's ``x_weights``.

    Raises
    ------
    DeviceError
        If the layer's form has no tile of its own: only the CPU has the staged path.
    """
    layer = spec.layers[index]
    if is_staged(layer):
        raise DeviceError(
            f'layer {index} is {layer.describe()}; this form runs on the CPU only, use device="cpu"'
        )
    kind, activation = _CELLS[layer.cell]
    x_weights = _scaled_x_weights(spec, parameters, index)
    x_bias, h_bias = parameters[f"bias_ih_l{index}"], parameters[f"bias_hh_l{index}"]
    biases = _biases(kind, layer.hidden_size, x_bias, h_bias)
    return kind, activation, biases, x_weights, parameters[f"weight_hh_l{index}"]


def head_matrices(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Return what the head computes with: the outputs' scales are folded into it.

    Parameters
    ----------
    spec : ModelSpec
        Of a model with a head.
    parameters : mapping of str to ndarray of float64
        The model's.

    Returns
    -------
    biases : list of one ndarray of float64, shape (O,)
    x_weights, h_weights : ndarray of float64, shape (O, H_last) and (O, 0)
    """
    scales = np.array([output.scale for output in spec.outputs])
    weights = parameters["head.weight"] * scales[:, None]
    return [parameters["head.bias"] * scales], weights, np.zeros((spec.output_size, 0))


class Program:
    """A model made ready for the kernels: packed weights, a plan, and scratch for one thread.

    Parameters
    ----------
    model : Model
        Scales are folded into its first and last matrices here, in float64.
    precision : str
        How the weights are stored, one of `PRECISIONS`: ``float32``; ``bfloat16``, half of it;
        ``int8``, a quarter, with a scale for each row of a matrix. Sums and states are float32
        with each of them.

    Attributes
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Holds addresses of arrays that the program owns: keep the program alive.
    row_bytes : int
        Bytes of one stream's row.
    initial_row : ndarray of float32, shape (row_bytes // 4,)
        The row of a stream that has seen nothing.
    input_table : ndarray of int64, shape (num_inputs, INPUT_WORDS)
    input_values : ndarray of float32, shape (num_inputs, 2)
        Center and fill.
    output_levels : ndarray of int64, shape (output_size,)
        Bytes from the row to the level that is added, or -1.
    """

    def __init__(self, model: Model, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"precision is {precision!r}; it must be one of {known}")
        self.spec = model.spec
        self.precision = PRECISIONS[precision]
        self.plan = np.zeros(PLAN_WORDS, dtype=np.int64)
        self.plan[COVER] = cover_address(self.precision)
        self._owned: list[NDArray[np.generic]] = []
        self._parameters = {
            name: np.asarray(value, dtype=np.float64) for name, value in model.parameters.items()
        }
        num_memories = sum(item.has_memory for item in self.spec.inputs)
        self._next_offset = 4 * padded(num_memories) if num_memories else 0
        self._add_inputs()
        self._add_layers()
        self._add_outputs()
        self.row_bytes = self._next_offset
        self.initial_row = aligned_floats(self.row_bytes // 4)
        self.initial_row[:num_memories] = np.nan
        self.plan[ROW_BYTES] = self.row_bytes
        self.plan[INITIAL_ROW_ADDRESS] = self._own(self.initial_row)
        del self._parameters, self._next_offset
        self._add_scratch()

    @property
    def arithmetic(self) -> str:
        """Name what decides the bits of an output besides model and inputs.

        The vector width is not among it: all widths give the same bits.
        """
        names = {value: name for name, value in PRECISIONS.items()}
        return f"cpu-{platform.machine()}-{names[self.precision]}-{_ARITHMETIC_VERSION}"

    def for_shard(self) -> Program:
        """Return a program with the same weights and scratch of its own, for another thread.

        Returns
        -------
        Program
        """
        other = object.__new__(Program)
        other.__dict__.update(self.__dict__)
        other.plan = self.plan.copy()
        other._owned = list(self._owned)
        other._add_scratch()
        return other

    def _own(self, array: NDArray[np.generic]) -> int:
        """Keep an array alive as long as the program, and return its address."""
        self._owned.append(array)
        return array.ctypes.data

    def _add_inputs(self) -> None:
        spec, plan = self.spec, self.plan
        table = np.zeros((spec.num_inputs, INPUT_WORDS), dtype=np.int64)
        values = np.zeros((spec.num_inputs, 2), dtype=np.float32)
        feature = memory = 0
        for item, row, value in zip(spec.inputs, table, values, strict=True):
            row[INPUT_KIND] = _INPUT_KINDS[item.kind]
            row[FEATURE] = feature
            row[MEMORY] = memory if item.has_memory else -1
            row[MISSING] = _MISSING[item.missing]
            row[IS_DIFFERENCE] = item.difference
            row[NUM_CATEGORIES] = item.num_categories
            if item.embedding_size:
                weights = self._parameters[f"embedding.{item.name}.weight"]
                row[EMBEDDING] = self._own(np.ascontiguousarray(weights, dtype=np.float32))
                row[EMBEDDING_SIZE] = item.embedding_size
            value[:] = item.center, item.fill
            feature += item.num_features
            memory += 4 * item.has_memory
        plan[NUM_INPUTS] = spec.num_inputs
        plan[INPUT_IS_TOKEN] = spec.is_token
        self.input_table, self.input_values = table, values
        plan[INPUT_TABLE] = self._own(table)
        plan[INPUT_VALUES] = self._own(values)
        plan[INPUTS_ARE_FEATURES] = all(
            item == InputSpec(item.name, item.unit, scale=item.scale, fill=item.fill)
            for item in spec.inputs
        )

    def _add_layers(self) -> None:
        spec, plan = self.spec, self.plan
        plan[NUM_LAYERS] = len(spec.layers)
        num_x = spec.num_features
        for index, layer in enumerate(spec.layers):
            words = plan[FIRST_LAYER + index * LAYER_WORDS :][:LAYER_WORDS]
            if is_staged(layer):
                words[STAGES] = self._own(self._stage_table(index, layer))
            else:
                kind, activation, biases, x_weights, h_weights = layer_matrices(
                    spec, self._parameters, index
                )
                words[KIND], words[ACTIVATION] = kind, activation
                packed = pack(kind, biases, x_weights, h_weights, self.precision)
                words[WEIGHTS] = self._own(packed.memory)
                words[PANEL_BYTES] = packed.panel_bytes
                words[FIRST_WEIGHT] = packed.first_weight
                words[FIRST_H_WEIGHT] = packed.first_h_weight
            words[NUM_X], words[HIDDEN_SIZE] = num_x, layer.hidden_size
            words[H_OFFSET] = self._next_offset
            words[NUM_PANELS] = padded(layer.hidden_size) // WIDTH
            self._next_offset += 4 * sum(map(padded, layer.state_sizes))
            num_x = layer.output_size
        plan[LAST_H], plan[LAST_SIZE] = words[H_OFFSET], num_x

    def _stage_table(self, index: int, layer: LayerSpec) -> NDArray[np.int64]:
        parameters = {
            name.removesuffix(f"_l{index}"): value
            for name, value in self._parameters.items()
            if name.endswith(f"_l{index}")
        }
        parameters["weight_ih"] = _scaled_x_weights(self.spec, self._parameters, index)
        return Stager(layer, parameters, self.precision, self._own).table()

    def _add_outputs(self) -> None:
        spec, plan = self.spec, self.plan
        plan[OUTPUT_SIZE] = spec.output_size
        levels = np.full(spec.output_size, -1, dtype=np.int64)
        memories = [item.name for item in spec.inputs if item.has_memory]
        for index, output in enumerate(spec.outputs):
            if output.difference_of is not None:
                levels[index] = 4 * memories.index(output.difference_of)
        centers = np.array([output.center for output in spec.outputs], dtype=np.float32)
        self.output_levels = levels
        plan[OUTPUT_LEVELS] = self._own(levels)
        plan[OUTPUT_CENTERS] = self._own(centers)
        plan[OUTPUTS_ARE_PLAIN] = not centers.any() and bool(np.all(levels < 0))
        if spec.head is None:
            return
        packed = pack(DENSE, *head_matrices(spec, self._parameters), self.precision)
        plan[HEAD_WEIGHTS] = self._own(packed.memory)
        plan[HEAD_PANEL_BYTES] = packed.panel_bytes
        plan[HEAD_FIRST_WEIGHT] = packed.first_weight
        plan[HEAD_ACTIVATION] = _ACTIVATIONS[spec.head.activation]
        plan[HEAD_PANELS] = padded(spec.output_size) // WIDTH

    def _add_scratch(self) -> None:
        spec, plan = self.spec, self.plan
        widest = padded(max(spec.output_size, *(layer.output_size for layer in spec.layers)))
        most_sums = max(
            padded(layer.hidden_size)
            * (
                num_blocks(layer)
                if is_staged(layer)
                else SHAPES[_CELLS[layer.cell][0]].num_accumulators
            )
            for layer in spec.layers
        )
        num_memories = sum(item.has_memory for item in spec.inputs)
        for place, stride, size in (
            (FEATURES, FEATURE_STRIDE, padded(spec.num_features)),
            (HIDDEN, HIDDEN_STRIDE, widest),
            (SEQUENCE, HIDDEN_STRIDE, widest),
            (SUMS, SUMS_STRIDE, most_sums),
            (LEVELS, LEVEL_STRIDE, padded(num_memories)),
        ):
            plan[place] = self._own(aligned_floats(MAX_BATCH_ROWS * size))
            plan[stride] = 4 * size
        for place in (X_POINTERS, H_POINTERS, ROWS, YS, STAGED_POINTERS):
            plan[place] = self._own(np.zeros(MAX_BATCH_ROWS, dtype=np.int64))
