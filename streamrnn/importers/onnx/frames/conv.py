"""Convolutions along one axis or two, and paddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamrnn.importers.network import Dense, FrameLayer, Layer
from streamrnn.importers.onnx.frames.axes import (
    KEPT,
    channels_of,
    has_places,
    place_label,
    take_part,
    with_channels,
    with_places,
)
from streamrnn.importers.onnx.values import ONE_STEP, NotFollowed, Signal, Value
from streamrnn.model.layers.frame import ConvSpec, PadSpec

__all__ = ["Attributes", "PlaneConv", "Window", "convolve", "join_zeros", "pad"]

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """How a convolution runs along one axis."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)

    @property
    def reach(self) -> int:
        """How many places before its last one it reads."""
        return (self.kernel - 1) * self.dilation

    def places_of(self, length: int) -> int:
        """Return how many places it gives."""
        places = (length + sum(self.padding) - self.reach - 1) // self.stride + 1
        if places < 1:
            raise NotFollowed(f"its kernel of {self.kernel} is longer than the {length} places")
        return places


@dataclass(frozen=True)
class PlaneConv(FrameLayer):
    """A convolution along two axes, one of which must turn out to be time.

    ``spec`` has its window along the second axis, ``first`` that along the first one; ``weight`` is
    [C', C / groups, first, second].
    """

    first: Window = field(default_factory=lambda: Window(1))
    along_first: str = ""


def convolve(
    name: str,
    signal: Signal,
    inputs: Sequence[Value | None],
    names: Sequence[str],
    attributes: Attributes,
) -> Signal:
    """Follow a Conv with a constant kernel."""
    weight = inputs[1]
    rank = len(signal.axes)
    if not isinstance(weight, np.ndarray) or weight.ndim != rank or rank not in (3, 4):
        raise NotFollowed(
            "it is no convolution along one axis or two, [batch, channels, places], with a "
            "constant kernel"
        )
    groups, channels = int(attributes.get("group", 1)), channels_of(signal)
    if groups < 1 or len(weight) % groups or weight.shape[1] * groups != channels:
        raise NotFollowed(f"its kernel takes {weight.shape[1]} of {channels} channels")
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is None:
        bias = np.zeros(len(weight))
    if not isinstance(bias, np.ndarray) or bias.shape != (len(weight),):
        raise NotFollowed("its bias is not one number for every channel")
    origins = {"weight": names[1]} | ({"bias": names[2]} if len(names) > 2 and names[2] else {})
    windows = _windows(attributes, signal.shape[2:], weight.shape[2:])
    labels = [place_label(signal, k) for k in range(2, rank)]
    if rank == 3 and signal.shape[2] == 1 and has_places(signal, 1):
        labels = [KEPT if signal.time == ONE_STEP else labels[0]]  # a whole frame, as a vector
    places = [w.places_of(size) for w, size in zip(windows, signal.shape[2:], strict=True)]
    layer: Layer
    alone = [k for k in range(rank - 2) if (signal.shape[2 + k], windows[k]) != (1, Window(1))]
    if not alone and groups == 1:
        layer = Dense(name, weight.reshape(weight.shape[:2]), bias, origins)
    elif len(alone) < 2:  # along the other axis there is one place
        k = alone[0] if alone else rank - 3
        spec = _spec(len(weight), windows[k], groups)
        arrays = {"weight": weight.reshape(*weight.shape[:2], -1), "bias": bias}
        layer = FrameLayer(name, spec, arrays, origins, labels[k])
    else:
        spec, arrays = _spec(len(weight), windows[1], groups), {"weight": weight, "bias": bias}
        layer = PlaneConv(
            name, spec, arrays, origins, labels[1], first=windows[0], along_first=labels[0]
        )
    made = with_channels(signal.plus(layer), 1, len(weight))
    for k in range(2, rank):
        made = with_places(made, k, labels[k - 2], places[k - 2])
    return made


def _spec(channels: int, window: Window, groups: int) -> ConvSpec:
    return ConvSpec(channels, window.kernel, window.stride, window.padding, window.dilation, groups)


def _windows(
    attributes: Attributes, lengths: Sequence[int], kernels: Sequence[int]
) -> list[Window]:
    count = len(lengths)
    strides, dilations = (
        [int(value) for value in attributes.get(key, [1] * count)]
        for key in ("strides", "dilations")
    )
    mode = str(attributes.get("auto_pad", "NOTSET"))
    pads = [int(value) for value in attributes.get("pads", [0] * 2 * count)]
    pads = pads if mode == "NOTSET" else [0] * 2 * count
    if len(pads) != 2 * count or min(pads) < 0:
        raise NotFollowed(f"its padding is {pads}")
    if not len(strides) == len(dilations) == count or min(*strides, *dilations) < 1:
        raise NotFollowed(f"it has strides {strides} and dilations {dilations}")
    windows = []
    for k, (length, kernel) in enumerate(zip(lengths, kernels, strict=True)):
        padding = pads[k], pads[k + count]
        if mode.startswith("SAME"):
            rest = (-(-length // strides[k]) - 1) * strides[k] - length
            total = max(0, rest + (kernel - 1) * dilations[k] + 1)
            small, large = total // 2, total - total // 2
            padding = (small, large) if mode == "SAME_UPPER" else (large, small)
        windows.append(Window(kernel, strides[k], dilations[k], padding))
    return windows


def pad(
    name: str, signal: Signal, inputs: Sequence[Value | None], attributes: Attributes
) -> Signal:
    """Follow a Pad of places or steps; what it takes away is a slice."""
    rank = len(signal.axes)
    given = attributes.get("pads", inputs[1] if len(inputs) > 1 else None)
    pads = np.asarray(given).reshape(-1).tolist() if given is not None else []
    axes = inputs[3] if len(inputs) > 3 else None
    if isinstance(axes, np.ndarray):
        chosen = [int(axis) % rank for axis in axes.reshape(-1)]
        given, pads = pads, [0] * 2 * rank
        if len(given) != 2 * len(chosen):
            raise NotFollowed("its pads are not two for every axis")
        for j, k in enumerate(chosen):
            pads[k], pads[k + rank] = given[j], given[j + len(chosen)]
    if len(pads) != 2 * rank or not all(isinstance(each, int) for each in pads):
        raise NotFollowed("its pads are no constant whole numbers, two for every axis")
    value = inputs[2] if len(inputs) > 2 else None
    value = np.asarray(attributes.get("value", 0.0)) if value is None else value
    if not isinstance(value, np.ndarray) or value.any():
        raise NotFollowed("it pads with another number than zero")
    modes = {"constant": "zeros", "reflect": "reflect", "edge": "edge"}
    mode = modes.get(str(attributes.get("mode", "constant")))
    if mode is None:
        raise NotFollowed(f"it pads in mode {attributes.get('mode')}")
    padded = [k for k in range(rank) if pads[k] or pads[k + rank]]
    for k in padded:
        own = name if k == padded[-1] else f"{name}.{k}"
        signal = _padded(own, signal, k, (pads[k], pads[k + rank]), mode)
    return signal


def join_zeros(name: str, parts: Sequence[Value | None], axis: int) -> Signal | None:
    """Follow zeros put before or behind what the network computes; None of anything else."""
    signals = [k for k, part in enumerate(parts) if isinstance(part, Signal)]
    if len(signals) != 1:
        return None
    [k] = signals
    signal = parts[k]
    assert isinstance(signal, Signal)
    sizes = []
    for part in parts:
        if isinstance(part, Signal):
            continue
        if not isinstance(part, np.ndarray) or part.any() or part.ndim != len(signal.axes):
            return None
        rest = list(part.shape)
        sizes.append(rest.pop(axis))
        if rest != [size for j, size in enumerate(signal.shape) if j != axis]:
            return None
    return _padded(name, signal, axis, (sum(sizes[:k]), sum(sizes[k:])), "zeros")


def _padded(name: str, signal: Signal, k: int, padding: tuple[int, int], mode: str) -> Signal:
    label = place_label(signal, k)
    if k == 0 or not label:
        raise NotFollowed("it pads another axis than places and time")
    size = signal.shape[k]
    cut = tuple(max(0, -each) for each in padding)
    if any(cut):
        if sum(cut) >= size or mode != "zeros":
            raise NotFollowed(f"it pads {size} places by {list(padding)}")
        signal = take_part(signal, f"{name}.cut", k, cut[0], size - cut[1])
    more = max(0, padding[0]), max(0, padding[1])
    if not any(more):
        return signal
    made = signal.plus(FrameLayer(name, PadSpec(more, mode), along=label))
    return with_places(made, k, label, signal.shape[k] + sum(more))
