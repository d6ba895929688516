"""Write a model as an ONNX graph of standard operators, its states inputs and outputs.

Along the graph's edges goes ``[steps, streams, features]``. A layer's state ``h_l0`` comes back as
``next_h_l0``: fed again, the graph goes on where it stopped, after one step or after many.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.exporters.network import Exported, refuse
from streamrnn.importers.gates import in_their_order
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec

__all__ = ["export_onnx"]

_OPSET, _IR_VERSION = 17, 8  # onnxruntime 1.12 and later
_MAX_BYTES = (1 << 31) - (1 << 20)  # of a protobuf message
_SLOPES = {"hard_sigmoid_fifth": 0.2, "hard_sigmoid_sixth": 1 / 6}
_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "softmax": "Softmax"}


class _Graph:
    """Nodes, constants, inputs and outputs, as they come."""

    def __init__(self, model: Model) -> None:
        from onnx import helper

        self.helper, self.model, self.spec = helper, model, model.spec
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.inputs: list[tuple[str, int, list[int | str]]] = []
        self.outputs: list[tuple[str, int, list[int | str]]] = []
        self.problems: list[str] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Keep a constant under its name."""
        self.constants[name] = np.ascontiguousarray(np.asarray(value, dtype))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node of one output."""
        return self.add_many(op, inputs, [output], **attributes)[0]

    def add_many(
        self, op: str, inputs: list[str], outputs: list[str], **attributes: Any
    ) -> list[str]:
        """Add a node."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op, inputs, outputs, name, **attributes))
        return outputs

    def parameter(self, name: str) -> NDArray[np.float32]:
        """Return a parameter of the model."""
        return self.model.parameters[name]


def export_onnx(model: Model) -> Exported:
    """Write a model as an ONNX graph.

    Raises `ModelError` if the package ``onnx`` is not installed, or ONNX has no operator for what
    the model does: all of that is listed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ModelError("ONNX needs the package onnx: pip install 'streamrnn[onnx]'") from error
    graph = _Graph(model)
    value = _features(graph)
    for k, layer in enumerate(model.spec.chain):
        value = _LAYERS[type(layer)](graph, k, layer, value)
    value = _head(graph, value)
    if graph.problems:
        raise refuse("ONNX", graph.problems)
    if sum(array.nbytes for array in graph.constants.values()) > _MAX_BYTES:
        raise ModelError("the model is larger than an ONNX file can be (2 GB)")
    graph.add("Identity", [value], "y")
    shape: list[int | str] = ["steps", "streams", model.spec.output_size]
    graph.outputs.insert(0, ("y", TensorProto.FLOAT, shape))
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "streamrnn",
            [helper.make_tensor_value_info(*item) for item in graph.inputs],
            [helper.make_tensor_value_info(*item) for item in graph.outputs],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="StreamRNN",
    )
    helper.set_model_props(
        proto,
        {
            "fingerprint": model.fingerprint,
            "inputs": json.dumps([[item.name, item.unit] for item in model.spec.inputs]),
            "outputs": json.dumps([[item.name, item.unit] for item in model.spec.outputs]),
        },
    )
    onnx.checker.check_model(proto)
    data = proto.SerializeToString()
    states = [name for name, *_ in graph.inputs[1:]]
    lines = [f"  {what} {name:<10} {shape}" for what, name, shape in _described(graph)]
    return Exported(data, "onnxruntime", lambda x: _answers(data, model, states, x), lines)


def _described(graph: _Graph) -> list[tuple[str, str, str]]:
    return [
        (what, name, f"[{', '.join(map(str, shape))}]")
        for what, items in (("input ", graph.inputs), ("output", graph.outputs))
        for name, _, shape in items
    ]


# --- from the inputs to the features -----------------------------------------------------------


def _features(graph: _Graph) -> str:
    """Add what makes features of the raw inputs ``x``."""
    from onnx import TensorProto

    items = graph.spec.inputs
    if graph.spec.is_token:
        graph.inputs.append(("x", TensorProto.INT64, ["steps", "streams"]))
        weight = graph.constant(
            "embedding.weight", graph.parameter(f"embedding.{items[0].name}.weight")
        )
        return graph.add("Gather", [weight, "x"], "features", axis=0)
    graph.inputs.append(("x", TensorProto.FLOAT, ["steps", "streams", len(items)]))
    if all(item.kind == "numeric" and _is_stateless(graph, item) for item in items) and not any(
        item.missing != "error" for item in items
    ):
        return _scaled(
            graph, "x", "x", [item.center for item in items], [item.scale for item in items]
        )
    columns = ["x"]
    if len(items) > 1:
        sizes = graph.constant("column_sizes", [1] * len(items), np.int64)
        columns = [f"x{i}" for i in range(len(items))]
        graph.add_many("Split", ["x", sizes], columns, axis=2)
    parts = [
        part
        for i, (item, column) in enumerate(zip(items, columns, strict=True))
        for part in _column(graph, i, item, column)
    ]
    return graph.add("Concat", parts, "features", axis=2)


def _is_stateless(graph: _Graph, item: InputSpec) -> bool:
    if item.has_memory:
        what = "the change since its last value" if item.difference else "the last value seen"
        graph.problems.append(f"input {item.name!r} needs {what}, which no operator keeps")
    return not item.has_memory


def _scaled(graph: _Graph, what: str, value: str, center: Any, scale: Any) -> str:
    """Add ``(value - center) / scale``, as far as it does something."""
    if np.any(np.asarray(center) != 0):
        shift = graph.constant(f"{what}.center", center)
        value = graph.add("Sub", [value, shift], f"{what}_centered")
    if np.any(np.asarray(scale) != 1):
        divisor = graph.constant(f"{what}.scale", scale)
        value = graph.add("Div", [value, divisor], f"{what}_scaled")
    return value


def _column(graph: _Graph, i: int, item: InputSpec, column: str) -> list[str]:
    """Add the features [steps, streams, n] of one input."""
    from onnx import TensorProto

    name = f"x{i}"
    if item.kind == "numeric":
        if not _is_stateless(graph, item):
            return []
        mask = []
        if item.missing != "error":
            missing = graph.add("IsNaN", [column], f"{name}_missing")
            fill = graph.constant(f"{name}.fill", item.fill)
            column = graph.add("Where", [missing, fill, column], f"{name}_filled")
            if item.missing == "mask":
                mask = [graph.add("Cast", [missing], f"{name}_mask", to=TensorProto.FLOAT)]
        return [_scaled(graph, name, column, [item.center], [item.scale]), *mask]
    whole = graph.add("Cast", [column], f"{name}_whole", to=TensorProto.INT64)
    last = graph.constant("last_axis", [2], np.int64)
    index = graph.add("Squeeze", [whole, last], f"{name}_index")
    if item.embedding_size:
        table = graph.constant(f"{name}.weight", graph.parameter(f"embedding.{item.name}.weight"))
        return [graph.add("Gather", [table, index], f"{name}_embedded", axis=0)]
    depth = graph.constant(f"{name}.depth", item.num_categories, np.int64)
    values = graph.constant("off_on", [0, 1])
    return [graph.add("OneHot", [index, depth, values], f"{name}_one_hot", axis=-1)]


# --- layers ------------------------------------------------------------------------------------


def _recurrent(graph: _Graph, k: int, layer: LayerSpec, value: str) -> str:
    """Add one recurrent layer and its states."""
    for has_it, what in (
        (layer.projection_size, "a projection"),
        (layer.layer_norm, "a layer normalisation within the cell"),
    ):
        if has_it:
            graph.problems.append(f"layer {k} ({layer.describe()}) has {what}, which ONNX has not")
    if graph.problems:
        return value
    size, op = layer.hidden_size, layer.cell.removesuffix("_tanh").removesuffix("_relu").upper()

    def theirs(name: str) -> NDArray[Any]:
        return in_their_order(graph.parameter(f"{name}_l{k}"), "onnx", layer.cell)

    bias = np.concatenate([theirs("bias_ih"), theirs("bias_hh")])
    inputs = [
        value,
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
    graph.add_many(op, inputs, outputs, hidden_size=size, **_form(layer))
    axis = graph.constant("directions_axis", [1], np.int64)
    return graph.add("Squeeze", [outputs[0], axis], f"steps_l{k}")


def _form(layer: LayerSpec) -> dict[str, Any]:
    """Return the attributes of a recurrent operator that are not their defaults."""
    attributes: dict[str, Any] = {}
    if layer.cell == "rnn_relu":
        attributes["activations"] = ["Relu"]
    if layer.cell == "gru":
        attributes["linear_before_reset"] = int(layer.reset_after)
    if layer.gate_activation != "sigmoid":
        functions = (
            ["HardSigmoid", "Tanh", "Tanh"] if layer.cell == "lstm" else ["HardSigmoid", "Tanh"]
        )
        attributes |= {
            "activations": functions,
            "activation_alpha": [_SLOPES[layer.gate_activation]],
            "activation_beta": [0.5],
        }
    return attributes


_LAYERS: dict[type, Callable[[_Graph, int, Any, str], str]] = {LayerSpec: _recurrent}


def _head(graph: _Graph, value: str) -> str:
    """Add the head, and what makes the user's units of its outputs."""
    spec = graph.spec
    for item in spec.outputs:
        if item.difference_of is not None:
            graph.problems.append(
                f"output {item.name!r} is added to the level of {item.difference_of!r}"
            )
    if spec.head is None:
        return value
    weight = graph.constant("head.weight", graph.parameter("head.weight").T)
    bias = graph.constant("head.bias", graph.parameter("head.bias"))
    value = graph.add("MatMul", [value, weight], "head_products")
    value = graph.add("Add", [value, bias], "head_sums")
    activation = spec.head.activation
    if activation != "identity":
        attributes = {"axis": -1} if activation == "softmax" else {}
        value = graph.add(_ACTIVATIONS[activation], [value], f"head_{activation}", **attributes)
    scales, centers = [o.scale for o in spec.outputs], [o.center for o in spec.outputs]
    if any(scale != 1 for scale in scales):
        value = graph.add("Mul", [value, graph.constant("y.scale", scales)], "y_scaled")
    if any(centers):
        value = graph.add("Add", [value, graph.constant("y.center", centers)], "y_centered")
    return value


# --- the proof ---------------------------------------------------------------------------------


def _answers(
    data: bytes, model: Model, states: list[str], x: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Run the graph in onnxruntime: [B, T, O] as a sequence, and step by step."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    steps = x[..., 0].T if model.spec.is_token else x.swapaxes(0, 1)
    sizes = [size for layer in model.spec.chain for size in layer.state_sizes]
    zeros = {
        name: np.zeros((1, x.shape[0], size), np.float32)
        for name, size in zip(states, sizes, strict=True)
    }
    sequence = session.run(["y"], {"x": steps} | zeros)[0]
    single, state = [], zeros
    for t in range(len(steps)):
        y, *after = session.run(None, {"x": steps[t : t + 1]} | state)
        state = dict(zip(states, after, strict=True))
        single.append(y)
    return sequence.swapaxes(0, 1), np.concatenate(single).swapaxes(0, 1)
