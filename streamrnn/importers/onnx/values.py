"""What flows along the edges of a graph, while it is followed.

A constant is an ndarray. A `Signal` is what the network computes of its input: layers, and which
axis is what. `Symbols` stand for numbers that are only moved, the states of recurrent layers: each
has an id, so that a slice, a transposition or a concatenation of them is what NumPy makes of the
ids. `Unknown` is what could not be followed, with all reasons.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import Dense, FrameLayer, Layer
from streamrnn.model.layers.base import BEFORE, INPUT

__all__ = [
    "FEATURE",
    "ONE_STEP",
    "OPEN_SIZES",
    "PLACES",
    "Axis",
    "NotFollowed",
    "Signal",
    "Symbols",
    "Unknown",
    "Value",
]

# Stand for axes whose size is open: no two are alike, and no network has such sizes.
OPEN_SIZES = (211, 223, 227, 229, 233, 239)
FEATURE = "feature"  # label of the axis that layers work on
ONE_STEP = "one step"  # stands for time in a graph that has no axis of it
PLACES = "places"  # label of an axis of places that a vector of one step was given
# Factors (label, size) that lie along one axis, slowest first: a reshape may join some.
Axis = tuple[tuple[str, int], ...]


class NotFollowed(Exception):
    """A node that cannot be followed, and why."""


@dataclass(frozen=True)
class Signal:
    """What layers made of the graph's input."""

    source: str  # name of the graph's input
    axes: tuple[Axis, ...]
    layers: tuple[Layer, ...] = ()  # every one behind those that it reads
    head: str = INPUT  # the name of the layer that gives it
    time: str = ""  # label of the axis that recurrent layers run along, once there is one
    is_last_step: bool = False  # whether the last step was taken out
    # Symbols of the same numbers, where they are a cell's new state: it may be given back.
    ids: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements of each axis."""
        return tuple(math.prod(size for _, size in axis) for axis in self.axes)

    @property
    def last(self) -> Layer | None:
        """The layer that gives it."""
        return self.layer(self.head)

    def layer(self, name: str) -> Layer | None:
        """Return the layer with a name."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def channels_of(self, name: str) -> int:
        """Return how many channels a product or a convolution gives; 0 of another layer."""
        layer = self.layer(name)
        if isinstance(layer, FrameLayer) and "weight" in layer.arrays:
            return int(layer.arrays["weight"].shape[0])
        return int(layer.weight.shape[0]) if isinstance(layer, Dense) else 0

    def plus(self, layer: Layer, reads: tuple[str, ...] = ()) -> Signal:
        """Return the signal after a further layer, which reads it or others by name."""
        layer = replace(layer, reads=reads or (self.head,))
        return replace(self, layers=(*self.layers, layer), head=layer.name, ids=None)

    def exchanged(self, layer: Layer) -> Signal:
        """Return the signal with another layer in place of its last one."""
        rest = tuple(each for each in self.layers if each.name != self.head)
        layer = replace(layer, reads=next(e.reads for e in self.layers if e.name == self.head))
        return replace(self, layers=(*rest, layer), head=layer.name, ids=None)

    def merged(self, other: Signal) -> Signal:
        """Return the signal with all layers of another one too."""
        if self.source != other.source:
            raise NotFollowed(
                f"it joins what the network computes of two inputs, {self.source!r} and "
                f"{other.source!r}"
            )
        if self.is_last_step != other.is_last_step:
            raise NotFollowed("it joins the last step with every step")
        if self.time and other.time and self.time != other.time:
            raise NotFollowed("it joins results along two axes of time")
        known = {layer.name: layer for layer in self.layers}
        if any(known.get(layer.name, layer) is not layer for layer in other.layers):
            raise NotFollowed("it joins a product with and without what is added to it")
        layers = (*self.layers, *(each for each in other.layers if each.name not in known))
        return replace(self, layers=layers, time=self.time or other.time, ids=None)

    def pruned(self, heads: Collection[str] = ()) -> Signal:
        """Leave out layers that nothing reads any more, nor is one of the heads."""
        wanted = {self.head, *heads}
        for layer in reversed(self.layers):
            if layer.name in wanted:
                wanted |= {read.removesuffix(BEFORE) for read in layer.reads}
        return replace(self, layers=tuple(each for each in self.layers if each.name in wanted))

    def with_features(self, num_features: int) -> Signal:
        """Return it with its last axis as features, of another number."""
        return replace(self, axes=(*self.axes[:-1], ((FEATURE, num_features),)))

    def featured(self) -> Signal:
        """Return it with its last axis as features, where it is the input as it came."""
        labels = {label for label, size in self.axes[-1] if size != 1} if self.axes else set()
        if self.find(FEATURE) is not None or len(labels) != 1:
            return self
        return self if self.time in labels else self.with_features(self.shape[-1])

    def num_features(self) -> int:
        """Check that the last axis is the features', and return their number."""
        axis = self.axes[-1] if self.axes else ()
        labels = {label for label, size in axis if size != 1}
        is_frame = (FEATURE, 1) in axis  # of one channel, as a vector
        is_input = (self.find(FEATURE) is None or is_frame) and len(labels) == 1
        if labels - {FEATURE} and not is_input and FEATURE not in labels:
            raise NotFollowed("it works along another axis than the features'")
        if self.time and self.time in labels:
            raise NotFollowed("it works along time")
        return self.shape[-1] if self.axes else 0

    def feature_order(self) -> NDArray[np.int64] | None:
        """Return where each of our features lies in the last axis: we have places first.

        None where the order is the same. A frame that was flattened has its channels first.
        """
        factors = [(label, size) for label, size in self.axes[-1] if size != 1]
        if len(factors) < 2 or factors[-1][0] == FEATURE:
            return None
        if len(factors) > 2 or factors[0][0] != FEATURE:
            raise NotFollowed("it flattens more than a frame")
        order = np.arange(self.shape[-1]).reshape(factors[0][1], factors[1][1])
        return order.T.reshape(-1)

    def transposed(self, order: tuple[int, ...]) -> Signal:
        """Exchange the axes."""
        return replace(self, axes=tuple(self.axes[k] for k in order))

    def reshaped(self, shape: tuple[int, ...]) -> Signal:
        """Join and part axes, where nothing of the features is parted."""
        factors = [factor for axis in self.axes for factor in axis]
        axes: list[Axis] = []
        for size in shape:
            taken: list[tuple[str, int]] = []
            product = 1
            while factors and product * factors[0][1] <= size:
                if product == size and (size != 1 or taken):
                    break
                taken.append(factors.pop(0))
                product *= taken[-1][1]
            if product != size:
                raise NotFollowed(f"it reshapes {list(self.shape)} to {list(shape)}")
            axes.append(tuple(taken))
        if any(size != 1 for _, size in factors):
            raise NotFollowed(f"it reshapes {list(self.shape)} to {list(shape)}")
        if axes:
            axes[-1] = (*axes[-1], *factors)
        return replace(self, axes=tuple(axes))

    def without(self, k: int) -> Signal:
        """Take an axis out of which one element is left."""
        rest = list(self.axes)
        gone = rest.pop(k)
        if rest and gone:  # a label of size 1 lives on beside another
            place = min(k, len(rest) - 1)
            rest[place] = (*gone, *rest[place]) if place == k else (*rest[place], *gone)
        return replace(self, axes=tuple(rest))

    def find(self, label: str) -> int | None:
        """Return the axis that has a label."""
        for k, axis in enumerate(self.axes):
            if any(name == label for name, _ in axis):
                return k
        return None


@dataclass(frozen=True)
class Symbols:
    """Numbers that are moved but not computed with."""

    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Unknown:
    """What could not be followed."""

    reasons: tuple[str, ...]


Value = NDArray[Any] | Signal | Symbols | Unknown
