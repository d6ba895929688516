"""The states of a graph: what comes back at the next step, and with which numbers they begin."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import listed
from streamrnn.importers.network import Layer, Network, Recurrent
from streamrnn.importers.onnx.file import OnnxFile
from streamrnn.importers.onnx.inputs import Graph
from streamrnn.importers.onnx.values import Signal, Symbols, Value

__all__ = ["FIRST_STATES", "check_states", "read_first_states", "with_first_states"]

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
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
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
    recurrent = {layer.name for layer in layers if isinstance(layer, Recurrent)}
    begun = [use.first.reshape(-1) for use in graph.uses if use.layer in recurrent]
    for name, value in first.items():
        ids = graph.state_inputs.get(name)
        if ids is None or not value.shape[-1:] == (value.size,) == ids.shape[-1:]:
            problem(
                f"its metadata entry {FIRST_STATES} names {name!r}, which is no state of that size"
            )
            return list(layers)
        if not any(np.isin(ids, each).all() for each in begun):
            problem(f"{name!r} begins with other numbers than zeros, and is no recurrent layer's")
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


def check_states(
    graph: Graph,
    outputs: Mapping[str, Value | None],
    network: Network,
    begun: Collection[str] = (),
) -> dict[str, str]:
    """Check that what a state output gives is what the state input takes at the next step.

    ``begun`` are the states that begin with numbers of their own. Returns for each such input the
    name of the output.
    """
    firsts = [use.first.reshape(-1) for use in graph.uses]
    lasts = [use.last.reshape(-1) for use in graph.uses]
    matched: dict[str, str] = {}
    if not firsts:
        return matched
    first, last = np.concatenate(firsts), np.concatenate(lasts)
    given_back = {
        name: value.ids.reshape(-1)
        for name, value in outputs.items()
        if isinstance(value, Symbols | Signal) and value.ids is not None
    }
    for name, ids in graph.state_inputs.items():
        flat = ids.reshape(-1)
        used = np.isin(first, flat)
        if not used.any():
            continue
        places = first[used] - flat[0]
        candidates = {
            other: values for other, values in given_back.items() if values.size == flat.size
        }
        paired = graph.pairs.get(name)
        if graph.is_told and paired in candidates:
            candidates = {paired: candidates[paired]}
        match = _matching(candidates, places, last[used])
        if match is not None:
            given_back.pop(match)
            matched[name] = match
            start = f"the numbers of {FIRST_STATES}" if name in begun else "zeros"
            network.notes.append(
                f"the state {name!r} -> {match!r} is kept by the stream; it begins with {start}"
            )
        elif candidates:
            network.problems.append(
                f"the state input {name!r} is none of what {listed(list(candidates))} gives back: "
                "the states would be exchanged at every step"
            )
        elif paired or any(
            use.must_return and np.isin(use.first, flat).any() for use in graph.uses
        ):
            network.problems.append(f"no output gives back what input {name!r} is at the next step")
        else:
            network.notes.append(
                f"the first state is an input of the graph ({name!r}); streams begin with zeros"
            )
    mixed = [use.layer for use in graph.uses if (use.first >= 0).any() != (use.first >= 0).all()]
    if mixed:
        network.problems.append(f"a part of the first state of {listed(mixed)} is not an input")
    rest = [name for name in given_back if isinstance(outputs[name], Symbols)]
    if rest:
        network.notes.append(f"final states are left out: {listed(rest)}")
    return matched


def _matching(
    candidates: dict[str, NDArray[np.int64]], places: NDArray[np.int64], last: NDArray[np.int64]
) -> str | None:
    for name, values in candidates.items():
        if np.array_equal(values[places], last):
            return name
    return None
