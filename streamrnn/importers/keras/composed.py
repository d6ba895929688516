"""Functions and norms of Keras that are several layers of ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.keras.values import Call, Value
from streamrnn.importers.network import Activation, FrameLayer, Scale
from streamrnn.model.layers.frame import ConvSpec, MixSpec

__all__ = ["COMPOSED", "bounded", "composed", "scaled", "scaled_to_one"]

COMPOSED = ("celu", "log_sigmoid", "mish", "squareplus", "tanh_shrink")


def scaled(call: Call, value: Value, gain: float, shift: float = 0.0) -> Value:
    """Append ``gain * x + shift``."""
    layer = Scale(call.name, np.array([gain]), np.array([shift]))
    return call.build.add(layer, value, value.length, value.channels)


def _function(call: Call, value: Value, kind: str, number: float | None = None) -> Value:
    layer = Activation(call.name, kind, number)
    return call.build.add(layer, value, value.length, value.channels)


def _mixed(call: Call, a: Value, b: Value, gains: tuple[float, ...] = ()) -> Value:
    """Append a sum with gains; without any a product."""
    reads = (a.reads[0], b.reads[0])
    layer = FrameLayer(call.name, MixSpec(gains, not gains, reads=reads), reads=reads)
    return call.build.add(layer, a, a.length, a.channels)


def bounded(call: Call, value: Value, least: float | None, most: float | None) -> Value:
    """Append bounds; None for none."""
    if least is not None:
        value = _function(call, value, "at_least", least)
    return value if most is None else _function(call, value, "at_most", most)


def composed(call: Call, kind: str, number: float | None = None) -> Value:
    """Append one of `COMPOSED` to what is read; the number is celu's alpha, squareplus's b."""
    x = call.build.single(call.value, call.name)
    match kind:
        case "celu":  # alpha elu(x / alpha)
            if number is None or number == 1.0:
                return _function(call, x, "elu")
            if not number:
                raise call.refuse("is a celu with an alpha of 0")
            return scaled(call, _function(call, scaled(call, x, 1.0 / number), "elu"), number)
        case "log_sigmoid":
            return scaled(call, _function(call, scaled(call, x, -1.0), "softplus"), -1.0)
        case "mish":
            return _mixed(call, x, _function(call, _function(call, x, "softplus"), "tanh"))
        case "tanh_shrink":
            return _mixed(call, x, _function(call, x, "tanh"), (1.0, -1.0))
    # squareplus: (x + sqrt(x^2 + b)) / 2, b being 4 where nothing is said
    b = 4.0 if number is None else number
    root = _function(call, scaled(call, _mixed(call, x, x), 1.0, b), "sqrt")
    return _mixed(call, x, root, (0.5, 0.5))


def scaled_to_one(call: Call, gain: NDArray[Any] | None, epsilon: float, *, is_mean: bool) -> Value:
    """Divide by the root of the squares' mean and epsilon, or of their sum, which is that at least.

    Source of the first: B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS
    2019.
    """
    x = call.build.single(call.value, call.name)
    size = x.channels
    if not size:
        raise call.refuse("does not say how many values it takes, nor does the file")

    def product(value: Value, weight: NDArray[Any]) -> Value:
        arrays = {"weight": weight[:, :, None], "bias": np.zeros(len(weight))}
        layer = FrameLayer(call.name, ConvSpec(len(weight), 1), arrays)
        return call.build.add(layer, value, value.length, len(weight))

    share = 1.0 / size if is_mean else 1.0
    total = product(_mixed(call, x, x), np.full((1, size), share))
    total = scaled(call, total, 1.0, epsilon) if is_mean else bounded(call, total, epsilon, None)
    factor = _function(call, _function(call, total, "sqrt"), "reciprocal")
    made = _mixed(call, x, product(factor, np.ones((size, 1))))
    made = replace(made, channels=size)
    if gain is None:
        return made
    layer = Scale(call.name, gain, np.zeros(size))
    return call.build.add(layer, made, made.length, size)
