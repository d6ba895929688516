"""Results of a network that are added, multiplied, or put beside one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamrnn.importers.network import Activation, FrameLayer
from streamrnn.importers.onnx.frames.axes import (
    InOneRow,
    is_flat_frame,
    place_label,
    with_channels,
)
from streamrnn.importers.onnx.values import FEATURE, ONE_STEP, NotFollowed, Signal
from streamrnn.model.layers.frame import ActivationSpec, ConvSpec, MixSpec

__all__ = ["join_signals", "spread"]


def join_signals(op: str, name: str, signals: Sequence[Signal], axis: int | None = None) -> Signal:
    """Join results of the network: their sum, difference, product, or one behind the other."""
    if axis is not None and axis == len(signals[0].axes) - 1:
        signals = [signal.featured() for signal in signals]
    if op == "Concat":
        return _beside(name, signals, axis)
    signals = _spread_alike(name, [_in_one_row(name, signal, signals) for signal in signals])
    if op == "Div":
        divisor = signals[1].plus(Activation(f"{name}.divisor", "reciprocal"))
        signals = [signals[0], divisor]
    merged = signals[0]
    for signal in signals[1:]:
        merged = merged.merged(signal)
    shapes = [signal.shape for signal in signals]
    if len(set(shapes)) > 1 and not _stands_for_all(shapes):
        raise NotFollowed(f"it joins results of the network of shapes {shapes}")
    if len({_place_of_features(signal) for signal in signals} - {None}) > 1 or not _times_fit(
        signals
    ):
        raise NotFollowed("it joins results of the network whose axes are not the same ones")
    gains = {"Add": (1.0, 1.0), "Sub": (1.0, -1.0)}.get(op, ())
    reads = tuple(signal.head for signal in signals)
    spec = MixSpec(gains=gains, is_product=not gains, reads=reads)
    # Of two alike the one that says which axis has the features.
    longest = max(signals, key=lambda each: (math.prod(each.shape), each.find(FEATURE) is not None))
    return replace(merged.plus(FrameLayer(name, spec), reads=reads), axes=longest.axes)


def _beside(name: str, signals: Sequence[Signal], axis: int | None) -> Signal:
    merged = signals[0]
    for signal in signals[1:]:
        merged = merged.merged(signal)
    labels = {label for each in signals for label, size in each.axes[axis or 0] if size != 1}
    if axis is not None and _are_unlike_frames(signals, axis):
        labels = set()
    rests = {tuple(s for k, s in enumerate(each.shape) if k != axis) for each in signals}
    if axis is None or labels - {FEATURE} or len(rests) != 1:
        raise NotFollowed("it joins results along another axis than the features'")
    reads = tuple(signal.head for signal in signals)
    made = merged.plus(FrameLayer(name, ActivationSpec("identity")), reads=reads)
    return with_channels(made, axis, sum(each.shape[axis] for each in signals))


def _are_unlike_frames(signals: Sequence[Signal], axis: int) -> bool:
    """Whether frames of several lengths lie along an axis as vectors: so a layer joins them."""
    lengths = {
        math.prod(size for label, size in signal.axes[axis] if label != FEATURE)
        for signal in signals
    }
    is_flat = all(is_flat_frame(signal, axis) for signal in signals)
    return is_flat and len(lengths) > 1 and any(s.time == ONE_STEP for s in signals)


def spread(signal: Signal, name: str, k: int, channels: int) -> Signal:
    """Give every channel the one that there is."""
    arrays = {"weight": np.ones((channels, 1, 1)), "bias": np.zeros(channels)}
    made = signal.plus(FrameLayer(name, ConvSpec(channels, 1), arrays))
    return with_channels(made, k, channels)


def _spread_alike(name: str, signals: Sequence[Signal]) -> Sequence[Signal]:
    """Let one number stand for all features of the others."""
    ranks = {len(signal.axes) for signal in signals}
    places = {_place_of_features(signal) for signal in signals} - {None}
    if len(ranks) != 1 or len(places) != 1:
        return signals
    [k] = places
    assert k is not None
    most = max(signal.shape[k] for signal in signals)
    return [
        spread(signal, f"{name}.{j}", k, most) if signal.shape[k] == 1 and most > 1 else signal
        for j, signal in enumerate(signals)
    ]


def _in_one_row(name: str, signal: Signal, others: Sequence[Signal]) -> Signal:
    """Let the input be features where those that it is joined with are."""
    places = {each.find(FEATURE) for each in others if len(each.axes) == len(signal.axes)} - {None}
    if signal.layers or signal.find(FEATURE) is not None or len(places) != 1:
        return signal
    [k] = places
    if k is None or k != len(signal.axes) - 1 or signal.shape[k] == 1:
        return signal
    label = place_label(signal, k)
    if not label or any(each.find(label) is not None for each in others if each is not signal):
        return signal
    row = InOneRow(f"{name}.row", ActivationSpec("identity"), along=label)
    return with_channels(signal.plus(row), k, signal.shape[k])


def _place_of_features(signal: Signal) -> int | None:
    """Return which axis has the features; None where all of it is one number or the input's."""
    k = signal.find(FEATURE)
    return None if k is None or (FEATURE, 1) in signal.axes[k] else k


def _times_fit(signals: Sequence[Signal]) -> bool:
    """Whether labels of the input's axes lie along the same axes in all signals."""
    places: dict[str, int] = {}
    return all(
        places.setdefault(label, k) == k
        for signal in signals
        for k, axis in enumerate(signal.axes)
        for label, size in axis
        if label != FEATURE and size != 1
    )


def _stands_for_all(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether shapes differ in that one has a single place, which stands for all."""
    a, b = shapes
    if len(a) != len(b) or len(a) < 3:
        return False
    other = [k for k in range(len(a)) if a[k] != b[k]]
    return len(other) == 1 and other[0] > 0 and 1 in (a[other[0]], b[other[0]])
