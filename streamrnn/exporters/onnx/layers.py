"""Layers of a model as nodes, one function for each kind; recurrent ones are in `cells`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from streamrnn.errors import ModelError
from streamrnn.exporters.onnx.graph import Graph
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Shape
from streamrnn.model.layers.frame import (
    ActivationSpec,
    ConvSpec,
    DenseSpec,
    MagnitudeSpec,
    MixSpec,
    NormSpec,
    PadSpec,
    PoolSpec,
    ScaleSpec,
    SliceSpec,
)
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec

__all__ = ["FRAME_LAYERS", "FUNCTIONS", "add_function"]

_FIFTH, _SIXTH = {"alpha": 0.2, "beta": 0.5}, {"alpha": 1 / 6, "beta": 0.5}
# Our activations that one operator computes.
FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "abs": ("Abs", {}),
    "elu": ("Elu", {}),
    "exp": ("Exp", {}),
    "hard_sigmoid_fifth": ("HardSigmoid", _FIFTH),
    "hard_sigmoid_sixth": ("HardSigmoid", _SIXTH),
    "hard_swish": ("HardSwish", {}),
    "leaky_relu": ("LeakyRelu", {}),
    "log": ("Log", {}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
    "reciprocal": ("Reciprocal", {}),
    "relu": ("Relu", {}),
    "selu": ("Selu", {}),
    "sigmoid": ("Sigmoid", {}),
    "softmax": ("Softmax", {"axis": -1}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "sqrt": ("Sqrt", {}),
    "tanh": ("Tanh", {}),
}
_CLIPS = {"relu6": (0, 6), "hard_tanh": (-1, 1)}


def add_function(graph: Graph, name: str, value: str, to: str, slope: float | None = None) -> str:
    """Add an activation without parameters; ``to`` is the name of what it gives."""
    if name == "identity":
        return value
    if name in FUNCTIONS:
        op, attributes = FUNCTIONS[name]
        slope = LAYER_ACTIVATIONS.get(name) if slope is None else slope
        return graph.add(
            op, [value], to, **attributes, **({} if slope is None else {"alpha": slope})
        )
    if name in ("at_least", "at_most"):
        op = "Max" if name == "at_least" else "Min"
        bound = LAYER_ACTIVATIONS[name] if slope is None else slope
        return graph.add(op, [value, graph.constant(f"{to}_bound", bound)], to)
    if name in _CLIPS:
        ends = [graph.constant(f"{name}_{j}", end) for j, end in enumerate(_CLIPS[name])]
        return graph.add("Clip", [value, *ends], to)
    if name == "silu":
        return graph.add("Mul", [value, graph.add("Sigmoid", [value], f"{to}_factor")], to)
    if name not in ("gelu", "gelu_tanh"):
        raise ModelError(f"ONNX cannot express this model: the activation {name} is not exported")
    return _gelu(graph, name, value, to)


def _gelu(graph: Graph, name: str, value: str, to: str) -> str:
    """Add ``x / 2 (1 + f(x))``, f being erf or the tanh that is near it."""
    if name == "gelu":
        root = graph.constant("root_2", np.sqrt(2))
        inner = graph.add("Div", [value, root], f"{to}_x")
    else:
        square = graph.add("Mul", [value, value], f"{to}_square")
        cube = graph.add("Mul", [square, value], f"{to}_cube")
        part = graph.add("Mul", [cube, graph.constant("gelu_cubic", 0.044715)], f"{to}_part")
        total = graph.add("Add", [value, part], f"{to}_sum")
        root = graph.constant("root_2_pi", np.sqrt(2 / np.pi))
        inner = graph.add("Mul", [total, root], f"{to}_x")
    function = graph.add("Erf" if name == "gelu" else "Tanh", [inner], f"{to}_function")
    more = graph.add("Add", [function, graph.constant("one", 1)], f"{to}_more")
    half = graph.add("Mul", [value, graph.constant("half", 0.5)], f"{to}_half")
    return graph.add("Mul", [half, more], to)


def _activated(graph: Graph, k: int, layer: Any, value: str, shape: Shape) -> str:
    """Add what a layer ends with."""
    name, to = layer.activation, f"{layer.activation}_l{k}"
    if name == "prelu":
        slopes = graph.per_channel(f"slope_l{k}", graph.parameter(f"slope_l{k}"), shape)
        return graph.add("PRelu", [value, slopes], to)
    if "softmax" in name:
        return graph.along_channels(value, shape, lambda each: add_function(graph, name, each, to))
    return add_function(graph, name, value, to, layer.slope)


Values: TypeAlias = Sequence[str]
Shapes: TypeAlias = Sequence[Shape]


def _dense(graph: Graph, k: int, layer: DenseSpec, values: Values, shapes: Shapes) -> str:
    weight = graph.constant(f"weight_l{k}", graph.parameter(f"weight_l{k}").T)
    bias = graph.constant(f"bias_l{k}", graph.parameter(f"bias_l{k}"))
    value = graph.joined_vector(k, values, shapes)
    products = graph.add("MatMul", [value, weight], f"products_l{k}")
    sums = graph.add("Add", [products, bias], f"sums_l{k}")
    return _activated(graph, k, layer, sums, (1, layer.size))


def _conv(graph: Graph, k: int, layer: ConvSpec, values: Values, shapes: Shapes) -> str:
    frame = graph.frame(graph.joined(k, values, shapes), graph.spec.graph.shape_of_joined(k))
    options = {"pads": list(layer.padding), "strides": [layer.stride]}
    return _convolved(graph, k, layer, frame, **options)


def _convolved(graph: Graph, k: int, layer: Any, frame: str, **options: Any) -> str:
    """Convolve a frame [streams, C, L], and end as the layer does."""
    weight = graph.parameter(f"weight_l{k}")
    inputs = [
        frame,
        graph.constant(f"weight_l{k}", weight),
        graph.constant(f"bias_l{k}", graph.parameter(f"bias_l{k}")),
    ]
    options |= {"group": layer.groups, "dilations": [layer.dilation]}
    made = graph.add("Conv", inputs, f"conv_l{k}", kernel_shape=[weight.shape[2]], **options)
    shape = graph.spec.graph.shapes[k]
    if graph.is_sequence:
        made = graph.add("Transpose", [made], f"conv_steps_l{k}", perm=[2, 0, 1])
    else:
        made = graph.framed(made, shape)
    return _activated(graph, k, layer, made, shape)


def _time_conv(graph: Graph, k: int, layer: TimeConvSpec, values: Values, shapes: Shapes) -> str:
    """Convolve over steps, the last axis; what is kept of those before stands in front."""
    value = graph.joined_vector(k, values, shapes)
    if graph.is_sequence:
        steps = graph.add("Transpose", [value], f"steps_l{k}", perm=[1, 2, 0])
    else:
        steps = graph.frame(value, (1, layer.channels))
    if layer.num_kept:
        name = f"kept_l{k}"
        steps = graph.add("Concat", [graph.take(name), steps], f"all_l{k}", axis=2)
        graph.give(name, _last_places(graph, steps, layer.num_kept, f"last_l{k}"))
    return _convolved(graph, k, layer, steps)


def _memory(graph: Graph, k: int, layer: MemorySpec, values: Values, shapes: Shapes) -> str:
    frame = graph.frame(graph.joined(k, values, shapes), graph.spec.graph.shape_of_joined(k))
    name = f"kept_l{k}"
    longer = graph.add("Concat", [graph.take(name), frame], f"longer_l{k}", axis=2)
    graph.give(name, _last_places(graph, longer, layer.places, f"last_l{k}"))
    return longer


def _last_places(graph: Graph, frame: str, places: int, to: str) -> str:
    end = graph.constant("end", [np.iinfo(np.int64).max], np.int64)
    return graph.add("Slice", [frame, graph.numbers(-places), end, graph.numbers(2)], to)


def _activation(graph: Graph, k: int, layer: ActivationSpec, values: Values, shapes: Shapes) -> str:
    value = graph.joined(k, values, shapes)
    return _activated(graph, k, layer, value, graph.spec.graph.shapes[k])


def _scale(graph: Graph, k: int, layer: ScaleSpec, values: Values, shapes: Shapes) -> str:
    value, shape = graph.joined(k, values, shapes), graph.spec.graph.shapes[k]
    gain = graph.per_channel(f"weight_l{k}", graph.parameter(f"weight_l{k}"), shape)
    shift = graph.per_channel(f"bias_l{k}", graph.parameter(f"bias_l{k}"), shape)
    return graph.add("Add", [graph.add("Mul", [value, gain], f"scaled_l{k}"), shift], f"scale_l{k}")


def _norm(graph: Graph, k: int, layer: NormSpec, values: Values, shapes: Shapes) -> str:
    gain = graph.constant(f"weight_l{k}", graph.parameter(f"weight_l{k}"))
    shift = graph.constant(f"bias_l{k}", graph.parameter(f"bias_l{k}"))
    options = {"axis": -1, "epsilon": layer.epsilon}
    return graph.along_channels(
        graph.joined(k, values, shapes),
        graph.spec.graph.shapes[k],
        lambda value: graph.add(
            "LayerNormalization", [value, gain, shift], f"norm_l{k}", **options
        ),
    )


def _mix(graph: Graph, k: int, layer: MixSpec, values: Values, shapes: Shapes) -> str:
    if graph.spec.graph.shapes[k][0] > 1:
        values = [graph.frame(*pair) for pair in zip(values, shapes, strict=True)]
    if not layer.is_product:
        values = [
            value
            if gain == 1
            else graph.add("Mul", [value, graph.constant(f"gain{j}_l{k}", gain)], f"part{j}_l{k}")
            for j, (value, gain) in enumerate(zip(values, layer.gains, strict=True))
        ]
    mixed = values[0]
    for j, value in enumerate(values[1:]):
        mixed = graph.add("Mul" if layer.is_product else "Add", [mixed, value], f"mix{j}_l{k}")
    return mixed


def _pad(graph: Graph, k: int, layer: PadSpec, values: Values, shapes: Shapes) -> str:
    frame = graph.frame(graph.joined(k, values, shapes), graph.spec.graph.shape_of_joined(k))
    before, after = layer.padding
    pads = graph.numbers(0, 0, before, 0, 0, after)
    mode = {"zeros": "constant"}.get(layer.mode, layer.mode)
    padded = graph.add("Pad", [frame, pads], f"pad_l{k}", mode=mode)
    return graph.framed(padded, graph.spec.graph.shapes[k])


def _slice(graph: Graph, k: int, layer: SliceSpec, values: Values, shapes: Shapes) -> str:
    value, shape = graph.joined(k, values, shapes), graph.spec.graph.shape_of_joined(k)
    if layer.places not in ((0, 0), (0, shape[0])):
        ends = [graph.numbers(place) for place in layer.places]
        value = graph.add("Slice", [value, *ends, graph.numbers(2)], f"places_l{k}")
        value = graph.framed(value, graph.spec.graph.shapes[k])
    if layer.channels not in ((0, 0), (0, shape[1])):
        ends = [graph.numbers(place) for place in layer.channels]
        axis = graph.numbers(1 if graph.spec.graph.shapes[k][0] > 1 else -1)
        value = graph.add("Slice", [value, *ends, axis], f"channels_l{k}")
    return value


def _pool(graph: Graph, k: int, layer: PoolSpec, values: Values, shapes: Shapes) -> str:
    frame = graph.frame(graph.joined(k, values, shapes), graph.spec.graph.shape_of_joined(k))
    kind = {"max": "Max", "mean": "Average"}[layer.kind]
    if layer.size:
        options = {"kernel_shape": [layer.size], "strides": [layer.stride]}
        made = graph.add(f"{kind}Pool", [frame], f"pool_l{k}", **options)
    else:
        made = graph.add(f"Global{kind}Pool", [frame], f"pool_l{k}")
    return graph.framed(made, graph.spec.graph.shapes[k])


def _magnitude(graph: Graph, k: int, layer: MagnitudeSpec, values: Values, shapes: Shapes) -> str:
    value, (length, channels) = graph.joined(k, values, shapes), graph.spec.graph.shapes[k]
    axis, two = graph.numbers(1 if length > 1 else -1), graph.constant("two", 2)
    squares = []
    for name, first in (("re", 0), ("im", channels)):
        ends = [graph.numbers(first), graph.numbers(first + channels)]
        half = graph.add("Slice", [value, *ends, axis], f"{name}_l{k}")
        squares.append(graph.add("Pow", [half, two], f"{name}_square_l{k}"))
    total = graph.add("Add", squares, f"squares_l{k}")
    return graph.add("Sqrt", [total], f"magnitude_l{k}")


FRAME_LAYERS: dict[type, Callable[..., str]] = {
    ActivationSpec: _activation,
    ConvSpec: _conv,
    DenseSpec: _dense,
    MagnitudeSpec: _magnitude,
    MemorySpec: _memory,
    MixSpec: _mix,
    NormSpec: _norm,
    PadSpec: _pad,
    PoolSpec: _pool,
    ScaleSpec: _scale,
    SliceSpec: _slice,
    TimeConvSpec: _time_conv,
}
