"""What flows along the edges of a graph, while it is followed.

A constant is an ndarray. A `Signal` is what the network computes of its input: layers, and which
axis is what. `Symbols` stand for numbers that are only moved, the states of recurrent layers: each
has an id, so that a slice, a transposition or a concatenation of them is what NumPy makes of the
ids. `Unknown` is what could not be followed, with all reasons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import Layer

__all__ = [
    "FEATURE",
    "Axis",
    "NotFollowed",
    "Signal",
    "Symbols",
    "Unknown",
    "Value",
]

FEATURE = "feature"  # label of the axis that layers work on
# Factors (label, size) that lie along one axis, slowest first: a reshape may join some.
Axis = tuple[tuple[str, int], ...]


class NotFollowed(Exception):
    """A node that cannot be followed, and why."""


@dataclass(frozen=True)
class Signal:
    """What layers made of the graph's input."""

    source: str  # name of the graph's input
    axes: tuple[Axis, ...]
    layers: tuple[Layer, ...] = ()
    time: str = ""  # label of the axis that recurrent layers run along, once there is one
    is_last_step: bool = False  # whether the last step was taken out
    # Symbols of the same numbers, where they are a cell's new state: it may be given back.
    ids: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements of each axis."""
        return tuple(math.prod(size for _, size in axis) for axis in self.axes)

    def plus(self, *layers: Layer) -> Signal:
        """Return the signal after further layers."""
        return replace(self, layers=(*self.layers, *layers), ids=None)

    def with_features(self, num_features: int) -> Signal:
        """Return it with its last axis as features, of another number."""
        return replace(self, axes=(*self.axes[:-1], ((FEATURE, num_features),)))

    def num_features(self) -> int:
        """Check that the last axis is the features', and return their number."""
        axis = self.axes[-1] if self.axes else ()
        labels = {label for label, size in axis if size != 1}
        is_input = not self.layers and len(labels) == 1
        if labels - {FEATURE} and not is_input:
            raise NotFollowed("it works along another axis than the features'")
        if self.time and self.time in labels:
            raise NotFollowed("it works along time")
        return self.shape[-1] if self.axes else 0

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
