"""Models at random: layers of every kind, joined and fed back, over frames and vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from streamrnn.errors import SpecError
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Layer
from streamrnn.model.layers.frame import (
    ActivationSpec,
    ConvSpec,
    DenseSpec,
    MagnitudeSpec,
    MixSpec,
    NormSpec,
    PadSpec,
    PoolSpec,
    ScaleSpec,
    SliceSpec,
)
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from tests.support.models import random_parameters

__all__ = ["drawn_model"]

# What is defined for all numbers, and grows slowly.
TAME = tuple(
    name
    for name in LAYER_ACTIVATIONS
    if name not in ("exp", "log", "sqrt", "reciprocal", "identity", "at_least", "at_most")
)


def drawn_model(seed: int) -> Model:
    """Return a model of one to eight layers, the same for the same seed."""
    rng = np.random.default_rng(seed)
    shape: tuple[int, ...] = (int(rng.integers(3, 12)), int(rng.integers(1, 4)))
    if rng.random() < 0.4:
        shape = (int(rng.integers(1, 6)),)
    center, scale = (0.5, 2.0) if rng.random() < 0.3 else (0.0, 1.0)
    inputs = (InputSpec("x", shape=shape, center=center, scale=scale),)
    layers: list[Layer] = []
    for _ in range(rng.integers(1, 9)):
        for _ in range(20):  # until one fits
            try:
                layer = _drawn_layer(rng, layers)
                _spec(inputs, [*layers, layer])
            except SpecError:
                continue
            layers.append(layer)
            break
    spec = _spec(inputs, layers or [DenseSpec(2)])
    return Model(spec, random_parameters(rng, spec))


def _spec(inputs: tuple[InputSpec, ...], layers: list[Layer]) -> ModelSpec:
    probe = ModelSpec(inputs, (*layers, DenseSpec(1)), (OutputSpec("y"),))
    return ModelSpec(inputs, tuple(layers), (OutputSpec("y", shape=probe.graph.shapes[-2]),))


def _drawn_layer(rng: np.random.Generator, layers: list[Layer]) -> Layer:
    def size(most: int = 6) -> int:
        return int(rng.integers(1, most + 1))

    names = ["input", *(layer.name for layer in layers)]
    own = f"l{len(layers)}"
    chosen = [str(rng.choice(names)) for _ in range(2)]
    if layers and rng.random() < 0.25:
        chosen[1] = f"{rng.choice(names[1:])}[t-1]"
    reads = tuple(chosen[:1]) if rng.random() < 0.4 else tuple(chosen)
    if rng.random() < 0.5:
        reads = ()
    activation = str(rng.choice(TAME)) if rng.random() < 0.6 else "identity"
    groups = int(rng.choice([1, 1, 2, 3]))
    padding = (int(rng.integers(0, 3)), int(rng.integers(0, 3)))
    kinds: list[Callable[[], Layer]] = [
        lambda: ActivationSpec(activation),
        lambda: ConvSpec(groups * size(3), size(4), size(2), padding, size(2), groups, activation),
        lambda: ConvSpec(groups * size(3), size(4), size(2), padding, size(2), groups, activation),
        lambda: DenseSpec(size(), activation),
        lambda: LayerSpec(str(rng.choice(["gru", "lstm", "rnn_tanh", "rnn_relu"])), size()),
        lambda: LayerSpec("lstm", size(), projection_size=size(3), peepholes=rng.random() < 0.5),
        MagnitudeSpec,
        lambda: MemorySpec(size(3)),
        lambda: MixSpec((0.5, -1.0), reads=tuple(chosen)),
        lambda: MixSpec(is_product=True, reads=tuple(chosen)),
        NormSpec,
        lambda: PadSpec(padding, str(rng.choice(["zeros", "reflect", "edge"]))),
        lambda: PoolSpec(str(rng.choice(["max", "mean"])), int(rng.integers(0, 4)), size(2)),
        ScaleSpec,
        lambda: SliceSpec((0, size()), (0, 0)),
        lambda: SliceSpec((0, 0), (0, size(3))),
        lambda: TimeConvSpec(groups * size(3), size(3), size(3), groups, activation),
        lambda: TimeConvSpec(groups * size(3), size(3), size(3), groups, activation),
    ]
    layer = kinds[rng.integers(len(kinds))]()

    return replace(layer, name=own, reads=layer.reads or reads)
