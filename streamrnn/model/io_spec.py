"""Specification of a model's inputs and outputs: names, units, shapes and transforms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamrnn.errors import SpecError
from streamrnn.model.checks import (
    MAX_SIZE,
    check_flag,
    check_float32,
    check_float64,
    check_one_of,
    check_scale,
    check_size,
    check_text,
    check_whole,
)

__all__ = ["INPUT_KINDS", "MISSING", "InputSpec", "OutputSpec"]

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
    starts_known : bool
        Whether the first change is from the first value that is known; only with ``difference``,
        and ``hold`` or ``mask``. Else one from ``fill`` comes before it, where values are missing
        at the start of a stream: so in models that do not say.
    center, scale : float
        The feature is ``(value - center) / scale``; numeric inputs only.
    missing : str
        What a NaN means: ``error``, ``hold`` (the last value seen), ``mean`` (``fill``) or
        ``mask`` (a further feature tells 1 for missing, 0 for present).
    fill : float
        The value taken where nothing has been seen yet, usually the training mean.
    shape : tuple of int
        Empty for one number; else of the array that a step brings, in C order, as ``(samples,
        channels)`` of a frame of audio. Numeric inputs without memory only.
    origin : float
        What is subtracted from every value, in float64, before it becomes float32, by whoever
        turns the user's numbers into x: a counter at 1e9 has steps of 64 in float32. Numeric inputs
        without a shape only. `center` and `fill` are of what is left.
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
    shape: tuple[int, ...] = ()
    origin: float = 0.0
    starts_known: bool = False

    def __post_init__(self) -> None:
        check_text(self.name, "an input's name", least=1)
        where = f"input {self.name!r}"
        check_text(self.unit, f"{where}: unit")
        check_one_of(self.kind, f"{where}: kind is", INPUT_KINDS)
        check_one_of(self.missing, f"{where}: missing is", MISSING)
        check_flag(self.difference, f"{where}: difference")
        check_flag(self.starts_known, f"{where}: starts_known")
        if self.starts_known and not (self.difference and self.missing in ("hold", "mask")):
            raise SpecError(
                f"{where}: starts_known is for an input with a difference whose missing is 'hold' "
                "or 'mask'"
            )
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
        object.__setattr__(self, "shape", _checked_shape(self.shape, where))
        if self.shape and (self.kind != "numeric" or self.difference or self.missing != "error"):
            raise SpecError(f"{where}: an input with a shape is numeric, with no value missing")
        object.__setattr__(self, "origin", check_float64(self.origin, f"{where}: origin"))
        if self.origin and (self.kind != "numeric" or self.shape):
            raise SpecError(f"{where}: an input with an origin is numeric and one number")
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
            return 2 if self.missing == "mask" else self.size
        return self.embedding_size or self.num_categories

    @property
    def size(self) -> int:
        """Number of elements of x."""
        return math.prod(self.shape)

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
    shape : tuple of int
        Empty for one number; else of the array that a step gives, in C order.
    origin : float
        What is added to every value, in float64, by whoever turns y into the user's numbers.
    """

    name: str
    unit: str = ""
    center: float = 0.0
    scale: float = 1.0
    difference_of: str | None = None
    shape: tuple[int, ...] = ()
    origin: float = 0.0

    def __post_init__(self) -> None:
        check_text(self.name, "an output's name", least=1)
        where = f"output {self.name!r}"
        check_text(self.unit, f"{where}: unit")
        object.__setattr__(self, "center", check_float32(self.center, f"{where}: center"))
        object.__setattr__(self, "scale", check_scale(self.scale, f"{where}: scale"))
        if self.difference_of is not None:
            check_text(self.difference_of, f"{where}: difference_of", least=1)
        object.__setattr__(self, "origin", check_float64(self.origin, f"{where}: origin"))
        object.__setattr__(self, "shape", _checked_shape(self.shape, where))

    @property
    def size(self) -> int:
        """Number of elements of y."""
        return math.prod(self.shape)


def _checked_shape(shape: object, where: str) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or len(shape) > 4:
        raise SpecError(f"{where}: shape is {shape!r}; it must be up to four whole numbers")
    for size in shape:
        check_size(size, f"{where}: shape")
    check_whole(math.prod(shape), f"{where}: elements of its shape", 1, MAX_SIZE)
    return tuple(shape)
