"""Layers of Keras that join several values, and operations on values: ``x + y``, ``2 * x``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamrnn.importers.keras.activations import activated, activation_of
from streamrnn.importers.keras.composed import bounded, composed
from streamrnn.importers.keras.values import Call, Value
from streamrnn.importers.network import Dense, FrameLayer, Scale, zeros
from streamrnn.model.layers.frame import MixSpec, SliceSpec

__all__ = ["MERGES", "concatenate", "joined", "merge", "operation"]

MERGES = ("Add", "Average", "Multiply", "Subtract")
# Operations of one value, by Keras's names of their classes, and the activation that they are.
_FUNCTIONS = {
    "Abs": "abs",
    "Absolute": "abs",
    "Log": "log",
    "Reciprocal": "reciprocal",
    "Sqrt": "sqrt",
    "Elu": "elu",
    "Exp": "exponential",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "HardTanh": "hard_tanh",
    "LeakyRelu": "leaky_relu",
    "LogSoftmax": "log_softmax",
    "Relu": "relu",
    "Relu6": "relu6",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "SoftPlus": "softplus",
    "Softmax": "softmax",
    "Softplus": "softplus",
    "SoftSign": "softsign",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


_COMPOSED = {
    "Celu": "celu",
    "LogSigmoid": "log_sigmoid",
    "Mish": "mish",
    "Squareplus": "squareplus",
    "TanhShrink": "tanh_shrink",
}


def merge(call: Call) -> Value:
    """Make a sum, a difference, a mean or a product of several values."""
    values = _alike(call)
    if call.kind == "Subtract" and len(values) != 2:
        raise call.refuse(f"subtracts {len(values)} values; it takes two")
    gains = {"Subtract": [1.0, -1.0], "Average": [1 / len(values)] * len(values)}
    is_product = call.kind == "Multiply"
    return _mixed(call, values, () if is_product else gains.get(call.kind, [1.0] * len(values)))


def _mixed(call: Call, values: list[Value], gains: Sequence[float]) -> Value:
    """Append a sum with gains; without any a product."""
    values = [call.build.single(value, call.name) for value in values]
    if len(values) == 1:
        return values[0]
    most = max(value.channels for value in values)
    values = [_widened(call, value, most) for value in values]
    names = tuple(value.reads[0] for value in values)
    spec = MixSpec(tuple(gains), not gains, reads=names)
    layer = FrameLayer(call.name, spec, reads=names)
    length = max(value.length for value in values)
    return call.build.add(layer, _of_all(values), length, most)


def _widened(call: Call, value: Value, channels: int) -> Value:
    """Give a value of one number to every channel."""
    if value.channels == channels or not value.is_sure:
        return value
    if value.channels != 1 or value.length != 1:
        raise call.refuse(f"joins {value.channels} and {channels} channels")
    ones = Dense(f"{call.name}/wide", np.ones((channels, 1), np.float32), zeros(channels), {})
    return call.build.add(ones, value, 1, channels)


def _alike(call: Call) -> list[Value]:
    """Return the values, which must have the same axes."""
    values = call.values
    if len({(value.has_time, value.is_frame) for value in values if value.is_sure}) > 1:
        raise call.refuse(f"({call.kind}) joins values of different axes")
    if any(value.margin for value in values):
        raise call.refuse(f"({call.kind}) joins what a ZeroPadding1D gave")
    if len({value.is_masked for value in values}) > 1:
        raise call.refuse(f"({call.kind}) joins what is masked with what is not")
    lengths = {value.length for value in values if value.is_frame and value.is_sure}
    if len(lengths - {1} if call.kind != "Concatenate" else lengths) > 1:
        raise call.refuse(f"({call.kind}) joins frames of {sorted(lengths)} places")
    return values


def concatenate(call: Call) -> Value:
    """Join channels, without a copy."""
    values = _alike(call)
    value = values[0]
    if not value.is_axis_last(call.config.get("axis", -1)) and value.is_sure:
        raise call.refuse(f"joins along axis {call.shown('axis')}; a model joins features alone")
    return joined(call, values)


def joined(call: Call, values: list[Value]) -> Value:
    """Return several values as one."""
    values = [call.build.single(v, call.name) if v.is_flat else v for v in values]
    known = all(value.channels for value in values)
    whole = replace(
        _of_all(values),
        reads=tuple(name for value in values for name in value.reads),
        length=values[0].length,
        channels=sum(value.channels for value in values) if known else 0,
    )
    return whole


def _of_all(values: list[Value]) -> Value:
    return replace(
        values[0],
        from_state=all(value.from_state for value in values),
        last_of=next((value.last_of for value in values if value.last_of), ""),
        is_sure=all(value.is_sure for value in values),
    )


# --- operations --------------------------------------------------------------------------------


def operation(call: Call) -> Value:
    """Make an operation of Keras 3 on values, or on a value and a number."""
    kind = call.kind.removeprefix("ops.")
    call = replace(call, kind=kind, values=[replace(v, is_masked=False) for v in call.values])
    if kind == "GetItem":
        return _last_step(call)
    if kind == "Concatenate":
        return concatenate(call)
    if kind == "Gelu":
        approximate = call.flag("approximate")
        return activated(call, "gelu_tanh" if approximate else "gelu", None)
    if kind in _COMPOSED and len(call.given) == 1:
        option, default = {"Celu": ("alpha", 1.0)}.get(kind, ("b", 4.0))
        return composed(call, _COMPOSED[kind], call.number(option, default))
    if kind == "Square" and len(call.given) == 1:
        return _mixed(call, [call.value, call.value], ())
    if kind == "Clip" and len(call.given) == 1:
        least, most = (
            None if call.config.get(name) is None else call.number(name, 0.0)
            for name in ("x_min", "x_max")
        )
        return bounded(call, call.build.single(call.value, call.name), least, most)
    if kind in _FUNCTIONS and len(call.given) == 1:
        return _function(call, kind)
    numbers = [item for item in call.given if type(item) in (int, float)]
    if len(numbers) + len(call.values) != len(call.given):
        raise call.refuse(f"is the operation {kind} on what is no value and no number")
    if kind in MERGES and len(call.values) == 2:
        return merge(call)
    if kind == "Negative" and len(call.given) == 1:
        return _scaled(call, -1.0, 0.0)
    if len(numbers) == 1 and len(call.given) == 2:
        number, is_first = float(numbers[0]), call.given[0] is not None
        scales = {
            "Add": (1.0, number),
            "Multiply": (number, 0.0),
            "Subtract": (-1.0, number) if is_first else (1.0, -number),
        }
        if kind in scales:
            return _scaled(call, *scales[kind])
        if kind in ("Maximum", "Minimum"):
            ends = (number, None) if kind == "Maximum" else (None, number)
            return bounded(call, call.build.single(call.value, call.name), *ends)
        if kind in ("Divide", "TrueDivide") and number and not is_first:
            return _scaled(call, 1 / number, 0.0)
    raise call.refuse(f"is the operation {kind}, which is not supported")


def _function(call: Call, kind: str) -> Value:
    where = f"layer {call.name!r}"
    named = _FUNCTIONS[kind]
    plain = named in ("abs", "log", "reciprocal", "sqrt")
    name, slope = (named, None) if plain else activation_of(named, call.build.version, where)
    is_softmax = name in ("softmax", "log_softmax")
    if is_softmax and not call.value.is_axis_last(call.config.get("axis", -1)):
        raise call.refuse(f"is a softmax along axis {call.shown('axis')}, not the last")
    for option, owner in (("negative_slope", "leaky_relu"), ("alpha", "elu")):
        if name == owner and option in call.config:
            slope = call.number(option, 0.0)
    return activated(call, name, slope)


def _scaled(call: Call, gain: float, shift: float) -> Value:
    channels = max(call.value.channels, 1)
    layer = Scale(call.name, np.full(channels, gain), np.full(channels, shift))
    return call.in_place(layer)


def _last_step(call: Call) -> Value:
    """Follow ``x[:, -1]``."""
    key = call.given[1:]
    whole = {"start": None, "stop": None, "step": None}

    def is_whole(item: object) -> bool:
        return isinstance(item, dict) and item.get("config") == whole

    is_last = call.value.has_time and len(key) > 1 and type(key[1]) is int and key[1] == -1
    if is_last and all(is_whole(item) for k, item in enumerate(key) if k != 1):
        return replace(call.value, has_time=False, last_of=call.name)
    value = call.build.single(call.value, call.name)
    part = key[-1] if key else None
    ends = part.get("config") if isinstance(part, dict) else None
    rank = 2 + value.has_time + value.is_frame
    if isinstance(ends, dict) and value.channels and len(key) in (rank - 1, rank):
        some = slice(*(ends.get(name) for name in ("start", "stop", "step")))
        rest = [item for item in key[:-1] if item != "..."]
        if all(is_whole(item) for item in rest) and all(
            end is None or type(end) is int for end in (some.start, some.stop, some.step)
        ):
            chosen = range(*some.indices(value.channels)) if some.step != 0 else range(0)
            if chosen and chosen.step == 1 and len(key) == rank:
                spec = SliceSpec(channels=(chosen.start, chosen.stop))
                layer = FrameLayer(call.name, spec)
                return call.build.add(layer, value, value.length, len(chosen))
    raise call.refuse(
        "takes a part of a value; a model follows x[:, -1], the last step, and x[:, :, a:b], some "
        "of the features"
    )
