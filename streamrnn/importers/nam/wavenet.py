"""NAM's WaveNet: arrays of layers, each a causal convolution over steps that sees the input too.

``z = conv(x) + mixin(input)``, ``h = f(z)`` or, gated, ``f(upper z) * sigmoid(lower z)``; the next
layer reads ``x + W h + b``, and the array's head the sum of all h and of the array before's head.
Weights of an array: [C, I] on the way in, for each layer conv [Z, C, taps] and its bias, mixin
[Z, inputs], W [C, C] and b; the head's [O, C, taps] and its bias if it has one. Last, the scale of
the output. Source: ``NAM/wavenet`` of https://github.com/sdatkinson/NeuralAmpModelerCore.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamrnn.errors import ModelFileError
from streamrnn.importers.json_text import whole
from streamrnn.importers.nam.weights import (
    MAX_CHANNELS,
    Weights,
    activation_of,
    refuse_keys,
    wholes,
)
from streamrnn.importers.network import Activation, Dense, FrameLayer, Network, Scale, zeros
from streamrnn.model.layers.base import INPUT
from streamrnn.model.layers.frame import MixSpec, SliceSpec
from streamrnn.model.layers.memory import TimeConvSpec

__all__ = ["read_wavenet"]

_MAX_TAPS = 1 << 12
_MAX_DILATION = 1 << 16
_CONFIG = {"layers", "head", "head_scale", "in_channels", "condition_dsp"}
_ARRAY = {
    *("input_size", "condition_size", "channels", "dilations", "kernel_size", "kernel_sizes"),
    *("activation", "gated", "gating_mode", "secondary_activation", "head", "head_size"),
    *("head_bias", "bottleneck", "layer1x1", "head1x1", "groups_input", "groups_input_mixin"),
    "slimmable",
}
_FILMS = {
    *("conv_pre_film", "conv_post_film", "input_mixin_pre_film", "input_mixin_post_film"),
    *("activation_pre_film", "activation_post_film", "layer1x1_post_film", "head1x1_post_film"),
}


@dataclass(frozen=True)
class _Array:
    """One array of layers, checked."""

    name: str
    num_inputs: int  # of the model
    input_size: int
    channels: int
    taps: list[int]
    dilations: list[int]
    activations: list[Any]
    gated: list[bool]
    head_size: int
    head_taps: int
    head_dilation: int
    head_has_bias: bool


def read_wavenet(network: Network, config: dict[str, Any], weights: Weights) -> None:
    """Append the layers of one."""
    path = network.path
    refuse_keys(network, "its config", config, _CONFIG)
    if config.get("condition_dsp") is not None:
        network.problems.append("a network of its own makes its condition (condition_dsp)")
    items = config.get("layers")
    if not isinstance(items, list) or not 0 < len(items) <= 64:
        raise ModelFileError(f"{path}: its config has no list of 1 to 64 arrays of layers")
    network.num_inputs = whole(config.get("in_channels", 1), f"{path}: in_channels", 1, 4096)
    arrays = [_array(network, item, k) for k, item in enumerate(items)]
    if network.problems:
        return
    value, head = INPUT, ""
    for k, array in enumerate(arrays):
        before = arrays[k - 1] if k else None
        if array.input_size != (network.num_inputs if before is None else before.channels) or (
            before is not None and before.head_size != array.channels
        ):
            raise ModelFileError(f"{path}: {array.name} does not fit what stands before it")
        is_last = k == len(arrays) - 1
        value, head = _add_array(network, array, weights, value, head, is_last=is_last)
    size = arrays[-1].head_size
    post = _post_head(network, config.get("head"), weights, size)
    scale = float(weights.take(1)[0])
    network.layers.append(Scale("scale of the output", np.full(size, scale), np.zeros(size)))
    network.layers += post


def _array(network: Network, item: Any, k: int) -> _Array:
    """Check an array's configuration; what no model has becomes a problem."""
    name, path = f"array {k}", network.path
    if not isinstance(item, dict):
        raise ModelFileError(f"{path}: {name} is no object")
    where = f"{path}: {name}:"
    refuse_keys(network, name, item, _ARRAY | _FILMS)
    channels = whole(item.get("channels"), f"{where} channels", 1, MAX_CHANNELS)
    _refuse_options(network, item, name, channels)
    dilations = wholes(item.get("dilations"), f"{where} dilations", _MAX_DILATION)
    count = len(dilations)
    taps = wholes(
        item["kernel_sizes"] if "kernel_sizes" in item else [item.get("kernel_size")] * count,
        f"{where} kernel_size",
        _MAX_TAPS,
    )
    activations = item.get("activation")
    activations = activations if isinstance(activations, list) else [activations] * count
    gated = _gates(network, item, name, count)
    if not len(taps) == len(activations) == len(gated) == count:
        raise ModelFileError(f"{where} kernel sizes, activations and dilations differ in number")
    condition = whole(item.get("condition_size"), f"{where} condition_size", 1, MAX_CHANNELS)
    if condition != network.num_inputs:
        network.problems.append(
            f"{name} has a condition of {condition} values; the input has {network.num_inputs}"
        )
    head = item.get("head")
    if head is None:
        head = {"out_channels": item.get("head_size"), "bias": item.get("head_bias")}
    if not isinstance(head, dict) or not isinstance(head.get("bias"), bool):
        raise ModelFileError(f"{where} its head has no size, or no bias of true or false")
    refuse_keys(
        network, f"{name}: its head", head, {"out_channels", "kernel_size", "bias", "head_dilation"}
    )
    return _Array(
        name,
        network.num_inputs,
        whole(item.get("input_size"), f"{where} input_size", 1, MAX_CHANNELS),
        channels,
        taps,
        dilations,
        activations,
        gated,
        whole(head.get("out_channels"), f"{where} size of the head", 1, MAX_CHANNELS),
        whole(head.get("kernel_size", 1), f"{where} kernel_size of the head", 1, _MAX_TAPS),
        whole(head.get("head_dilation", 1), f"{where} dilation of the head", 1, _MAX_DILATION),
        head["bias"],
    )


def _refuse_options(network: Network, item: dict[str, Any], name: str, channels: int) -> None:
    """Name the newer options that are in use."""
    used = [key for key in sorted(_FILMS) if key in item and item[key] and _is_active(item[key])]
    used += ["slimmable"] if item.get("slimmable") else []
    used += ["head1x1"] if _is_active(item.get("head1x1", False)) else []
    first = item.get("layer1x1", {"active": True, "groups": 1})
    used += [] if first == {"active": True, "groups": 1} else ["layer1x1"]
    used += ["bottleneck"] if item.get("bottleneck", channels) != channels else []
    used += [key for key in ("groups_input", "groups_input_mixin") if item.get(key, 1) != 1]
    network.problems += [f"{name} has {key}: {str(item[key])[:60]}" for key in used]


def _is_active(value: Any) -> bool:
    return bool(value.get("active", True)) if isinstance(value, dict) else bool(value)


def _gates(network: Network, item: dict[str, Any], name: str, count: int) -> list[bool]:
    """Say of each layer whether it is gated."""
    modes = item.get("gating_mode")
    if modes is None:
        modes = "gated" if item.get("gated", False) is True else "none"
    modes = modes if isinstance(modes, list) else [modes] * count
    for mode in modes:
        if mode not in ("none", "gated"):
            network.problems.append(f"{name} has gating_mode: {str(mode)[:40]}")
    second = item.get("secondary_activation", "Sigmoid")
    seconds = second if isinstance(second, list) else [second] * count
    for mode, each in zip(modes, seconds, strict=False):  # their numbers are compared later
        if mode == "gated" and each not in ("Sigmoid", {"type": "Sigmoid"}):
            network.problems.append(f"{name} has secondary_activation: {str(each)[:60]}")
    return [mode == "gated" for mode in modes]


def _add_array(
    network: Network, array: _Array, weights: Weights, value: str, head: str, *, is_last: bool
) -> tuple[str, str]:
    """Append an array; return the names of its last value and of its head's."""
    name, channels = array.name, array.channels
    inward = weights.take(channels, array.input_size)
    rows = f"{name}, in"
    origins = {"weight": f"weights, {rows}"}
    network.layers.append(Dense(rows, inward, zeros(channels), origins, reads=(value,)))
    value, heads = rows, [head] if head else []
    for k in range(len(array.dilations)):
        is_end = is_last and k == len(array.dilations) - 1
        value, activated = _add_layer(network, array, k, weights, value, is_end=is_end)
        heads.append(activated)
    total = heads[0]
    if len(heads) > 1:
        total = f"{name}, sum"
        spec = MixSpec(gains=(1.0,) * len(heads), reads=tuple(heads))
        network.layers.append(FrameLayer(total, spec, reads=tuple(heads)))
    shape = (array.head_size, channels, array.head_taps)
    conv = _conv(f"{name}, head", weights, shape, array.head_dilation, array.head_has_bias)
    network.layers.append(replace(conv, reads=(total,)))
    return value, conv.name


def _add_layer(
    network: Network, array: _Array, k: int, weights: Weights, value: str, *, is_end: bool
) -> tuple[str, str]:
    """Append a layer; return the names of what the next one reads, and of what the head does."""
    name, channels = f"{array.name}, layer {k}", array.channels
    width = channels * (2 if array.gated[k] else 1)
    conv = _conv(f"{name}, conv", weights, (width, channels, array.taps[k]), array.dilations[k])
    mixin = Dense(
        f"{name}, mixin",
        weights.take(width, array.num_inputs),
        zeros(width),
        {"weight": f"weights, {name}, mixin"},
        reads=(INPUT,),
    )
    both = (conv.name, mixin.name)
    total = FrameLayer(f"{name}, sum", MixSpec(gains=(1.0, 1.0), reads=both), reads=both)
    network.layers += [replace(conv, reads=(value,)), mixin, total]
    activated = _activate(network, array, k, total.name)
    weight, bias = weights.take(channels, channels), weights.take(channels)
    if is_end:
        network.notes.append(f"left out: the 1x1 convolution of {name}, which nothing reads")
        return "", activated
    where = f"{name}, 1x1"
    origins = {"weight": f"weights, {where}", "bias": f"weights, {where}"}
    reads = (value, where)
    network.layers += [
        Dense(where, weight, bias, origins, reads=(activated,)),
        FrameLayer(f"{name}, out", MixSpec(gains=(1.0, 1.0), reads=reads), reads=reads),
    ]
    return f"{name}, out", activated


def _activate(network: Network, array: _Array, k: int, total: str) -> str:
    """Append what makes h of z; return its name."""
    name, channels = f"{array.name}, layer {k}", array.channels
    activation = activation_of(network, array.activations[k], channels, f"{name}, act", name)
    if activation is None:  # a problem: nothing is built
        return total
    if not array.gated[k]:
        network.layers.append(replace(activation, reads=(total,)))
        return activation.name
    upper, lower = f"{name}, upper", f"{name}, lower"
    gate = f"{name}, gate"
    reads = (activation.name, gate)
    network.layers += [
        FrameLayer(upper, SliceSpec(channels=(0, channels)), reads=(total,)),
        replace(activation, reads=(upper,)),
        FrameLayer(lower, SliceSpec(channels=(channels, 2 * channels)), reads=(total,)),
        Activation(gate, "sigmoid", reads=(lower,)),
        FrameLayer(f"{name}, gated", MixSpec(is_product=True, reads=reads), reads=reads),
    ]
    return f"{name}, gated"


def _conv(
    name: str,
    weights: Weights,
    shape: tuple[int, int, int],
    dilation: int,
    has_bias: bool = True,
) -> FrameLayer:
    weight = weights.take(*shape)
    bias = weights.take(shape[0]) if has_bias else zeros(shape[0])
    origins = {"weight": f"weights, {name}"} | ({"bias": f"weights, {name}"} if has_bias else {})
    spec = TimeConvSpec(shape[0], shape[2], dilation)
    return FrameLayer(name, spec, {"weight": weight, "bias": bias}, origins)


def _post_head(network: Network, head: Any, weights: Weights, size: int) -> list[Any]:
    """Read what some files have after the scale: activations and convolutions in turn."""
    if head is None:
        return []
    where = f"{network.path}: head:"
    if not isinstance(head, dict) or "kernel_sizes" not in head:
        raise ModelFileError(f"{where} it has no kernel_sizes")
    refuse_keys(
        network,
        "its head",
        head,
        {"in_channels", "channels", "out_channels", "kernel_sizes", "activation"},
    )
    taps = wholes(head["kernel_sizes"], f"{where} kernel_sizes", _MAX_TAPS)
    inner, last = (
        whole(head.get(key), f"{where} {key}", 1, MAX_CHANNELS)
        for key in ("channels", "out_channels")
    )
    layers: list[Any] = []
    for k, count in enumerate(taps):
        name = f"head, layer {k}"
        out = last if k == len(taps) - 1 else inner
        activation = activation_of(network, head.get("activation"), size, f"{name}, act", name)
        layers += [activation, _conv(f"{name}, conv", weights, (out, size, count), 1)]
        size = out
    return [layer for layer in layers if layer is not None]
