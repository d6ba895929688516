"""Specification of a model: sizes, cell kinds, names, units and transforms.

Three kinds of data never mix: what is fixed (`ModelSpec`, here), what is loaded (parameters) and
what changes (state). Layers are described in `streamrnn.model.layer_spec`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from streamrnn.errors import SpecError
from streamrnn.model.checks import (
    MAX_WHOLE,
    check_flag,
    check_float32,
    check_one_of,
    check_scale,
    check_size,
    check_text,
    check_whole,
    shown,
)
from streamrnn.model.layer_spec import CELLS, GATE_ACTIVATIONS, CellKind, LayerSpec

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "GATE_ACTIVATIONS",
    "NUM_SAMPLE_STEPS",
    "CellKind",
    "HeadSpec",
    "InputSpec",
    "LayerSpec",
    "ModelSpec",
    "OutputSpec",
]

MAX_LAYERS = 16
NUM_SAMPLE_STEPS = 256  # most steps of real inputs that a trained model carries to be tried with

ACTIVATIONS = ("identity", "tanh", "sigmoid", "softmax")
INPUT_KINDS = ("numeric", "categorical", "token")
MISSING = ("error", "hold", "mean", "mask")


@dataclass(frozen=True)
class InputSpec:
    """One named input and the transforms that run inside the step.

    Attributes
    ----------
    name, unit : str
        As the user calls and measures it; ``unit`` may be empty.
    kind : str
        ``numeric``; ``categorical`` (the category's index, as float32); ``token`` (the model's
        only input, as uint32, through an embedding).
    categories : tuple of str
        Names of the categories; empty for numeric inputs, and for tokens known by number only.
    num_categories : int
        Number of categories or tokens; 0 for numeric inputs.
    embedding_size : int
        E; 0 means one-hot (categorical only).
    difference : bool
        Whether the network sees the change since the previous input instead of the level.
    center, scale : float
        The feature is ``(value - center) / scale``; numeric inputs only.
    missing : str
        What a NaN means: ``error``, ``hold`` (the last value seen), ``mean`` (``fill``) or
        ``mask`` (a further feature tells 1 for missing, 0 for present).
    fill : float
        The value taken where nothing has been seen yet, usually the training mean.
    """

    name: str
    unit: str = ""
    kind: str = "numeric"
    categories: tuple[str, ...] = ()
    num_categories: int = 0
    embedding_size: int = 0
    difference: bool = False
    center: float = 0.0
    scale: float = 1.0
    missing: str = "error"
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_text(self.name, "an input's name", least=1)
        where = f"input {self.name!r}"
        check_text(self.unit, f"{where}: unit")
        check_one_of(self.kind, f"{where}: kind is", INPUT_KINDS)
        check_one_of(self.missing, f"{where}: missing is", MISSING)
        check_flag(self.difference, f"{where}: difference")
        check_size(self.num_categories, f"{where}: num_categories", least=0)
        check_size(self.embedding_size, f"{where}: embedding_size", least=0)
        if isinstance(self.categories, str):
            raise SpecError(f"{where}: categories is a string; it must be a list of names")
        object.__setattr__(self, "categories", tuple(self.categories))
        for category in self.categories:
            check_text(category, f"{where}: a category's name")
        for name in ("center", "fill"):
            object.__setattr__(self, name, check_float32(getattr(self, name), f"{where}: {name}"))
        object.__setattr__(self, "scale", check_scale(self.scale, f"{where}: scale"))
        check_float32(self.fill - self.center, f"{where}: fill - center")
        if self.kind == "numeric":
            if self.categories or self.num_categories or self.embedding_size:
                raise SpecError(f"{where}: a numeric input has no categories and no embedding")
            if self.difference and self.missing == "mean":
                raise SpecError(
                    f"{where}: a differenced input keeps its level where a value is missing; "
                    "use missing='hold' or 'mask' instead of 'mean'"
                )
            return
        check_size(self.num_categories, f"{where}: num_categories")
        if self.categories and len(self.categories) != self.num_categories:
            raise SpecError(
                f"{where}: {len(self.categories)} category names for {self.num_categories} "
                "categories; name each one once, or none"
            )
        if len(set(self.categories)) != len(self.categories):
            raise SpecError(f"{where}: a category is named twice")
        if self.embedding_size or self.kind == "token":
            check_size(self.embedding_size, f"{where}: embedding_size")
        if self.difference or self.missing != "error" or self.center != 0 or self.scale != 1:
            raise SpecError(
                f"{where}: difference, missing, center and scale are for numeric inputs only"
            )

    @property
    def num_features(self) -> int:
        """Number of columns that this input takes in the first layer's matrix."""
        if self.kind == "numeric":
            return 2 if self.missing == "mask" else 1
        return self.embedding_size or self.num_categories

    @property
    def has_memory(self) -> bool:
        """Whether a stream must remember this input's last value."""
        return bool(self.difference) or self.missing == "hold"


@dataclass(frozen=True)
class OutputSpec:
    """One named output.

    Attributes
    ----------
    name, unit : str
        As the user calls and measures it.
    center, scale : float
        ``y = head * scale + center``; other than 0 and 1 only behind an identity head.
    difference_of : str or None
        Name of a differenced input whose current level is added: the inverse of the difference.
    """

    name: str
    unit: str = ""
    center: float = 0.0
    scale: float = 1.0
    difference_of: str | None = None

    def __post_init__(self) -> None:
        check_text(self.name, "an output's name", least=1)
        where = f"output {self.name!r}"
        check_text(self.unit, f"{where}: unit")
        object.__setattr__(self, "center", check_float32(self.center, f"{where}: center"))
        object.__setattr__(self, "scale", check_scale(self.scale, f"{where}: scale"))
        if self.difference_of is not None:
            check_text(self.difference_of, f"{where}: difference_of", least=1)


@dataclass(frozen=True)
class HeadSpec:
    """The dense layer after the last recurrent one: ``activation(W h + b)``."""

    activation: str = "identity"

    def __post_init__(self) -> None:
        check_one_of(self.activation, "unknown activation", ACTIVATIONS)


_PARTS = {"inputs": InputSpec, "layers": LayerSpec, "outputs": OutputSpec}


@dataclass(frozen=True)
class ModelSpec:
    """All that is fixed about a model.

    Attributes
    ----------
    inputs : tuple of InputSpec
        In the order of the elements of x.
    layers : tuple of LayerSpec
        From the input to the output.
    outputs : tuple of OutputSpec
        In the order of the elements of y.
    head : HeadSpec or None
        Without a head the last layer's h is the output.
    warmup_steps : int
        Number of steps after which a new stream's outputs are as good as they get.
    training : dict
        What it was trained on (data hash, configuration, versions), its errors beside the
        baselines, its memory horizon. Free-form, JSON.
    """

    inputs: tuple[InputSpec, ...]
    layers: tuple[LayerSpec, ...]
    outputs: tuple[OutputSpec, ...]
    head: HeadSpec | None = None
    warmup_steps: int = 0
    training: dict[str, Any] = field(default_factory=dict, hash=False)

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
        self._check_outputs()

    def _check_outputs(self) -> None:
        last_size = self.layers[-1].output_size
        if self.head is None and len(self.outputs) != last_size:
            raise SpecError(
                f"without a head the {last_size} units of the last layer are the output, "
                f"but {len(self.outputs)} outputs are named"
            )
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

    @property
    def num_inputs(self) -> int:
        """Number of elements of x for one step."""
        return len(self.inputs)

    @property
    def num_features(self) -> int:
        """Number of columns of the first layer's input matrix."""
        return sum(item.num_features for item in self.inputs)

    @property
    def output_size(self) -> int:
        """Number of elements of y for one step."""
        return len(self.outputs)

    @property
    def is_token(self) -> bool:
        """Whether x holds uint32 token ids instead of float32 values."""
        return self.inputs[0].kind == "token"

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Build a description from what `to_dict` returned.

        Raises `SpecError` if a key is unknown or absent, or a value is not allowed.
        """
        data = dict(data)
        try:
            for name, kind in _PARTS.items():
                data[name] = tuple(kind(**item) for item in data[name])
            if data.get("head") is not None:
                data["head"] = HeadSpec(**data["head"])
            return cls(**data)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise SpecError(f"the model's description cannot be read: {error}") from error
