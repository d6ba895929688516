"""What all layers have in common: a name, what they read, a shape, parameters, activations.

A value that goes from layer to layer is a frame ``[L, C]``: L places of C channels, stored place
after place. A plain vector of n numbers is the frame ``[1, n]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from streamrnn.errors import SpecError
from streamrnn.model.checks import MAX_SIZE, check_float32, check_one_of, check_text

__all__ = [
    "BEFORE",
    "INPUT",
    "LAYER_ACTIVATIONS",
    "Layer",
    "Shape",
    "activation_slope",
    "ending",
    "joined",
    "slope_shapes",
]

Shape = tuple[int, int]  # of a frame: L, C

_MAX_READS = 512
INPUT = "input"  # the name by which layers read the model's features
BEFORE = "[t-1]"  # after a name: its output of the step before, zeros at first

# The activations by name, with the number that some take (`slope`): what it is if none is given.
LAYER_ACTIVATIONS: dict[str, float | None] = {
    "identity": None,
    "tanh": None,
    "sigmoid": None,
    "softmax": None,
    "relu": None,
    "relu6": None,
    "leaky_relu": 0.01,
    "prelu": None,
    "elu": 1.0,
    "selu": None,
    "silu": None,
    "gelu": None,
    "gelu_tanh": None,
    "softplus": None,
    "softsign": None,
    "hard_sigmoid_fifth": None,
    "hard_sigmoid_sixth": None,
    "hard_swish": None,
    "hard_tanh": None,
    "log_softmax": None,
    "exp": None,
    "log": None,
    "abs": None,
    "sqrt": None,
    "reciprocal": None,
    "at_least": 0.0,
    "at_most": 0.0,
}


@dataclass(frozen=True)
class Layer:
    """One streaming layer.

    Attributes
    ----------
    name : str
        By which other layers read it; may be empty.
    reads : tuple of str
        Names of earlier layers, or ``input``; ``NAME[t-1]`` for the output that any layer, a later
        one too, had at the step before (zeros at first). None: the layer before. Several frames of
        the same length are joined channel by channel, others as vectors one after the other.
    """

    name: str = field(default="", kw_only=True)
    reads: tuple[str, ...] = field(default=(), kw_only=True)

    op: ClassVar[str] = ""  # the kind's name in a file

    def check_reads(self) -> None:
        """Raise `SpecError` unless the name and the list of reads can be ones."""
        check_text(self.name, "a layer's name")
        if "[" in self.name or "]" in self.name or self.name == INPUT:
            raise SpecError(f"a layer is named {self.name!r}; choose a name without brackets")
        if isinstance(self.reads, str):
            raise SpecError(f"layer {self.name!r}: reads is a string; it must be a list of names")
        object.__setattr__(self, "reads", tuple(self.reads))
        if len(self.reads) > _MAX_READS:
            raise SpecError(f"layer {self.name!r} reads {len(self.reads)}; at most {_MAX_READS}")
        for name in self.reads:
            check_text(name, f"layer {self.name!r}: what it reads", least=1)

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """Return the shape of the output, given those of what is read.

        Raises `SpecError` if the layer cannot read such frames.
        """
        raise NotImplementedError

    @property
    def fixed_shape(self) -> Shape | None:
        """The shape of the output where it does not depend on what is read."""
        return None

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """Name the parameters, without the layer's number."""
        return {}

    def describe(self) -> str:
        """Name the layer in few words."""
        return self.op

    def summary(self) -> str:
        """Name the layer and its size in fewer."""
        return self.describe()


def joined(shapes: list[Shape], where: str) -> Shape:
    """Return the shape of several frames as one layer reads them."""
    lengths = {length for length, _ in shapes}
    if len(lengths) == 1:
        shape = (lengths.pop(), sum(channels for _, channels in shapes))
    else:
        shape = (1, sum(length * channels for length, channels in shapes))
    if shape[0] * shape[1] > MAX_SIZE:
        raise SpecError(f"{where} reads {shape[0] * shape[1]} numbers; at most {MAX_SIZE} are")
    return shape


def activation_slope(activation: str, slope: float | None, where: str) -> float | None:
    """Check an activation and its number; return the number, rounded to float32."""
    check_one_of(activation, f"{where}: unknown activation", LAYER_ACTIVATIONS)
    default = LAYER_ACTIVATIONS[activation]
    if slope is None:
        return None
    if default is None:
        raise SpecError(f"{where}: the activation {activation} takes no slope")
    rounded = check_float32(slope, f"{where}: slope")
    return None if rounded == check_float32(default, where) else rounded


def slope_shapes(activation: str, units: int) -> dict[str, tuple[int, ...]]:
    """Return the parameter that an activation has of its own: a prelu's slopes."""
    return {"slope": (units,)} if activation == "prelu" else {}


def ending(activation: str) -> str:
    """Name the activation that a layer ends with, after its own name."""
    return "" if activation == "identity" else f" {activation}"
