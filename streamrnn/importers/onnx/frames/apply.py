"""Operators on what the network computes, other than products and functions of one element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamrnn.importers.network import Activation, FrameLayer, Layer, Scale
from streamrnn.importers.onnx.frames.conv import Attributes, convolve, pad
from streamrnn.importers.onnx.frames.join import join_signals
from streamrnn.importers.onnx.frames.pool import pool, reduce_axes
from streamrnn.importers.onnx.patterns import choose, compare
from streamrnn.importers.onnx.values import FEATURE, NotFollowed, Signal, Value
from streamrnn.model.layers.frame import (
    ActivationSpec,
    MagnitudeSpec,
    MixSpec,
    NormSpec,
    SliceSpec,
)

__all__ = ["FRAMES", "apply_frame"]

FRAMES = (
    "AveragePool",
    "Clip",
    "Conv",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "InstanceNormalization",
    "LayerNormalization",
    "Less",
    "LessOrEqual",
    "Max",
    "MaxPool",
    "Min",
    "PRelu",
    "Pad",
    "Pow",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Sqrt",
    "Sum",
    "Where",
)


_NOT_NEGATIVE = ("abs", "exp", "relu", "relu6", "sigmoid", "softmax", "softplus", "sqrt")


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
    if op in ("Max", "Min", "Sum"):
        return _of_several(op, name, inputs)
    if op.startswith(("Greater", "Less")) and isinstance(inputs[0], np.ndarray):
        op = {"G": "Less", "L": "Greater"}[op[0]]
        inputs = inputs[::-1]
    signal = inputs[0]
    if not isinstance(signal, Signal):
        raise NotFollowed("it is applied to something else than what the network computes")
    if op == "Conv":
        return convolve(name, signal, inputs, names, attributes)
    if op == "Clip":
        least = inputs[1] if len(inputs) > 1 else attributes.get("min")
        most = inputs[2] if len(inputs) > 2 else attributes.get("max")
        return _clip(name, signal, least, most)
    if op == "PRelu":
        return _slopes(name, signal, inputs[1], names[1])
    if op == "Pad":
        return pad(name, signal, inputs, attributes)
    if op == "Pow":
        return _power(name, signal, inputs[1])
    if op == "Sqrt":
        return _magnitude(name, signal) or signal.plus(Activation(name, "sqrt"))
    if op == "LayerNormalization":
        return _layer_norm(name, signal, inputs, names, attributes)
    if op == "InstanceNormalization":
        return _one_group(name, signal, inputs, attributes)
    if op == "Where":
        return choose(name, signal, inputs[1], inputs[2])
    if op.startswith(("Greater", "Less")):
        return compare(op, name, signal, inputs[1])
    if op.startswith("Reduce"):
        return reduce_axes(op, name, signal, inputs, attributes)
    return pool(op, name, signal, attributes)


def _of_several(op: str, name: str, inputs: Sequence[Value | None]) -> Signal:
    """Follow the sum, the largest or the least of several values."""
    signals = [value for value in inputs if isinstance(value, Signal)]
    constants = [value for value in inputs if isinstance(value, np.ndarray)]
    if not signals or len(signals) + len(constants) != len(inputs):
        raise NotFollowed("it is applied to something else than what the network computes")
    made = signals[0]
    for j, other in enumerate(signals[1:]):
        own = name if j == len(inputs) - 2 else f"{name}.{j}"
        if op == "Sum":
            made = join_signals("Add", own, (made, other))
            continue
        # max(a, b) = b + relu(a - b), min(a, b) = b - relu(b - a)
        pair = (made, other) if op == "Max" else (other, made)
        more = join_signals("Sub", f"{own}.difference", pair)
        more = more.plus(Activation(f"{own}.more", "relu"))
        made = join_signals("Add" if op == "Max" else "Sub", own, (other, more))
    for constant in constants:
        if constant.size != 1:
            raise NotFollowed("one of its values is no constant number")
        number = float(constant.reshape(()))
        if op == "Sum":
            made = made.plus(Scale(name, np.ones(1), np.array([number])))
        else:
            ends = (number, None) if op == "Max" else (None, number)
            made = _clip(name, made, *ends)
    return made


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


def _one_group(
    name: str, signal: Signal, inputs: Sequence[Value | None], attributes: Attributes
) -> Signal:
    """Follow a normalisation of all that stands in one row, as of a group norm with one group."""
    scale, shift = inputs[1], inputs[2]
    if len(signal.axes) != 3 or signal.shape[1] != 1:
        raise NotFollowed("it normalises every channel over its places")
    labels = {label for label, size in signal.axes[2] if size != 1}
    if labels != {FEATURE}:
        raise NotFollowed(
            "it normalises over the channels and another axis together: over time that needs "
            "inputs to come"
        )
    if not isinstance(scale, np.ndarray) or not isinstance(shift, np.ndarray):
        raise NotFollowed("its gain and shift are no constants")
    size = signal.shape[2]
    arrays = {"weight": np.broadcast_to(scale, size), "bias": np.broadcast_to(shift, size)}
    spec = NormSpec(float(attributes.get("epsilon", 1e-5)))
    return signal.plus(FrameLayer(name, spec, arrays))


def _product(name: str, signal: Signal, reads: tuple[str, ...]) -> Signal:
    return signal.plus(FrameLayer(name, MixSpec(reads=reads, is_product=True)), reads=reads)


def _power(name: str, signal: Signal, exponent: Value | None) -> Signal:
    """Follow a power with a constant exponent."""
    if not isinstance(exponent, np.ndarray) or exponent.size != 1:
        raise NotFollowed("its exponent is no constant number")
    power = float(exponent.reshape(()))
    if power in (2.0, 3.0):
        return _product(name, signal, (signal.head,) * int(power))
    kind = {1.0: "identity", 0.5: "sqrt", -1.0: "reciprocal"}.get(power)
    if kind is not None:
        return signal.plus(Activation(name, kind))
    if power == -0.5:
        return signal.plus(Activation(f"{name}.root", "sqrt")).plus(Activation(name, "reciprocal"))
    if power == round(power) or not np.isfinite(power):  # of numbers below 0 too
        raise NotFollowed(f"its exponent is {power:g}")
    if not 0 < power < 1:
        return _exponential(name, signal, power)
    # As x times its power less one: the logarithm of 0 is that of the least float32, and a small
    # power of that is not 0. No number below 0 has such a power.
    last = signal.last
    if not isinstance(last, Activation) or last.kind not in _NOT_NEGATIVE:
        signal = signal.plus(Activation(f"{name}.base", "relu"))
    rest = _exponential(f"{name}.rest", signal, power - 1.0)
    return _product(name, rest, (signal.head, rest.head))


def _exponential(name: str, signal: Signal, power: float) -> Signal:
    log = signal.plus(Activation(f"{name}.log", "log"))
    log = log.plus(Scale(f"{name}.factor", np.array([power]), np.zeros(1)))
    return log.plus(Activation(name, "exp"))


def _magnitude(name: str, signal: Signal) -> Signal | None:
    """Find the root of a sum of two squares: the magnitude of complex numbers."""
    last = signal.last
    reads = last.reads if last is not None and _is_sum(last) else ()
    parts = [part for read in reads if (part := _part_of(signal, read)) is not None]
    if len(parts) != 2:
        return None
    (whole, first, cut), (other, second, other_cut) = parts
    size = first[1] - first[0]
    halves = (first, second) == ((0, size), (size, 2 * size))
    is_same = (whole, cut and cut.spec) == (other, other_cut and other_cut.spec)
    if not is_same or not halves or signal.channels_of(whole) != 2 * size:
        return None
    if cut is not None:
        taken = replace(cut, name=f"{name}.places")
        signal, whole = signal.plus(taken, reads=(whole,)), taken.name
    return signal.plus(FrameLayer(name, MagnitudeSpec()), reads=(whole,)).pruned()


def _is_sum(layer: Layer | None) -> bool:
    return (
        isinstance(layer, FrameLayer)
        and isinstance(layer.spec, MixSpec)
        and layer.spec.gains == (1.0, 1.0)
    )


def _part_of(signal: Signal, read: str) -> tuple[str, tuple[int, int], FrameLayer | None] | None:
    """Return which channels of which layer a square is of, and what cuts places of them."""
    square = signal.layer(read)
    if not isinstance(square, FrameLayer) or not isinstance(square.spec, MixSpec):
        return None
    if not square.spec.is_product or len(square.reads) != 2 or len(set(square.reads)) != 1:
        return None
    cut = None
    part = _slice(signal, square.reads[0])
    if part is not None and part[1].channels == (0, 0):  # places of them, to be taken before
        cut = part[0]
        part = _slice(signal, cut.reads[0])
    return None if part is None else (part[0].reads[0], part[1].channels, cut)


def _slice(signal: Signal, name: str) -> tuple[FrameLayer, SliceSpec] | None:
    """Return a slice and what it takes; None of any other layer."""
    layer = signal.layer(name)
    if isinstance(layer, FrameLayer) and isinstance(layer.spec, SliceSpec):
        return layer, layer.spec
    return None


def _clip(
    name: str, signal: Signal, least: Value | float | None, most: Value | float | None
) -> Signal:
    """Find the activations that a clip is."""
    bounds: list[float | None] = []
    for bound in (least, most):
        if bound is None:
            bounds.append(None)
            continue
        if not isinstance(bound, np.ndarray | float | int) or np.size(bound) != 1:
            raise NotFollowed("its bounds are no constants")
        number = float(np.asarray(bound).reshape(()))
        # What is beyond float32 is no bound.
        bounds.append(None if abs(number) >= float(np.finfo(np.float32).max) else number)
    low, high = bounds
    kinds: dict[tuple[float | None, float | None], str] = {
        (0.0, 6.0): "relu6",
        (-1.0, 1.0): "hard_tanh",
        (0.0, None): "relu",
    }
    made = signal
    if (kind := kinds.get((low, high))) is not None:
        return made.plus(Activation(name, kind))
    if low is not None:
        own = name if high is None else f"{name}.least"
        made = made.plus(Activation(own, "at_least", low))
    return made if high is None else made.plus(Activation(name, "at_most", high))


def _slopes(name: str, signal: Signal, slopes: Value | None, stored: str) -> Signal:
    """Make a prelu, with one slope for all channels or one for each."""
    signal = signal.featured()
    k = signal.find(FEATURE)
    k = len(signal.axes) - 1 if k is None else k
    channels = signal.shape[k]
    if not isinstance(slopes, np.ndarray) or slopes.size not in (1, channels):
        raise NotFollowed("its slopes are no constants, one for all channels or for each")
    shape = [1] * (len(signal.axes) - slopes.ndim) + list(slopes.shape)
    if slopes.size > 1 and shape[k] != channels:
        raise NotFollowed("its slopes go along another axis than the channels'")
    arrays = {"slope": np.broadcast_to(slopes.reshape(-1), (channels,))}
    return signal.plus(FrameLayer(name, ActivationSpec("prelu"), arrays, {"slope": stored}))
