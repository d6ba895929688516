"""The axis that a layer over places runs along: a frame's, or time.

A frame is [batch, channels, places] in ONNX and [places, channels] in a model. Which of the
input's axes are places and which is time is known only when the whole graph has been followed: what
runs along an axis notes which one, and `settle` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamrnn.importers.network import FrameLayer, Layer
from streamrnn.importers.onnx.values import FEATURE, ONE_STEP, PLACES, Axis, NotFollowed, Signal
from streamrnn.model.layers.frame import ActivationSpec, ConvSpec, SliceSpec

__all__ = [
    "KEPT",
    "InOneRow",
    "channels_of",
    "has_places",
    "is_flat_frame",
    "pick_channels",
    "place_label",
    "take_part",
    "with_channels",
    "with_places",
]


KEPT = "(steps that are kept)"  # label of an axis that a graph of one step has for itself


@dataclass(frozen=True)
class InOneRow(FrameLayer):
    """The input as one row of features, beside which another layer has so many.

    Where the input turns out to be a frame, its places are that row; else it is nothing.
    """

    def in_frames(self, length: int) -> list[Layer]:
        """Return the layers that lay a frame of one channel out: joined with another, it is one."""
        one = SliceSpec(places=(0, 1), channels=(0, 1))
        both = (*self.reads, f"{self.name}.first")
        return [
            FrameLayer(f"{self.name}.first", one, reads=self.reads),
            FrameLayer(f"{self.name}.joined", ActivationSpec("identity"), reads=both),
            FrameLayer(self.name, SliceSpec(channels=(0, length)), reads=(f"{self.name}.joined",)),
        ]


def place_label(signal: Signal, k: int) -> str:
    """Return which of the input's axes lies along an axis; nothing of one that has no label."""
    labels = [label for label, size in signal.axes[k] if label != FEATURE]
    others = [label for label, size in signal.axes[k] if label == FEATURE and size != 1]
    if others or len(labels) > 1:
        raise NotFollowed("it runs along an axis that is not one of the input's")
    return labels[0] if labels else PLACES if signal.time == ONE_STEP else ""


def with_places(signal: Signal, k: int, label: str, size: int) -> Signal:
    """Return a signal with another number of places along an axis."""
    is_left = label and (size > 1 or label not in (KEPT, PLACES))
    one = tuple(factor for factor in signal.axes[k] if factor == (FEATURE, 1))
    axis: Axis = (*one, (label, size)) if is_left else one
    if not label and size != 1:
        raise NotFollowed("it makes places where there were none")
    return replace(signal, axes=(*signal.axes[:k], axis, *signal.axes[k + 1 :]))


def with_channels(signal: Signal, k: int, size: int) -> Signal:
    """Return a signal with another number of channels, along an axis."""
    axes = [tuple(each for each in axis if each != (FEATURE, 1)) for axis in signal.axes]
    axes[k] = ((FEATURE, size),)
    return replace(signal, axes=tuple(axes))


def channels_of(signal: Signal) -> int:
    """Check that axis 1 is the channels', and return their number."""
    labels = {label for label, size in signal.axes[1] if size != 1}
    if signal.time == ONE_STEP and is_flat_frame(signal, 1):
        return signal.shape[1]
    if labels - {FEATURE} and (signal.find(FEATURE) is not None or len(labels) > 1):
        raise NotFollowed("its axis 1 is not the channels'")
    return signal.shape[1]


def has_places(signal: Signal, k: int) -> bool:
    """Whether places lie along an axis, with their channels or alone."""
    return any(label != FEATURE for label, size in signal.axes[k] if size != 1)


def is_flat_frame(signal: Signal, k: int) -> bool:
    """Whether a frame lies along an axis as a vector, place after place."""
    factors = [label for label, size in signal.axes[k] if size != 1]
    is_whole = FEATURE in factors or (FEATURE, 1) in signal.axes[k]
    return is_whole and (FEATURE not in factors or factors[-1] == FEATURE)


def pick_channels(signal: Signal, name: str, axis: int, chosen: Sequence[int]) -> Signal:
    """Take channels in any order, along an axis."""
    if list(chosen) == list(range(chosen[0], chosen[0] + len(chosen))):
        return take_part(signal, name, axis, chosen[0], chosen[0] + len(chosen))
    if len(chosen) * signal.shape[axis] > 1 << 22:
        raise NotFollowed(f"it takes {len(chosen)} of {signal.shape[axis]} features in an order")
    weight = np.eye(signal.shape[axis])[list(chosen)][:, :, None]
    arrays = {"weight": weight, "bias": np.zeros(len(chosen))}
    made = signal.plus(FrameLayer(name, ConvSpec(len(chosen), 1), arrays))
    return with_channels(made, axis, len(chosen))


def take_part(signal: Signal, name: str, axis: int, first: int, end: int) -> Signal:
    """Take a run of the channels, or of the places or steps along another axis."""
    if axis == len(signal.axes) - 1:
        signal = signal.featured()
    labels = {label for label, size in signal.axes[axis] if size != 1}
    if labels == {FEATURE}:
        made = signal.plus(FrameLayer(name, SliceSpec(channels=(first, end))))
        return with_channels(made, axis, end - first)
    if not labels or FEATURE in labels or axis == 0:
        raise NotFollowed("it takes a part of what the network computes along another axis")
    label = place_label(signal, axis)
    spec = SliceSpec(places=(first, end))
    layer = FrameLayer(name, spec, along=label, places=signal.shape[axis])
    return with_places(signal.plus(layer), axis, label, end - first)
