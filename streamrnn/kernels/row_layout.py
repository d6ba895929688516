"""The layout of a stream's row, the same on every device, so that a stream's state can move.

A row is float32, a multiple of 64 bytes: one float for each input that must be remembered (NaN:
nothing seen yet), padded to 16; then for each recurrent layer h, and c for an LSTM, each padded to
16 with zeros (an h that is a projection has its own width). Behind them, each padded to 16 too:
what memories and causal convolutions keep, in the order of the layers; outputs that are read at the
next step; the last y, where it does not follow from the states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.kernels.gates import padded
from streamrnn.kernels.structs import I64, Struct
from streamrnn.model.graph import Read
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import CELLS, InputSpec, LayerSpec, ModelSpec

__all__ = ["Input", "RowLayout", "check_offsets", "first_row", "named_parts", "recurrent_layers"]

_MAX_ROW_BYTES = 1 << 24
NUMERIC, CATEGORICAL, TOKEN = range(3)
MISSING_ERROR, MISSING_HOLD, MISSING_MEAN, MISSING_MASK = range(4)
_KINDS = {"numeric": NUMERIC, "categorical": CATEGORICAL, "token": TOKEN}
_MISSING = {
    "error": MISSING_ERROR,
    "hold": MISSING_HOLD,
    "mean": MISSING_MEAN,
    "mask": MISSING_MASK,
}


class Input(Struct):
    """How one input becomes features."""

    kind: I64
    feature: I64  # index of its first feature
    memory: I64  # bytes from the row to its remembered value, or -1
    missing: I64
    is_difference: I64
    starts_known: I64  # whether nothing is remembered until a value is known
    num_categories: I64
    embedding: I64  # address of float32[num_categories, embedding_size], or 0
    embedding_size: I64
    center: Annotated[float, np.float32]
    fill: Annotated[float, np.float32]


class RowLayout:
    """Where everything of a stream lies in its row, and how inputs and outputs use it.

    Attributes
    ----------
    inputs : ndarray of Input, shape (num_inputs,)
        Embeddings have no address yet.
    inputs_are_features : bool
        Whether x can be read as it comes: nothing to transform.
    h_offsets : list of int
        Bytes from the row to each recurrent layer's h; its c follows.
    kept_offsets : dict of int to int
        Bytes from the row to what a memory or a causal convolution keeps, by the layer's number. A
        convolution's is a ring: one float, where the oldest step lies, in 64 bytes; then the steps.
    before_offsets : dict of int to int
        Bytes from the row to a layer's (or the head's) output of the step before.
    last_y : int
        Bytes from the row to the last y; -1 where it is not kept.
    output_levels : ndarray of int64, shape (output_size,)
        Bytes from the row to the level that is added, or -1.
    output_fills : ndarray of float32, shape (output_size,)
        What is added instead where no level is remembered yet.
    output_centers : ndarray of float32, shape (output_size,)
    num_memories : int
        Inputs that are remembered.
    row_bytes : int
    initial_row : ndarray of float32, shape (row_bytes // 4,)
        The row of a stream that has seen nothing.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.num_memories = sum(item.has_memory for item in spec.inputs)
        self.inputs = _inputs(spec)
        self.inputs_are_features = all(
            replace(item, scale=1.0, fill=0.0, shape=(), origin=0.0)
            == InputSpec(item.name, item.unit)
            for item in spec.inputs
        )
        offsets = [4 * padded(self.num_memories) if self.num_memories else 0]
        for layer in recurrent_layers(spec):
            offsets.append(offsets[-1] + 4 * sum(map(padded, layer.state_sizes)))
        *self.h_offsets, self.row_bytes = offsets
        self._add_kept(spec)
        self.initial_row = np.zeros(self.row_bytes // 4, dtype=np.float32)
        self.initial_row[: self.num_memories] = np.nan
        remembered = (item.name for item in spec.inputs if item.has_memory)
        memories = {name: 4 * k for k, name in enumerate(remembered)}
        self.output_levels = np.full(spec.output_size, -1, dtype=np.int64)
        outputs = [output for output in spec.outputs for _ in range(output.size)]
        self.output_fills = np.zeros(spec.output_size, np.float32)
        fills = {item.name: item.fill for item in spec.inputs}
        for index, output in enumerate(outputs):
            if output.difference_of is not None:
                self.output_levels[index] = memories[output.difference_of]
                self.output_fills[index] = fills[output.difference_of]
        self.output_centers = np.array([output.center for output in outputs], np.float32)
        check_offsets(spec, self.inputs, self.h_offsets, self.output_levels, self.row_bytes)

    def _add_kept(self, spec: ModelSpec) -> None:
        """Give a place to all that is kept beside the states of recurrent layers."""
        graph = spec.graph
        self.kept_offsets: dict[int, int] = {}
        for k, layer in enumerate(spec.layers):
            if isinstance(layer, MemorySpec):
                _, channels = graph.shape_of_joined(k)
                self.kept_offsets[k] = self._take(layer.places * channels)
            elif isinstance(layer, TimeConvSpec) and layer.num_kept:
                length, channels = graph.shape_of_joined(k)
                self.kept_offsets[k] = self._take(16 + layer.num_kept * length * channels)
        self.before_offsets = {
            k: self._take(math.prod(graph.shape_of(Read(k, is_before=True)))) for k in graph.kept
        }
        self.last_y = -1 if graph.output_is_state else self._take(spec.output_size)

    def _take(self, size: int) -> int:
        offset, self.row_bytes = self.row_bytes, self.row_bytes + 4 * padded(size)
        if self.row_bytes > _MAX_ROW_BYTES:
            raise ModelError(
                f"a stream would keep more than {_MAX_ROW_BYTES:,} bytes from step to step; such "
                "a model is not computed"
            )
        return offset


def recurrent_layers(spec: ModelSpec) -> list[LayerSpec]:
    """Return the recurrent layers, in their order."""
    return [layer for layer in spec.layers if isinstance(layer, LayerSpec)]


def named_parts(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Return where what named layers keep lies in a row: the first float, and how many.

    A recurrent layer has ``NAME.h`` and ``NAME.c``, a memory or a causal convolution ``NAME``.
    """
    layout = RowLayout(spec)
    parts: dict[str, tuple[int, int]] = {}
    offsets = iter(layout.h_offsets)
    for k, layer in enumerate(spec.layers):
        if isinstance(layer, LayerSpec):
            at = next(offsets) // 4
            for state, size in zip(CELLS[layer.cell].states, layer.state_sizes, strict=True):
                if layer.name:
                    parts[f"{layer.name}.{state}"] = at, size
                at += padded(size)
        elif layer.name and k in layout.kept_offsets:
            length, channels = spec.graph.shape_of_joined(k)
            steps = layer.places if isinstance(layer, MemorySpec) else 0
            if isinstance(layer, TimeConvSpec):
                steps = layer.num_kept * length
            head = 16 if isinstance(layer, TimeConvSpec) else 0
            parts[layer.name] = layout.kept_offsets[k] // 4, head + steps * channels
    return parts


def first_row(model: Model) -> NDArray[np.float32]:
    """Return the row of a stream that has seen nothing, with the states that were trained."""
    layout = RowLayout(model.spec)
    row, offsets = layout.initial_row, iter(layout.h_offsets)
    for k, layer in enumerate(model.spec.layers):
        if not isinstance(layer, LayerSpec):
            continue
        at = next(offsets) // 4
        for name, size in zip(CELLS[layer.cell].states, layer.state_sizes, strict=True):
            if layer.first_state:
                row[at : at + size] = model.parameters[f"first_{name}_l{k}"]
            at += padded(size)
    return row


def check_offsets(
    spec: ModelSpec,
    inputs: NDArray[np.void],
    h_offsets: Sequence[int],
    output_levels: NDArray[np.int64],
    row_bytes: int,
) -> None:
    """Raise `ModelError` unless all that a plan reads and writes lies inside its row.

    Kernels check nothing: an offset outside would be another stream's state.
    """
    memories_end = 4 * sum(item.has_memory for item in spec.inputs)
    places = [(int(at), 4, memories_end) for at in (*inputs["memory"], *output_levels) if at != -1]
    for layer, at in zip(recurrent_layers(spec), h_offsets, strict=True):
        places.append((int(at), 4 * sum(map(padded, layer.state_sizes)), row_bytes))
    num_features = spec.num_features
    for item, row in zip(spec.input_elements, inputs, strict=True):
        num = 1 if item.shape else item.num_features
        places.append((int(row["feature"]), num, num_features))
    for begin, length, end in places:
        if begin < 0 or begin + length > end:
            raise ModelError(
                f"the model's plan has a place from {begin} to {begin + length}, outside of its "
                f"{end}: such a model is not computed"
            )


def _inputs(spec: ModelSpec) -> NDArray[np.void]:
    inputs = np.zeros(spec.num_inputs, Input.dtype)
    feature = memory = 0
    for item, row in zip(spec.input_elements, inputs, strict=True):
        row["kind"] = _KINDS[item.kind]
        row["feature"] = feature
        row["memory"] = memory if item.has_memory else -1
        row["missing"] = _MISSING[item.missing]
        row["is_difference"], row["starts_known"] = item.difference, item.starts_known
        row["num_categories"] = item.num_categories
        row["embedding_size"] = item.embedding_size or 0
        row["center"], row["fill"] = item.center, item.fill
        feature += 1 if item.shape else item.num_features
        memory += 4 * item.has_memory
    return inputs
