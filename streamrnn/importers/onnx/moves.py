"""Operators that move elements and compute nothing, on constants, symbols and signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import FrameLayer
from streamrnn.importers.onnx.frames.axes import pick_channels, take_part
from streamrnn.importers.onnx.frames.conv import join_zeros
from streamrnn.importers.onnx.frames.join import join_signals, spread
from streamrnn.importers.onnx.values import FEATURE, OPEN_SIZES, NotFollowed, Signal, Symbols, Value

__all__ = ["MAX_ELEMENTS", "MOVES", "move"]

MAX_ELEMENTS = 1 << 26  # of one constant that a graph makes
Attributes = dict[str, Any]
MOVES = (
    "Cast",
    "Concat",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def move(
    op: str,
    inputs: Sequence[Value | None],
    attributes: Attributes,
    num_outputs: int,
    name: str = "",
) -> list[Value]:
    """Apply one operator; return its outputs. ``name`` is for the layers that it makes.

    Raises `NotFollowed` if it does more than move, or its operands are not constants.
    """
    first = inputs[0] if inputs else None
    if op in ("Identity", "Dropout", "Cast"):
        if isinstance(first, np.ndarray) and op == "Cast":
            return [_cast(first, attributes)]
        is_random = len(inputs) > 2 and (not isinstance(inputs[2], np.ndarray) or inputs[2].any())
        if op == "Dropout" and inputs[2:] != [None] and is_random:
            raise NotFollowed("it is in training mode: export with the network in evaluation mode")
        return [_there(first)]
    others = [_constant(value) for value in inputs[1:]]
    if op == "Concat":
        return [_concat(inputs, attributes, name)]
    if op == "Split":
        return _split(_there(first), others, attributes, num_outputs, name)
    return [_one(op, _there(first), others, attributes, name)]


def _there(value: Value | None) -> Value:
    if value is None:
        raise NotFollowed("an input is missing")
    return value


def _constant(value: Value | None) -> NDArray[Any] | None:
    """Return an operand that must be constant; None where there is none, or it is no constant."""
    return value if isinstance(value, np.ndarray) else None


def _integers(value: NDArray[Any] | None, what: str) -> list[int]:
    if value is None or value.dtype.kind not in "iu" or value.ndim > 1 or value.size > 64:
        raise NotFollowed(f"its {what} are no constant whole numbers")
    return [int(item) for item in np.atleast_1d(value)]


def _axes(
    others: Sequence[NDArray[Any] | None], attributes: Attributes, rank: int
) -> list[int] | None:
    """Return the axes of Squeeze and Unsqueeze, an attribute once and an input since opset 13."""
    given: list[int] | None = None
    if others:
        given = _integers(others[0], "axes")
    elif "axes" in attributes:
        given = [int(axis) for axis in attributes["axes"]]
    if given is None:
        return None
    if any(not -rank <= axis < rank for axis in given) or len(given) > rank:
        raise NotFollowed(f"its axes {given} are none of {rank}")
    return sorted({axis % rank for axis in given})


def _one(
    op: str, value: Value, others: Sequence[NDArray[Any] | None], attributes: Attributes, name: str
) -> Value:
    if isinstance(value, Signal):
        moved = _move_signal(op, value, others, attributes, name)
        if value.ids is None:
            return moved
        return replace(moved, ids=np.asarray(_move_array(op, value.ids, others, attributes)))
    if isinstance(value, Symbols):
        return Symbols(np.asarray(_move_array(op, value.ids, others, attributes)))
    if isinstance(value, np.ndarray):  # NumPy makes a scalar of what has no axes
        return np.asarray(_move_array(op, value, others, attributes))
    raise NotFollowed("its input is not known")


def _move_array(
    op: str,
    array: NDArray[Any],
    others: Sequence[NDArray[Any] | None],
    attributes: Attributes,
) -> NDArray[Any]:
    rank = array.ndim
    if op == "Transpose":
        return array.transpose(_order(attributes, rank))
    if op == "Squeeze":
        axes = _axes(others, attributes, rank)
        if axes is None:
            axes = [k for k, size in enumerate(array.shape) if size == 1]
        return array.squeeze(tuple(axes))
    if op == "Unsqueeze":
        num_axes = len(others[0]) if others and others[0] is not None else 0
        num_axes = num_axes or len(attributes.get("axes", ()))
        axes = _axes(others, attributes, rank + num_axes) or []
        return np.expand_dims(array, tuple(axes))
    if op == "Reshape":
        return array.reshape(_target(array.shape, others, attributes))
    if op == "Flatten":
        return array.reshape(_flattened(array.shape, attributes))
    if op == "Expand":
        wanted = tuple(_integers(others[0] if others else None, "sizes"))
        shape = np.broadcast_shapes(array.shape, wanted)
        if math.prod(shape) > MAX_ELEMENTS:
            raise NotFollowed(f"it makes {math.prod(shape)} elements of {array.size}")
        return np.broadcast_to(array, shape)
    if op == "Gather":
        indices = others[0] if others else None
        if indices is None or indices.dtype.kind not in "iu":
            raise NotFollowed("its indices are no constant whole numbers")
        axis = _axis(attributes, 0, rank)
        if indices.size * (array.size // max(array.shape[axis], 1)) > MAX_ELEMENTS:
            raise NotFollowed("it makes too many elements")
        return array.take(indices, axis=axis)
    return array[_slices(array.shape, others, attributes)]


def _move_signal(
    op: str,
    signal: Signal,
    others: Sequence[NDArray[Any] | None],
    attributes: Attributes,
    name: str,
) -> Signal:
    shape, rank = signal.shape, len(signal.axes)
    if op == "Transpose":
        return signal.transposed(_order(attributes, rank))
    if op == "Squeeze":
        axes = _axes(others, attributes, rank)
        if axes is None:
            axes = [k for k, size in enumerate(shape) if size == 1]
        for k in reversed(axes):
            if shape[k] != 1:
                raise NotFollowed(f"it squeezes an axis of {shape[k]} elements")
            signal = signal.without(k)
        return signal
    if op == "Unsqueeze":
        num_axes = len(others[0]) if others and others[0] is not None else 0
        num_axes = num_axes or len(attributes.get("axes", ()))
        new = list(signal.axes)
        for k in _axes(others, attributes, rank + num_axes) or []:
            new.insert(k, ())
        return replace(signal, axes=tuple(new))
    if op == "Reshape":
        return signal.reshaped(_target(shape, others, attributes))
    if op == "Flatten":
        return signal.reshaped(_flattened(shape, attributes))
    if op == "Expand":
        return _expanded(signal, others, name)
    if op in ("Gather", "Slice"):
        return _take_last(op, signal, others, attributes, name)
    raise NotFollowed("it does that to what the network computes")


def _expanded(signal: Signal, others: Sequence[NDArray[Any] | None], name: str) -> Signal:
    """Let one feature stand for several."""
    shape, wanted = signal.shape, _integers(others[0] if others else None, "sizes")
    if len(wanted) == len(shape):
        wide = [k for k, n in enumerate(wanted) if n not in (1, shape[k])]
        if not wide:
            return signal
        if len(wide) == 1 and shape[wide[0]] == 1 and signal.find(FEATURE) == wide[0]:
            return spread(signal, name, wide[0], wanted[wide[0]])
    raise NotFollowed(f"it repeats {list(shape)} as {wanted}")


def _take_last(
    op: str,
    signal: Signal,
    others: Sequence[NDArray[Any] | None],
    attributes: Attributes,
    name: str,
) -> Signal:
    """Take the last time step out, or everything, or some of the channels."""
    shape = signal.shape
    axis = _alone(op, shape, others, attributes)
    if not signal.time and signal.layers and axis is not None:  # of convolutions over time
        signal = replace(signal, time=_open_label(signal, axis))
    k = signal.find(signal.time) if signal.time else None
    if op == "Slice":
        slices = _slices(shape, others, attributes)
        changed = [
            j for j, part in enumerate(slices) if range(*part.indices(shape[j])) != range(shape[j])
        ]
        if not changed:
            return signal
        indices = range(*slices[changed[0]].indices(shape[changed[0]]))
        own = signal.featured()
        if len(changed) == 1 and indices.step != 1 and own.find(FEATURE) == changed[0] and indices:
            return pick_channels(own, name, changed[0], list(indices))
        if indices.step < 0:
            raise NotFollowed("it goes backwards")
        is_last = len(changed) == 1 and changed[0] == k and list(indices) == [shape[k] - 1]
        if not is_last and len(changed) == 1 and indices.step == 1 and len(indices):
            return take_part(signal, name, changed[0], indices.start, indices.stop)
    else:
        axis = _axis(attributes, 0, len(shape))
        chosen = _integers(others[0] if others else None, "indices")
        is_scalar = others[0] is not None and others[0].ndim == 0
        is_last = axis == k and len(chosen) == 1 and chosen[0] in (-1, shape[axis] - 1)
        if not is_last and shape[axis] == 1 and is_scalar and chosen[0] in (0, -1):
            return signal.without(axis)
        if not is_last and signal.featured().find(FEATURE) == axis:
            made = pick_channels(signal.featured(), name, axis, [i % shape[axis] for i in chosen])
            return made.without(axis) if is_scalar else made
    if not is_last or k is None:
        raise NotFollowed("it takes a part of what the network computes, other than the last step")
    last = replace(
        signal,
        axes=tuple(
            tuple((label, 1 if label == signal.time else size) for label, size in axis)
            for axis in signal.axes
        ),
        is_last_step=True,
    )
    return last if op == "Slice" or not is_scalar else last.without(k)


def _alone(
    op: str, shape: tuple[int, ...], others: Sequence[NDArray[Any] | None], attributes: Attributes
) -> int | None:
    """Return the axis of which the last one alone is taken."""
    if op == "Gather":
        axis = _axis(attributes, 0, len(shape))
        chosen = _integers(others[0] if others else None, "indices")
        return axis if chosen in ([-1], [shape[axis] - 1]) else None
    slices = [
        range(*part.indices(n))
        for part, n in zip(_slices(shape, others, attributes), shape, strict=True)
    ]
    taken = [k for k, part in enumerate(slices) if part != range(shape[k])]
    return taken[0] if len(taken) == 1 and list(slices[taken[0]]) == [shape[taken[0]] - 1] else None


def _open_label(signal: Signal, axis: int) -> str:
    """Return the label of an axis that may be time; nothing where it is none."""
    labels = [label for label, size in signal.axes[axis] if size != 1]
    along = {layer.along for layer in signal.layers if isinstance(layer, FrameLayer)}
    return labels[0] if len(labels) == 1 and labels[0] in along else ""


def _concat(inputs: Sequence[Value | None], attributes: Attributes, name: str) -> Value:
    axis = attributes.get("axis", 0)
    if all(isinstance(value, np.ndarray) for value in inputs):
        return np.concatenate([value for value in inputs if isinstance(value, np.ndarray)], axis)
    if len(inputs) == 1 and isinstance(inputs[0], Signal):
        return inputs[0]
    ids = [value.ids for value in inputs if isinstance(value, Symbols | Signal)]
    known = [part for part in ids if part is not None]
    if len(known) == len(inputs):
        return Symbols(np.concatenate(known, axis))
    signals = [value for value in inputs if isinstance(value, Signal)]
    if len(signals) == len(inputs) > 1:
        return join_signals("Concat", name, signals, _axis(attributes, 0, len(signals[0].axes)))
    padded = (
        join_zeros(name, inputs, _axis(attributes, 0, len(signals[0].axes))) if signals else None
    )
    if padded is not None:
        return padded
    raise NotFollowed("it joins several results of the network")


def _split(
    value: Value,
    others: Sequence[NDArray[Any] | None],
    attributes: Attributes,
    num_outputs: int,
    name: str,
) -> list[Value]:
    if not isinstance(value, np.ndarray | Symbols | Signal):
        raise NotFollowed("it parts what is not known")
    shape = value.ids.shape if isinstance(value, Symbols) else value.shape
    axis = _axis(attributes, 0, len(shape))
    if others or "split" in attributes:
        sizes = _integers(others[0], "sizes") if others else list(attributes["split"])
    else:
        each = -(-shape[axis] // max(num_outputs, 1))
        sizes = [each] * (num_outputs - 1)
        sizes.append(shape[axis] - sum(sizes))
    if len(sizes) != num_outputs or min(sizes) < 0 or sum(sizes) != shape[axis]:
        raise NotFollowed(f"it parts {shape[axis]} elements into {sizes}")
    ends = np.cumsum(sizes)
    if isinstance(value, Signal):
        taken = [
            take_part(value, f"{name}.{k}", axis, int(end) - size, int(end))
            for k, (size, end) in enumerate(zip(sizes, ends, strict=True))
        ]
        ids = [None] * len(taken) if value.ids is None else np.split(value.ids, ends[:-1], axis)
        return [replace(each, ids=own) for each, own in zip(taken, ids, strict=True)]
    array = value if isinstance(value, np.ndarray) else value.ids
    parts = np.split(array, ends[:-1], axis)
    return [part if isinstance(value, np.ndarray) else Symbols(part) for part in parts]


def _order(attributes: Attributes, rank: int) -> tuple[int, ...]:
    order = tuple(int(k) for k in attributes.get("perm", range(rank - 1, -1, -1)))
    if sorted(order) != list(range(rank)):
        raise NotFollowed(f"its order {list(order)} is none of {rank} axes")
    return order


def _axis(attributes: Attributes, default: int, rank: int) -> int:
    axis = int(attributes.get("axis", default))
    if not -rank <= axis < rank:
        raise NotFollowed(f"its axis {axis} is none of {rank}")
    return axis % rank


def _target(
    shape: tuple[int, ...], others: Sequence[NDArray[Any] | None], attributes: Attributes
) -> tuple[int, ...]:
    """Resolve 0 (as before) and -1 (the rest) in the shape of a Reshape."""
    if "shape" in attributes:
        given = [int(size) for size in attributes["shape"]]
    else:
        given = _integers(others[0] if others else None, "sizes")
    if not attributes.get("allowzero", 0):
        given = [shape[k] if size == 0 and k < len(shape) else size for k, size in enumerate(given)]
    known = math.prod(size for size in given if size != -1)
    if given.count(-1) == 1 and known > 0:
        given[given.index(-1)] = math.prod(shape) // known
    given = _with_open_sizes(shape, given)
    if min(given, default=0) < 0 or math.prod(given) != math.prod(shape):
        raise NotFollowed(f"it reshapes {list(shape)} to {given}")
    return tuple(given)


def _with_open_sizes(shape: tuple[int, ...], given: list[int]) -> list[int]:
    """Let an axis stay open of which an exporter wrote down how long it was in its example."""
    total, wanted = math.prod(shape), math.prod(given)
    for size in set(shape) & set(OPEN_SIZES):
        fixed = [k for k, other in enumerate(given) if other > 1 and total * other == wanted * size]
        if size not in given and len(fixed) == 1 and given[fixed[0]] not in shape:
            return [size if k == fixed[0] else other for k, other in enumerate(given)]
    return given


def _flattened(shape: tuple[int, ...], attributes: Attributes) -> tuple[int, ...]:
    axis = int(attributes.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    if not 0 <= axis <= len(shape):
        raise NotFollowed(f"its axis {axis} is none of {len(shape)}")
    return math.prod(shape[:axis]), math.prod(shape[axis:])


def _slices(
    shape: tuple[int, ...], others: Sequence[NDArray[Any] | None], attributes: Attributes
) -> tuple[slice, ...]:
    """Return the slices of a Slice: attributes once, inputs since opset 10."""
    rank = len(shape)
    if others:
        starts = _integers(others[0], "starts")
        ends = _integers(others[1] if len(others) > 1 else None, "ends")
        axes = list(range(len(starts)))
        if len(others) > 2 and others[2] is not None:
            axes = _integers(others[2], "axes")
        steps = [1] * len(starts)
        if len(others) > 3 and others[3] is not None:
            steps = _integers(others[3], "steps")
    else:
        starts, ends = list(attributes.get("starts", ())), list(attributes.get("ends", ()))
        axes = list(attributes.get("axes", range(len(starts))))
        steps = [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise NotFollowed("its starts, ends, axes and steps do not belong together")
    slices = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not -rank <= axis < rank:
            raise NotFollowed(f"its axis {axis} is none of {rank}")
        slices[axis] = slice(start, end, step)
    return tuple(slices)


def _cast(array: NDArray[Any], attributes: Attributes) -> NDArray[Any]:
    kinds = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
    kind = kinds.get(int(attributes.get("to", 0)))
    if kind is None:
        raise NotFollowed(f"it casts to data type {attributes.get('to')}")
    return array.astype(kind)
