"""Activations of Keras by their names, as functions and as layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from streamrnn.errors import ModelFileError
from streamrnn.importers.keras.composed import bounded
from streamrnn.importers.keras.values import Call, Config, Value
from streamrnn.importers.network import Activation, FrameLayer
from streamrnn.model.layers.frame import ActivationSpec

__all__ = ["ACTIVATION_LAYERS", "activated", "activation_layer", "activation_of", "prelu"]

Known = tuple[str, float | None]  # our name, and its number

ACTIVATION_LAYERS = ("ELU", "LeakyReLU", "ReLU", "Softmax")
# Those of Keras that have other names here; the slope of hard_sigmoid depends on the version.
_RENAMED = {
    "linear": "identity",
    "exponential": "exp",
    "swish": "silu",
    "hard_silu": "hard_swish",
    "hard_swish": "hard_swish",
}
_SAME = (
    *("elu", "gelu", "hard_tanh", "log_softmax", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "softmax", "softplus", "softsign", "tanh"),
)


def activation_of(value: Any, version: str, where: str) -> Known:
    """Return our name of an activation, and its number.

    Raises `ModelFileError` if it is none of those that a model has.
    """
    if value is None:
        return "identity", None
    if isinstance(value, dict):  # a function or a layer, serialised
        config, kind = value.get("config"), value.get("class_name")
        if isinstance(config, dict) and kind in ACTIVATION_LAYERS:
            return _of_layer(str(kind), config, where)
        if isinstance(config, dict) and kind == "Activation":
            return activation_of(config.get("activation"), version, where)
        value = config if isinstance(config, str) else kind
    if value == "hard_sigmoid":
        # The slope changed behind the name: 1/5 in Keras 2, 1/6 in Keras 3.
        is_old = version.startswith(("1.", "2."))
        return ("hard_sigmoid_fifth" if is_old else "hard_sigmoid_sixth"), None
    if value == "leaky_relu":
        return "leaky_relu", 0.2
    if value in _SAME:
        return str(value), None
    if not isinstance(value, str) or value not in _RENAMED:
        raise ModelFileError(
            f"{where} has the activation {str(value)[:60]}, which no model has; known are "
            f"{', '.join(sorted([*_SAME, *_RENAMED, 'hard_sigmoid', 'leaky_relu']))}"
        )
    return _RENAMED[value], None


def activation_layer(call: Call) -> Value:
    """Make one of `ACTIVATION_LAYERS`, or an ``Activation``."""
    where = f"layer {call.name!r}"
    if call.kind == "ReLU":
        return _relu(call, where)
    if call.kind == "Activation":
        kind, slope = activation_of(call.config.get("activation"), call.build.version, where)
    else:
        if call.kind == "Softmax":
            if not call.value.is_axis_last(call.config.get("axis", -1)) and call.value.is_sure:
                raise call.refuse(f"is a softmax along axis {call.shown('axis')}, not the last")
            if call.value.is_masked:
                raise call.refuse("(Softmax) takes a mask, which no model does")
        kind, slope = _of_layer(call.kind, call.config, where)
    return activated(call, kind, slope)


def _relu(call: Call, where: str) -> Value:
    """Make a ReLU, with a largest value of any size."""
    most = call.config.get("max_value")
    most = most[0] if isinstance(most, list) and len(most) == 1 else most
    plain = most is None or most == 6 or isinstance(most, dict)
    if plain or call.config.get("negative_slope") or call.config.get("threshold"):
        return activated(call, *_of_layer("ReLU", call.config, where))
    relu = replace(call, values=[activated(call, "relu", None)])
    return bounded(relu, relu.value, None, call.number("max_value", 0.0))


def activated(call: Call, kind: str, slope: float | None) -> Value:
    """Append an activation of ours."""
    value = call.value
    if kind == "identity":
        return value
    if value.is_flat and kind in ("softmax", "log_softmax"):
        value = call.build.single(value, call.name)
    length, channels = value.length, value.channels
    return call.build.add(Activation(call.name, kind, slope), value, length, channels)


def _of_layer(kind: str, config: Config, where: str) -> Known:
    """Return what a layer's options make of it."""

    def number(*names: str, default: float) -> float:
        value = next((config[name] for name in names if config.get(name) is not None), default)
        if isinstance(value, dict) and isinstance(value.get("config"), dict):
            value = value["config"].get("value")  # an array, serialised
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(f"{where}: {names[0]} is {str(value)[:40]!r}; expected a number")
        return float(value)

    if kind == "Softmax":
        return "softmax", None
    if kind == "ELU":
        return "elu", number("alpha", default=1.0)
    if kind == "LeakyReLU":
        return "leaky_relu", number("negative_slope", "alpha", default=0.3)
    slope, threshold = number("negative_slope", default=0.0), number("threshold", default=0.0)
    most = number("max_value", default=np.inf)
    if threshold or (most != np.inf and (slope or most != 6)):
        raise ModelFileError(
            f"{where} is a ReLU with max_value={config.get('max_value')}, negative_slope={slope}, "
            f"threshold={threshold}; a model has max_value or negative_slope alone"
        )
    if most == 6:
        return "relu6", None
    return ("leaky_relu", slope) if slope else ("relu", None)


def prelu(call: Call) -> Value:
    """Make a PReLU, whose slopes must be the same at every step and every place."""
    if len(call.arrays) != 1 or not call.arrays[0].size or not call.arrays[0].ndim:
        raise call.refuse("has no weights in the file")
    value = call.build.single(call.value, call.name)
    slopes = call.arrays[0].reshape(-1, call.arrays[0].shape[-1])
    if not (slopes == slopes[0]).all():
        raise call.refuse(
            "(PReLU) has slopes of their own for every step or place; a model has one for each "
            "channel (shared_axes)"
        )
    channels = value.channels or slopes.shape[1]
    if slopes.shape[1] not in (1, channels) and value.is_sure:
        raise call.refuse(f"(PReLU) has {slopes.shape[1]} slopes for {channels} channels")
    slope = np.broadcast_to(slopes[0], channels if slopes.shape[1] == 1 else slopes.shape[1])
    layer = FrameLayer(
        call.name, ActivationSpec("prelu"), {"slope": slope}, {"slope": f"{call.name}/alpha"}
    )
    return call.build.add(layer, value, value.length, channels)
