"""A stream's row as the reference's state: what a kernel has computed goes on in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import RecordError
from streamrnn.kernels.gates import padded
from streamrnn.kernels.row_layout import RowLayout
from streamrnn.model.graph import Read
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.layers.recurrent import LayerSpec
from streamrnn.model.spec import ModelSpec
from streamrnn.reference.model import ReferenceState

__all__ = ["reference_state"]

_RING_HEAD = 16  # floats before a causal convolution's inputs: where the oldest lies, and no more


def reference_state(spec: ModelSpec, row: NDArray[np.float32]) -> ReferenceState:
    """Return the state of one stream, of a row as `streamrnn.kernels.row_layout` describes it.

    Raises `RecordError` if the row has another size.
    """
    layout, graph = RowLayout(spec), spec.graph
    if row.shape != (layout.row_bytes // 4,):
        raise RecordError(
            f"the row has {row.size} numbers; the model's have {layout.row_bytes // 4}"
        )
    values = row.astype(np.float64)
    memory = np.full((1, spec.num_inputs), np.nan)
    for i, at in enumerate(layout.inputs["memory"].tolist()):
        if at >= 0:
            memory[0, i] = values[at // 4]
    layers: list[tuple[NDArray[np.float64], ...]] = []
    offsets = iter(layout.h_offsets)
    for k, layer in enumerate(spec.layers):
        kept: list[NDArray[np.float64]] = []
        if isinstance(layer, LayerSpec):
            at = next(offsets) // 4
            for size in layer.state_sizes:
                kept.append(values[None, at : at + size])
                at += padded(size)
        elif isinstance(layer, MemorySpec):
            _, channels = graph.shape_of_joined(k)
            at = layout.kept_offsets[k] // 4
            kept.append(values[at : at + layer.places * channels].reshape(1, -1, channels))
        elif isinstance(layer, TimeConvSpec):
            kept.append(_ring(values, layout.kept_offsets.get(k), layer, graph.shape_of_joined(k)))
        layers.append(tuple(kept))
    before = []
    for k in graph.kept:
        shape = graph.shape_of(Read(k, is_before=True))
        at = layout.before_offsets[k] // 4
        before.append(values[at : at + math.prod(shape)].reshape(1, *shape))
    return ReferenceState(tuple(layers), memory, tuple(before))


def _ring(
    values: NDArray[np.float64], offset: int | None, layer: TimeConvSpec, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return a causal convolution's inputs in their order, the oldest first."""
    num_kept, size = layer.num_kept, math.prod(shape)
    if offset is None:
        return np.zeros((1, 0, size))
    at = offset // 4
    ring = values[at + _RING_HEAD : at + _RING_HEAD + num_kept * size].reshape(num_kept, size)
    first = int(values[at]) if 0 <= values[at] < num_kept else 0  # as the kernel takes it
    return np.roll(ring, -first, axis=0)[None]
