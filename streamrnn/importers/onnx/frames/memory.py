"""States that a graph of one step keeps by hand: the last inputs of a convolution, or any value.

Where old values and new ones stand one behind the other, the old ones are what was there at the
steps before. A state that is computed with is the output of a layer at the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from streamrnn.importers.network import FrameLayer, Layer
from streamrnn.importers.onnx.frames.axes import KEPT, has_places, place_label
from streamrnn.importers.onnx.inputs import Graph
from streamrnn.importers.onnx.recurrent import StateUse
from streamrnn.importers.onnx.values import (
    FEATURE,
    ONE_STEP,
    PLACES,
    NotFollowed,
    Signal,
    Symbols,
    Value,
)
from streamrnn.model.layers.base import BEFORE, INPUT
from streamrnn.model.layers.frame import ActivationSpec, ConvSpec, SliceSpec
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec

__all__ = ["delayed", "is_window", "over_steps", "remember", "with_delays"]

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
    label = place_label(data, axis)
    if data.shape[axis] == 1:
        # A memory of one place; or what a convolution over steps keeps.
        is_short = count == 1 and data.time == ONE_STEP and not has_places(data, 1)
        label = PLACES if is_short else KEPT
    if not label:
        raise NotFollowed("it keeps what lies along an axis that is not one of the input's")
    places = count + data.shape[axis]
    made = data.plus(FrameLayer(name, MemorySpec(count), along=label, places=places))
    axes = list(made.axes)
    axes[axis] = ((label, places),)
    if axis == 2 and made.find(FEATURE) is None:
        axes[1] = ((FEATURE, made.shape[1]),)
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
    is_frame = graph.file.is_one_step and ids.ndim == 3
    if (len(wide) > 1 and not is_frame) or not ids.ndim:
        return None
    feature = 1 if is_frame else wide[0] if wide else ids.ndim - 1
    places = ids.shape[2] if is_frame else 1
    if name not in graph.delays:
        # All of it; it says its size.
        spec = SliceSpec(places=(0, places), channels=(0, ids.shape[feature]))
        graph.delays[name] = FrameLayer(name, spec, reads=(f"@{name}",))
    labels = {feature: FEATURE} | ({2: _label_of_places(graph, source)} if is_frame else {})
    axes = tuple(
        ((labels.get(k, f"batch{k}"), size),) if size != 1 or k in labels else ()
        for k, size in enumerate(ids.shape)
    )
    time = ONE_STEP if graph.file.is_one_step else ""
    return Signal(source, axes, (graph.delays[name],), name, time)


def _label_of_places(graph: Graph, source: str) -> str:
    """Return the label that places of frames have in a graph that says it is one step."""
    given = graph.values[source]
    return f"{source}.2" if isinstance(given, Signal) and len(given.axes) == 3 else PLACES


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


def over_steps(layers: Sequence[Layer]) -> list[Layer]:
    """Let a memory of one place be a convolution's, where nothing else reads it."""
    made = list(layers)
    for memory in layers:
        if not isinstance(memory, FrameLayer) or not isinstance(memory.spec, MemorySpec):
            continue
        names = (memory.name, memory.name + BEFORE)
        places = [k for k, layer in enumerate(made) if any(n in layer.reads for n in names)]
        readers = [made[k] for k in places]
        is_read = memory.along == PLACES and bool(readers) and memory is not layers[-1]
        if not is_read or not all(_reads_both(layer, memory.name) for layer in readers):
            continue
        for k, layer in zip(places, readers, strict=True):
            assert isinstance(layer, FrameLayer)
            assert isinstance(layer.spec, ConvSpec)
            spec = TimeConvSpec(layer.spec.channels, 2, groups=layer.spec.groups)
            made[k] = replace(layer, spec=spec, reads=memory.reads)
        made.remove(memory)
    return made


def _reads_both(layer: Layer, name: str) -> bool:
    """Whether a layer is a convolution over the two places of a memory."""
    if not isinstance(layer, FrameLayer) or not isinstance(layer.spec, ConvSpec):
        return False
    spec = layer.spec
    return (spec.kernel, spec.dilation, spec.padding, layer.reads) == (2, 1, (0, 0), (name,))
