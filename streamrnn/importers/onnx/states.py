"""What a graph's metadata says of its states: with which numbers a stream begins."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import Layer, Recurrent
from streamrnn.importers.onnx.file import OnnxFile
from streamrnn.importers.onnx.graph import Graph

__all__ = ["FIRST_STATES", "read_first_states", "with_first_states"]

FIRST_STATES = "first_states"  # of the metadata: JSON, numbers by the name of a state input


def read_first_states(
    file: OnnxFile, problem: Callable[[str], None]
) -> dict[str, NDArray[np.float64]]:
    """Read with which numbers states begin, for one stream; those that are not there with zeros."""
    texts = [item.value for item in file.model.metadata_props if item.key == FIRST_STATES]
    if not texts:
        return {}
    try:
        found = json.loads(texts[0])
        arrays = {name: np.array(value, np.float64) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        problem(f"its metadata entry {FIRST_STATES} is no list of numbers for each state: {error}")
        return {}
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            problem(f"its metadata entry {FIRST_STATES} lets {name!r} begin with no finite numbers")
    return arrays


def with_first_states(
    layers: Sequence[Layer],
    graph: Graph,
    first: dict[str, NDArray[np.float64]],
    problem: Callable[[str], None],
) -> list[Layer]:
    """Let recurrent layers begin with the numbers of their state inputs."""
    numbers = np.zeros(graph.num_symbols)
    for name, value in first.items():
        ids = graph.state_inputs.get(name)
        if ids is None or value.size != ids.shape[-1] or math.prod(value.shape) != value.shape[-1]:
            problem(
                f"its metadata entry {FIRST_STATES} names {name!r}, which is no state of that size"
            )
            return list(layers)
        numbers[ids] = value.reshape(-1)
    return [
        _begun(layer, graph, numbers) if isinstance(layer, Recurrent) else layer for layer in layers
    ]


def _begun(layer: Recurrent, graph: Graph, numbers: NDArray[np.float64]) -> Recurrent:
    uses = [use for use in graph.uses if use.layer == layer.name]
    states = tuple(
        numbers[use.first[0]] if (use.first >= 0).all() else np.zeros(use.first.shape[-1])
        for use in uses
    )
    if not any(state.any() for state in states):
        return layer
    origins = {f"first_{name}": FIRST_STATES for name, _ in zip("hc", states, strict=False)}
    return replace(layer, first=states, origins=layer.origins | origins)
