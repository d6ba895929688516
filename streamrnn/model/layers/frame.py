"""Layers that work on the frame of one step and keep nothing for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamrnn.errors import SpecError
from streamrnn.model.checks import (
    MAX_SIZE,
    check_flag,
    check_float32,
    check_one_of,
    check_size,
    check_whole,
)
from streamrnn.model.layers.base import (
    Layer,
    Shape,
    activation_slope,
    ending,
    joined,
    slope_shapes,
)

__all__ = [
    "PADDING_MODES",
    "ActivationSpec",
    "ConvSpec",
    "DenseSpec",
    "MagnitudeSpec",
    "MixSpec",
    "NormSpec",
    "PadSpec",
    "PoolSpec",
    "ScaleSpec",
    "SliceSpec",
]

# Of a `PadSpec`, with NumPy's name.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "edge": "edge"}


@dataclass(frozen=True)
class DenseSpec(Layer):
    """``activation(W x + b)``, x being the whole frame as a vector; the bias is added last.

    Attributes
    ----------
    size : int
        O, elements of the output.
    activation : str
        One of `LAYER_ACTIVATIONS`.
    slope : float or None
        Of ``leaky_relu`` and ``elu``; None for the usual one.
    """

    size: int
    activation: str = "identity"
    slope: float | None = None

    op: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        self.check_reads()
        check_size(self.size, "size of a dense layer")
        slope = activation_slope(self.activation, self.slope, "a dense layer")
        object.__setattr__(self, "slope", slope)

    @property
    def fixed_shape(self) -> Shape | None:
        """[1, size]."""
        return 1, self.size

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[1, size], whatever is read."""
        joined(shapes, "a dense layer")
        return 1, self.size

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """``weight`` [O, L*C] with the columns place after place, ``bias`` [O]."""
        length, channels = joined(shapes, "a dense layer")
        own = slope_shapes(self.activation, self.size)
        return {"weight": (self.size, length * channels), "bias": (self.size,), **own}

    def describe(self) -> str:
        """Name the layer in few words."""
        return f"dense {self.size}" + ending(self.activation)


@dataclass(frozen=True)
class ConvSpec(Layer):
    """A convolution over the places of the frame of one step, as PyTorch's ``nn.Conv1d``.

    Attributes
    ----------
    channels : int
        C of the output.
    kernel, stride, dilation : int
        In places.
    padding : tuple of int
        Places of zeros before and after the frame.
    groups : int
        Into which both sides' channels are divided.
    activation, slope
        As in `DenseSpec`.
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    activation: str = "identity"
    slope: float | None = None

    op: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        self.check_reads()
        for name in ("channels", "kernel", "stride", "dilation", "groups"):
            check_size(getattr(self, name), f"{name} of a convolution")
        object.__setattr__(self, "padding", _pair(self.padding, "padding of a convolution"))
        slope = activation_slope(self.activation, self.slope, "a convolution")
        object.__setattr__(self, "slope", slope)
        if self.channels % self.groups:
            raise SpecError(
                f"a convolution has {self.channels} channels in {self.groups} groups; they must "
                "divide evenly"
            )

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[L', channels]."""
        length, channels = joined(shapes, "a convolution")
        if channels % self.groups:
            raise SpecError(f"a convolution of {self.groups} groups reads {channels} channels")
        places = length + sum(self.padding) - (self.kernel - 1) * self.dilation
        if places < 1:
            raise SpecError(
                f"a convolution of kernel {self.kernel} (dilation {self.dilation}) reads a frame "
                f"of {length} places with {sum(self.padding)} of padding; it needs more"
            )
        return _bounded(((places - 1) // self.stride + 1, self.channels), "a convolution")

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """``weight`` [C', C / groups, kernel] as in PyTorch, ``bias`` [C']."""
        _, channels = joined(shapes, "a convolution")
        shape = (self.channels, channels // self.groups, self.kernel)
        own = slope_shapes(self.activation, self.channels)
        return {"weight": shape, "bias": (self.channels,), **own}

    def describe(self) -> str:
        """Name the layer in few words."""
        stride = f", stride {self.stride}" * (self.stride > 1)
        return f"conv {self.channels} (kernel {self.kernel}{stride})" + ending(self.activation)


@dataclass(frozen=True)
class ActivationSpec(Layer):
    """A function of every element; a softmax goes over the channels of each place."""

    activation: str
    slope: float | None = None

    op: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        self.check_reads()
        slope = activation_slope(self.activation, self.slope, "an activation")
        object.__setattr__(self, "slope", slope)

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """As read."""
        return joined(shapes, "an activation")

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """``slope`` [C] of a ``prelu``."""
        return slope_shapes(self.activation, joined(shapes, "an activation")[1])

    def describe(self) -> str:
        """Name the layer in few words."""
        return self.activation


@dataclass(frozen=True)
class ScaleSpec(Layer):
    """``gain * x + shift`` with one of each for every channel: a batch normalisation at rest."""

    op: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        self.check_reads()

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """As read."""
        return joined(shapes, "a scale")

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """``weight`` and ``bias`` [C]."""
        channels = joined(shapes, "a scale")[1]
        return {"weight": (channels,), "bias": (channels,)}


@dataclass(frozen=True)
class NormSpec(Layer):
    """Layer normalisation over the channels of each place, as PyTorch's ``nn.LayerNorm(C)``.

    Attributes
    ----------
    epsilon : float
        What is added to the variance.
    """

    epsilon: float = 1e-5

    op: ClassVar[str] = "norm"

    def __post_init__(self) -> None:
        self.check_reads()
        if not isinstance(self.epsilon, float) or not 1e-12 <= self.epsilon <= 1.0:
            raise SpecError(f"epsilon of a norm is {self.epsilon!r}; it must be from 1e-12 to 1")

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """As read."""
        return joined(shapes, "a norm")

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """``weight`` and ``bias`` [C]."""
        channels = joined(shapes, "a norm")[1]
        return {"weight": (channels,), "bias": (channels,)}

    def describe(self) -> str:
        """Name the layer in few words."""
        return f"layer norm (epsilon {self.epsilon:g})"


@dataclass(frozen=True)
class MixSpec(Layer):
    """The sum of what is read, each times its gain; or the product of all.

    Frames have the same channels, and the same length or one of 1, which stands for every place.

    Attributes
    ----------
    gains : tuple of float
        One for each read; none of a product.
    is_product : bool
        Whether the elements are multiplied instead.
    """

    gains: tuple[float, ...] = ()
    is_product: bool = False

    op: ClassVar[str] = "mix"

    def __post_init__(self) -> None:
        self.check_reads()
        check_flag(self.is_product, "is_product of a mix")
        gains = tuple(check_float32(gain, "a gain of a mix") for gain in self.gains)
        object.__setattr__(self, "gains", gains)
        if len(self.reads) < 2:
            raise SpecError(f"a mix reads {len(self.reads)} layers; it needs two or more")
        if len(gains) != (0 if self.is_product else len(self.reads)):
            raise SpecError(f"a mix of {len(self.reads)} layers has {len(gains)} gains")

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[L, C] of the longest."""
        longest, channels = max(shapes)
        for shape in shapes:
            if shape not in ((longest, channels), (1, channels)):
                raise SpecError(f"a mix reads frames {shapes[0]} and {shape}; they must be alike")
        return longest, channels

    def describe(self) -> str:
        """Name the layer in few words."""
        names = [name or "?" for name in self.reads]
        if self.is_product:
            return " * ".join(names)
        return " + ".join(
            name if gain == 1 else f"{gain:g} {name}"
            for name, gain in zip(names, self.gains, strict=True)
        )


@dataclass(frozen=True)
class PadSpec(Layer):
    """More places before and after: zeros, or the frame reflected (without its border).

    Attributes
    ----------
    padding : tuple of int
        Places before and after.
    mode : str
        ``zeros``, ``reflect`` or ``edge``.
    """

    padding: tuple[int, int]
    mode: str = "zeros"

    op: ClassVar[str] = "pad"

    def __post_init__(self) -> None:
        self.check_reads()
        object.__setattr__(self, "padding", _pair(self.padding, "padding"))
        check_one_of(self.mode, "mode of a padding is", tuple(PADDING_MODES))

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[L + before + after, C]."""
        length, channels = joined(shapes, "a padding")
        if self.mode == "reflect" and max(self.padding) >= length:
            raise SpecError(f"{max(self.padding)} places cannot be reflected of {length}")
        return _bounded((length + sum(self.padding), channels), "a padding")

    def describe(self) -> str:
        """Name the layer in few words."""
        return f"pad {self.padding[0]}, {self.padding[1]} ({self.mode})"


@dataclass(frozen=True)
class SliceSpec(Layer):
    """Some of the places, and some of the channels.

    Attributes
    ----------
    places, channels : tuple of int
        The first, and the one after the last; (0, 0) for all.
    """

    places: tuple[int, int] = (0, 0)
    channels: tuple[int, int] = (0, 0)

    op: ClassVar[str] = "slice"

    def __post_init__(self) -> None:
        self.check_reads()
        for name in ("places", "channels"):
            pair = _pair(getattr(self, name), f"{name} of a slice")
            object.__setattr__(self, name, pair)
            if pair != (0, 0) and pair[0] >= pair[1]:
                raise SpecError(f"{name} of a slice are {pair}; the second must be larger")

    @property
    def fixed_shape(self) -> Shape | None:
        """What is taken out of both."""
        sizes = self.places[1] - self.places[0], self.channels[1] - self.channels[0]
        return sizes if all(sizes) else None

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[places, channels] that are left."""
        shape = joined(shapes, "a slice")
        for size, pair in zip(shape, (self.places, self.channels), strict=True):
            if pair[1] > size:
                raise SpecError(f"a slice goes up to {pair[1]} of {size}")
        length, channels = shape
        places = self.places[1] - self.places[0] or length
        return places, self.channels[1] - self.channels[0] or channels


@dataclass(frozen=True)
class PoolSpec(Layer):
    """The largest or the mean of some places, channel by channel.

    Attributes
    ----------
    kind : str
        ``max`` or ``mean``.
    size, stride : int
        In places; a size of 0 takes the whole frame.
    """

    kind: str
    size: int = 0
    stride: int = 1

    op: ClassVar[str] = "pool"

    def __post_init__(self) -> None:
        self.check_reads()
        check_one_of(self.kind, "kind of a pool is", ("max", "mean"))
        check_size(self.size, "size of a pool", least=0)
        check_size(self.stride, "stride of a pool")

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[L', C]."""
        length, channels = joined(shapes, "a pool")
        size = self.size or length
        if size > length:
            raise SpecError(f"a pool of {size} places reads a frame of {length}")
        return (length - size) // self.stride + 1, channels

    def describe(self) -> str:
        """Name the layer in few words."""
        return f"{self.kind} of {self.size or 'all'} places"


@dataclass(frozen=True)
class MagnitudeSpec(Layer):
    """``sqrt(re^2 + im^2)``: the first half of the channels is real, the second imaginary."""

    op: ClassVar[str] = "magnitude"

    def __post_init__(self) -> None:
        self.check_reads()

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[L, C / 2]."""
        length, channels = joined(shapes, "a magnitude")
        if channels % 2:
            raise SpecError(f"a magnitude reads {channels} channels; their number must be even")
        return length, channels // 2


def _pair(value: object, what: str) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise SpecError(f"{what} is {value!r}; it must be two whole numbers")
    for item in value:
        check_whole(item, what, 0, MAX_SIZE)
    return value[0], value[1]


def _bounded(shape: Shape, where: str) -> Shape:
    if shape[0] * shape[1] > MAX_SIZE:
        raise SpecError(f"{where} gives {shape[0]} x {shape[1]} numbers; at most {MAX_SIZE} are")
    return shape
