"""Pools along one axis, and what is reduced: means, sums and maxima."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamrnn.importers.network import Activation, FrameLayer, Scale
from streamrnn.importers.onnx.frames.axes import channels_of, place_label, with_places
from streamrnn.importers.onnx.frames.conv import Attributes
from streamrnn.importers.onnx.patterns import mark_mean
from streamrnn.importers.onnx.values import FEATURE, NotFollowed, Signal, Value
from streamrnn.model.layers.frame import MixSpec, PoolSpec

__all__ = ["pool", "reduce_axes"]


def pool(op: str, name: str, signal: Signal, attributes: Attributes) -> Signal:
    """Follow a pool, along one of its axes at most."""
    kind = "max" if "Max" in op else "mean"
    rank = len(signal.axes)
    if rank not in (3, 4):
        raise NotFollowed("it is no pool along one axis, [batch, channels, places]")
    channels_of(signal)
    count = rank - 2
    if op.startswith("Global"):
        return _whole(kind, name, signal, [k for k in range(2, rank) if signal.shape[k] != 1])
    sizes = [int(size) for size in attributes.get("kernel_shape", [0] * count)]
    strides = [int(size) for size in attributes.get("strides", [1] * count)]
    pads = [int(size) for size in attributes.get("pads", [0] * 2 * count)]
    rest = {"auto_pad": ("NOTSET", "VALID"), "ceil_mode": (0,), "dilations": ([1] * count,)}
    if any(pads) or any(attributes.get(key, v[0]) not in v for key, v in rest.items()):
        raise NotFollowed("it pads, rounds up or is dilated, which no pool of a model does")
    if not len(sizes) == len(strides) == count or min(*sizes, *strides) < 1:
        raise NotFollowed(f"it has windows of {sizes} and strides {strides}")
    wide = [k for k in range(count) if (sizes[k], strides[k]) != (1, 1)]
    if not wide:
        return signal
    if len(wide) > 1:
        raise NotFollowed("it is a pool along two axes")
    [k] = wide
    length = signal.shape[2 + k]
    if length < sizes[k]:
        raise NotFollowed(f"its window is longer than the {length} places")
    label = place_label(signal, 2 + k)
    layer = FrameLayer(name, PoolSpec(kind, sizes[k], strides[k]), along=label)
    return with_places(signal.plus(layer), 2 + k, label, (length - sizes[k]) // strides[k] + 1)


def _whole(kind: str, name: str, signal: Signal, axes: Sequence[int]) -> Signal:
    """Pool all places of an axis."""
    if not axes:
        return signal
    if len(axes) > 1:
        raise NotFollowed("it pools along two axes")
    label = place_label(signal, axes[0])
    layer = FrameLayer(name, PoolSpec(kind, 0, 1), along=label)
    return with_places(signal.plus(layer), axes[0], label, 1)


def reduce_axes(
    op: str, name: str, signal: Signal, inputs: Sequence[Value | None], attributes: Attributes
) -> Signal:
    """Follow a reduction over places, or over the features."""
    rank = len(signal.axes)
    axes = attributes.get("axes", inputs[1] if len(inputs) > 1 else None)
    given = [] if axes is None else [int(axis) for axis in np.asarray(axes).reshape(-1)]
    if not given or any(not -rank <= axis < rank for axis in given):
        raise NotFollowed("it reduces all axes, or none that there are")
    chosen = sorted({axis % rank for axis in given})
    wide = [k for k in chosen if signal.shape[k] != 1]
    if len(wide) > 1:
        raise NotFollowed("it reduces more than one axis")
    made = signal
    if wide:
        made = _reduced(op, name, signal, wide[0])
    if attributes.get("keepdims", 1):
        return made
    for k in reversed(chosen):
        made = made.without(k)
    return made


def _reduced(op: str, name: str, signal: Signal, k: int) -> Signal:
    if op in ("ReduceL2", "ReduceSumSquare"):
        square = MixSpec(reads=(signal.head,) * 2, is_product=True)
        reads = (signal.head,) * 2
        made = signal.plus(FrameLayer(f"{name}.square", square), reads=reads)
        own = f"{name}.sum" if op == "ReduceL2" else name
        made = _reduced("ReduceSum", own, made, k)
        return made if op != "ReduceL2" else made.plus(Activation(name, "sqrt"))
    kind = "max" if "Max" in op else "mean"
    size, last = signal.shape[k], signal.featured()
    of_features = last.find(FEATURE) == k
    if kind == "max" and of_features:
        raise NotFollowed("it takes the largest of the features")
    mean = f"{name}.mean" if op == "ReduceSum" else name
    if of_features:
        made = mark_mean(mean, last, k)
    elif signal.find(FEATURE) is None or k == 0:
        raise NotFollowed("it reduces another axis than that of the places")
    else:
        made = _whole(kind, mean, signal, [k])
    if op != "ReduceSum":
        return made
    return made.plus(Scale(name, np.array([float(size)]), np.zeros(1)))
