"""A model as the GPU's kernels see it: one array of weights, one of words, and a row of scratch.

A stream's row has the CPU's layout (`RowLayout`), so a stream's state can move. Where the CPU's
plan holds addresses, this one holds places in arrays of float32.

A matrix is packed as [k][gate][unit]: for every element of x or of h one run of units a gate,
padded with zeros to a multiple of 16 units and of `DEPTH` elements. In bfloat16 a word holds the
weights of two neighbouring k, and `DEPTH` counts words. A row of scratch (*work*) holds
the new h of every layer at its place in the stream's row, then features, then the head's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.activations import ACTIVATIONS, IDENTITY
from streamrnn.kernels.cuda.mma import NUM_PACKED, pack_words
from streamrnn.kernels.gates import DENSE, SHAPES, head_matrices, layer_matrices, padded
from streamrnn.kernels.row_layout import RowLayout
from streamrnn.model.model import Model

__all__ = ["DEPTH", "GpuLayer", "GpuPlan"]

DEPTH = 16  # elements of k that a tile takes at once

# Words of the plan. All places and sizes are in float32.
(
    ROW_SIZE,
    WORK_SIZE,
    NUM_INPUTS,
    OUTPUT_SIZE,
    LAST_H,
    HAS_HEAD,
    HEAD_ACTIVATION,
    HEAD,  # of the head's output in a row of work
    FEATURES,  # in a row of work
    INPUTS,  # place in the plan: [num_inputs, INPUT_WORDS] see below
    LEVELS,  # place in the plan: [output_size]
    VALUES,  # of the weights: [num_inputs, 2], center and fill
    CENTERS,  # of the weights: [output_size]
    HAS_TRANSFORMS,  # x is not the first layer's input as it comes
    NUM_LAYERS,
    LAYERS,  # place in the plan: [num_layers + 1, LAYER_WORDS], the head last
    NUM_WORDS,
) = range(17)

# Words of one layer.
(
    NUM_X,
    NUM_H,
    NUM_UNITS,  # padded
    STATE,  # of h in the stream's row; an LSTM's c follows it
    OUT,  # of the new h in a row of work
    BIAS,
    X_WEIGHTS,
    H_WEIGHTS,
    ACTIVATION,
    STATE_SIZE,  # of h alone, padded; 0 for the head
    KIND,  # of the tile
    LAYER_WORDS,
) = range(12)

# Words of one input.
(
    INPUT_KIND,
    FEATURE,  # index of its first feature
    MEMORY,  # of its remembered value in the row, or -1
    MISSING,
    IS_DIFFERENCE,
    NUM_CATEGORIES,
    EMBEDDING,  # of the weights: [num_categories, embedding_size], or -1
    EMBEDDING_SIZE,
    INPUT_WORDS,
) = range(9)


@dataclass(frozen=True)
class GpuLayer:
    """What the host must know to launch one layer.

    Attributes
    ----------
    kind : int
        Of the tile.
    words : int
        Where its words begin in the plan.
    num_units : int
        Units, padded.
    out : int
        Where its new h, which is the next layer's x, lies in a row of work.
    """

    kind: int
    words: int
    num_units: int
    out: int


class GpuPlan:
    """Packs a model for the GPU, on the host.

    Parameters
    ----------
    model : Model
        Scales are folded into its first and last matrices, as on the CPU.
    precision : str
        Of the products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.

    Attributes
    ----------
    words : ndarray of int64
        Sizes and places.
    weights : ndarray of float32
        All that is loaded: matrices, biases, embeddings, centers.
    layers : list of GpuLayer
    head : GpuLayer or None
    row_size, work_size : int
        Floats of a stream's row and of a row of scratch.
    inputs_are_features : bool
        Whether x can be read as it comes.
    """

    def __init__(self, model: Model, precision: str = "float32") -> None:
        spec, layout = model.spec, RowLayout(model.spec)
        self._precision = precision
        self._parts: list[NDArray[np.float32]] = []
        self._num_weights = 0
        parameters = {
            name: np.asarray(value, dtype=np.float64) for name, value in model.parameters.items()
        }
        self.inputs_are_features = layout.inputs_are_features
        self.row_size = layout.row_bytes // 4
        features = self.row_size
        head = features + (0 if self.inputs_are_features else padded(spec.num_features))
        self.work_size = head + (padded(spec.output_size) if spec.head else 0)

        names = layout.inputs.dtype.names or ()
        table = np.stack([layout.inputs[name] for name in names[:INPUT_WORDS]], axis=1)
        for item, row in zip(spec.inputs, table, strict=True):
            row[MEMORY] = row[MEMORY] // 4 if row[MEMORY] >= 0 else -1
            row[EMBEDDING] = -1
            if item.embedding_size:
                row[EMBEDDING] = self._add(parameters[f"embedding.{item.name}.weight"])
        levels = np.where(layout.output_levels >= 0, layout.output_levels // 4, -1)
        words = np.zeros(NUM_WORDS, dtype=np.int64)
        words[[ROW_SIZE, WORK_SIZE]] = self.row_size, self.work_size
        words[[NUM_INPUTS, OUTPUT_SIZE]] = spec.num_inputs, spec.output_size
        words[LAST_H] = layout.h_offsets[-1] // 4
        words[HAS_HEAD] = spec.head is not None
        words[HEAD_ACTIVATION] = ACTIVATIONS[spec.head.activation] if spec.head else IDENTITY
        words[HEAD], words[FEATURES] = head, features
        words[INPUTS] = NUM_WORDS
        words[LEVELS] = words[INPUTS] + table.size
        words[VALUES] = self._add(
            np.stack([layout.inputs["center"], layout.inputs["fill"]], axis=1)
        )
        words[CENTERS] = self._add(layout.output_centers)
        words[HAS_TRANSFORMS] = not self.inputs_are_features
        words[NUM_LAYERS] = len(spec.layers)
        words[LAYERS] = words[LEVELS] + levels.size

        all_words: list[NDArray[np.int64]] = [words, table.reshape(-1), levels]
        self.layers: list[GpuLayer] = []
        self.head: GpuLayer | None = None
        place = int(words[LAYERS])
        for index, layer in enumerate(spec.layers):
            kind, activation, biases, x_weights, h_weights = layer_matrices(spec, parameters, index)
            state = layout.h_offsets[index] // 4
            row = self._layer(kind, biases, x_weights, h_weights)
            row[[STATE, OUT, ACTIVATION]] = state, state, activation
            row[STATE_SIZE] = padded(layer.hidden_size)
            self.layers.append(GpuLayer(kind, place, int(row[NUM_UNITS]), state))
            all_words.append(row)
            place += LAYER_WORDS
        if spec.head is not None:
            row = self._layer(DENSE, *head_matrices(spec, parameters))
            row[OUT] = head
            self.head = GpuLayer(DENSE, place, int(row[NUM_UNITS]), head)
            all_words.append(row)
        self.words = np.concatenate(all_words)
        self.weights = np.concatenate(self._parts)
        del self._parts, self._num_weights

    def _add(self, values: NDArray[np.generic]) -> int:
        """Append values to the weights and return their place, a multiple of 16."""
        place = self._num_weights
        part = np.zeros(padded(values.size), dtype=np.float32)
        part[: values.size] = values.reshape(-1)
        self._parts.append(part)
        self._num_weights += part.size
        return place

    def _layer(
        self,
        kind: int,
        biases: Sequence[NDArray[np.float64]],
        x_weights: NDArray[np.float64],
        h_weights: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Pack one layer and return its words, places in the rows left 0."""
        shape = SHAPES[kind]
        num_units = padded(len(biases[0]))
        factors = np.array(shape.factors)
        bias = np.zeros((shape.num_accumulators, num_units))
        bias[:, : len(biases[0])] = np.stack(list(biases)) * factors[:, None]
        row = np.zeros(LAYER_WORDS, dtype=np.int64)
        row[[KIND, NUM_UNITS]] = kind, num_units
        row[BIAS] = self._add(bias)
        for size, place, weights, gates in (
            (NUM_X, X_WEIGHTS, x_weights, shape.x_gates),
            (NUM_H, H_WEIGHTS, h_weights, shape.h_gates),
        ):
            num_k = weights.shape[1]
            by_gate = weights.reshape(len(gates), len(biases[0]), num_k)
            depth = DEPTH * NUM_PACKED[self._precision]
            packed = np.zeros((-(-num_k // depth) * depth, len(gates), num_units))
            packed[:num_k, :, : len(biases[0])] = (
                by_gate * factors[list(gates), None, None]
            ).transpose(2, 0, 1)
            row[size] = num_k
            row[place] = self._add(pack_words(packed, self._precision))
        return row
