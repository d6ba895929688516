"""Write a model as an ONNX graph of standard operators, its states inputs and outputs.

A part of the state ``h_l0`` comes back as ``next_h_l0``: fed again, the graph goes on where it
stopped. Where all that a model keeps goes along sequences too, the graph takes any number of steps;
else it is one step.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.exporters.network import Answer, Exported, refuse_origins
from streamrnn.exporters.onnx.cells import add_recurrent, is_operator
from streamrnn.exporters.onnx.graph import Graph
from streamrnn.exporters.onnx.inputs import add_features, add_head
from streamrnn.exporters.onnx.layers import FRAME_LAYERS
from streamrnn.exporters.walk import before_name, walk
from streamrnn.model.graph import Read
from streamrnn.model.layers.frame import ConvSpec, PadSpec, PoolSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec, ModelSpec

__all__ = ["export_onnx"]

_OPSET, _IR_VERSION = 17, 8  # onnxruntime 1.12 and later
_MAX_BYTES = (1 << 31) - (1 << 20)  # of a protobuf message
_LAYERS = {**FRAME_LAYERS, LayerSpec: add_recurrent}


def export_onnx(model: Model) -> Exported:
    """Write a model as an ONNX graph.

    Raises `ModelError` if the package ``onnx`` is not installed, or the file would be too large.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ModelError("ONNX needs the package onnx: pip install 'streamrnn[onnx]'") from error
    spec = model.spec
    refuse_origins("ONNX", spec)
    graph = Graph(model, is_sequence=_takes_sequences(spec), layers=_LAYERS)
    features, levels = add_features(graph)
    values = walk(spec, graph, features)
    last = len(spec.layers) - 1
    value, values[Read(last + 1)] = add_head(graph, values[Read(last)], levels)
    for k in spec.graph.kept:
        graph.give(before_name(spec, k), values[Read(k)])
    if sum(array.nbytes for array in graph.constants.values()) > _MAX_BYTES:
        raise ModelError("the model is larger than an ONNX file can be (2 GB)")
    graph.add("Identity", [value], "y")
    names = list(graph.parts)
    graph.inputs[1:] = sorted(graph.inputs[1:], key=lambda item: names.index(item[0]))
    graph.outputs.sort(key=lambda item: names.index(item[0].removeprefix("next_")))
    graph.outputs.insert(0, ("y", TensorProto.FLOAT, _output_shape(graph)))
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
    helper.set_model_props(proto, _facts(graph))
    onnx.checker.check_model(proto)
    data = proto.SerializeToString()
    return Exported(data, "onnxruntime", lambda x: _answers(data, graph, x), _lines(graph))


def _takes_sequences(spec: ModelSpec) -> bool:
    """Whether operators of ONNX carry all states along a sequence of any length."""
    shapes = [spec.input_shape, *spec.graph.shapes]
    over_places = (ConvSpec, PadSpec, PoolSpec)
    return (
        spec.mask_value is None
        and not spec.graph.kept
        and not any(item.has_memory for item in spec.inputs)
        and all(length == 1 for length, _ in shapes)
        and not any(isinstance(layer, over_places) for layer in spec.layers)
        and all(is_operator(layer) for layer in spec.layers if isinstance(layer, LayerSpec))
    )


def _output_shape(graph: Graph) -> list[int | str]:
    lead: list[int | str] = ["steps", "streams"] if graph.is_sequence else ["streams"]
    length, channels = graph.spec.graph.shapes[-1]
    if graph.spec.head is None and length > 1:
        return [*lead, channels, length]
    return [*lead, graph.spec.output_size]


def _facts(graph: Graph) -> dict[str, str]:
    """Return what the graph itself does not say."""
    spec = graph.spec
    facts = {
        "fingerprint": graph.model.fingerprint,
        "inputs": json.dumps([[item.name, item.unit] for item in spec.inputs]),
        "outputs": json.dumps([[item.name, item.unit] for item in spec.outputs]),
    }
    named = {item.name: item.categories for item in spec.inputs if item.categories}
    if named:
        facts["categories"] = json.dumps(named)
    if not graph.is_sequence:
        facts["steps"] = "1"
    first = {name: part.first.tolist() for name, part in graph.parts.items() if part.first.any()}
    return facts | ({"first_states": json.dumps(first)} if first else {})


def _lines(graph: Graph) -> list[str]:
    lines = [
        f"  {what} {name:<10} [{', '.join(map(str, shape))}]"
        for what, items in (("input ", graph.inputs), ("output", graph.outputs))
        for name, _, shape in items
    ]
    first = [name for name, part in graph.parts.items() if part.first.any()]
    if first:
        lines.append(
            f"note: {', '.join(first)} begin with other numbers than zeros: those in the metadata "
            "entry first_states"
        )
    return lines


# --- the proof ---------------------------------------------------------------------------------


def _answers(data: bytes, graph: Graph, x: NDArray[Any]) -> list[Answer]:
    """Run the graph in onnxruntime: [B, T, O] as a sequence, and step by step."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    steps = _as_given(graph, x)
    state = {}
    for name, part in graph.parts.items():
        streams = np.broadcast_to(part.first, (len(x), *part.first.shape))
        is_recurrent = graph.is_sequence and part.first.ndim == 1
        state[name] = np.ascontiguousarray(streams[None] if is_recurrent else streams)
    answers = []
    if graph.is_sequence:
        answers.append(("a sequence", session.run(["y"], {"x": steps} | state)[0]))
    single: list[NDArray[Any]] = []
    for t in range(len(steps)):
        y, *after = session.run(
            None, {"x": steps[t : t + 1] if graph.is_sequence else steps[t]} | state
        )
        state = dict(zip(state, after, strict=True))
        single.append(y if graph.is_sequence else y[None])
    answers.append(("step by step", np.concatenate(single)))
    return [(how, _as_ours(y)) for how, y in answers]


def _as_given(graph: Graph, x: NDArray[Any]) -> NDArray[Any]:
    """Lay inputs [B, T, I] out as the graph takes them, steps first."""
    steps = x.swapaxes(0, 1)
    length, channels = graph.spec.input_shape
    if graph.spec.is_token:
        return steps[..., 0]
    if length == 1:
        return steps
    return steps.reshape(*steps.shape[:2], length, channels).swapaxes(2, 3)


def _as_ours(y: NDArray[Any]) -> NDArray[Any]:
    """Bring outputs [T, B, ...] to [B, T, O]."""
    y = y.swapaxes(0, 1)
    return y if y.ndim == 3 else y.swapaxes(2, 3).reshape(*y.shape[:2], -1)
