"""Turn what an importer has read into a model, or say all that a model cannot hold.

A model is an input, recurrent layers and a head. More can be said with that: a product without
activation is multiplied into the matrix after it, and a dense layer with relu or tanh is a simple
recurrent layer whose recurrent matrix is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError, ModelFileError, SpecError
from streamrnn.importers.network import (
    Activation,
    Dense,
    Embedding,
    ImportedModel,
    Layer,
    Names,
    Network,
    Recurrent,
    Scale,
    zeros,
)
from streamrnn.model.model import Model
from streamrnn.model.spec import (
    ACTIVATIONS,
    MAX_LAYERS,
    HeadSpec,
    InputSpec,
    LayerSpec,
    ModelSpec,
    OutputSpec,
)

__all__ = ["build_model", "refuse"]

Array = NDArray[Any]
_MAX_FOLDED = 1 << 26  # elements of a matrix product that folds two layers
_SIMPLE = {"relu": "rnn_relu", "tanh": "rnn_tanh"}


@np.errstate(all="ignore")  # the model refuses what overflows, by name
def build_model(network: Network, names: Names) -> ImportedModel:
    """Make a model of a network.

    Raises `ModelFileError` with everything that a model cannot hold, `ModelError` if the names do
    not fit.
    """
    path = network.path
    layers = _fold(_join_activations(network), network)
    embedding = center_scale = head = None
    if layers and isinstance(layers[0], Embedding):
        embedding, layers = layers[0], layers[1:]
    if layers and isinstance(layers[0], Scale):
        center_scale, layers = layers[0], layers[1:]
    if layers and isinstance(layers[-1], Dense) and layers[-1].activation in ACTIVATIONS:
        head, layers = layers[-1], layers[:-1]
    stack = _as_recurrent(layers, network)
    if not any(isinstance(layer, Recurrent) for layer in network.layers) and not network.problems:
        network.problems.append("it holds no recurrent layer, so there is nothing to stream")
    if len(stack) > MAX_LAYERS:
        network.problems.append(f"it needs {len(stack)} layers; a model has at most {MAX_LAYERS}")
    network.problems += [
        f"{layer.name!r} has a trained first state ({layer.first_state}): streams of a model begin "
        "with zeros (--first-state zeros leaves it out, and the first steps will differ)"
        for layer in stack
        if layer.first_state
    ]
    if network.problems:
        raise refuse(path, network.problems)
    _check_sizes(path, embedding, center_scale, stack, head)
    try:
        inputs = _inputs(names, embedding, center_scale, stack[0])
        spec, parameters, became = _assemble(inputs, stack, embedding, head, names)
        spec = replace(
            spec,
            training={"imported_from": network.source, "tensors": became, "notes": network.notes},
        )
        model = Model(spec, parameters)
    except SpecError:
        raise
    except ModelError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return ImportedModel(model, network.notes, became, network.source, network.holds_graph)


def refuse(path: str, problems: Iterable[str]) -> ModelFileError:
    """Word one refusal that lists everything."""
    listed = list(dict.fromkeys(problems))
    if len(listed) == 1:
        return ModelFileError(f"{path}: {listed[0]}")
    return ModelFileError(
        f"{path} cannot be imported:" + "".join(f"\n  - {problem}" for problem in listed)
    )


def _join_activations(network: Network) -> list[Layer]:
    """Let every activation belong to the dense layer before it, one of its own if there is none."""
    joined: list[Layer] = []
    for layer in network.layers:
        if not isinstance(layer, Activation):
            joined.append(layer)
            continue
        if layer.kind == "identity":
            continue
        last = joined[-1] if joined else None
        if isinstance(last, Dense) and last.activation == "identity":
            joined[-1] = replace(last, activation=layer.kind)
        elif (size := _output_size(last)) is None:
            network.problems.append(f"{layer.name!r} ({layer.kind}) stands before every layer")
        else:
            unit = np.eye(size, dtype=np.float32)
            joined.append(Dense(layer.name, unit, zeros(size), {}, layer.kind))
    return joined


def _output_size(layer: Layer | None) -> int | None:
    if isinstance(layer, Recurrent):
        return layer.weight_hh.shape[1]
    if isinstance(layer, Embedding):
        return layer.weight.shape[1]
    if isinstance(layer, Dense):
        return layer.weight.shape[0]
    return layer.gain.shape[0] if isinstance(layer, Scale) else None


def _fold(layers: list[Layer], network: Network) -> list[Layer]:
    """Multiply products without activation into what follows them."""
    folded: list[Layer] = []
    for layer in layers:
        last = folded[-1] if folded else None
        if isinstance(layer, Scale) and isinstance(last, Dense) and last.activation == "identity":
            weight = last.weight * layer.gain.astype(np.float64)[:, None]
            bias = last.bias.astype(np.float64) * layer.gain + layer.shift
            folded[-1] = replace(last, weight=weight, bias=bias)
            network.notes.append(f"multiplied {layer.name!r} into {last.name!r}")
        elif isinstance(layer, Scale) and isinstance(last, Scale):
            folded[-1] = Scale(
                layer.name, last.gain * layer.gain, last.shift * layer.gain + layer.shift
            )
        elif isinstance(layer, Dense | Recurrent) and _folds(
            last, layer, is_first=len(folded) == 1
        ):
            assert isinstance(last, Dense | Scale)
            folded[-1] = _folded(last, layer)
            network.notes.append(f"multiplied {last.name!r} into {layer.name!r}")
        else:
            folded.append(layer)
    return folded


def _folds(last: Layer | None, layer: Dense | Recurrent, *, is_first: bool) -> bool:
    columns = _columns(layer)
    if isinstance(last, Scale):
        # An input's own centre is subtracted before anything is rounded: better than a fold.
        return last.gain.shape[0] == columns and not (is_first and (last.gain > 0).all())
    if not isinstance(last, Dense) or last.activation != "identity":
        return False
    rows = (layer.weight if isinstance(layer, Dense) else layer.weight_ih).shape[0]
    return last.weight.shape[0] == columns and rows * last.weight.shape[1] <= _MAX_FOLDED


def _folded(last: Dense | Scale, layer: Dense | Recurrent) -> Dense | Recurrent:
    wide = (layer.weight if isinstance(layer, Dense) else layer.weight_ih).astype(np.float64)
    if isinstance(last, Scale):
        weight, shift = wide * last.gain, wide @ last.shift.astype(np.float64)
        origins: dict[str, str] = {}
    else:
        weight = wide @ last.weight.astype(np.float64)
        shift = wide @ last.bias.astype(np.float64)
        origins = last.origins
    before = ", ".join(dict.fromkeys(origins.values())) or last.name
    if isinstance(layer, Dense):
        theirs = {name: f"{text}, {before}" for name, text in layer.origins.items()}
        return replace(layer, weight=weight, bias=layer.bias + shift, origins=theirs)
    theirs = layer.origins | {
        name: f"{layer.origins.get(name, 'nothing (zeros)')}, {before}"
        for name in ("weight_ih", "bias_ih")
    }
    return replace(layer, weight_ih=weight, bias_ih=layer.bias_ih + shift, origins=theirs)


def _columns(layer: Dense | Recurrent) -> int:
    return (layer.weight if isinstance(layer, Dense) else layer.weight_ih).shape[1]


def _as_recurrent(layers: Sequence[Layer], network: Network) -> list[Recurrent]:
    """Express every layer as a recurrent one, or note why it cannot be."""
    stack = []
    for layer in layers:
        if isinstance(layer, Recurrent):
            stack.append(layer)
        elif isinstance(layer, Dense) and layer.activation in _SIMPLE:
            size = layer.weight.shape[0]
            stack.append(
                Recurrent(
                    layer.name,
                    _SIMPLE[layer.activation],
                    layer.weight,
                    np.zeros((size, size), np.float32),
                    layer.bias,
                    zeros(size),
                    {"weight_ih": layer.name, "bias_ih": layer.name}
                    | {
                        name.replace("weight", "weight_ih").replace("bias", "bias_ih"): text
                        for name, text in layer.origins.items()
                    },
                )
            )
            network.notes.append(
                f"{layer.name!r} ({layer.activation}) is computed as a simple recurrent layer "
                "whose recurrent matrix is zero"
            )
        elif isinstance(layer, Dense):
            network.problems.append(
                f"{layer.name!r} has the activation {layer.activation}; a model has "
                f"{', '.join(_SIMPLE)} anywhere, and {', '.join(ACTIVATIONS)} at its end"
            )
        else:
            network.problems.append(
                f"{layer.name!r} ({type(layer).__name__.lower()}) stands where a model has none"
            )
    return stack


def _check_sizes(
    path: str,
    embedding: Embedding | None,
    scale: Scale | None,
    stack: Sequence[Recurrent],
    head: Dense | None,
) -> None:
    """Every layer takes what the one before it gives."""
    before: tuple[str, int] | None = None
    if embedding is not None:
        before = (embedding.name, embedding.weight.shape[1])
    if scale is not None:
        before = (scale.name, scale.gain.shape[0])
    for layer in (*stack, *(() if head is None else (head,))):
        if before is not None and before[1] != _columns(layer):
            raise ModelFileError(
                f"{path}: {layer.name!r} takes {_columns(layer)} values, but {before[0]!r} before "
                f"it gives {before[1]}"
            )
        before = (layer.name, _output_size(layer) or 0)


def _inputs(
    names: Names, embedding: Embedding | None, scale: Scale | None, first: Recurrent
) -> list[InputSpec]:
    if embedding is not None:
        (name,) = _named(names.inputs, 1, "input", ["token"])
        num_categories, size = embedding.weight.shape
        return [InputSpec(name, kind="token", num_categories=num_categories, embedding_size=size)]
    columns = first.weight_ih.shape[1]
    chosen = _named(names.inputs, columns, "input", [f"x{i}" for i in range(columns)])
    if scale is None:
        return [InputSpec(name) for name in chosen]
    gains, shifts = scale.gain.astype(np.float64), scale.shift.astype(np.float64)
    return [
        InputSpec(name, center=float(-shift / gain), scale=float(1 / gain))
        for name, gain, shift in zip(chosen, gains, shifts, strict=True)
    ]


def _assemble(
    inputs: list[InputSpec],
    stack: Sequence[Recurrent],
    embedding: Embedding | None,
    head: Dense | None,
    names: Names,
) -> tuple[ModelSpec, dict[str, Array], dict[str, str]]:
    parameters: dict[str, Array] = {}
    became: dict[str, str] = {}
    if embedding is not None:
        name = f"embedding.{inputs[0].name}.weight"
        parameters[name] = embedding.weight
        became[name] = embedding.origins.get("weight", embedding.name)
    for k, layer in enumerate(stack):
        fields = _fields_of(layer)
        parameters |= {f"{name}_l{k}": value for name, value in fields.items()}
        became |= {f"{name}_l{k}": layer.origins.get(name, "nothing (zeros)") for name in fields}
    num_outputs = _output_size(stack[-1] if head is None else head) or 0
    chosen = _named(names.outputs, num_outputs, "output", [f"y{o}" for o in range(num_outputs)])
    outputs = [OutputSpec(name) for name in chosen]
    if head is not None:
        bias, centers = _split_bias(head)
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
        layers=tuple(_layer_spec(layer) for layer in stack),
        outputs=tuple(outputs),
        head=None if head is None else HeadSpec(head.activation),
    )
    return spec, parameters, became


def _fields_of(layer: Recurrent) -> dict[str, Array]:
    fields = {
        name: getattr(layer, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    if layer.weight_hr is not None:
        fields["weight_hr"] = layer.weight_hr
    if layer.peepholes is not None:
        fields |= dict(zip(("weight_ci", "weight_cf", "weight_co"), layer.peepholes, strict=True))
    return fields


def _layer_spec(layer: Recurrent) -> LayerSpec:
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
    )


def _split_bias(head: Dense) -> tuple[Array, NDArray[np.float64]]:
    """Let a bias that outweighs all products be added last, as the output's centre.

    A head adds its bias first: every product after it is rounded at the bias's size.
    """
    bias = head.bias.astype(np.float64)
    centers = np.zeros_like(bias)
    if head.activation == "identity":
        large = np.abs(bias) > np.abs(head.weight.astype(np.float64)).sum(axis=1)
        large &= np.abs(bias) < np.finfo(np.float32).max
        centers = np.where(large, bias, 0.0)
        bias = np.where(large, 0.0, bias)
    return bias, centers


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
