"""Layers of a model as nodes, one function for each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.exporters.onnx.graph import Graph
from streamrnn.importers.gates import in_their_order
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Layer
from streamrnn.model.layers.frame import (
    ActivationSpec,
    DenseSpec,
    MixSpec,
    NormSpec,
    ScaleSpec,
    SliceSpec,
)
from streamrnn.model.spec import LayerSpec

__all__ = ["FUNCTIONS", "add_layer"]

_FIFTH, _SIXTH = {"alpha": 0.2, "beta": 0.5}, {"alpha": 1 / 6, "beta": 0.5}
# Our activations that one operator computes.
FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "exp": ("Exp", {}),
    "hard_sigmoid_fifth": ("HardSigmoid", _FIFTH),
    "hard_sigmoid_sixth": ("HardSigmoid", _SIXTH),
    "hard_swish": ("HardSwish", {}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
    "relu": ("Relu", {}),
    "selu": ("Selu", {}),
    "sigmoid": ("Sigmoid", {}),
    "softmax": ("Softmax", {"axis": -1}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "tanh": ("Tanh", {}),
}
_CLIPS = {"relu6": (0, 6), "hard_tanh": (-1, 1)}
# Within a cell, with alpha and beta of those that have some.
_CELL_FUNCTIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "elu": ("Elu", (1.0,)),
    "hard_sigmoid_fifth": ("HardSigmoid", (0.2, 0.5)),
    "hard_sigmoid_sixth": ("HardSigmoid", (1 / 6, 0.5)),
    "identity": ("Affine", (1.0, 0.0)),
    "relu": ("Relu", ()),
    "sigmoid": ("Sigmoid", ()),
    "softplus": ("Softplus", ()),
    "softsign": ("Softsign", ()),
    "tanh": ("Tanh", ()),
}


def add_layer(graph: Graph, k: int, layer: Layer, values: dict[int, str]) -> str:
    """Add one layer, or note what ONNX, or this exporter, does not express."""
    where, before = f"layer {k} ({layer.describe()})", len(graph.problems)
    reads = graph.spec.graph.reads[k]
    write = _LAYERS.get(type(layer))
    if write is None:
        graph.problems.append(f"{where} is of a kind that is not exported yet")
    if any(read.is_before for read in reads):
        graph.problems.append(f"{where} reads an output of the step before")
    if any(
        shape[0] > 1 for shape in (*graph.spec.graph.read_shapes(k), graph.spec.graph.shapes[k])
    ):
        graph.problems.append(f"{where} works on frames of several places")
    if len(graph.problems) > before or write is None:
        return values[-1]
    return write(graph, k, layer, [values[read.layer] for read in reads])


def _joined(graph: Graph, k: int, values: list[str]) -> str:
    if len(values) == 1:
        return values[0]
    return graph.add("Concat", values, f"read_l{k}", axis=2)


def _recurrent(graph: Graph, k: int, layer: LayerSpec, values: list[str]) -> str:
    """Add one recurrent layer and its states."""
    where, before = f"layer {k} ({layer.describe()})", len(graph.problems)
    for has_it, what in (
        (layer.projection_size, "a projection, which ONNX has not"),
        (layer.layer_norm, "a layer normalisation within the cell, which ONNX has not"),
        (layer.first_state, "a trained first state, which a graph whose states are inputs has not"),
    ):
        if has_it:
            graph.problems.append(f"{where} has {what}")
    form = _form(layer)
    if form is None:
        graph.problems.append(f"{where} has an activation that ONNX has not")
    if len(graph.problems) > before or form is None:
        return values[0]
    size, op = layer.hidden_size, layer.cell.removesuffix("_tanh").removesuffix("_relu").upper()

    def theirs(name: str) -> NDArray[Any]:
        return in_their_order(graph.parameter(f"{name}_l{k}"), "onnx", layer.cell)

    bias = np.concatenate([theirs("bias_ih"), theirs("bias_hh")])
    inputs = [
        _joined(graph, k, values),
        graph.constant(f"W_l{k}", theirs("weight_ih")[None]),
        graph.constant(f"R_l{k}", theirs("weight_hh")[None]),
        graph.constant(f"B_l{k}", bias[None]),
        "",
    ]
    for state in ("h", "c")[: len(layer.state_sizes)]:
        name = f"{state}_l{k}"
        shape: list[int | str] = [1, "streams", size]
        graph.inputs.append((name, 1, shape))
        graph.outputs.append((f"next_{name}", 1, shape))
        inputs.append(name)
    if layer.peepholes:
        blocks = [graph.parameter(f"weight_c{gate}_l{k}") for gate in "iof"]
        inputs.append(graph.constant(f"P_l{k}", np.concatenate(blocks)[None]))
    outputs = [f"all_l{k}", *(f"next_{name}" for name in inputs[5 : 5 + len(layer.state_sizes)])]
    graph.add_many(op, inputs, outputs, hidden_size=size, **form)
    axis = graph.constant("directions_axis", [1], np.int64)
    return graph.add("Squeeze", [outputs[0], axis], f"steps_l{k}")


def _form(layer: LayerSpec) -> dict[str, Any] | None:
    """Return the attributes of a recurrent operator that are not their defaults."""
    attributes: dict[str, Any] = {}
    if layer.cell == "rnn_relu":
        attributes["activations"] = ["Relu"]
    if layer.cell == "gru":
        attributes["linear_before_reset"] = int(layer.reset_after)
    names = [layer.gate_activation, layer.cell_activation]
    names += [layer.output_activation] * (layer.cell == "lstm")
    if layer.cell.startswith("rnn_") or (names[0] == "sigmoid" and set(names[1:]) == {"tanh"}):
        return attributes
    functions = [_CELL_FUNCTIONS.get(name) for name in names]
    if None in functions:
        return None
    known = [function for function in functions if function is not None]
    numbers = {
        "activation_alpha": [given[0] for _, given in known if given],
        "activation_beta": [given[1] for _, given in known if len(given) > 1],
    }
    attributes["activations"] = [name for name, _ in known]
    return attributes | {name: given for name, given in numbers.items() if given}


def _activated(graph: Graph, k: int | str, layer: Any, value: str) -> str:
    """Add what a layer ends with."""
    name, to = layer.activation, f"{layer.activation}_l{k}"
    slope = layer.slope if layer.slope is not None else LAYER_ACTIVATIONS[name]
    if name == "identity":
        return value
    if name in FUNCTIONS:
        op, attributes = FUNCTIONS[name]
        return graph.add(op, [value], to, **attributes)
    if name in ("leaky_relu", "elu"):
        return graph.add({"elu": "Elu"}.get(name, "LeakyRelu"), [value], to, alpha=slope)
    if name == "prelu":
        slopes = graph.constant(f"slope_l{k}", graph.parameter(f"slope_l{k}"))
        return graph.add("PRelu", [value, slopes], to)
    if name in _CLIPS:
        ends = [graph.constant(f"{name}_{j}", end) for j, end in enumerate(_CLIPS[name])]
        return graph.add("Clip", [value, *ends], to)
    if name == "silu":
        factor = graph.add("Sigmoid", [value], f"{to}_factor")
    elif name == "gelu":
        root = graph.constant("root_2", np.sqrt(2))
        erf = graph.add("Erf", [graph.add("Div", [value, root], f"{to}_x")], f"{to}_erf")
        factor = _half_of_one_plus(graph, erf, to)
    else:  # gelu_tanh
        cube = graph.add("Pow", [value, graph.constant("three", 3)], f"{to}_cube")
        part = graph.add("Mul", [cube, graph.constant("gelu_cubic", 0.044715)], f"{to}_part")
        total = graph.add("Add", [value, part], f"{to}_sum")
        root = graph.constant("root_2_pi", np.sqrt(2 / np.pi))
        tanh = graph.add("Tanh", [graph.add("Mul", [total, root], f"{to}_x")], f"{to}_tanh")
        factor = _half_of_one_plus(graph, tanh, to)
    return graph.add("Mul", [value, factor], to)


def _half_of_one_plus(graph: Graph, value: str, to: str) -> str:
    more = graph.add("Add", [value, graph.constant("one", 1)], f"{to}_more")
    return graph.add("Mul", [more, graph.constant("half", 0.5)], f"{to}_factor")


def _dense(graph: Graph, k: int, layer: DenseSpec, values: list[str]) -> str:
    weight = graph.constant(f"weight_l{k}", graph.parameter(f"weight_l{k}").T)
    bias = graph.constant(f"bias_l{k}", graph.parameter(f"bias_l{k}"))
    products = graph.add("MatMul", [_joined(graph, k, values), weight], f"products_l{k}")
    return _activated(graph, k, layer, graph.add("Add", [products, bias], f"sums_l{k}"))


def _activation(graph: Graph, k: int, layer: ActivationSpec, values: list[str]) -> str:
    return _activated(graph, k, layer, _joined(graph, k, values))


def _scale(graph: Graph, k: int, layer: ScaleSpec, values: list[str]) -> str:
    gain = graph.constant(f"weight_l{k}", graph.parameter(f"weight_l{k}"))
    shift = graph.constant(f"bias_l{k}", graph.parameter(f"bias_l{k}"))
    product = graph.add("Mul", [_joined(graph, k, values), gain], f"scaled_l{k}")
    return graph.add("Add", [product, shift], f"shifted_l{k}")


def _norm(graph: Graph, k: int, layer: NormSpec, values: list[str]) -> str:
    gain = graph.constant(f"weight_l{k}", graph.parameter(f"weight_l{k}"))
    shift = graph.constant(f"bias_l{k}", graph.parameter(f"bias_l{k}"))
    inputs = [_joined(graph, k, values), gain, shift]
    return graph.add("LayerNormalization", inputs, f"norm_l{k}", axis=-1, epsilon=layer.epsilon)


def _mix(graph: Graph, k: int, layer: MixSpec, values: list[str]) -> str:
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


def _slice(graph: Graph, k: int, layer: SliceSpec, values: list[str]) -> str:
    value = _joined(graph, k, values)
    if layer.channels == (0, 0):
        return value
    ends = [
        graph.constant(f"slice_{what}_l{k}", [place], np.int64)
        for what, place in zip(("from", "to"), layer.channels, strict=True)
    ]
    return graph.add(
        "Slice", [value, *ends, graph.constant("last_axis", [2], np.int64)], f"slice_l{k}"
    )


_LAYERS: dict[type, Callable[[Graph, int, Any, list[str]], str]] = {
    ActivationSpec: _activation,
    DenseSpec: _dense,
    LayerSpec: _recurrent,
    MixSpec: _mix,
    NormSpec: _norm,
    ScaleSpec: _scale,
    SliceSpec: _slice,
}
