"""Operators over the frame of one step, or over time: convolutions, padding, pools, joins.

A frame is [batch, channels, places] in ONNX and [places, channels] in a model. Which of the
input's axes are places and which is time is known only when the whole graph has been followed: what
runs along an axis notes which one, and `settle` decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from streamrnn.importers.network import Dense, FrameLayer, Layer
from streamrnn.importers.onnx.patterns import apply_clip, apply_slopes, mark_mean, mark_root
from streamrnn.importers.onnx.values import FEATURE, Axis, NotFollowed, Signal, Value
from streamrnn.model.layers.frame import (
    ActivationSpec,
    ConvSpec,
    MagnitudeSpec,
    MixSpec,
    NormSpec,
    PadSpec,
    PoolSpec,
    SliceSpec,
)
from streamrnn.model.layers.memory import TimeConvSpec

__all__ = ["FRAMES", "apply_frame", "join_signals", "settle", "take_channels"]

Attributes = dict[str, Any]
FRAMES = (
    "AveragePool",
    "Clip",
    "Conv",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "LayerNormalization",
    "MaxPool",
    "PRelu",
    "Pad",
    "Pow",
    "ReduceMax",
    "ReduceMean",
    "Sqrt",
)


def apply_frame(
    op: str,
    name: str,
    inputs: Sequence[Value | None],
    names: Sequence[str],
    attributes: Attributes,
) -> Value:
    """Apply an operator to a signal.

    Raises `NotFollowed` if it does what no layer does.
    """
    signal = inputs[0]
    if not isinstance(signal, Signal):
        raise NotFollowed("it is applied to something else than what the network computes")
    if op == "Conv":
        return _conv(name, signal, inputs, names, attributes)
    if op == "Clip":
        least = inputs[1] if len(inputs) > 1 else attributes.get("min")
        most = inputs[2] if len(inputs) > 2 else attributes.get("max")
        return apply_clip(name, signal, least, most)
    if op == "PRelu":
        return apply_slopes(name, signal, inputs[1], names[1])
    if op == "Pad":
        return _pad(name, signal, inputs, attributes)
    if op in ("Pow", "Sqrt"):
        return _square(op, name, signal, inputs)
    if op == "LayerNormalization":
        return _layer_norm(name, signal, inputs, names, attributes)
    return _pool(op, name, signal, inputs, attributes)


def _place_axis(signal: Signal) -> tuple[int, str]:
    """Return the last axis, along which frames lie, and the label of the input's axis in it."""
    k = len(signal.axes) - 1
    labels = [label for label, size in signal.axes[k] if label != FEATURE]
    others = [label for label, size in signal.axes[k] if label == FEATURE and size != 1]
    if others or len(labels) > 1:
        raise NotFollowed("it runs along an axis that is not one of the input's")
    return k, labels[0] if labels else ""


def _with_place(signal: Signal, label: str, size: int) -> Signal:
    axis: Axis = ((label, size),) if label else ()
    if not label and size != 1:
        raise NotFollowed("it makes places where there were none")
    return replace(signal, axes=(*signal.axes[:-1], axis))


def _channels(signal: Signal) -> int:
    """Check that axis 1 is the channels', and return their number."""
    labels = {label for label, size in signal.axes[1] if size != 1}
    if labels - {FEATURE} and (signal.find(FEATURE) is not None or len(labels) > 1):
        raise NotFollowed("its axis 1 is not the channels'")
    return signal.shape[1]


def _conv(
    name: str,
    signal: Signal,
    inputs: Sequence[Value | None],
    names: Sequence[str],
    attributes: Attributes,
) -> Signal:
    weight = inputs[1]
    if not isinstance(weight, np.ndarray) or weight.ndim != 3 or len(signal.axes) != 3:
        raise NotFollowed(
            "it is no convolution along one axis, [batch, channels, places], with a constant kernel"
        )
    k, label = _place_axis(signal)
    channels, length, kernel = _channels(signal), signal.shape[k], weight.shape[2]
    groups = int(attributes.get("group", 1))
    stride, dilation = (int(attributes.get(key, [1])[0]) for key in ("strides", "dilations"))
    if min(groups, stride, dilation) < 1 or weight.shape[1] * groups != channels:
        raise NotFollowed(f"its kernel takes {weight.shape[1]} of {channels} channels")
    padding = _padding(attributes, length, kernel, stride, dilation)
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is None:
        bias = np.zeros(len(weight))
    if not isinstance(bias, np.ndarray) or bias.shape != (len(weight),):
        raise NotFollowed("its bias is not one number for every channel")
    origins = {"weight": names[1]} | ({"bias": names[2]} if len(names) > 2 and names[2] else {})
    places = (length + sum(padding) - (kernel - 1) * dilation - 1) // stride + 1
    if places < 1:
        raise NotFollowed(f"its kernel of {kernel} is longer than the {length} places")
    layer: Layer
    if length == places == kernel == 1 and not any(padding) and groups == 1:
        layer = Dense(name, weight[:, :, 0], bias, origins)
    else:
        spec = ConvSpec(len(weight), kernel, stride, padding, dilation, groups)
        layer = FrameLayer(name, spec, {"weight": weight, "bias": bias}, origins, label)
    made = _with_place(signal.plus(layer), label, places)
    axes = list(made.axes)
    axes[1] = ((FEATURE, len(weight)),)
    return replace(made, axes=tuple(axes))


def _padding(
    attributes: Attributes, length: int, kernel: int, stride: int, dilation: int
) -> tuple[int, int]:
    mode = str(attributes.get("auto_pad", "NOTSET"))
    if mode in ("NOTSET", "VALID"):
        pads = [int(pad) for pad in attributes.get("pads", [0, 0])] if mode == "NOTSET" else [0, 0]
        if len(pads) != 2 or min(pads) < 0:
            raise NotFollowed(f"its padding is {pads}")
        return pads[0], pads[1]
    total = max(0, (-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length)
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _pad(
    name: str,
    signal: Signal,
    inputs: Sequence[Value | None],
    attributes: Attributes,
) -> Signal:
    rank = len(signal.axes)
    given = attributes.get("pads", inputs[1] if len(inputs) > 1 else None)
    pads = np.asarray(given).reshape(-1).tolist() if given is not None else []
    if len(pads) != 2 * rank or not all(isinstance(pad, int) for pad in pads):
        raise NotFollowed("its pads are no constant whole numbers, two for every axis")
    if len(inputs) > 2 and inputs[2] is not None:
        value = inputs[2]
        if not isinstance(value, np.ndarray) or value.any():
            raise NotFollowed("it pads with another number than zero")
    padded = [k for k in range(rank) if pads[k] or pads[k + rank]]
    if not padded:
        return signal
    if padded != [rank - 1] or min(pads) < 0:
        raise NotFollowed("it pads another axis than the last, or takes places away")
    modes = {"constant": "zeros", "reflect": "reflect", "edge": "edge"}
    mode = modes.get(str(attributes.get("mode", "constant")))
    if mode is None:
        raise NotFollowed(f"it pads in mode {attributes.get('mode')}")
    k, label = _place_axis(signal)
    padding = (pads[k], pads[k + rank])
    made = signal.plus(FrameLayer(name, PadSpec(padding, mode), along=label))
    return _with_place(made, label, signal.shape[k] + sum(padding))


def _pool(
    op: str,
    name: str,
    signal: Signal,
    inputs: Sequence[Value | None],
    attributes: Attributes,
) -> Signal:
    kind = "max" if "Max" in op else "mean"
    rank = len(signal.axes)
    keeps = True
    if op.startswith("Reduce"):
        axes = attributes.get("axes", inputs[1] if len(inputs) > 1 else None)
        given = [] if axes is None else np.asarray(axes).reshape(-1).tolist()
        chosen = [int(axis) % rank for axis in given]
        keeps = bool(attributes.get("keepdims", 1))
        if len(chosen) == 1 and signal.shape[chosen[0]] == 1:
            return signal if keeps else signal.without(chosen[0])
        is_last = chosen == [rank - 1] and kind == "mean" and keeps
        if is_last and signal.featured().find(FEATURE) == rank - 1:
            return mark_mean(name, signal)
        if chosen != [rank - 1]:
            raise NotFollowed("it reduces another axis than that of the places")
        window, stride = 0, 1
    elif op.startswith("Global"):
        window, stride = 0, 1
    else:
        window = int(attributes.get("kernel_shape", [0])[0])
        stride = int(attributes.get("strides", [1])[0])
        pads = [int(pad) for pad in attributes.get("pads", [0, 0])]
        rest = {"auto_pad": "NOTSET", "ceil_mode": 0, "dilations": [1]}
        if any(pads) or any(attributes.get(key, value) != value for key, value in rest.items()):
            raise NotFollowed("it pads, rounds up or is dilated, which no pool of a model does")
    if rank != 3:
        raise NotFollowed("it is no pool along one axis, [batch, channels, places]")
    k, label = _place_axis(signal)
    _channels(signal)
    if signal.shape[k] < window:
        raise NotFollowed(f"its window is longer than the {signal.shape[k]} places")
    places = (signal.shape[k] - window) // stride + 1 if window else 1
    layer = FrameLayer(name, PoolSpec(kind, window, stride), along=label)
    made = _with_place(signal.plus(layer), label, places)
    return made if keeps else made.without(k)


def _layer_norm(
    name: str,
    signal: Signal,
    inputs: Sequence[Value | None],
    names: Sequence[str],
    attributes: Attributes,
) -> Signal:
    signal = signal.featured()
    size = signal.num_features()
    axis = int(attributes.get("axis", -1))
    if axis not in (-1, len(signal.axes) - 1):
        raise NotFollowed("it normalises over more than the features")
    gain = inputs[1] if len(inputs) > 1 else np.ones(size)
    shift = inputs[2] if len(inputs) > 2 and inputs[2] is not None else np.zeros(size)
    if not all(isinstance(v, np.ndarray) and v.shape == (size,) for v in (gain, shift)):
        raise NotFollowed("its gain and shift are no constants, one for every feature")
    assert isinstance(gain, np.ndarray)
    assert isinstance(shift, np.ndarray)
    origins = dict(zip(("weight", "bias"), names[1:3], strict=False))
    spec = NormSpec(float(attributes.get("epsilon", 1e-5)))
    return signal.plus(FrameLayer(name, spec, {"weight": gain, "bias": shift}, origins))


def _square(op: str, name: str, signal: Signal, inputs: Sequence[Value | None]) -> Signal:
    """Follow a square, and the root of a sum of two: the magnitude of complex numbers."""
    if op == "Pow":
        power = inputs[1]
        if not isinstance(power, np.ndarray) or power.size != 1 or float(power.reshape(())) != 2:
            raise NotFollowed("its exponent is not 2")
        spec = MixSpec(reads=(signal.head, signal.head), is_product=True)
        layer = FrameLayer(name, spec)
        return signal.plus(layer, reads=(signal.head, signal.head))
    last = signal.last
    reads = last.reads if last is not None and _is_sum(last) else ()
    parts = [part for read in reads if (part := _part_of(signal, read)) is not None]
    if len(parts) == 2:
        (whole, first, places), (other, second, other_places) = parts
        size = first[1] - first[0]
        halves = (first, second) == ((0, size), (size, 2 * size))
        is_same = (whole, places) == (other, other_places)
        if is_same and halves and signal.channels_of(whole) == 2 * size:
            if places != (0, 0):
                label = signal.axes[-1][0][0] if signal.axes[-1] else ""
                taken = FrameLayer(f"{name}.places", SliceSpec(places=places), along=label)
                signal, whole = signal.plus(taken, reads=(whole,)), taken.name
            return signal.plus(FrameLayer(name, MagnitudeSpec()), reads=(whole,)).pruned()
    root = mark_root(name, signal)
    if root is None:
        raise NotFollowed("it is no magnitude of complex numbers, sqrt(re^2 + im^2)")
    return root


def _is_sum(layer: Layer | None) -> bool:
    return (
        isinstance(layer, FrameLayer)
        and isinstance(layer.spec, MixSpec)
        and layer.spec.gains == (1.0, 1.0)
    )


def _part_of(signal: Signal, read: str) -> tuple[str, tuple[int, int], tuple[int, int]] | None:
    """Return which channels of which layer a square is of, and which places of these."""
    square = signal.layer(read)
    if not isinstance(square, FrameLayer) or not isinstance(square.spec, MixSpec):
        return None
    if not square.spec.is_product or square.reads[0] != square.reads[-1]:
        return None
    places = (0, 0)
    part = _slice(signal, square.reads[0])
    if part is not None and part[1].channels == (0, 0):  # places of them, to be taken before
        places = part[1].places
        part = _slice(signal, part[0])
    return None if part is None else (part[0], part[1].channels, places)


def _slice(signal: Signal, name: str) -> tuple[str, SliceSpec] | None:
    """Return what a slice reads, and the slice; None of any other layer."""
    layer = signal.layer(name)
    if isinstance(layer, FrameLayer) and isinstance(layer.spec, SliceSpec):
        return layer.reads[0], layer.spec
    return None


def take_channels(signal: Signal, name: str, axis: int, first: int, end: int) -> Signal:
    """Take a run of the channels, or of the places of a frame."""
    if axis == len(signal.axes) - 1:
        signal = signal.featured()
    labels = {label for label, size in signal.axes[axis] if size != 1}
    if labels and FEATURE not in labels and signal.find(FEATURE) == 1 and axis == 2:
        _, label = _place_axis(signal)
        layer = FrameLayer(name, SliceSpec(places=(first, end)), along=label)
        return _with_place(signal.plus(layer), label, end - first)
    if labels != {FEATURE}:
        raise NotFollowed("it takes a part of what the network computes along another axis")
    made = signal.plus(FrameLayer(name, SliceSpec(channels=(first, end))))
    axes = list(made.axes)
    axes[axis] = ((FEATURE, end - first),)
    return replace(made, axes=tuple(axes))


def join_signals(op: str, name: str, signals: Sequence[Signal], axis: int | None = None) -> Signal:
    """Join results of the network: their sum, difference, product, or one behind the other."""
    if axis is not None and axis == len(signals[0].axes) - 1:
        signals = [signal.featured() for signal in signals]
    first = signals[0]
    merged = first
    for signal in signals[1:]:
        merged = merged.merged(signal)
    reads = tuple(signal.head for signal in signals)
    if op == "Concat":
        labels = {label for each in signals for label, size in each.axes[axis or 0] if size != 1}
        rests = {tuple(s for k, s in enumerate(each.shape) if k != axis) for each in signals}
        if axis is None or labels - {FEATURE} or len(rests) != 1:
            raise NotFollowed("it joins results along another axis than the features'")
        axes = list(merged.axes)
        axes[axis] = ((FEATURE, sum(each.shape[axis] for each in signals)),)
        made = merged.plus(FrameLayer(name, ActivationSpec("identity")), reads=reads)
        return replace(made, axes=tuple(axes))
    shapes = [signal.shape for signal in signals]
    if len(set(shapes)) > 1 and not _stands_for_all(shapes):
        raise NotFollowed(f"it joins results of the network of shapes {shapes}")
    if len({_place_of_features(signal) for signal in signals} - {None}) > 1 or not _times_fit(
        signals
    ):
        raise NotFollowed("it joins results of the network whose axes are not the same ones")
    gains = {"Add": (1.0, 1.0), "Sub": (1.0, -1.0), "Mul": ()}.get(op)
    if gains is None:
        raise NotFollowed("it divides by what the network computes")
    spec = MixSpec(gains=gains, is_product=not gains, reads=reads)
    longest = max(signals, key=lambda signal: math.prod(signal.shape))
    return replace(merged.plus(FrameLayer(name, spec), reads=reads), axes=longest.axes)


def _place_of_features(signal: Signal) -> int | None:
    """Return which axis has the features; None where all of it is one number or the input's."""
    k = signal.find(FEATURE)
    return None if k is None or signal.shape[k] == 1 else k


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
    return len(a) == len(b) == 3 and a[:2] == b[:2] and 1 in (a[2], b[2])


def settle(layers: Sequence[Layer], time: str, problem: Callable[[str], None]) -> list[Layer]:
    """Let what runs along time be causal layers over steps; say what cannot be."""
    settled: list[Layer] = []
    before: tuple[str, int] | None = None  # a padding along time, and how many steps
    for layer in layers:
        if not isinstance(layer, FrameLayer) or layer.along != time or not time:
            settled.append(layer)
            continue
        spec = layer.spec
        if isinstance(spec, PadSpec) and spec.mode == "zeros" and spec.padding[1] == 0:
            before = (layer.name, spec.padding[0])
            settled.append(layer)  # goes again when its convolution has been found
            continue
        if not isinstance(spec, ConvSpec):
            problem(f"{layer.name!r} ({spec.describe()}) runs along time: it needs inputs to come")
            continue
        padding, reads = spec.padding, layer.reads
        if before is not None and layer.reads == (before[0],):
            padding = (padding[0] + before[1], padding[1])
            reads = settled[-1].reads if settled[-1].name == before[0] else reads
            settled = [each for each in settled if each.name != before[0]]
        wanted = (spec.kernel - 1) * spec.dilation
        if padding != (wanted, 0) or spec.stride != 1:
            problem(
                f"{layer.name!r} is a convolution over time with padding {list(padding)} and "
                f"stride {spec.stride}; causal, so that it can be streamed, it has [{wanted}, 0] "
                "and 1"
            )
            continue
        if spec.kernel == 1 and spec.groups == 1:
            weight, bias = layer.arrays["weight"][:, :, 0], layer.arrays["bias"]
            settled.append(Dense(layer.name, weight, bias, layer.origins, reads=reads))
            continue
        made = TimeConvSpec(spec.channels, spec.kernel, spec.dilation, spec.groups)
        settled.append(replace(layer, spec=made, reads=reads))
    for layer in settled:
        if not isinstance(layer, FrameLayer) or not time or layer.along != time:
            continue
        if isinstance(layer.spec, PadSpec):
            problem(f"{layer.name!r} pads time, and no convolution after it is causal with it")
    return settled
