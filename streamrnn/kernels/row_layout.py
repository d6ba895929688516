"""The layout of a stream's row, the same on every device, so that a stream's state can move.

A row is float32, a multiple of 64 bytes: one float for each input that must be remembered (NaN:
nothing seen yet), padded to 16; then for each layer h, and c for an LSTM, each padded to 16 with
zeros (an h that is a projection has its own width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.kernels.gates import padded
from streamrnn.kernels.structs import I64, Struct
from streamrnn.model.spec import InputSpec, ModelSpec

__all__ = ["Input", "RowLayout", "check_offsets"]

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
        Bytes from the row to each layer's h; its c follows.
    output_levels : ndarray of int64, shape (output_size,)
        Bytes from the row to the level that is added, or -1.
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
            item == InputSpec(item.name, item.unit, scale=item.scale, fill=item.fill)
            for item in spec.inputs
        )
        offsets = [4 * padded(self.num_memories) if self.num_memories else 0]
        for layer in spec.layers:
            offsets.append(offsets[-1] + 4 * sum(map(padded, layer.state_sizes)))
        *self.h_offsets, self.row_bytes = offsets
        self.initial_row = np.zeros(self.row_bytes // 4, dtype=np.float32)
        self.initial_row[: self.num_memories] = np.nan
        remembered = (item.name for item in spec.inputs if item.has_memory)
        memories = {name: 4 * k for k, name in enumerate(remembered)}
        self.output_levels = np.full(spec.output_size, -1, dtype=np.int64)
        for index, output in enumerate(spec.outputs):
            if output.difference_of is not None:
                self.output_levels[index] = memories[output.difference_of]
        self.output_centers = np.array([output.center for output in spec.outputs], np.float32)
        check_offsets(spec, self.inputs, self.h_offsets, self.output_levels, self.row_bytes)


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
    for layer, at in zip(spec.layers, h_offsets, strict=True):
        places.append((int(at), 4 * sum(map(padded, layer.state_sizes)), row_bytes))
    num_features = spec.num_features
    for item, row in zip(spec.inputs, inputs, strict=True):
        places.append((int(row["feature"]), item.num_features, num_features))
    for begin, length, end in places:
        if begin < 0 or begin + length > end:
            raise ModelError(
                f"the model's plan has a place from {begin} to {begin + length}, outside of its "
                f"{end}: such a model is not computed"
            )


def _inputs(spec: ModelSpec) -> NDArray[np.void]:
    inputs = np.zeros(spec.num_inputs, Input.dtype)
    feature = memory = 0
    for item, row in zip(spec.inputs, inputs, strict=True):
        row["kind"] = _KINDS[item.kind]
        row["feature"] = feature
        row["memory"] = memory if item.has_memory else -1
        row["missing"] = _MISSING[item.missing]
        row["is_difference"] = item.difference
        row["num_categories"] = item.num_categories
        row["embedding_size"] = item.embedding_size or 0
        row["center"], row["fill"] = item.center, item.fill
        feature += item.num_features
        memory += 4 * item.has_memory
    return inputs
