"""One walk over a model's layers, for every target; and the named parts of a stream's state.

A value is the name that the target has for it: of an array ``[streams, n]`` where it is a vector,
``[streams, C, L]`` where it is a frame of L places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.graph import Read
from streamrnn.model.layers.base import Layer, Shape
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import CELLS, LayerSpec, ModelSpec

__all__ = ["LAST_INPUTS", "StatePart", "Writer", "before_name", "state_parts", "walk"]

LAST_INPUTS = "last_inputs"


@dataclass(frozen=True)
class StatePart:
    """A part of a stream's state."""

    name: str
    first: NDArray[np.float32]  # of one new stream: [n], or [C, L]


class Writer(Protocol):
    """What a target does for the walk."""

    def layer(self, k: int, layer: Layer, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Compute a layer of what it reads."""

    def take(self, name: str) -> str:
        """Return a part of the state as it was before the step."""

    def give(self, name: str, value: str) -> str:
        """Let a value be a part of the state after the step; return the value that it gets."""


def walk(spec: ModelSpec, writer: Writer, features: str) -> dict[Read, str]:
    """Write all layers in their order; return what each of them gives."""
    graph = spec.graph
    values = {Read(-1): features}
    values |= {Read(k, is_before=True): writer.take(before_name(spec, k)) for k in graph.kept}
    for k, layer in enumerate(spec.layers):
        reads = [values[read] for read in graph.reads[k]]
        values[Read(k)] = writer.layer(k, layer, reads, graph.read_shapes(k))
    return values


def before_name(spec: ModelSpec, k: int) -> str:
    """Name the output that a layer, or the head, had at the step before."""
    return "before_head" if k == len(spec.layers) else f"before_l{k}"


def state_parts(model: Model) -> list[StatePart]:
    """Name all that a stream keeps from one step to the next, with its first values."""
    spec, graph = model.spec, model.spec.graph
    parts: list[StatePart] = []
    if num_memories := sum(item.has_memory for item in spec.inputs):
        parts.append(StatePart(LAST_INPUTS, np.full(num_memories, np.nan, np.float32)))
    for k, layer in enumerate(spec.layers):
        length, channels = graph.shape_of_joined(k)
        if isinstance(layer, LayerSpec):
            for name, size in zip(CELLS[layer.cell].states, layer.state_sizes, strict=True):
                zeros = np.zeros(size, np.float32)
                first = model.parameters[f"first_{name}_l{k}"] if layer.first_state else zeros
                parts.append(StatePart(f"{name}_l{k}", first))
        elif isinstance(layer, MemorySpec):
            parts.append(_zeros(f"kept_l{k}", (channels, layer.places)))
        elif isinstance(layer, TimeConvSpec) and layer.num_kept:
            parts.append(_zeros(f"kept_l{k}", (length * channels, layer.num_kept)))
    for k in graph.kept:
        length, channels = graph.shape_of(Read(k, is_before=True))
        shape = (channels,) if length == 1 else (channels, length)
        parts.append(_zeros(before_name(spec, k), shape))
    return parts


def _zeros(name: str, shape: tuple[int, ...]) -> StatePart:
    return StatePart(name, np.zeros(shape, np.float32))
