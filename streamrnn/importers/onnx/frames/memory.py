"""States that a graph of one step keeps by hand: the last inputs of a convolution, or any value.

Where old values and new ones stand one behind the other, the old ones are what was there at the
steps before. A state that is computed with is the output of a layer at the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from streamrnn.importers.network import FrameLayer
from streamrnn.importers.onnx.frames.axes import place_label
from streamrnn.importers.onnx.inputs import Graph
from streamrnn.importers.onnx.recurrent import StateUse
from streamrnn.importers.onnx.values import FEATURE, NotFollowed, Signal, Symbols, Value
from streamrnn.model.layers.base import BEFORE, INPUT
from streamrnn.model.layers.frame import ActivationSpec, SliceSpec
from streamrnn.model.layers.memory import MemorySpec

__all__ = ["KEPT", "delayed", "is_window", "remember", "with_delays"]

KEPT = "(steps that are kept)"  # label of an axis that a graph of one step has for itself
_MAX_DELAY = 32


def remember(
    graph: Graph, name: str, inputs: Sequence[Value | None], names: Sequence[str], axis: int
) -> Signal:
    """Put what a graph kept of the steps before in front of what it computed at this one."""
    *states, data = inputs
    if not isinstance(data, Signal) or not all(isinstance(value, Symbols) for value in states):
        raise NotFollowed(
            "it joins states with what the network computes, which is not behind them"
        )
    old = np.concatenate([value.ids for value in states if isinstance(value, Symbols)], axis)
    axis %= old.ndim
    rests = {tuple(n for k, n in enumerate(s) if k != axis) for s in (old.shape, data.shape)}
    if len(rests) != 1 or old.ndim != len(data.axes):
        raise NotFollowed(f"it joins the shapes {list(old.shape)} and {list(data.shape)}")
    if names[-1] not in graph.data_ids:
        own = data.ids if data.ids is not None else graph.new_symbols(data.shape)
        graph.data_ids[names[-1]] = own
    ids = np.concatenate([old, graph.data_ids[names[-1]]], axis)
    # The last axis of an input of three has places; of one of two, features.
    known = data.featured() if len(data.axes) < 3 else data
    if known.find(FEATURE) == axis and data.shape[axis] != 1:
        made = _row_of_steps(known, name, axis, old.shape[axis])
    else:
        made = _kept_places(data, name, axis, old.shape[axis])
    last = np.take(ids, range(data.shape[axis], ids.shape[axis]), axis)
    graph.uses.append(StateUse(made.head, old.reshape(1, -1), last.reshape(1, -1), True))
    return replace(made, ids=ids)


def _kept_places(data: Signal, name: str, axis: int, count: int) -> Signal:
    label = place_label(data, axis) if data.shape[axis] != 1 else KEPT
    if not label:
        raise NotFollowed("it keeps what lies along an axis that is not one of the input's")
    places = count + data.shape[axis]
    made = data.plus(FrameLayer(name, MemorySpec(count), along=label, places=places))
    axes = list(made.axes)
    axes[axis] = ((label, places),)
    return replace(made, axes=tuple(axes))


def _row_of_steps(data: Signal, name: str, axis: int, count: int) -> Signal:
    """Put the features of some steps into one row."""
    size = data.shape[axis]
    steps = count // size
    if count % size or steps > _MAX_DELAY:
        raise NotFollowed(f"it keeps {count} numbers of the steps before, each of {size}")
    reads, made = [data.head], data
    if data.head == INPUT:
        made = made.plus(FrameLayer(f"{name}.now", ActivationSpec("identity")))
        reads = [made.head]
    for k in range(steps):
        late = FrameLayer(f"{name}.{k + 1} before", ActivationSpec("identity"))
        made = made.plus(late, reads=(f"{reads[0]}{BEFORE}",))
        reads.insert(0, made.head)
    made = made.plus(FrameLayer(name, ActivationSpec("identity")), reads=tuple(reads))
    axes = list(made.axes)
    axes[axis] = ((FEATURE, count + size),)
    return replace(made, axes=tuple(axes))


def delayed(graph: Graph, symbols: Symbols, source: str) -> Signal | None:
    """Return a state that is computed with as what was made at the step before."""
    ids = symbols.ids
    flat = ids.reshape(-1)
    for name in graph.pairs:
        own = graph.state_inputs[name]
        if own.size == flat.size and np.array_equal(own.reshape(-1), flat):
            break
    else:
        return None
    wide = [k for k, size in enumerate(ids.shape) if size != 1 and k]
    if len(wide) > 1 or not ids.ndim:
        return None
    feature = wide[0] if wide else ids.ndim - 1
    if name not in graph.delays:
        spec = SliceSpec(places=(0, 1), channels=(0, flat.size))  # all of it; it says its size
        graph.delays[name] = FrameLayer(name, spec, reads=(f"@{name}",))
    axes = tuple(
        ((FEATURE, size),) if k == feature else ((f"batch{k}", size),) if size != 1 else ()
        for k, size in enumerate(ids.shape)
    )
    return Signal(source, axes, (graph.delays[name],), name)


def with_delays(
    graph: Graph,
    signal: Signal,
    as_signal: Callable[[Value | None], Value | None],
    outputs: Mapping[str, Value | None],
    problem: Callable[[str], None],
) -> tuple[Signal, list[str]]:
    """Add the layers that states come from which are computed with; return also their names."""
    given: dict[str, str] = {}
    heads = {signal.head}
    merged = signal
    while missing := [
        layer.name
        for layer in merged.pruned(heads).layers
        if graph.delays.get(layer.name) is layer and layer.name not in given
    ]:
        for name in missing:
            value = as_signal(outputs[graph.pairs[name]])
            size = graph.state_inputs[name].size
            given[name] = INPUT
            if not isinstance(value, Signal) or np.prod(value.shape) != size:
                problem(f"{graph.pairs[name]!r} is no value like the state {name!r}")
                continue
            try:
                merged = replace(merged.merged(value), head=signal.head, axes=signal.axes)
            except NotFollowed as error:
                problem(f"{graph.pairs[name]!r}, the next state {name!r}: {error}")
                continue
            given[name] = value.head
            heads.add(value.head)
    layers = list(merged.pruned(heads).layers)
    for name, read in given.items():
        if read == INPUT:  # what is kept is a layer's
            read = f"{name}.input"
            layers.insert(0, FrameLayer(read, ActivationSpec("identity"), reads=(INPUT,)))
        layers = [
            replace(layer, reads=(f"{read}{BEFORE}",)) if layer.name == name else layer
            for layer in layers
        ]
    last = signal.head
    if layers and layers[-1].name != last:  # the answer is what the last layer gives
        own = [layer for layer in layers if layer.name == last]
        if not own or any(last in layer.reads for layer in layers):
            own = [FrameLayer("answer", ActivationSpec("identity"), reads=(last,))]
        layers = [*(layer for layer in layers if layer is not own[0]), own[0]]
        last = own[0].name
    return replace(merged, layers=tuple(layers), head=last), list(given)


def is_window(graph: Graph, names: Sequence[str]) -> bool:
    """Whether a state is the data of the steps before, to which a step's data is added."""
    data = graph.roots.get(names[-1], {names[-1]})
    states = set().union(*(graph.roots.get(name, {name}) for name in names[:-1]))
    outputs = [graph.pairs[name] for name in states if name in graph.pairs]
    return any(data & graph.roots.get(name, {name}) for name in outputs)
