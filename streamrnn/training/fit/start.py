"""Weights of a model, trained or imported before, for a training to begin with.

The network begins as the same function of the inputs in the user's units: where the new data have
other centers and scales, these are folded into the first matrices and the head.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import TrainingError, listed
from streamrnn.model.graph import Read
from streamrnn.model.io_spec import InputSpec, OutputSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec, ModelSpec

__all__ = ["starting_weights"]

Doubles = NDArray[np.float64]


def starting_weights(path: str, spec: ModelSpec) -> dict[str, Doubles]:
    """Return the weights of a model's file for a network of another description, by name.

    Raises `ModelFileError` if it cannot be read, `TrainingError` if the two do not fit.
    """
    model = Model.load(path)
    try:
        _check(model.spec, spec)
    except ValueError as error:
        raise TrainingError(f"start_from {path}: {error}") from None
    inputs = {was.name: now.name for was, now in zip(model.spec.inputs, spec.inputs, strict=True)}
    weights = {}
    for name, value in model.parameters.items():
        if name.startswith("embedding."):
            own = name.removeprefix("embedding.").removesuffix(".weight")
            name = f"embedding.{inputs[own]}.weight"
        weights[name] = value.astype(np.float64)
    _fold_inputs(model.spec, spec, weights)
    _fold_outputs(model.spec, spec, weights)
    return weights


def _check(old: ModelSpec, new: ModelSpec) -> None:
    """Raise `ValueError` unless a model's weights can be those of a network."""
    _check_names("input", old, [i.name for i in old.inputs], [i.name for i in new.inputs])
    _check_names("output", old, [o.name for o in old.outputs], [o.name for o in new.outputs])
    for k, (was, now) in enumerate(zip(old.inputs, new.inputs, strict=True), start=1):
        if (given := _form_of(was, old)) != (expected := _form_of(now, new)):
            raise ValueError(
                f"its input {k}, {was.name!r}, is {given}; the training's, {now.name!r}, is "
                f"{expected}"
            )
    own, asked = _layers_of(old), _layers_of(new)
    if own != asked or old.graph.reads != new.graph.reads or old.mask_value is not None:
        raise ValueError(
            f"its layers are {own}, the training's {asked}; they must be the same (--layers, "
            "--feedback), without other forms or a mask"
        )
    heads = [each.head.activation if each.head else "none" for each in (old, new)]
    if heads[0] != heads[1]:
        raise ValueError(
            f"its head's activation is {heads[0]}, the training's {heads[1]} (--loss decides)"
        )
    for was_output, output in zip(old.outputs, new.outputs, strict=True):
        if (was_output.difference_of is None) != (output.difference_of is None):
            raise ValueError(
                f"output {output.name!r} is learned as a change in one of them alone "
                "(--difference-target, --difference)"
            )


def _check_names(kind: str, old: ModelSpec, own: list[str], asked: list[str]) -> None:
    """Compare names; an imported model's, which are none of the data's, stand for their places."""
    are_placeholders = "config" not in old.training and not set(own) & set(asked)
    if len(own) != len(asked) or (own != asked and not are_placeholders):
        raise ValueError(
            f"its {kind}s are {listed(own)}; the training's are {listed(asked)}: they must be the "
            "same, in the same order (--inputs, --predict, --horizon)"
        )


def _form_of(item: InputSpec, spec: ModelSpec) -> str:
    """Tell what an input's features are, apart from centers and scales."""
    if item.kind != "numeric":
        seen = f"an embedding of {item.embedding_size}" if item.embedding_size else "one-hot"
        names = f" ({listed(item.categories)})" if item.categories else ""
        return f"{item.num_categories} categories{names} as {seen}"
    parts = ["the change of a number" if item.difference else "a number"]
    if item.missing == "mask":
        parts.append("with a mask of what is missing")
    if item.shape:
        parts.append(f"of the shape {item.shape}")
    return " ".join(parts)


def _layers_of(spec: ModelSpec) -> str:
    texts = [
        f"{layer.cell}:{layer.hidden_size}"
        if isinstance(layer, LayerSpec) and layer.is_plain
        else layer.describe()
        for layer in spec.layers
    ]
    return ",".join(texts)


def _fold_inputs(old: ModelSpec, new: ModelSpec, weights: dict[str, Doubles]) -> None:
    """Let every matrix that reads the features read those of other centers and scales."""
    gains, shifts = np.ones(new.num_features), np.zeros(new.num_features)
    start = 0
    for was, now in zip(old.inputs, new.inputs, strict=True):
        if now.kind == "numeric":
            gains[start] = now.scale / was.scale
            shifts[start] = (_center(now) - _center(was)) / was.scale
        start += now.num_features
    for k, reads in enumerate(new.graph.reads):
        column = 0
        for read in reads:
            length, channels = new.graph.shape_of(read)
            if read == Read(-1):
                matrix = weights[f"weight_ih_l{k}"][:, column : column + len(gains)]
                weights[f"bias_ih_l{k}"] += matrix @ shifts
                matrix *= gains
            column += length * channels


def _fold_outputs(old: ModelSpec, new: ModelSpec, weights: dict[str, Doubles]) -> None:
    """Let the head give outputs of other centers and scales."""
    pairs = list(zip(old.outputs, new.outputs, strict=True))
    gains = np.array([was.scale / now.scale for was, now in pairs])
    shifts = np.array([(_center(was) - _center(now)) / now.scale for was, now in pairs])
    if len(new.layers) in new.graph.kept and (np.any(gains != 1.0) or shifts.any()):
        raise TrainingError(
            "start_from: outputs of another center or scale cannot be learned by a network that "
            "reads its own head (--feedback); train on data of the same center and scale"
        )
    weights["head.weight"] *= gains[:, None]
    weights["head.bias"] = weights["head.bias"] * gains + shifts


def _center(item: InputSpec | OutputSpec) -> float:
    """Return a center in the user's units; of changes an origin is no part."""
    is_change = item.difference if isinstance(item, InputSpec) else item.difference_of is not None
    return item.center + (0.0 if is_change else item.origin)
