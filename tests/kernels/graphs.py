"""Models of every kind of layer, small and awkward, the same for the same generator."""

from __future__ import annotations

from typing import Any

import numpy as np

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
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from tests.support.models import random_parameters

__all__ = ["GRAPHS", "graph_model", "graph_spec", "head_reading_model"]

AUDIO = (InputSpec("audio", shape=(40, 1)),)
FRAME = (InputSpec("frame", shape=(9, 3), scale=2.0, center=0.5),)
ABOVE_ZERO = ("log", "sqrt", "reciprocal")  # what takes no number below 0, or no 0
ELEMENTWISE = tuple(
    name for name in LAYER_ACTIVATIONS if "softmax" not in name and name not in ABOVE_ZERO
)
HARD = "hard_sigmoid_fifth"
NUMBERS = tuple(InputSpec(f"x{i}") for i in range(5))


def lstm(size: int, **options: Any) -> LayerSpec:
    return LayerSpec("lstm", size, **options)


# By name: inputs, and layers from the input to the output.
GRAPHS: dict[str, tuple[tuple[InputSpec, ...], tuple[Layer, ...]]] = {
    "dense alone": (NUMBERS, (DenseSpec(7, "tanh"), DenseSpec(3, "sigmoid"))),
    "dense before and after": (
        NUMBERS,
        (DenseSpec(19, "relu"), lstm(17), DenseSpec(5, "silu"), DenseSpec(2, "softmax")),
    ),
    "norm between": (NUMBERS, (NormSpec(), LayerSpec("gru", 18), NormSpec(), DenseSpec(4))),
    "norm of gates": (NUMBERS, (DenseSpec(7, "sigmoid"), NormSpec(), lstm(4))),
    "scale between": (NUMBERS, (ScaleSpec(), LayerSpec("gru", 5), ScaleSpec(), DenseSpec(4))),
    "scaled inputs": (
        (InputSpec("a", center=1.0, scale=2.0), InputSpec("b", scale=0.25)),
        (DenseSpec(6, "gelu"), lstm(3)),
    ),
    "input skip": (
        NUMBERS[:1],
        (
            lstm(9),
            DenseSpec(1, name="out"),
            MixSpec(reads=("out", "input"), gains=(0.5, 1.0)),
        ),
    ),
    "residual stack": (
        NUMBERS,
        (
            DenseSpec(12, name="a"),
            LayerSpec("gru", 12, name="b"),
            MixSpec(reads=("a", "b"), gains=(1.0, 1.0), name="c"),
            lstm(12, name="d"),
            MixSpec(reads=("c", "d", "a"), gains=(1.0, -2.0, 0.5)),
        ),
    ),
    "gated": (
        NUMBERS,
        (
            lstm(20, name="h"),
            SliceSpec(channels=(0, 10), reads=("h",)),
            ActivationSpec("tanh", name="t"),
            SliceSpec(channels=(10, 20), reads=("h",)),
            ActivationSpec("sigmoid", name="s"),
            MixSpec(reads=("t", "s"), is_product=True),
            DenseSpec(3),
        ),
    ),
    "two heads": (
        NUMBERS,
        (
            lstm(8, name="h"),
            DenseSpec(3, "softmax", name="p", reads=("h",)),
            DenseSpec(2, name="v", reads=("h",)),
            ActivationSpec("identity", reads=("p", "v")),
        ),
    ),
    "stft": (
        AUDIO,
        (
            MemorySpec(8),
            PadSpec((4, 7), "reflect"),
            ConvSpec(26, 16, 5),
            MagnitudeSpec(),
            ConvSpec(20, 3, 1, (1, 1), activation="relu"),
            ConvSpec(16, 3, 2, (1, 1), activation="relu"),
            lstm(11),
            ActivationSpec("relu"),
            DenseSpec(1, "sigmoid"),
        ),
    ),
    "frame to frame": (
        FRAME,
        (
            ConvSpec(6, 3, 1, (1, 1), activation="leaky_relu", slope=0.2),
            ConvSpec(3, 2, 1, (0, 1), activation="elu"),
            PadSpec((1, 0), "edge"),
            SliceSpec(places=(0, 9)),
        ),
    ),
    "depthwise and dilated": (
        FRAME,
        (
            ConvSpec(3, 3, 1, (2, 2), dilation=2, groups=3, activation="softplus"),
            ConvSpec(8, 2, 1, (1, 2), dilation=3, activation="prelu"),
            ConvSpec(8, 3, 2, (1, 1), groups=2, activation="hard_swish"),
            PoolSpec("max", 2, 2),
            PoolSpec("mean"),
            lstm(4),
        ),
    ),
    "padded depthwise": (
        FRAME,
        (
            ConvSpec(20, 3, 1, (1, 1), activation="sigmoid"),
            ConvSpec(20, 3, 1, (1, 1), groups=20, activation="tanh"),
            PoolSpec("max", 3, 3),
            PadSpec((1, 2)),
            DenseSpec(5),
        ),
    ),
    "squeeze and excite": (
        FRAME,
        (
            ConvSpec(10, 3, 1, (1, 1), name="x"),
            PoolSpec("mean"),
            DenseSpec(10, "sigmoid", name="s"),
            MixSpec(reads=("x", "s"), is_product=True),
            LayerSpec("gru", 6),
        ),
    ),
    "causal": (
        NUMBERS,
        (
            TimeConvSpec(12, 3, activation="tanh", name="a"),
            TimeConvSpec(12, 2, dilation=4, activation="relu", name="b"),
            MixSpec(reads=("a", "b"), gains=(1.0, 1.0), name="c"),
            TimeConvSpec(12, 3, dilation=2, groups=12, name="d"),
            TimeConvSpec(6, 1, groups=3),
            LayerSpec("gru", 7),
            DenseSpec(2),
        ),
    ),
    "causal over frames": (FRAME, (ConvSpec(4, 3, 2), TimeConvSpec(5, 4, 2, activation="relu"))),
    "jordan": (
        NUMBERS[:2],
        (
            LayerSpec("rnn_tanh", 6, reads=("input", "out[t-1]")),
            DenseSpec(3, "tanh", name="out"),
        ),
    ),
    "later layer": (
        NUMBERS[:2],
        (
            DenseSpec(4, "tanh", name="a", reads=("input", "c[t-1]", "a[t-1]")),
            lstm(5, name="b"),
            LayerSpec("gru", 3, name="c", reads=("a", "b")),
            DenseSpec(2),
        ),
    ),
    "first state": (
        NUMBERS,
        (lstm(7, first_state=True), LayerSpec("gru", 4, first_state=True), DenseSpec(2)),
    ),
    "relu cells": (
        NUMBERS,
        (
            lstm(9, cell_activation="relu", output_activation="relu"),
            LayerSpec("gru", 18, cell_activation="relu"),
            lstm(5, cell_activation="softplus", output_activation="sigmoid", projection_size=3),
            LayerSpec("gru", 6, cell_activation="elu", reset_after=False),
            lstm(6, peepholes=True, output_activation="identity", gate_activation=HARD),
            DenseSpec(2),
        ),
    ),
    "activations": (
        (InputSpec("x", shape=(3, 7)),),
        (
            *(ConvSpec(7, 1, activation=name, name=name, reads=("input",)) for name in ELEMENTWISE),
            ActivationSpec("log_softmax", name="l", reads=("input",)),
            ActivationSpec("softmax", name="m", reads=("input",)),
            ActivationSpec("identity", reads=(*ELEMENTWISE, "l", "m")),
        ),
    ),
    "activations above zero": (
        (InputSpec("x", shape=(3, 7)),),
        (
            ConvSpec(7, 1, activation="exp", name="exp"),
            *(ActivationSpec(name, name=name, reads=("exp",)) for name in ABOVE_ZERO),
            ActivationSpec("identity", reads=ABOVE_ZERO),
        ),
    ),
    "masked": (NUMBERS, (lstm(6), LayerSpec("gru", 5), DenseSpec(3, "softmax"))),
}


def graph_spec(name: str) -> ModelSpec:
    """Return a spec of `GRAPHS`; outputs are numbered, or one with a shape where it has places."""
    inputs, layers = GRAPHS[name]
    mask = -9.0 if name == "masked" else None
    probe = ModelSpec(inputs, (*layers, DenseSpec(1)), (OutputSpec("y"),))
    length, channels = probe.graph.shapes[-2]
    outputs: tuple[OutputSpec, ...]
    if length > 1:
        outputs = (OutputSpec("y", shape=(length, channels)),)
    else:
        outputs = tuple(OutputSpec(f"y{i}") for i in range(channels))
    return ModelSpec(inputs, layers, outputs, mask_value=mask)


def graph_model(rng: np.random.Generator, name: str) -> Model:
    """Return a model of `GRAPHS` with random parameters."""
    spec = graph_spec(name)
    return Model(spec, random_parameters(rng, spec))


def head_reading_model(rng: np.random.Generator) -> Model:
    """Return a Jordan network whose head is a `HeadSpec`."""
    spec = ModelSpec(
        NUMBERS[:2],
        (LayerSpec("rnn_tanh", 6, reads=("input", "head[t-1]")),),
        (OutputSpec("a", scale=0.25), OutputSpec("b", center=2.0, scale=3.0)),
        head=HeadSpec(),
    )
    return Model(spec, random_parameters(rng, spec))
