"""Layers without recurrence that keep some of what they read for later steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamrnn.errors import SpecError
from streamrnn.model.checks import MAX_SIZE, check_size
from streamrnn.model.layers.base import (
    Layer,
    Shape,
    activation_slope,
    ending,
    joined,
    slope_shapes,
)

__all__ = ["MemorySpec", "TimeConvSpec"]


@dataclass(frozen=True)
class MemorySpec(Layer):
    """The last places of the frame before, put before this one: zeros at first.

    Attributes
    ----------
    places : int
        How many.
    """

    places: int

    op: ClassVar[str] = "memory"

    def __post_init__(self) -> None:
        self.check_reads()
        check_size(self.places, "places of a memory")

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[places + L, C]."""
        length, channels = joined(shapes, "a memory")
        if self.places > length:
            raise SpecError(f"a memory of {self.places} places reads a frame of {length}")
        if (self.places + length) * channels > MAX_SIZE:
            raise SpecError(f"a memory gives more than {MAX_SIZE} numbers")
        return self.places + length, channels

    def describe(self) -> str:
        """Name the layer in few words."""
        return f"memory of {self.places}"


@dataclass(frozen=True)
class TimeConvSpec(Layer):
    """A causal convolution over steps, as ``nn.Conv1d`` after ``(kernel - 1) * dilation`` zeros.

    Every step is one place, and its whole frame the channels.

    Attributes
    ----------
    channels : int
        C of the output.
    kernel, dilation : int
        In steps.
    groups : int
        Into which both sides' channels are divided.
    activation, slope
        As in `DenseSpec`.
    """

    channels: int
    kernel: int
    dilation: int = 1
    groups: int = 1
    activation: str = "identity"
    slope: float | None = None

    op: ClassVar[str] = "time_conv"

    def __post_init__(self) -> None:
        self.check_reads()
        for name in ("channels", "kernel", "dilation", "groups"):
            check_size(getattr(self, name), f"{name} of a causal convolution")
        slope = activation_slope(self.activation, self.slope, "a causal convolution")
        object.__setattr__(self, "slope", slope)
        if self.channels % self.groups:
            raise SpecError(
                f"a causal convolution has {self.channels} channels in {self.groups} groups; they "
                "must divide evenly"
            )

    @property
    def fixed_shape(self) -> Shape | None:
        """[1, channels]."""
        return 1, self.channels

    @property
    def num_kept(self) -> int:
        """Steps whose inputs are kept."""
        return (self.kernel - 1) * self.dilation

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[1, channels]."""
        length, channels = joined(shapes, "a causal convolution")
        if length * channels % self.groups:
            raise SpecError(
                f"a causal convolution of {self.groups} groups reads {length * channels} channels"
            )
        for steps, what in ((self.num_kept, "keep"), (self.kernel, "read")):
            if steps * length * channels > MAX_SIZE * 16:
                raise SpecError(
                    f"a causal convolution would {what} {steps} steps of {length * channels} "
                    f"numbers; at most {MAX_SIZE * 16} numbers are kept"
                )
        return 1, self.channels

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """``weight`` [C', C / groups, kernel] as in PyTorch, ``bias`` [C']."""
        length, channels = joined(shapes, "a causal convolution")
        shape = (self.channels, length * channels // self.groups, self.kernel)
        own = slope_shapes(self.activation, self.channels)
        return {"weight": shape, "bias": (self.channels,), **own}

    def describe(self) -> str:
        """Name the layer in few words."""
        dilation = f", dilation {self.dilation}" * (self.dilation > 1)
        size = f"causal conv {self.channels} (kernel {self.kernel}{dilation})"
        return size + ending(self.activation)
