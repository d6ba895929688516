"""Write a model as an ONNX graph of standard operators, its states inputs and outputs.

Along the graph's edges goes ``[steps, streams, features]``. A layer's state ``h_l0`` comes back as
``next_h_l0``: fed again, the graph goes on where it stopped, after one step or after many.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.exporters.network import Exported, refuse
from streamrnn.exporters.onnx.graph import Graph
from streamrnn.exporters.onnx.layers import FUNCTIONS, add_layer
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec

__all__ = ["export_onnx"]

_OPSET, _IR_VERSION = 17, 8  # onnxruntime 1.12 and later
_MAX_BYTES = (1 << 31) - (1 << 20)  # of a protobuf message


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
    graph = Graph(model)
    if model.spec.mask_value is not None:
        graph.problems.append("it leaves masked steps out (mask_value)")
    values = {-1: _features(graph)}
    for k, layer in enumerate(model.spec.layers):
        values[k] = add_layer(graph, k, layer, values)
    value = _head(graph, values[len(model.spec.layers) - 1])
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


def _described(graph: Graph) -> list[tuple[str, str, str]]:
    return [
        (what, name, f"[{', '.join(map(str, shape))}]")
        for what, items in (("input ", graph.inputs), ("output", graph.outputs))
        for name, _, shape in items
    ]


# --- from the inputs to the features -----------------------------------------------------------


def _features(graph: Graph) -> str:
    """Add what makes features of the raw inputs ``x``."""
    from onnx import TensorProto

    items = graph.spec.inputs
    if graph.spec.is_token:
        graph.inputs.append(("x", TensorProto.INT64, ["steps", "streams"]))
        weight = graph.constant(
            "embedding.weight", graph.parameter(f"embedding.{items[0].name}.weight")
        )
        return graph.add("Gather", [weight, "x"], "features", axis=0)
    graph.inputs.append(("x", TensorProto.FLOAT, ["steps", "streams", graph.spec.num_inputs]))
    if graph.spec.input_shape[0] > 1:
        graph.problems.append(f"input {items[0].name!r} is a frame of several places")
    if all(item.kind == "numeric" and _is_stateless(graph, item) for item in items) and not any(
        item.missing != "error" for item in items
    ):
        elements = graph.spec.input_elements
        centers, scales = [item.center for item in elements], [item.scale for item in elements]
        return _scaled(graph, "x", "x", centers, scales)
    columns = ["x"]
    if len(items) > 1:
        sizes = graph.constant("column_sizes", [item.size for item in items], np.int64)
        columns = [f"x{i}" for i in range(len(items))]
        graph.add_many("Split", ["x", sizes], columns, axis=2)
    parts = [
        part
        for i, (item, column) in enumerate(zip(items, columns, strict=True))
        for part in _column(graph, i, item, column)
    ]
    return graph.add("Concat", parts, "features", axis=2)


def _is_stateless(graph: Graph, item: InputSpec) -> bool:
    if item.has_memory:
        what = "the change since its last value" if item.difference else "the last value seen"
        graph.problems.append(f"input {item.name!r} needs {what}, which no operator keeps")
    return not item.has_memory


def _scaled(graph: Graph, what: str, value: str, center: Any, scale: Any) -> str:
    """Add ``(value - center) / scale``, as far as it does something."""
    if np.any(np.asarray(center) != 0):
        shift = graph.constant(f"{what}.center", center)
        value = graph.add("Sub", [value, shift], f"{what}_centered")
    if np.any(np.asarray(scale) != 1):
        divisor = graph.constant(f"{what}.scale", scale)
        value = graph.add("Div", [value, divisor], f"{what}_scaled")
    return value


def _column(graph: Graph, i: int, item: InputSpec, column: str) -> list[str]:
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


def _head(graph: Graph, value: str) -> str:
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
    if spec.head.activation != "identity":
        op, attributes = FUNCTIONS[spec.head.activation]
        value = graph.add(op, [value], f"head_{spec.head.activation}", **attributes)
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
    recurrent = [layer for layer in model.spec.layers if isinstance(layer, LayerSpec)]
    sizes = [size for layer in recurrent for size in layer.state_sizes]
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
