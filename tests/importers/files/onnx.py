"""ONNX files, made node by node."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.rnn import rnn_step

onnx = pytest.importorskip("onnx")

H = onnx.helper
FLOAT = onnx.TensorProto.FLOAT
GATES = {"RNN": "h", "GRU": "zrn", "LSTM": "iofg"}
RNG = np.random.default_rng(3)


def draw(*shape):
    return (RNG.standard_normal(shape) * 0.6).astype(np.float32)


def weights(op, inputs=3, hidden=4):
    rows = len(GATES[op]) * hidden
    return {"W": draw(1, rows, inputs), "R": draw(1, rows, hidden), "B": draw(1, 2 * rows)}


def graph_file(path, nodes, tensors, inputs=None, outputs=("Y",), opset=17, kinds=FLOAT):
    """Write a model; inputs are names with shapes, outputs may be."""
    shapes = outputs if isinstance(outputs, dict) else dict.fromkeys(outputs)
    inputs = inputs or {"X": [9, 1, 3]}
    model = H.make_model(
        H.make_graph(
            nodes,
            "g",
            [H.make_tensor_value_info(name, kinds, shape) for name, shape in inputs.items()],
            [H.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()],
            [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
        ),
        opset_imports=[H.make_opsetid("", opset)],
    )
    path.write_bytes(model.SerializeToString())
    return path


def state_graph(swapped=False):
    """Make an LSTM whose h and c are one input and one output, packed [1, 2, 4]."""
    tensors = weights("LSTM") | {"one": np.array([1]), "axis": np.array([0])}
    order = ["c1", "h1"] if swapped else ["h1", "c1"]
    nodes = [
        H.make_node("Split", ["S"], ["h", "c"], axis=1),
        H.make_node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "h1", "c1"]),
        H.make_node("Concat", order, ["S1"], axis=1),
    ]
    return nodes, tensors, {"X": [9, 1, 3], "S": [1, 2, 4]}


OURS = {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"}
X = RNG.standard_normal((1, 9, 3)).astype(np.float32)  # [B, T, I]


def ours(op, rows):
    """Bring rows into the order of the reference's steps, block by block."""
    blocks = dict(zip(GATES[op], np.split(rows, len(GATES[op])), strict=True))
    return np.concatenate([blocks[gate] for gate in OURS[op]]).astype(np.float64)


def run(op, tensors, x, *, step=None, first=None, **options):
    """Run one layer over x [T, I] in float64, from zeros or from ``first``, h and c [H]."""
    w_b, r_b = np.split(tensors.get("B", np.zeros((1, 2 * tensors["R"].shape[1])))[0], 2)
    arrays = [ours(op, a) for a in (tensors["W"][0], tensors["R"][0], w_b, r_b)]
    h = c = np.zeros((1, arrays[1].shape[1]))
    if first:
        h, c = (state[None] for state in first)
    steps = []
    for row in x.astype(np.float64):
        if op == "LSTM":
            h, c = lstm_step(row[None], h, c, *arrays, **options)
        elif op == "GRU":
            h = gru_step(row[None], h, *arrays, **options)
        else:
            w, r, b, rb = arrays
            h = rnn_step(row[None], h, w, r, b, rb, step or "tanh")
        steps.append(h[0])
    return np.array(steps)
