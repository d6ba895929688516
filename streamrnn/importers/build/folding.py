"""Simplify a network before it becomes a model: activations and products that fold into others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import (
    Activation,
    Dense,
    FrameLayer,
    Layer,
    Recurrent,
    Scale,
)
from streamrnn.model.layers.base import BEFORE
from streamrnn.model.layers.frame import ConvSpec
from streamrnn.model.layers.memory import TimeConvSpec

__all__ = ["fold", "join_activations", "split_bias"]

Array = NDArray[Any]
_MAX_FOLDED = 1 << 26  # elements of a matrix product that folds two layers


def join_activations(layers: Sequence[Layer]) -> list[Layer]:
    """Let every activation belong to the layer before it, if that has none and one reader.

    What read the activation reads that layer then.
    """
    joined: list[Layer] = []
    moved: dict[str, str] = {}
    readers = Counter(
        name.removesuffix(BEFORE)
        for k, layer in enumerate(layers)
        for name in (layer.reads or ((layers[k - 1].name,) if k else ()))
    )
    for k, layer in enumerate(layers):
        before = layers[k - 1] if k else None
        reads = tuple(moved.get(name, name) for name in layer.reads)
        layer = replace(layer, reads=reads)
        is_next = before is not None and (not layer.reads or layers[k].reads == (before.name,))
        last = joined[-1] if joined else None
        if (
            isinstance(layer, Activation)
            and is_next
            and last is not None
            and before is not None
            and readers[before.name] == 1
            and (whole := _with_activation(last, layer)) is not None
        ):
            joined[-1] = whole
            moved[layer.name] = whole.name
        elif isinstance(layer, Activation) and layer.kind == "identity" and is_next and last:
            moved[layer.name] = last.name
        elif not (isinstance(layer, Activation) and layer.kind == "identity" and not joined):
            joined.append(layer)
    return [
        replace(layer, reads=tuple(_moved(name, moved) for name in layer.reads)) for layer in joined
    ]


def _moved(read: str, moved: dict[str, str]) -> str:
    """Return what is read of the step before, where it became a part of another layer."""
    bare = read.removesuffix(BEFORE)
    return read if bare == read else moved.get(bare, bare) + BEFORE


def _with_activation(layer: Layer, activation: Activation) -> Layer | None:
    """Return a layer with an activation behind it; None where it cannot have one, or has one."""
    if isinstance(layer, Dense) and layer.activation == "identity":
        return replace(layer, activation=activation.kind, slope=activation.slope)
    if isinstance(layer, FrameLayer) and isinstance(layer.spec, ConvSpec | TimeConvSpec):
        if layer.spec.activation != "identity":
            return None
        # A softmax goes over the channels of each place in both.
        spec = replace(layer.spec, activation=activation.kind, slope=activation.slope)
        return replace(layer, spec=spec)
    return None


def fold(layers: list[Layer], notes: list[str]) -> list[Layer]:
    """Multiply products without activation into what follows them."""
    folded: list[Layer] = []
    for layer in layers:
        last = folded[-1] if folded else None
        if isinstance(layer, Scale) and isinstance(last, Dense) and last.activation == "identity":
            weight = last.weight * layer.gain.astype(np.float64)[:, None]
            bias = last.bias.astype(np.float64) * layer.gain + layer.shift
            folded[-1] = replace(last, weight=weight, bias=bias)
            notes.append(f"multiplied {layer.name!r} into {last.name!r}")
        elif isinstance(layer, Scale) and isinstance(last, Scale):
            folded[-1] = Scale(
                layer.name, last.gain * layer.gain, last.shift * layer.gain + layer.shift
            )
        elif isinstance(layer, Dense | Recurrent) and _folds(
            last, layer, is_first=len(folded) == 1
        ):
            assert isinstance(last, Dense | Scale)
            folded[-1] = _folded(last, layer)
            notes.append(f"multiplied {last.name!r} into {layer.name!r}")
        else:
            folded.append(layer)
    return folded


def _folds(last: Layer | None, layer: Dense | Recurrent, *, is_first: bool) -> bool:
    columns = _columns(layer)
    if isinstance(last, Scale):
        # An input's own centre is subtracted before anything is rounded: better than a fold.
        return last.gain.size in (1, columns) and not (is_first and (last.gain > 0).all())
    if not isinstance(last, Dense) or last.activation != "identity":
        return False
    rows = (layer.weight if isinstance(layer, Dense) else layer.weight_ih).shape[0]
    return last.weight.shape[0] == columns and rows * last.weight.shape[1] <= _MAX_FOLDED


def _folded(last: Dense | Scale, layer: Dense | Recurrent) -> Dense | Recurrent:
    wide = (layer.weight if isinstance(layer, Dense) else layer.weight_ih).astype(np.float64)
    if isinstance(last, Scale):
        weight = wide * last.gain
        shift = wide @ np.broadcast_to(last.shift.astype(np.float64), wide.shape[1])
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


def split_bias(head: Dense) -> tuple[Array, NDArray[np.float64]]:
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
