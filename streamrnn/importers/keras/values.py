"""What goes from layer to layer while a network of Keras is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.network import Dense, FrameLayer, Layer, Network, zeros
from streamrnn.model.layers.base import INPUT
from streamrnn.model.layers.frame import ActivationSpec

__all__ = ["Arrays", "Builder", "Call", "Config", "Value"]

Config = dict[str, Any]
Arrays = Sequence[NDArray[Any]]
_MAX_FLAT = 2048  # numbers of a frame that is copied into a vector by a product


@dataclass(frozen=True)
class Value:
    """What a layer of Keras gives at one step.

    Attributes
    ----------
    reads : tuple of str
        The layers of ours that hold it, joined channel by channel.
    length, channels : int
        Of the frame that these hold; 0 channels where that is not known.
    is_frame : bool
        Whether Keras has both axes too. Else it is a vector: a longer frame was flattened.
    has_time : bool
        Whether it is a sequence, and not the last step alone.
    num_steps : int or None
        Of the sequence, where the file fixes it.
    is_masked : bool
        Whether a mask comes with it.
    from_state : bool
        Whether it follows from the states of recurrent layers alone.
    margin : int
        Steps of zeros that were put before the sequence.
    last_of : str
        The layer that gave the last step alone.
    is_sure : bool
        False behind a layer that was refused: nothing is concluded from the rest then.
    """

    reads: tuple[str, ...] = (INPUT,)
    length: int = 1
    channels: int = 0
    is_frame: bool = False
    has_time: bool = True
    num_steps: int | None = None
    is_masked: bool = False
    from_state: bool = False
    margin: int = 0
    last_of: str = ""
    is_sure: bool = True

    @property
    def size(self) -> int:
        """Numbers of a step; 0 where that is not known."""
        return self.length * self.channels

    @property
    def is_flat(self) -> bool:
        """Whether a vector lies in several places."""
        return not self.is_frame and self.length > 1

    def is_axis_last(self, axis: Any) -> bool:
        """Whether an axis of Keras's, the batch being the first, is the last one."""
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        return axis == -1 or (type(axis) is int and axis == self.has_time + 1 + self.is_frame)


@dataclass
class Builder:
    """Appends layers to a network."""

    network: Network
    version: str = ""  # of Keras
    names: set[str] = field(default_factory=lambda: {INPUT})
    unmasked: list[str] = field(default_factory=list)  # recurrent layers that see every step
    masked_by: str = ""  # the layer that masks

    def add(self, layer: Layer, value: Value, length: int, channels: int) -> Value:
        """Append a layer that reads a value; return what it gives."""
        layers = self.network.layers
        before = layers[-1].name if layers else INPUT
        name = self.free(layer.name)
        self.names.add(name)
        reads = layer.reads or value.reads
        layers.append(replace(layer, name=name, reads=() if reads == (before,) else reads))
        return replace(value, reads=(name,), length=length, channels=channels, margin=0)

    def free(self, name: str) -> str:
        """Return a name that no layer has yet."""
        name = name.replace("[", "(").replace("]", ")")  # these say that a step before is read
        free, number = name, 1
        while free in self.names:
            number += 1
            free = f"{name} ({number})"
        return free

    def single(self, value: Value, name: str) -> Value:
        """Let one layer hold a value, as it is in Keras."""
        if value.is_flat:
            if value.size > _MAX_FLAT:
                raise ModelFileError(
                    f"layer {name!r} reads a flattened frame of {value.size} numbers otherwise "
                    f"than by a product; at most {_MAX_FLAT} may be"
                )
            eye = np.eye(value.size, dtype=np.float32)
            flat = Dense(f"{name}/flat", eye, zeros(value.size), {"weight": "flattening"})
            return self.add(flat, value, 1, value.size)
        if len(value.reads) == 1:
            return value
        joined = FrameLayer(f"{name}/joined", ActivationSpec("identity"))
        return self.add(joined, value, value.length, value.channels)


@dataclass
class Call:
    """One use of a layer: its configuration, its arrays and what it reads."""

    kind: str
    name: str
    config: Config
    arrays: Arrays
    values: list[Value]
    build: Builder
    # What an operation was given, in order: numbers; None for a value.
    given: list[Any] = field(default_factory=list)
    is_only_reader: bool = False  # of what it reads first

    @property
    def value(self) -> Value:
        """What is read, where that is one."""
        return self.values[0]

    def refuse(self, reason: str) -> ModelFileError:
        """Name the layer in a refusal."""
        return ModelFileError(f"layer {self.name!r} {reason}")

    def shown(self, key: str) -> str:
        """Return an option as text."""
        return repr(str(self.config.get(key))[:60])

    def flag(self, key: str, default: bool = True) -> bool:
        """Return an option that is true or false."""
        value = self.config.get(key, default)
        return default if value is None else bool(value)

    def whole(self, key: str, default: int | None = None) -> int:
        """Return an option that is a size, alone or as a list of one."""
        value = self.config.get(key, default)
        value = default if value is None else value
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if type(value) is not int or not 0 < value <= 1 << 20:
            raise ModelFileError(f"layer {self.name!r}: {key} is {self.shown(key)}")
        return value

    def number(self, key: str, default: float) -> float:
        """Return an option that is a number."""
        value = self.config.get(key, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
            raise ModelFileError(
                f"layer {self.name!r}: {key} is {self.shown(key)}; expected a number"
            )
        return float(value)

    def expect(self, *shapes: tuple[int, ...]) -> None:
        """Raise `ModelFileError` unless the arrays have the shapes that the configuration asks."""
        got = [array.shape for array in self.arrays]
        if got != list(shapes):
            raise self.refuse(
                f"has weights of shapes {[list(s) for s in got]}; its configuration asks for "
                f"{[list(s) for s in shapes]}"
            )

    def columns(self, axis: int, num_axes: int, groups: int = 1) -> int:
        """Return how many numbers the first array takes, which must be what there are."""
        if not self.arrays or self.arrays[0].ndim != num_axes:
            raise self.refuse("has no weights in the file")
        columns = int(self.arrays[0].shape[axis]) * groups
        value = self.value
        there = value.channels if value.is_frame else value.size
        if there and value.is_sure and columns != there:
            raise self.refuse(f"takes {columns} values, but there are {there}")
        return columns

    def vector(self) -> Value:
        """Return what is read, which must be a vector."""
        if self.value.is_frame and self.value.is_sure:
            raise self.refuse(
                f"({self.kind}) reads a frame of {self.value.length} places; it needs a vector"
            )
        return self.value

    def in_place(self, layer: Layer) -> Value:
        """Append a layer that leaves the shape as it is."""
        value = self.value
        if not value.channels and value.is_sure:
            raise self.refuse("does not say how many values it takes, nor does the file")
        return self.build.add(layer, value, value.length, value.channels)
