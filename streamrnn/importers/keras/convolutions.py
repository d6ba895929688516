"""Convolutions, pools and moves of Keras: over time, or over the frame of one step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.keras.activations import activation_of
from streamrnn.importers.keras.values import Call, Value
from streamrnn.importers.network import Dense, FrameLayer, Origins, zeros
from streamrnn.model.layers.frame import ConvSpec, PadSpec, PoolSpec, SliceSpec
from streamrnn.model.layers.memory import TimeConvSpec

__all__ = ["convolution", "cropping", "flatten", "padding", "pool", "reshape"]


def convolution(call: Call) -> Value:
    """Make a ``Conv1D``, ``DepthwiseConv1D`` or ``SeparableConv1D``."""
    if call.config.get("data_format") not in (None, "channels_last"):
        raise call.refuse(f"takes {call.shown('data_format')}; a model takes channels last")
    groups = call.whole("groups", 1) if call.kind == "Conv1D" else 1
    channels = call.columns(1, 3, groups)
    kernel, name = call.whole("kernel_size"), call.name
    where = f"layer {name!r}"
    activation = activation_of(call.config.get("activation"), call.build.version, where)
    has_bias = call.flag("use_bias")
    if call.kind == "Conv1D":
        filters = call.whole("filters")
        call.expect((kernel, channels // groups, filters), *([(filters,)] * has_bias))
        bias = call.arrays[1] if has_bias else zeros(filters)
        weight = call.arrays[0].transpose(2, 1, 0)
        return _convolved(call, weight, bias, groups, activation, _origins(name, "kernel"))
    multiplier = call.whole("depth_multiplier", 1)
    wide = channels * multiplier
    depthwise = call.arrays[0].transpose(1, 2, 0).reshape(-1, 1, call.arrays[0].shape[0])
    first = (kernel, channels, multiplier)
    if call.kind == "DepthwiseConv1D":
        call.expect(first, *([(wide,)] * has_bias))
        bias = call.arrays[1] if has_bias else zeros(wide)
        origins = _origins(name, "depthwise_kernel")
        return _convolved(call, depthwise, bias, channels, activation, origins)
    filters = call.whole("filters")
    call.expect(first, (1, wide, filters), *([(filters,)] * has_bias))
    origins = {"weight": f"{name}/depthwise_kernel"}
    value = _convolved(call, depthwise, zeros(wide), channels, ("identity", None), origins)
    bias = call.arrays[2] if has_bias else zeros(filters)
    origins = _origins(name, "pointwise_kernel")
    # The kernel's one place stands first in the file, last in ours.
    pointwise = replace(call, values=[value], name=f"{name}/pointwise", config={})
    weight = call.arrays[1].transpose(2, 1, 0)
    return _convolved(pointwise, weight, bias, 1, activation, origins)


def _origins(name: str, kernel: str) -> Origins:
    return {"weight": f"{name}/{kernel}", "bias": f"{name}/bias"}


def _convolved(
    call: Call,
    weight: NDArray[Any],
    bias: NDArray[Any],
    groups: int,
    activation: tuple[str, float | None],
    origins: Origins,
) -> Value:
    """Append a convolution of weight [C', C / groups, kernel] over time or a frame."""
    value, kernel = call.value, weight.shape[2]
    if not value.has_time and not value.is_frame and value.is_sure:
        raise call.refuse(f"({call.kind}) reads a vector; it needs a frame of several places")
    stride, dilation = call.whole("strides", 1), call.whole("dilation_rate", 1)
    mode = str(call.config.get("padding", "valid")).lower()
    arrays = {"weight": weight, "bias": bias}
    if value.is_frame:
        kept = (kernel - 1) * dilation + 1
        before, after = _margins(call, mode, value.length, kept, stride)
        spec = ConvSpec(
            weight.shape[0], kernel, stride, (before, after), dilation, groups, *activation
        )
        length = (value.length + before + after - kept) // stride + 1
        if length < 1:
            raise call.refuse(f"has a kernel of {kernel} for {value.length} places")
        layer = FrameLayer(call.name, spec, arrays, origins)
        return call.build.add(layer, value, length, weight.shape[0])
    _check_time(call, mode, kernel, stride, (kernel - 1) * dilation)
    result = replace(value, is_masked=False, from_state=value.from_state and kernel == 1)
    if kernel == 1 and groups == 1:
        dense = Dense(call.name, weight[:, :, 0], bias, origins, *activation)
        return call.build.add(dense, result, 1, weight.shape[0])
    over_time = TimeConvSpec(weight.shape[0], kernel, dilation, groups, *activation)
    layer = FrameLayer(call.name, over_time, arrays, origins)
    return call.build.add(layer, result, 1, weight.shape[0])


def _check_time(call: Call, mode: str, kernel: int, stride: int, margin: int) -> None:
    """Raise `ModelFileError` unless a convolution over time sees what was before alone."""
    if stride > 1:
        raise call.refuse(
            f"({call.kind}) over time has strides of {stride}: it answers some steps alone, and a "
            "model all of them"
        )
    value = call.value
    is_causal = mode == "causal" or (mode == "valid" and value.margin == margin) or margin == 0
    if is_causal and not (value.margin and (mode != "valid" or value.margin != margin)):
        return
    raise call.refuse(
        f"({call.kind}) over time has padding={mode!r}: it needs inputs to come, so it cannot be "
        "streamed; padding='causal' can, or a ZeroPadding1D of "
        f"({margin}, 0) before it"
    )


def _margins(call: Call, mode: str, length: int, kept: int, stride: int) -> tuple[int, int]:
    """Return the places that a padding adds before and after a frame."""
    if mode == "valid":
        return 0, 0
    if mode == "causal":
        return kept - 1, 0
    if mode != "same":
        raise call.refuse(f"({call.kind}) has padding={mode!r}")
    missing = max((math.ceil(length / stride) - 1) * stride + kept - length, 0)
    return missing // 2, missing - missing // 2


def pool(call: Call) -> Value:
    """Make a pool over a frame; over time it needs what is still to come."""
    value = call.build.single(call.value, call.name)
    if value.has_time and not value.is_frame and value.is_sure:
        if call.config.get("pool_size") in (1, [1]) and call.whole("strides", 1) == 1:
            return value
        raise call.refuse(
            f"is a {call.kind} over time: its answers need several steps, the later ones too, so "
            "it cannot be streamed step by step; TimeDistributed pools within a step"
        )
    if not value.is_frame:
        raise call.refuse(f"({call.kind}) reads a vector; it needs a frame of several places")
    if call.config.get("data_format") not in (None, "channels_last"):
        raise call.refuse(f"takes {call.shown('data_format')}; a model takes channels last")
    kind = "max" if "Max" in call.kind else "mean"
    if call.kind.startswith("Global"):
        layer = FrameLayer(call.name, PoolSpec(kind))
        is_frame = call.flag("keepdims", False)
        return replace(call.build.add(layer, value, 1, value.channels), is_frame=is_frame)
    size = call.whole("pool_size", 2)
    stride = call.whole("strides", size)
    mode = str(call.config.get("padding", "valid")).lower()
    before, after = _margins(call, mode, value.length, size, stride)
    if before or after:
        if kind == "mean":
            raise call.refuse("is a mean with padding='same', which leaves out what is padded")
        # The border once more changes no maximum: it is within the same window.
        padded = FrameLayer(f"{call.name}/padding", PadSpec((before, after), "edge"))
        length = value.length + before + after
        value = call.build.add(padded, value, length, value.channels)
    if size > value.length:
        raise call.refuse(f"is a pool of {size} places for {value.length}")
    layer = FrameLayer(call.name, PoolSpec(kind, size, stride))
    return call.build.add(layer, value, (value.length - size) // stride + 1, value.channels)


def padding(call: Call) -> Value:
    """Make a ``ZeroPadding1D``: places of a frame, or steps that a convolution reads."""
    before, after = _pair(call, "padding")
    value = call.value
    if value.is_frame:
        layer = FrameLayer(call.name, PadSpec((before, after)))
        return call.build.add(layer, value, value.length + before + after, value.channels)
    if after:
        raise call.refuse("puts zeros behind the sequence, so it cannot be streamed")
    return replace(value, margin=value.margin + before, is_masked=False)


def cropping(call: Call) -> Value:
    """Make a ``Cropping1D`` of a frame."""
    first, last = _pair(call, "cropping")
    value = call.value
    if not value.is_frame:
        raise call.refuse("leaves out steps (Cropping1D), and a model answers all of them")
    if first + last >= value.length:
        raise call.refuse(f"leaves nothing of {value.length} places")
    if not first and not last:
        return value
    layer = FrameLayer(call.name, SliceSpec((first, value.length - last)))
    return call.build.add(layer, value, value.length - first - last, value.channels)


def _pair(call: Call, key: str) -> tuple[int, int]:
    value = call.config.get(key, 1)
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(type(n) is int and 0 <= n <= 1 << 20 for n in pair):
        raise call.refuse(f"has {key}={call.shown(key)}")
    return pair[0], pair[1]


def flatten(call: Call) -> Value:
    """Make a vector of a frame, the order of whose numbers stays."""
    value = call.value
    if value.has_time and value.is_sure:
        if value.num_steps != 1:
            raise call.refuse("makes one vector of all steps (Flatten), so it cannot be streamed")
        return replace(value, is_frame=False, has_time=False, last_of=call.name)
    return replace(value, is_frame=False, is_masked=False)


def reshape(call: Call) -> Value:
    """Follow a ``Reshape`` that leaves the order of a step's numbers as it is."""
    target = call.config.get("target_shape")
    value = call.value
    if not isinstance(target, list) or not all(type(n) is int for n in target):
        raise call.refuse(f"has target_shape={call.shown('target_shape')}")
    if not value.is_sure:
        return value
    is_input = value.reads == Value().reads and call.is_only_reader
    if is_input and not value.has_time and len(target) == 2 and target[1] == 1:
        call.build.network.num_inputs = 1
        return replace(value, channels=1, has_time=True)  # numbers one after the other
    steps = target[: value.has_time]
    if steps and (steps[0] not in (-1, value.num_steps) or len(target) == 1):
        raise _order(call)
    wanted = target[value.has_time :]
    if wanted.count(-1) == 1 and value.size:
        known = math.prod(n for n in wanted if n != -1)
        wanted = [n if n != -1 else value.size // max(known, 1) for n in wanted]
    if len(wanted) not in (1, 2) or min(wanted) < 1 or math.prod(wanted) != value.size:
        raise _order(call)
    if len(wanted) == 1:
        return replace(value, is_frame=False, is_masked=False)
    length, channels = wanted
    if (length, channels) == (value.length, value.channels) or is_input:
        if is_input:  # it is a frame of that shape then, number by number
            call.build.network.input_shape = (length, channels)
        return replace(value, length=length, channels=channels, is_frame=True, is_masked=False)
    raise _order(call)


def _order(call: Call) -> ModelFileError:
    value = call.value
    shape = [value.length, value.channels] if value.is_frame else [value.size]
    return call.refuse(
        f"(Reshape) makes {call.shown('target_shape')} of {shape} at every step; a model keeps a "
        "step's numbers as they are, but for a frame that becomes a vector"
    )
