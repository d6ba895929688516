"""Put layers together: the description of a model, its parameters, and what each was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError, SpecError
from streamrnn.importers.build.folding import split_bias
from streamrnn.importers.network import (
    Activation,
    Dense,
    Embedding,
    FrameLayer,
    Layer,
    Names,
    Network,
    Recurrent,
    Scale,
)
from streamrnn.model.graph import Graph
from streamrnn.model.layers.base import BEFORE, INPUT
from streamrnn.model.layers.base import Layer as SpecLayer
from streamrnn.model.layers.frame import ActivationSpec, DenseSpec, ScaleSpec
from streamrnn.model.spec import (
    ACTIVATIONS,
    CELLS,
    HeadSpec,
    InputSpec,
    LayerSpec,
    ModelSpec,
    OutputSpec,
)

__all__ = ["assemble"]

Array = NDArray[Any]


def assemble(
    layers: Sequence[Layer], network: Network, names: Names
) -> tuple[ModelSpec, dict[str, Array], dict[str, str]]:
    """Return a description, parameters, and what each of these was made of.

    Raises `ModelFileError` if two layers do not fit, `SpecError` if the names do not.
    """
    rest = list(layers)
    embedding, scale, head = None, None, _head_of_chain(layers)
    if rest and isinstance(rest[0], Embedding):
        embedding = rest[0]
        rest = _without(embedding.name, rest[1:])
    if len(rest) > 1 and isinstance(rest[0], Scale) and _is_input_scale(rest[0], rest, network):
        scale = rest[0]
        rest = _without(scale.name, rest[1:])
    if head is not None:
        rest.pop()
    _check_sizes(network, embedding, rest, head)
    inputs = _inputs(names, network, embedding, scale, rest)
    parameters: dict[str, Array] = {}
    became: dict[str, str] = {}
    if embedding is not None:
        name = f"embedding.{inputs[0].name}.weight"
        parameters[name] = embedding.weight
        became[name] = embedding.origins.get("weight", embedding.name)
    specs = _specs(rest)
    probe = ModelSpec(tuple(inputs), (*specs, DenseSpec(1)), (OutputSpec("y"),))
    for k, layer in enumerate(rest):
        arrays, origins = _arrays_of(layer)
        if isinstance(layer, Scale) and layer.gain.size == 1:  # for all channels
            channels = probe.graph.shape_of_joined(k)[1]
            arrays = {name: np.broadcast_to(value, channels) for name, value in arrays.items()}
        parameters |= {f"{name}_l{k}": value for name, value in arrays.items()}
        became |= {f"{name}_l{k}": origins.get(name, "nothing (zeros)") for name in arrays}
    outputs = _outputs(names, probe.graph, head)
    if head is not None:
        bias, centers = split_bias(head)
        outputs = [
            replace(output, center=float(center))
            for output, center in zip(outputs, centers, strict=True)
        ]
        parameters |= {"head.weight": head.weight, "head.bias": bias}
        for name in ("weight", "bias"):
            became[f"head.{name}"] = head.origins.get(name, "nothing (zeros)")
        if centers.any():
            became["head.bias"] += " (large ones as the outputs' centres, added last)"
    parameters = {name: value.astype(np.float32) for name, value in parameters.items()}
    spec = ModelSpec(
        inputs=tuple(inputs),
        layers=tuple(specs),
        outputs=tuple(outputs),
        head=None if head is None else HeadSpec(head.activation),
        mask_value=network.mask_value,
    )
    return spec, parameters, became


def _without(name: str, layers: list[Layer]) -> list[Layer]:
    """Let those who read a layer that became the input read the input."""
    return [
        replace(layer, reads=tuple(INPUT if read == name else read for read in layer.reads))
        for layer in layers
    ]


def _is_input_scale(first: Scale, layers: Sequence[Layer], network: Network) -> bool:
    """Whether the first layer can be the inputs' own centres and scales.

    An input's own centre is subtracted before anything is rounded. Nothing else reads the input,
    nor what it was at the step before.
    """
    return (
        not network.input_shape
        and bool((first.gain > 0).all())
        and not any({INPUT, first.name + BEFORE} & {*layer.reads} for layer in layers[1:])
    )


def _head_of_chain(layers: Sequence[Layer]) -> Dense | None:
    """Return the head of a plain stack of recurrent layers, which every device computes."""
    *stack, last = layers
    while stack and isinstance(stack[0], Embedding | Scale):
        stack.pop(0)
    is_chain = bool(stack) and all(isinstance(each, Recurrent) and not each.reads for each in stack)
    is_head = isinstance(last, Dense) and last.activation in ACTIVATIONS and not last.reads
    return last if is_chain and is_head and isinstance(last, Dense) else None


def _check_sizes(
    network: Network, embedding: Embedding | None, layers: Sequence[Layer], head: Dense | None
) -> None:
    """In a row of layers each takes what the one before it gives."""
    before: tuple[str, int] | None = None
    if embedding is not None:
        before = (embedding.name, embedding.weight.shape[1])
    for layer in (*layers, *(() if head is None else (head,))):
        takes, gives = _columns(layer), _rows(layer)
        if before is not None and takes is not None and not layer.reads and before[1] != takes:
            raise ModelFileError(
                f"{network.path}: {layer.name!r} takes {takes} values, but {before[0]!r} before "
                f"it gives {before[1]}"
            )
        if gives is not None:
            before = (layer.name, gives)
        elif not isinstance(layer, Activation | Scale):
            before = None  # the description checks it


def _columns(layer: Layer) -> int | None:
    if isinstance(layer, Recurrent):
        return layer.weight_ih.shape[1]
    return layer.weight.shape[1] if isinstance(layer, Dense) else None


def _rows(layer: Layer) -> int | None:
    if isinstance(layer, Recurrent):
        return layer.weight_hh.shape[1]
    return layer.weight.shape[0] if isinstance(layer, Dense) else None


def _inputs(
    names: Names,
    network: Network,
    embedding: Embedding | None,
    scale: Scale | None,
    layers: Sequence[Layer],
) -> list[InputSpec]:
    if embedding is not None:
        (name,) = _named(names.inputs, 1, "input", ["token"])
        num_categories, size = embedding.weight.shape
        return [InputSpec(name, kind="token", num_categories=num_categories, embedding_size=size)]
    if network.input_shape:
        (name,) = _named(names.inputs, 1, "input", ["frame"])
        return [InputSpec(name, shape=network.input_shape)]
    columns = network.num_inputs or _num_columns(layers, network.path)
    chosen = _named(names.inputs, columns, "input", [f"x{i}" for i in range(columns)])
    if scale is None:
        return [InputSpec(name) for name in chosen]
    gains = np.broadcast_to(scale.gain.astype(np.float64), columns)
    shifts = np.broadcast_to(scale.shift.astype(np.float64), columns)
    return [
        InputSpec(name, center=float(-shift / gain), scale=float(1 / gain))
        for name, gain, shift in zip(chosen, gains, shifts, strict=True)
    ]


def _num_columns(layers: Sequence[Layer], path: str) -> int:
    """Return how many inputs the layers that read them take."""
    for k, layer in enumerate(layers):
        reads_input = layer.reads == (INPUT,) or (not layer.reads and k == 0)
        columns = _columns(layer)
        if reads_input and columns is not None:
            return columns
        if reads_input and isinstance(layer, Scale) and layer.gain.size > 1:
            return layer.gain.size
        if reads_input and isinstance(layer, FrameLayer) and "weight" in layer.arrays:
            weight = layer.arrays["weight"]  # of a norm one for each input
            if weight.ndim == 1:
                return int(weight.shape[0])
            return int(weight.shape[1]) * int(getattr(layer.spec, "groups", 1))
    raise ModelFileError(f"{path}: it does not say how many inputs it takes")


def _specs(layers: Sequence[Layer]) -> list[SpecLayer]:
    """Describe the layers; those that others read by name get one."""
    numbers = {layer.name: k for k, layer in enumerate(layers)}
    named: dict[int, str] = {}

    def read_name(read: str, k: int) -> str:
        bare = read.removesuffix(BEFORE)
        if bare == INPUT:
            return read
        if bare not in numbers:
            raise SpecError(f"layer {layers[k].name!r} reads {bare!r}, which is not there")
        number = numbers[bare]
        if number not in named:
            clean = bare.replace("[", "(").replace("]", ")") or f"layer{number}"
            taken = {INPUT, *named.values()}
            named[number] = clean if clean not in taken else f"{clean}.{number}"
        return named[number] + read[len(bare) :]

    reads: list[tuple[str, ...]] = []
    for k, layer in enumerate(layers):
        before = layers[k - 1].name if k else INPUT
        is_next = layer.reads == (before,)
        reads.append(() if is_next else tuple(read_name(read, k) for read in layer.reads))
    return [
        replace(_spec(layer), name=named.get(k, ""), reads=reads[k])
        for k, layer in enumerate(layers)
    ]


def _spec(layer: Layer) -> SpecLayer:
    match layer:
        case Recurrent():
            return _recurrent_spec(layer)
        case Dense():
            return DenseSpec(layer.weight.shape[0], layer.activation, layer.slope)
        case Activation():
            return ActivationSpec(layer.kind, layer.slope)
        case Scale():
            return ScaleSpec()
        case FrameLayer():
            spec: SpecLayer = layer.spec
            reads = layer.reads or spec.reads  # a mix is described with what it reads
            return replace(spec, reads=reads)
    raise SpecError(f"{layer.name!r} (an embedding) is not the first layer")


def _recurrent_spec(layer: Recurrent) -> LayerSpec:
    hidden_size = layer.weight_hh.shape[1]
    projection_size = 0
    if layer.weight_hr is not None:
        projection_size, hidden_size = layer.weight_hr.shape
    return LayerSpec(
        layer.cell,
        hidden_size,
        reset_after=layer.reset_after,
        projection_size=projection_size,
        peepholes=layer.peepholes is not None,
        gate_activation=layer.gate_activation,
        cell_activation=layer.cell_activation,
        output_activation=layer.output_activation,
        first_state=bool(layer.first),
    )


def _arrays_of(layer: Layer) -> tuple[dict[str, Array], dict[str, str]]:
    """Return a layer's parameters, without its number, and what each was made of."""
    match layer:
        case Recurrent():
            return _fields_of(layer), layer.origins
        case Dense():
            return {"weight": layer.weight, "bias": layer.bias}, layer.origins
        case Scale():
            origins = {"weight": layer.name, "bias": layer.name}
            return {"weight": layer.gain, "bias": layer.shift}, origins
        case FrameLayer():
            return dict(layer.arrays), layer.origins
    return {}, {}


def _outputs(names: Names, graph: Graph, head: Dense | None) -> list[OutputSpec]:
    length, channels = graph.shapes[-2] if head is None else (1, head.weight.shape[0])
    if length > 1:
        (name,) = _named(names.outputs, 1, "output", ["frame"])
        return [OutputSpec(name, shape=(length, channels))]
    chosen = _named(names.outputs, channels, "output", [f"y{o}" for o in range(channels)])
    return [OutputSpec(name) for name in chosen]


def _fields_of(layer: Recurrent) -> dict[str, Array]:
    fields = {
        name: getattr(layer, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    if layer.weight_hr is not None:
        fields["weight_hr"] = layer.weight_hr
    if layer.peepholes is not None:
        fields |= dict(zip(("weight_ci", "weight_cf", "weight_co"), layer.peepholes, strict=True))
    for name, value in zip(CELLS[layer.cell].states, layer.first, strict=False):
        fields[f"first_{name}"] = value
    return fields


def _named(
    given: Sequence[str] | None, count: int, what: str, default: Sequence[str]
) -> Sequence[str]:
    if given is None:
        return default
    if len(given) != count:
        raise SpecError(
            f"--{what}s names {len(given)} {what}s ({', '.join(given)}); the model has {count}"
        )
    return given
