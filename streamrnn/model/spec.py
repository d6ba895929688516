"""Specification of a model: sizes, cell kinds, names, units and transforms.

Three kinds of data never mix: what is fixed (`ModelSpec`, here), what is loaded (parameters) and
what changes (state). A model is an ordered list of layers (`streamrnn.model.layers`), each of which
reads the one before or any others by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import SpecError
from streamrnn.model.checks import (
    MAX_WHOLE,
    MIN_SCALE,
    check_float32,
    check_one_of,
    check_size,
    check_whole,
    shown,
)
from streamrnn.model.graph import Graph, Read
from streamrnn.model.io_spec import INPUT_KINDS, MISSING, InputSpec, OutputSpec
from streamrnn.model.layers import frame, memory
from streamrnn.model.layers.base import Layer, Shape
from streamrnn.model.layers.recurrent import CELLS, GATE_ACTIVATIONS, CellKind, LayerSpec

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "GATE_ACTIVATIONS",
    "INPUT_KINDS",
    "LAYER_KINDS",
    "MISSING",
    "NUM_SAMPLE_STEPS",
    "CellKind",
    "HeadSpec",
    "InputSpec",
    "LayerSpec",
    "ModelSpec",
    "OutputSpec",
]

MAX_LAYERS = 512
NUM_SAMPLE_STEPS = 256  # most steps of real inputs that a trained model carries to be tried with

ACTIVATIONS = ("identity", "tanh", "sigmoid", "softmax")  # of a head
_OTHER_LAYERS: tuple[type[Layer], ...] = (
    frame.ActivationSpec,
    frame.ConvSpec,
    frame.DenseSpec,
    frame.MagnitudeSpec,
    frame.MixSpec,
    frame.NormSpec,
    frame.PadSpec,
    frame.PoolSpec,
    frame.ScaleSpec,
    frame.SliceSpec,
    memory.MemorySpec,
    memory.TimeConvSpec,
)
LAYER_KINDS: Mapping[str, type[Layer]] = {kind.op: kind for kind in _OTHER_LAYERS}
"""The layers that are not recurrent, by their name in a file."""


@dataclass(frozen=True)
class HeadSpec:
    """The dense layer after the last one: ``activation(b + W h)``, the bias being added first.

    Outputs are scaled, and a difference undone, behind it. `DenseSpec` adds its bias last.
    """

    activation: str = "identity"

    def __post_init__(self) -> None:
        check_one_of(self.activation, "unknown activation", ACTIVATIONS)


_PARTS = {"inputs": InputSpec, "layers": Layer, "outputs": OutputSpec}


@dataclass(frozen=True)
class ModelSpec:
    """All that is fixed about a model.

    Attributes
    ----------
    inputs : tuple of InputSpec
        In the order of the elements of x.
    layers : tuple of Layer
        From the input to the output, which is the last one's (or the head's).
    outputs : tuple of OutputSpec
        In the order of the elements of y.
    head : HeadSpec or None
        Without a head the last layer's output is the model's.
    warmup_steps : int
        Number of steps after which a new stream's outputs are as good as they get.
    training : dict
        What it was trained on (data hash, configuration, versions), its errors beside the
        baselines, its memory horizon. Free-form, JSON.
    mask_value : float or None
        A step whose inputs are all equal to it is no step: it leaves the state, and its output is
        the one before once more.
    """

    inputs: tuple[InputSpec, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[OutputSpec, ...]
    head: HeadSpec | None = None
    warmup_steps: int = 0
    training: dict[str, Any] = field(default_factory=dict, hash=False)
    mask_value: float | None = None

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise SpecError(f"a model needs at least one of its {name}")
            if not all(isinstance(item, kind) for item in getattr(self, name)):
                raise SpecError(f"{name} must hold nothing but {kind.__name__}")
        if not isinstance(self.head, HeadSpec | None) or not isinstance(self.training, dict):
            raise SpecError("head must be a HeadSpec or None, and training a dict")
        if len(self.layers) > MAX_LAYERS:
            raise SpecError(f"{len(self.layers)} layers; at most {MAX_LAYERS} are supported")
        check_size(len(self.inputs), "number of inputs")
        check_size(len(self.outputs), "number of outputs")
        check_size(self.num_features, "number of features of the first layer")
        check_whole(self.warmup_steps, "warmup_steps", 0, MAX_WHOLE)
        for what, items in (("input", self.inputs), ("output", self.outputs)):
            counts = Counter(item.name for item in items)
            name, count = counts.most_common(1)[0]
            if count > 1:
                raise SpecError(f"two {what}s are named {shown(name)}; names must differ")
        if len(self.inputs) > 1 and any(item.kind == "token" for item in self.inputs):
            raise SpecError("a token input must be the model's only input; use categorical")
        check_size(self.num_inputs, "number of elements of the inputs")
        check_size(self.output_size, "number of elements of the outputs")
        _ = self.graph  # raises what is wrong with it
        self._check_outputs()
        if self.mask_value is not None:
            self._check_mask()

    def _check_mask(self) -> None:
        assert self.mask_value is not None
        value = check_float32(self.mask_value, "mask_value")
        object.__setattr__(self, "mask_value", value)
        if value != 0 and abs(value) < MIN_SCALE:
            raise SpecError(f"mask_value is {value:g}; a step takes such small numbers as 0")
        if self.is_token and not (value == int(value) and 0 <= value < self.num_tokens):
            raise SpecError(
                f"mask_value is {value:g}; of tokens it is a whole number from 0 to "
                f"{self.num_tokens - 1}"
            )
        if not self.graph.output_is_state or any(item.difference_of for item in self.outputs):
            raise SpecError(
                "mask_value needs an output that follows from the recurrent layers' states alone: "
                "a masked step repeats it"
            )

    def _check_outputs(self) -> None:
        length, channels = self.graph.shapes[-1]
        if self.head is None and self.output_size != length * channels:
            raise SpecError(
                f"without a head the {length * channels} units of the last layer are the output, "
                f"but {self.output_size} outputs are named"
            )
        if self.head is not None and any(output.shape for output in self.outputs):
            raise SpecError("an output with a shape needs a model without a head")
        differenced = {item.name for item in self.inputs if item.difference}
        linear = self.head is not None and self.head.activation == "identity"
        for output in self.outputs:
            if output.difference_of is not None and output.difference_of not in differenced:
                raise SpecError(
                    f"output {output.name!r} adds the level of input {output.difference_of!r}, "
                    "which is not a differenced input"
                )
            transformed = output.difference_of or output.center != 0 or output.scale != 1
            if transformed and not linear:
                raise SpecError(
                    f"output {output.name!r}: center, scale and difference_of need a head with "
                    "the identity activation"
                )

    @cached_property
    def num_inputs(self) -> int:
        """Number of elements of x for one step."""
        return sum(item.size for item in self.inputs)

    @property
    def num_features(self) -> int:
        """Number of features: columns of the first layer's input matrix."""
        return sum(item.num_features for item in self.inputs)

    @property
    def output_size(self) -> int:
        """Number of elements of y for one step."""
        return sum(item.size for item in self.outputs)

    @cached_property
    def input_elements(self) -> tuple[InputSpec, ...]:
        """The input that each element of x belongs to."""
        return tuple(item for item in self.inputs for _ in range(item.size))

    @property
    def input_shape(self) -> Shape:
        """Shape of the features as layers read them."""
        if len(self.inputs) == 1 and len(self.inputs[0].shape) == 2:
            return self.inputs[0].shape[0], self.inputs[0].shape[1]
        return 1, self.num_features

    @property
    def chain(self) -> tuple[LayerSpec, ...]:
        """The layers, where all are recurrent and each reads the one before.

        Raises `SpecError` where they are not.
        """
        layers = tuple(layer for layer in self.layers if isinstance(layer, LayerSpec))
        if not self.graph.is_chain:
            other = next((each for each in self.layers if each not in layers), None)
            what = f"it has the layer {other.describe()}" if other else "layers read others by name"
            raise SpecError(f"the model is no plain stack of recurrent layers: {what}")
        return layers

    @property
    def feature_scales(self) -> NDArray[np.float64]:
        """What every feature is divided by, [F]."""
        scales: list[float] = []
        for item in self.inputs:
            if item.shape:
                scales += [item.scale] * item.size
            else:
                scales += [item.scale] + [1.0] * (item.num_features - 1)
        return np.array(scales)

    @property
    def folds_input_scales(self) -> bool:
        """Whether the first layer, a recurrent one, alone reads the features.

        Their scales are folded into its matrix then.
        """
        readers = [k for k, reads in enumerate(self.graph.reads) if Read(-1) in reads]
        return readers == [0] and self.graph.reads[0] == (Read(-1),) and not self.layers[0].op

    @property
    def folds_output_scales(self) -> bool:
        """Whether the outputs' scales are folded into the head's matrix.

        Not where a layer reads what the head gave at the step before: that is not scaled.
        """
        return len(self.layers) not in self.graph.kept

    @cached_property
    def graph(self) -> Graph:
        """What every layer reads, and of which shape.

        Raises `SpecError` if a layer reads what is not there, or cannot read it.
        """
        return Graph(self.layers, self.input_shape, self.output_size if self.head else None)

    @property
    def has_origins(self) -> bool:
        """Whether who makes x, or takes y, must know of origins."""
        of_inputs = any(item.origin for item in self.inputs)
        return of_inputs or any(item.origin for item in self.outputs)

    @property
    def is_token(self) -> bool:
        """Whether x holds uint32 token ids instead of float32 values."""
        return self.inputs[0].kind == "token"

    @property
    def num_tokens(self) -> int:
        """Number of tokens; 0 for a model that takes none."""
        return self.inputs[0].num_categories if self.is_token else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON types."""
        data = asdict(self)
        for layer, item in zip(self.layers, data["layers"], strict=True):
            if layer.op:
                item["op"] = layer.op
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Build a description from what `to_dict` returned.

        Raises `SpecError` if a key is unknown or absent, or a value is not allowed.
        """
        data = dict(data)
        try:
            data["inputs"] = tuple(InputSpec(**item) for item in data["inputs"])
            data["layers"] = tuple(_layer_from(dict(item)) for item in data["layers"])
            data["outputs"] = tuple(OutputSpec(**item) for item in data["outputs"])
            if data.get("head") is not None:
                data["head"] = HeadSpec(**data["head"])
            return cls(**data)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise SpecError(f"the model's description cannot be read: {error}") from error


def _layer_from(item: dict[str, Any]) -> Layer:
    op = item.pop("op", None)
    if op is None:
        return LayerSpec(**item)
    check_one_of(op, "unknown layer", LAYER_KINDS)
    return LAYER_KINDS[op](**item)
