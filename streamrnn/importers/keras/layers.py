"""Layers of Keras, one by one: its configuration and its arrays become ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.keras import convolutions, merges
from streamrnn.importers.keras.activations import (
    ACTIVATION_LAYERS,
    activation_layer,
    activation_of,
    prelu,
)
from streamrnn.importers.keras.composed import COMPOSED, composed, scaled_to_one
from streamrnn.importers.keras.recurrent import RECURRENT, recurrent
from streamrnn.importers.keras.values import Call, Value
from streamrnn.importers.network import Dense, Embedding, FrameLayer, Scale, zeros
from streamrnn.model.layers.base import INPUT
from streamrnn.model.layers.frame import ConvSpec, NormSpec

__all__ = ["RECURRENT", "make_layer"]

# They do nothing once a network is trained.
_NOTHING = (
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout1D",
    "SpatialDropout2D",
)
_EPSILON = 1e-7  # of Keras's backend
_ATTENTION = (
    "AdditiveAttention",
    "Attention",
    "GroupQueryAttention",
    "GroupedQueryAttention",
    "MultiHeadAttention",
)
_CANNOT_STREAM = {
    "Bidirectional": (
        "is bidirectional: it needs the end of a sequence before it can answer its beginning, so "
        "it cannot be streamed"
    ),
    "Conv2D": (
        "(Conv2D) convolves along two axes; what is convolved within a step alone can be a "
        "TimeDistributed Conv1D"
    ),
    "RepeatVector": "repeats what the end of a sequence gave (RepeatVector), so no step has it",
} | {
    kind: f"({kind}) looks at all of the sequence at every step, so it cannot be streamed"
    for kind in _ATTENTION
}
_POOLS = (
    "AveragePooling1D",
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
    "MaxPooling1D",
)


def make_layer(call: Call) -> Value:
    """Append ours of one layer.

    Raises `ModelFileError` if no model can hold it.
    """
    kind = call.kind
    if kind in _CANNOT_STREAM:
        raise call.refuse(_CANNOT_STREAM[kind])
    if kind not in _MAKERS and not kind.startswith("ops."):
        raise call.refuse(f"is a {kind}, which is not supported")
    _check_policy(call)
    is_join = kind.startswith("ops.") or kind in (*merges.MERGES, "Concatenate")
    if len(call.values) != 1 and not is_join:
        raise call.refuse(
            f"({kind}) reads {len(call.values)} values: a first state that the network computes "
            "(initial_state), or a mask of its own; a model has none"
            if kind in RECURRENT
            else f"({kind}) reads {len(call.values)} values; expected one"
        )
    reads_margin = kind in ("Conv1D", "DepthwiseConv1D", "SeparableConv1D", "ZeroPadding1D")
    if call.value.margin and not reads_margin and kind not in _NOTHING:
        raise call.refuse(
            f"({kind}) reads what a ZeroPadding1D put before the sequence; a Conv1D alone does"
        )
    late = call.config.get("activation")
    late = late if isinstance(late, str) and late in COMPOSED and kind in _ENDING else None
    if late:
        call = replace(call, config=call.config | {"activation": None})
    made = operation(call) if kind.startswith("ops.") else _MAKERS[kind](call)
    if late:
        made = composed(replace(call, name=f"{call.name}/{late}", values=[made]), late)
    is_dropped = call.build.version.startswith("2.") and kind in ("Normalization", "Rescaling")
    return replace(made, is_masked=False) if is_dropped else made  # the mask, by Keras 2


operation = merges.operation
# Layers that may end in an activation of several layers.
_ENDING = ("Activation", "Conv1D", "Dense", "DepthwiseConv1D", "SeparableConv1D")


def _check_policy(call: Call) -> None:
    policy = call.config.get("dtype", "float32")
    if isinstance(policy, dict):
        inner = policy.get("config")
        policy = inner.get("name", "float32") if isinstance(inner, dict) else "float32"
    policy, network = str(policy), call.build.network
    if call.config.get("quantization_config") or "int8" in policy or "float8" in policy:
        raise call.refuse(f"is quantised ({policy[:60]})")
    if policy not in ("float32", "int32", "int64") and policy.endswith("float16"):
        note = f"the file computes in half precision ({policy}); the model in float32"
        if note not in network.notes:
            network.notes.append(note)


def _dense(call: Call) -> Value:
    value, units, has_bias = call.value, call.whole("units"), call.flag("use_bias")
    call.expect((call.columns(0, 2), units), *([(units,)] * has_bias))
    name = call.name
    origins = {"weight": f"{name}/kernel"} | ({"bias": f"{name}/bias"} if has_bias else {})
    bias = call.arrays[1] if has_bias else zeros(units)
    where = f"layer {name!r}"
    activation = activation_of(call.config.get("activation"), call.build.version, where)
    weight = call.arrays[0].T
    if value.is_frame and value.length > 1:  # place by place
        arrays = {"weight": weight[:, :, None], "bias": bias}
        by_place = FrameLayer(
            name, ConvSpec(units, 1, 1, (0, 0), 1, 1, *activation), arrays, origins
        )
        return call.build.add(by_place, value, value.length, units)
    layer = Dense(name, weight, bias, origins, *activation)
    return call.build.add(layer, value, 1, units)


def _embedding(call: Call) -> Value:
    value = call.value
    is_first = value.reads == (INPUT,) and not call.build.network.layers
    if not is_first or (value.size > 1 and value.has_time):
        raise call.refuse("is an embedding of something other than the one input")
    shape = (call.whole("input_dim"), call.whole("output_dim"))
    call.expect(shape)
    layer = Embedding(call.name, call.arrays[0], {"weight": f"{call.name}/embeddings"})
    is_masked = call.flag("mask_zero", False)
    if is_masked:
        _mask(call, 0.0)
    # A vector of tokens is a sequence of them; [T, 1] gives frames of one place.
    result = replace(value, has_time=True, is_frame=value.has_time and value.channels == 1)
    return replace(call.build.add(layer, result, 1, shape[1]), is_masked=is_masked)


def _masking(call: Call) -> Value:
    value = call.value
    if value.reads != (INPUT,) or value.is_frame:
        raise call.refuse("masks what the network computes (Masking); a model masks its input")
    _mask(call, call.number("mask_value", 0.0))
    return replace(value, is_masked=True)


def _mask(call: Call, mask_value: float) -> None:
    network, build = call.build.network, call.build
    if build.masked_by and (build.masked_by, network.mask_value) != (call.name, mask_value):
        raise call.refuse(f"masks steps, as {build.masked_by!r} does; a model has one mask")
    network.mask_value, build.masked_by = mask_value, call.name


def _one_for_each(call: Call, vector: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Return one number for each channel, of one for all or the same for every place."""
    channels = call.value.channels or vector.reshape(-1).size
    if not vector.size:
        raise call.refuse(f"has no numbers ({what})")
    rows = vector.reshape(-1, vector.shape[-1] if vector.ndim else 1).astype(np.float64)
    if not (rows == rows[0]).all() or rows.shape[1] not in (1, channels):
        raise call.refuse(f"has {list(vector.shape)} numbers ({what}) for {channels} channels")
    return np.broadcast_to(rows[0], channels)


def _flat(call: Call) -> Call:
    """Let a vector that lies in places be one."""
    return replace(call, values=[call.build.single(call.value, call.name)])


def _check_axis(call: Call) -> None:
    if not call.value.is_axis_last(call.config.get("axis", -1)) and call.value.is_sure:
        raise call.refuse(f"normalises along axis {call.shown('axis')}; known is the last")


def _batch_norm(call: Call) -> Value:
    _check_axis(call)
    call = _flat(call)
    scale, center = call.flag("scale"), call.flag("center")
    size = call.columns(0, 1)
    call.expect(*([(size,)] * (2 + scale + center)))
    vectors = [array.astype(np.float64) for array in call.arrays]
    gamma = vectors.pop(0) if scale else np.ones(size)
    beta = vectors.pop(0) if center else np.zeros(size)
    mean, variance = vectors
    gain = gamma / np.sqrt(variance + call.number("epsilon", 1e-3))
    layer = Scale(call.name, gain, beta - mean * gain)
    return call.build.add(layer, call.value, call.value.length, size)


def _layer_norm(call: Call) -> Value:
    _check_axis(call)
    if call.config.get("rms_scaling"):
        raise call.refuse("is a LayerNormalization with rms_scaling, which no model has")
    call = _flat(call)
    scale, center, name = call.flag("scale"), call.flag("center"), call.name
    size = call.columns(0, 1) if scale or center else call.value.channels
    if not size:
        raise call.refuse("does not say how many values it takes, nor does the file")
    call.expect(*([(size,)] * (scale + center)))
    vectors = list(call.arrays)
    arrays = {
        "weight": vectors.pop(0) if scale else np.ones(size, np.float32),
        "bias": vectors.pop(0) if center else zeros(size),
    }
    origins = {
        "weight": f"{name}/gamma" if scale else "nothing (ones)",
        "bias": f"{name}/beta" if center else "nothing (zeros)",
    }
    layer = FrameLayer(name, NormSpec(call.number("epsilon", 1e-3)), arrays, origins)
    return call.build.add(layer, call.value, call.value.length, size)


def _rms_norm(call: Call) -> Value:
    _check_axis(call)
    call.expect((call.columns(0, 1),))
    gain = call.arrays[0].astype(np.float64)
    return scaled_to_one(call, gain, call.number("epsilon", 1e-6), is_mean=True)


def _unit_norm(call: Call) -> Value:
    _check_axis(call)
    return scaled_to_one(call, None, 1e-12, is_mean=False)


def _normalization(call: Call) -> Value:
    """Make a scale of what was adapted to data, or given: mean and variance."""
    call = _flat(call)
    given = [call.config.get(key) for key in ("mean", "variance")]
    if given[0] is not None:
        vectors = [np.array(_numbers(call, value)) for value in given]
    else:
        vectors = [a for a in call.arrays if a.dtype.kind == "f"][:2]
    if len(vectors) != 2 or vectors[0].shape != vectors[1].shape:
        raise call.refuse("has no mean and variance in the file")
    mean, variance = (_one_for_each(call, a, "mean and variance") for a in vectors)
    deviation = np.maximum(np.sqrt(variance), _EPSILON)
    if call.config.get("invert"):
        layer = Scale(call.name, deviation, mean)
    else:
        layer = Scale(call.name, 1 / deviation, -mean / deviation)
    return call.build.add(layer, call.value, call.value.length, layer.gain.size)


def _numbers(call: Call, value: Any) -> list[float]:
    """Read a number or a list of them, nested or not, as an array of Keras is serialised."""
    if isinstance(value, dict) and isinstance(value.get("config"), dict):
        value = value["config"].get("value")
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float) or not abs(item) <= 1e30:
            raise call.refuse(f"has {str(item)[:40]!r} where numbers are expected")
    return [float(item) for item in items]


def _rescaling(call: Call) -> Value:
    call = _flat(call)
    gain, offset = (
        np.array(_numbers(call, call.config.get(key, default)))
        for key, default in (("scale", 1.0), ("offset", 0.0))
    )
    if not call.value.channels and max(gain.size, offset.size) == 1:
        return call.in_place(Scale(call.name, gain, offset))
    size = call.value.channels or max(gain.size, offset.size)
    gain, offset = (
        np.broadcast_to(a, size) if a.size == 1 else _one_for_each(call, a, "scale")
        for a in (gain, offset)
    )
    return call.build.add(Scale(call.name, gain, offset), call.value, call.value.length, size)


def _time_distributed(call: Call) -> Value:
    """Make the layer within, which works on one step."""
    inner = call.config.get("layer")
    kind = str(inner.get("class_name") if isinstance(inner, dict) else inner)[:60]
    config = inner.get("config") if isinstance(inner, dict) else None
    if not isinstance(config, dict) or kind not in _IN_TIME_DISTRIBUTED:
        raise call.refuse(f"is a TimeDistributed({kind}), which is not supported")
    value = call.value
    if not value.has_time and value.is_sure:
        raise call.refuse("is TimeDistributed, but what it reads has no axis of time")
    within = replace(value, has_time=False, is_masked=False)
    made = make_layer(replace(call, kind=kind, config=config, values=[within]))
    return replace(
        made, has_time=True, is_masked=value.is_masked, last_of="", num_steps=value.num_steps
    )


Maker = Callable[[Call], Value]
_MAKERS: dict[str, Maker] = (
    dict.fromkeys(_NOTHING, lambda call: call.value)
    | dict.fromkeys(RECURRENT, recurrent)
    | dict.fromkeys((*ACTIVATION_LAYERS, "Activation"), activation_layer)
    | dict.fromkeys(_POOLS, convolutions.pool)
    | dict.fromkeys(merges.MERGES, merges.merge)
    | dict.fromkeys(("Conv1D", "DepthwiseConv1D", "SeparableConv1D"), convolutions.convolution)
    | {
        "BatchNormalization": _batch_norm,
        "Concatenate": merges.concatenate,
        "Cropping1D": convolutions.cropping,
        "Dense": _dense,
        "Embedding": _embedding,
        "Flatten": convolutions.flatten,
        "LayerNormalization": _layer_norm,
        "Masking": _masking,
        "Normalization": _normalization,
        "PReLU": prelu,
        "RMSNormalization": _rms_norm,
        "Rescaling": _rescaling,
        "Reshape": convolutions.reshape,
        "TimeDistributed": _time_distributed,
        "UnitNormalization": _unit_norm,
        "ZeroPadding1D": convolutions.padding,
    }
)
_IN_TIME_DISTRIBUTED = (
    set(_MAKERS)
    - {*RECURRENT, *merges.MERGES}
    - {
        "Concatenate",
        "Embedding",
        "Masking",
        "TimeDistributed",
    }
)
