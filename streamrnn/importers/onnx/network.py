"""Import an ONNX file: make a network of a graph that was followed."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from streamrnn.errors import ModelError, ModelFileError, listed
from streamrnn.importers.build.model import build_model, refuse
from streamrnn.importers.network import (
    Embedding,
    FrameLayer,
    GraphOptions,
    ImportedModel,
    Layer,
    Names,
    Network,
    Recurrent,
    note_on_first_state,
)
from streamrnn.importers.onnx.file import read_onnx_file
from streamrnn.importers.onnx.frames.axes import KEPT, InOneRow, with_channels
from streamrnn.importers.onnx.frames.conv import PlaneConv
from streamrnn.importers.onnx.frames.join import join_signals
from streamrnn.importers.onnx.frames.memory import over_steps, with_delays
from streamrnn.importers.onnx.frames.settle import settle
from streamrnn.importers.onnx.graph import as_signal, follow
from streamrnn.importers.onnx.inputs import Graph
from streamrnn.importers.onnx.patterns import resolve_marks
from streamrnn.importers.onnx.states import check_states, read_first_states, with_first_states
from streamrnn.importers.onnx.values import (
    FEATURE,
    ONE_STEP,
    PLACES,
    NotFollowed,
    Signal,
    Symbols,
    Unknown,
    Value,
)
from streamrnn.model.layers.base import BEFORE, INPUT
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec

__all__ = ["Result", "import_onnx", "result_of", "time_of"]


def import_onnx(
    path: str | os.PathLike[str],
    names: Names,
    options: GraphOptions | None = None,
    *,
    zero_state: bool = False,
) -> ImportedModel:
    """Read an ONNX file with RNN, GRU or LSTM nodes.

    Parameters
    ----------
    path : str or path
        The file; tensors may lie in files beside it.
    names : Names
        Names for inputs and outputs.
    options : GraphOptions or None
        What the graph leaves open.
    zero_state : bool
        Whether a first state other than zeros is left out.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If the file is damaged, or its graph holds what a model cannot: all of that is listed.
    """
    file = read_onnx_file(path)
    options = options or GraphOptions()
    graph = follow(file, options.fixed, options.states)
    if unknown := sorted(set(options.fixed) - graph.fixed):
        raise ModelError(
            f"{file.path} has no graph input and no open axis {listed(unknown)}; it has "
            f"{listed([item.name for item in file.model.graph.input])}"
        )
    outputs = {item.name: graph.values.get(item.name) for item in file.model.graph.output}
    reasons = [
        reason
        for value in outputs.values()
        if isinstance(value, Unknown)
        for reason in value.reasons
    ]
    if reasons:
        raise refuse(file.path, [*reasons, *([graph.unclear] if graph.unclear else [])])
    network = Network(file.path, _source(graph))
    first = read_first_states(file, network.problems.append)
    result = result_of(graph, network, set(first))
    signal, time = result.signal, result.time
    if time not in ("", ONE_STEP, signal.time, *graph.open_axes):
        network.notes.append(
            f"the axis of {_num_steps(graph, signal, time)} steps is taken for time: all "
            "convolutions along it are causal, and the output keeps it"
        )
    layers: Sequence[Layer] = resolve_marks(signal.layers, network.problems.append)
    if first:
        layers = with_first_states(layers, graph, first, network.problems.append)
    layers = settle(layers, (time, KEPT), signal.head, network.problems.append)
    network.layers = over_steps(layers)
    _add_frames(graph, signal, time, network, options.context)
    network.layers = _laid_out(network)
    network.layers = _in_rows(network.layers)
    _count_inputs(graph, signal, time, network)
    _check_input(graph, signal, network)
    if signal.is_last_step:
        network.notes.append(
            f"the file gives the last step alone ({', '.join(map(repr, result.answers))}); the "
            "model gives every step, and the last one is the file's"
        )
        network.gives_last_step = True
    if zero_state:
        network.layers = [
            layer if not isinstance(layer, Recurrent) else _without_first_state(layer, network)
            for layer in network.layers
        ]
    return build_model(network, names)


def time_of(graph: Graph, signal: Signal) -> str:
    """Return the label of the axis that is time; nothing where a graph has none.

    Without recurrent layers that is one whose size is open; or one whose places all give an output,
    where convolutions run along it, all of them causal.
    """
    if signal.time:
        return signal.time
    layers = resolve_marks(signal.layers, lambda _: None)
    frames = [layer for layer in layers if isinstance(layer, FrameLayer) and layer.along]
    along = {layer.along for layer in frames}
    along |= {layer.along_first for layer in frames if isinstance(layer, PlaneConv)}
    if is_open := sorted(graph.open_axes & along):
        return is_open[0]
    given = graph.values[signal.source]
    assert isinstance(given, Signal)
    kept = {axis[0] for axis in signal.axes[1:] if len(axis) == 1 and axis[0][0] in along}
    for axis in given.axes:
        problems: list[str] = []
        if axis and axis[0] in kept:
            settled = settle(layers, (axis[0][0], KEPT), signal.head, problems.append)
            specs = [layer.spec for layer in settled if isinstance(layer, FrameLayer)]
            if not problems and any(isinstance(s, TimeConvSpec) and s.kernel > 1 for s in specs):
                return axis[0][0]
    return ""


@dataclass
class Result:
    """What a graph answers with, and what it keeps."""

    signal: Signal  # its layers, with those whose outputs it keeps
    answers: list[str]  # names of its outputs that are no states, side by side
    states: dict[str, str]  # inputs, each with the output that it is at the next step
    time: str  # label of the axis that is time, if one is


def result_of(graph: Graph, network: Network, begun: Collection[str] = ()) -> Result:
    """Tell answers from states; what does not fit becomes a problem of the network."""
    outputs = {item.name: graph.values.get(item.name) for item in graph.file.model.graph.output}
    states = check_states(graph, outputs, network, begun)
    given_back = {*states.values(), *graph.pairs.values()}
    answers, signal = _answers(graph.file.path, outputs, given_back)
    if len(answers) > 1:
        network.notes.append(f"its outputs are one, side by side: {listed(answers)}")

    def as_value(value: Value | None) -> Value | None:
        return as_signal(graph, "Identity", value)

    signal, delays = with_delays(graph, signal, as_value, outputs, network.problems.append)
    time = time_of(graph, signal)
    if _num_steps(graph, signal, time) != 1:
        network.problems += [
            f"input {name!r} would be {output!r} of the step before, {graph.paired_by}; but the "
            "graph takes many steps at once, so that this input is data"
            for name, output in graph.pairs.items()
            if name not in states
        ]
    for name in delays:
        if states.setdefault(name, graph.pairs[name]) != graph.pairs[name]:
            network.problems.append(f"the state {name!r} is two different ones at the next step")
        network.notes.append(
            f"the state {name!r} is {graph.pairs[name]!r} of the step before, {graph.paired_by}; "
            "it begins with zeros"
        )
    if graph.unclear and graph.state_inputs.keys() - states:
        network.problems.append(graph.unclear)
    return Result(signal, answers, states, time)


def _num_steps(graph: Graph, signal: Signal, time: str) -> int:
    given = graph.values[signal.source]
    assert isinstance(given, Signal)
    return next((size for axis in given.axes for label, size in axis if label == time), 1)


def _answers(
    path: str, outputs: Mapping[str, Value | None], given_back: set[str]
) -> tuple[list[str], Signal]:
    """Find the outputs that are no states; a cell alone gives its state as its output."""
    signals = {name: value for name, value in outputs.items() if isinstance(value, Signal)}
    if not signals and any(isinstance(value, Symbols) for value in outputs.values()):
        raise ModelFileError(
            f"{path}: its outputs are final states alone ({listed(list(outputs))}); export the "
            "output of every step too"
        )
    own = {name: value for name, value in signals.items() if name not in given_back}
    found = own or signals
    names = list(found)
    # Outputs of one layer are the same numbers; a bias may be in a layer of the same name.
    layers = {(value.head, id(value.last)) for value in found.values()}
    if len(layers) == 1 or (found and not own):
        return names[:1], found[names[0]]
    try:
        return names, _side_by_side(_told_apart(found))
    except NotFollowed as error:
        raise ModelFileError(
            f"{path}: {len(found)} of its outputs are computed from its input "
            f"({listed(names) or 'none'}), and cannot be one: {error}"
        ) from error


def _told_apart(signals: Mapping[str, Signal]) -> list[Signal]:
    """Give layers of one name that are not the same, as with and without a bias, other names."""
    known: dict[str, Layer] = {}
    made = []
    for name, signal in signals.items():
        others = {
            layer.name: f"{layer.name} of {name}"
            for layer in signal.layers
            if known.get(layer.name, layer) is not layer and not isinstance(layer, Recurrent)
        }
        layers = tuple(_renamed(layer, others) for layer in signal.layers)
        known |= {layer.name: layer for layer in layers}
        made.append(replace(signal, layers=layers, head=others.get(signal.head, signal.head)))
    return made


def _renamed(layer: Layer, others: Mapping[str, str]) -> Layer:
    bare = [read.removesuffix(BEFORE) for read in layer.reads]
    if layer.name not in others and not others.keys() & set(bare):
        return layer
    reads = tuple(
        others.get(name, name) + read[len(name) :]
        for name, read in zip(bare, layer.reads, strict=True)
    )
    return replace(layer, name=others.get(layer.name, layer.name), reads=reads)


def _side_by_side(signals: list[Signal]) -> Signal:
    if not signals:
        raise NotFollowed("there is none")
    rank = max(len(signal.axes) for signal in signals)
    whole = [
        signal if len(signal.axes) == rank else replace(signal, axes=(*signal.axes, ()))
        for signal in signals
    ]
    axes = {signal.find(FEATURE) for signal in whole if signal.find(FEATURE) is not None}
    axes = {k for k in axes if k is not None and k} if len(axes) > 1 else axes
    k = next(iter(axes), None)
    if len(axes) != 1 or k is None:
        raise NotFollowed("their features lie along different axes")
    alone = [
        signal if signal.find(FEATURE) == k else with_channels(signal, k, 1) for signal in whole
    ]
    return join_signals("Concat", "outputs", alone, k)


def _laid_out(network: Network) -> list[Layer]:
    """Lay a frame out where its places are features, and leave that out where they are already."""
    layers: list[Layer] = []
    moved: dict[str, str] = {}
    length, channels = network.input_shape or (0, 0)
    for layer in network.layers:
        if not isinstance(layer, InOneRow):
            reads = tuple(moved.get(name, name) for name in layer.reads)
            layers.append(replace(layer, reads=reads))
        elif channels == 1 and network.layers[0].name != "context":
            layers += layer.in_frames(length)
        else:
            moved[layer.name] = layer.reads[0]
    return layers


def _in_rows(layers: Sequence[Layer]) -> list[Layer]:
    """Leave out what a layer reads where that is the layer before it."""
    before = (INPUT, *(layer.name for layer in layers))
    return [
        replace(layer, reads=() if layer.reads == (name,) else layer.reads)
        for name, layer in zip(before, layers, strict=False)
    ]


def _add_frames(graph: Graph, signal: Signal, time: str, network: Network, context: int) -> None:
    """Give the network an input with a shape, where layers run along the places of a frame."""
    labels = {
        layer.along for layer in network.layers if isinstance(layer, FrameLayer) and layer.along
    } - {time, KEPT, PLACES}
    given = graph.values[signal.source]
    assert isinstance(given, Signal)
    sizes = {label: size for axis in given.axes for label, size in axis}
    is_told = graph.file.is_one_step and len(given.axes) == 3
    labels |= {label for label, _ in given.axes[2]} if is_told else set()
    is_frame = is_told or any(
        isinstance(layer, FrameLayer)
        and layer.along in labels
        and not isinstance(layer.spec, TimeConvSpec)
        and not isinstance(layer, InOneRow)
        for layer in network.layers
    )
    if not is_frame:
        if context:
            network.problems.append("--context is for networks that take a frame a step")
        return
    [label] = labels if len(labels) == 1 else [""]
    if not label or label in graph.open_axes:
        network.problems.append(
            "it runs along several axes of its input, or one whose size is open: say how many "
            "places a frame has with --set AXIS=NUMBER"
        )
        return
    gone = {label, time, *graph.open_axes}
    channels = math.prod(size for name, size in sizes.items() if name not in gone)
    if not 0 <= context < sizes[label]:
        network.problems.append(f"--context {context} leaves nothing of {sizes[label]} places")
        return
    network.input_shape = (sizes[label] - context, channels)
    if channels > 1:
        network.notes.append(
            f"the input is [{channels}, {sizes[label]}] in the file; a step brings the places, "
            "each with its channels"
        )
    if context:
        memory = FrameLayer("context", MemorySpec(context), reads=(INPUT,))
        network.layers = [
            memory,
            *(
                replace(layer, reads=tuple("context" if r == INPUT else r for r in layer.reads))
                for layer in network.layers
            ),
        ]
        network.notes.append(f"the last {context} places of the frame before stand before each")


def _count_inputs(graph: Graph, signal: Signal, time: str, network: Network) -> None:
    """Say how many inputs there are, for the first layer may not."""
    given = graph.values[signal.source]
    assert isinstance(given, Signal)
    labels = {label for label, _ in given.axes[-1]} if given.axes else {time}
    if not network.input_shape and not labels & {time, *graph.open_axes}:
        network.num_inputs = given.shape[-1]
        if given.shape[-1] == 1 and time not in {label for axis in given.axes for label, _ in axis}:
            sizes = [size for axis in given.axes[1:] for _, size in axis]
            network.num_inputs = math.prod(sizes)
    elif not network.input_shape and labels == {time} and len(given.axes) in (2, 3):
        network.num_inputs = given.shape[1] if len(given.axes) == 3 else 1


def _source(graph: Graph) -> str:
    producer = str(graph.file.model.producer_name)[:40]
    return f"ONNX opset {graph.file.opset}" + (f" of {producer}" if producer else "")


def _without_first_state(layer: Recurrent, network: Network) -> Recurrent:
    if not layer.first:
        return layer
    names = [name for key, name in layer.origins.items() if key.startswith("first_")]
    network.notes.append(note_on_first_state(listed(names)))
    return replace(layer, first=())


def _check_input(graph: Graph, signal: Signal, network: Network) -> None:
    """Check that the input is of whole numbers if and only if an embedding looks it up."""
    others = [
        name
        for name, value in graph.values.items()
        if isinstance(value, Signal)
        and not value.layers
        and value.source == name
        and name != signal.source
    ]
    if others:
        network.notes.append(f"inputs that do not reach the output: {listed(others)}")
    item = next(item for item in graph.file.model.graph.input if item.name == signal.source)
    is_whole = item.type.tensor_type.elem_type in (6, 7)
    has_embedding = any(isinstance(layer, Embedding) for layer in signal.layers)
    if is_whole != has_embedding:
        kind = "whole numbers" if is_whole else "floats"
        network.problems.append(
            f"input {signal.source!r} is of {kind}, and "
            + ("an embedding looks it up" if has_embedding else "no embedding looks it up")
        )
