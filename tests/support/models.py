"""Random models and inputs, the same for the same generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.layers.base import Layer
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.model import Model
from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.network.network import initial_parameters
from streamrnn_client.text import UNKNOWN

__all__ = [
    "EVERY_KIND_OF_INPUT",
    "exploding_model",
    "model_with_name",
    "random_graph",
    "random_inputs",
    "random_model",
    "random_parameters",
    "text_model",
    "two_models",
]

# Every transform that an input of a model with float32 inputs can have.
EVERY_KIND_OF_INPUT: tuple[InputSpec, ...] = (
    InputSpec("plain", center=0.5, scale=2.0),
    InputSpec("change", difference=True, center=0.1, scale=0.5),
    InputSpec("held", missing="hold", fill=0.25, center=-0.5, scale=1.5),
    InputSpec("mean", missing="mean", fill=-0.75),
    InputSpec("masked", missing="mask", fill=0.5, scale=3.0),
    InputSpec("held_change", missing="hold", difference=True, fill=1.0, scale=0.75),
    InputSpec("masked_change", missing="mask", difference=True, fill=-1.0),
    InputSpec("colour", kind="categorical", categories=("red", "green", "blue"), num_categories=3),
    InputSpec("place", kind="categorical", num_categories=7, embedding_size=4),
    InputSpec("late_change", missing="hold", difference=True, fill=2.0, starts_known=True),
    InputSpec(
        "late_masked_change", missing="mask", difference=True, fill=-2.0, center=0.2,
        starts_known=True,
    ),
)  # fmt: skip


def random_parameters(rng: np.random.Generator, spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """Draw parameters the way PyTorch initialises them.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the numbers come from.
    spec : ModelSpec
        What is fixed about the model.

    Returns
    -------
    dict of str to ndarray of float32
        Uniform in +-1/sqrt(H) (or R, if that is more), with which no cell saturates or explodes;
        embeddings uniform in +-1; gains of layer normalisations in [0.2, 0.4], with which
        errors are forgotten.
    """
    bounds = {
        f"l{k}": max(layer.hidden_size, layer.output_size)
        if isinstance(layer, LayerSpec)
        else math.prod(spec.graph.shape_of_joined(k))
        for k, layer in enumerate(spec.layers)
    }
    parameters = {}
    for name, shape in parameter_shapes(spec).items():
        if name.startswith("embedding."):
            bound = 1.0
        else:
            size = bounds.get(name.rsplit("_", 1)[-1], math.prod(spec.graph.shapes[-1]))
            bound = 1.0 / math.sqrt(size)
        values = rng.uniform(-bound, bound, shape)
        if name.startswith("norm_weight_"):
            values = 0.3 + 0.1 * values / bound
        parameters[name] = values.astype(np.float32)
    return parameters


def random_model(
    rng: np.random.Generator,
    layers: Sequence[tuple[str, int] | LayerSpec] = (("lstm", 24),),
    inputs: int | Sequence[InputSpec] = 3,
    outputs: int | Sequence[OutputSpec] = 2,
    head: str | None = "identity",
    **spec_options: Any,
) -> Model:
    """Make a model with random parameters.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the numbers come from.
    layers : sequence of (str, int) or LayerSpec
        Cell and hidden size of every layer, or all of its form.
    inputs : int or sequence of InputSpec
        So many plain numeric inputs ``x0``, ``x1``, ..., or exactly these
        (see `EVERY_KIND_OF_INPUT`).
    outputs : int or sequence of OutputSpec
        So many plain outputs ``y0``, ``y1``, ..., or exactly these. Without a head a number is
        ignored: the outputs are the last layer's units.
    head : str or None
        The head's activation, or None for no head.
    **spec_options : Any
        Further fields of the `ModelSpec`: ``warmup_steps``, ``training``.

    Returns
    -------
    Model
    """
    specs = [layer if isinstance(layer, LayerSpec) else LayerSpec(*layer) for layer in layers]
    if isinstance(inputs, int):
        inputs = [InputSpec(f"x{i}") for i in range(inputs)]
    if isinstance(outputs, int):
        num_outputs = specs[-1].output_size if head is None else outputs
        outputs = [OutputSpec(f"y{o}") for o in range(num_outputs)]
    spec = ModelSpec(
        inputs=tuple(inputs),
        layers=tuple(specs),
        outputs=tuple(outputs),
        head=None if head is None else HeadSpec(head),
        **spec_options,
    )
    return Model(spec, random_parameters(rng, spec))


def random_graph(layers: Sequence[Layer], seed: int = 0) -> Model:
    """Make a model of three inputs and any layers, without a head."""
    inputs = tuple(InputSpec(f"x{i}") for i in range(3))
    probe = ModelSpec(inputs, (*layers, DenseSpec(1)), (OutputSpec("y"),))
    outputs = tuple(OutputSpec(f"y{o}") for o in range(probe.graph.shapes[-2][1]))
    spec = ModelSpec(inputs, tuple(layers), outputs)
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(spec).items()
    drawn = {name: rng.uniform(-0.6, 0.6, shape).astype(np.float32) for name, shape in shapes}
    return Model(spec, drawn)


def random_inputs(
    rng: np.random.Generator,
    spec: ModelSpec,
    num_streams: int,
    num_steps: int,
    missing_share: float = 0.2,
) -> NDArray[Any]:
    """Make inputs that a model takes.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the numbers come from.
    spec : ModelSpec
        What is fixed about the model.
    num_streams : int
        B.
    num_steps : int
        T.
    missing_share : float
        Share of NaN in the inputs that allow it.

    Returns
    -------
    ndarray of float32 or, for a token model, uint32, [B, T, num_inputs]
        Standard normal numbers, or uniform categories.
    """
    shape = (num_streams, num_steps)
    columns = []
    for item in spec.inputs:
        if item.kind == "numeric":
            column = rng.standard_normal(shape)
            if item.missing != "error":
                column[rng.random(shape) < missing_share] = np.nan
        else:
            column = rng.integers(0, item.num_categories, shape).astype(np.float64)
        columns.append(column)
    return np.stack(columns, axis=-1).astype(np.uint32 if spec.is_token else np.float32)


def exploding_model() -> Model:
    """Return a network whose state doubles at each step, and is Inf - Inf in the end."""
    model = random_model(np.random.default_rng(1), [("rnn_relu", 16)], 1, 2)
    parameters = {name: np.array(value) for name, value in model.parameters.items()}
    parameters["weight_hh_l0"][...] = 2e30 * np.eye(16, dtype=np.float32)
    parameters["weight_hh_l0"][0, 1] = -8e37
    parameters["weight_ih_l0"][...] = 1.0
    return Model(model.spec, parameters)


def text_model(unit: str, pieces: list[str], seed: int = 3, scale: float = 3.0) -> Model:
    """Return a model that predicts the next of some pieces, with weights drawn at random."""
    names = (UNKNOWN, *pieces)
    token = InputSpec(
        "token",
        unit=unit,
        kind="token",
        categories=names,
        num_categories=len(names),
        embedding_size=5,
    )
    spec = ModelSpec(
        inputs=(token,),
        layers=(LayerSpec("gru", 8),),
        outputs=tuple(OutputSpec(name) for name in names),
        head=HeadSpec("softmax"),
    )
    drawn = initial_parameters(spec, np.random.default_rng(seed))
    return Model(spec, {name: (scale * value).astype(np.float32) for name, value in drawn.items()})


def two_models(num_inputs: int) -> dict[str, Model]:
    """Return an LSTM ``m`` of two outputs and a GRU ``other`` of five, of the same inputs."""
    rng = np.random.default_rng(7)
    return {
        "m": random_model(rng, [("lstm", 24)], num_inputs, 2),
        "other": random_model(rng, [("gru", 16)], num_inputs, 5),
    }


def model_with_name(
    rng: np.random.Generator, cell: str, size: int, name: str, *layers: Layer
) -> Model:
    """Return a model of two inputs whose recurrent layer has a name, for states to be mapped."""
    spec = ModelSpec(
        (InputSpec("x"), InputSpec("z")),
        (LayerSpec(cell, size, name=name), *layers, DenseSpec(2)),
        (OutputSpec("a"), OutputSpec("b")),
    )
    return Model(spec, random_parameters(rng, spec))
