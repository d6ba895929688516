"""ONNX functions of single elements, and what exporters write out of several."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from tests.importers.files.onnx import RNG, H, draw, graph_file, weights
from tests.importers.graphs.judge import STEPS, check_sequence

X = RNG.standard_normal((STEPS, 3)) * 2.0
NUMBERS = {
    "tiny": np.float32(1e-3),
    "low": np.float32(-0.4),
    "high": np.float32(0.7),
    "two": np.float32(2.0),
    "third": np.float32(0.3),
    "root": np.float32(-0.5),
    "cube": np.float32(3.0),
    "zero": np.float32(0.0),
    "far": np.float32(20.0),
    "slope": np.float32(0.2),
    "half": np.float32(0.5),
    "axis": np.array([-1]),
}


def between(nodes, tensors=(), size=6):
    """Put nodes from H to Z between a product and a product."""
    tensors = NUMBERS | {"K": draw(3, 6), "Q": draw(size, 2)} | dict(tensors)
    made = [H.make_node("MatMul", ["X", "K"], ["H"])]
    made += [H.make_node(op, names, [out], **options) for op, names, out, options in nodes]
    return [*made, H.make_node("MatMul", ["Z", "Q"], ["Y"])], tensors


WRITTEN = {
    "abs": [("Abs", ["H"], "Z", {})],
    "log of abs": [
        ("Abs", ["H"], "a", {}),
        ("Add", ["a", "tiny"], "b", {}),
        ("Log", ["b"], "Z", {}),
    ],
    "log sigmoid": [("Sigmoid", ["H"], "a", {}), ("Log", ["a"], "Z", {})],
    "mish": [
        ("Softplus", ["H"], "a", {}),
        ("Tanh", ["a"], "b", {}),
        ("Mul", ["H", "b"], "Z", {}),
    ],
    "celu": [("Celu", ["H"], "Z", {"alpha": 0.7})],
    "clip": [("Clip", ["H", "low", "high"], "Z", {})],
    "least": [("Max", ["H", "low"], "Z", {})],
    "most": [("Min", ["high", "H"], "Z", {})],
    "larger": [("Tanh", ["H"], "a", {}), ("Max", ["a", "H"], "Z", {})],
    "lesser": [("Tanh", ["H"], "a", {}), ("Min", ["a", "H"], "Z", {})],
    "sum": [("Tanh", ["H"], "a", {}), ("Sum", ["a", "H", "a"], "Z", {})],
    "negative": [("Neg", ["H"], "Z", {})],
    "square": [("Pow", ["H", "two"], "Z", {})],
    "cube": [("Pow", ["H", "cube"], "Z", {})],
    "power": [("Abs", ["H"], "a", {}), ("Pow", ["a", "third"], "Z", {})],
    "root": [("Abs", ["H"], "a", {}), ("Add", ["a", "tiny"], "b", {}), ("Sqrt", ["b"], "Z", {})],
    "reciprocal root": [("Exp", ["H"], "a", {}), ("Pow", ["a", "root"], "Z", {})],
    "quotient": [("Exp", ["H"], "a", {}), ("Div", ["H", "a"], "Z", {})],
    "one over": [("Exp", ["H"], "a", {}), ("Div", ["two", "a"], "Z", {})],
    "softplus": [
        ("Softplus", ["H"], "a", {}),
        ("Greater", ["H", "far"], "b", {}),
        ("Where", ["b", "H", "a"], "Z", {}),
    ],
    "softplus of twice": [
        ("Mul", ["H", "two"], "a", {}),
        ("Softplus", ["a"], "b", {}),
        ("Div", ["b", "two"], "c", {}),
        ("Greater", ["a", "far"], "d", {}),
        ("Where", ["d", "H", "c"], "Z", {}),
    ],
    "leaky relu": [
        ("Greater", ["H", "zero"], "a", {}),
        ("Mul", ["H", "slope"], "b", {}),
        ("Where", ["a", "H", "b"], "Z", {}),
    ],
    "leaky relu from below": [
        ("Less", ["H", "zero"], "a", {}),
        ("Mul", ["H", "slope"], "b", {}),
        ("Where", ["a", "b", "H"], "Z", {}),
    ],
    "mean": [("ReduceMean", ["H"], "a", {"axes": [-1]}), ("Sub", ["H", "a"], "Z", {})],
    "mean as a gain": [("ReduceMean", ["H"], "a", {"axes": [-1]}), ("Mul", ["H", "a"], "Z", {})],
    "share": [
        ("Exp", ["H"], "a", {}),
        ("ReduceSum", ["a", "axis"], "b", {}),
        ("Div", ["a", "b"], "Z", {}),
    ],
    "unit norm": [
        ("ReduceL2", ["H"], "a", {"axes": [-1]}),
        ("Clip", ["a", "tiny"], "b", {}),
        ("Shape", ["H"], "s", {}),
        ("Expand", ["b", "s"], "c", {}),
        ("Div", ["H", "c"], "Z", {}),
    ],
    "rms norm": [
        ("Mul", ["H", "H"], "a", {}),
        ("ReduceMean", ["a"], "b", {"axes": [-1]}),
        ("Add", ["b", "tiny"], "c", {}),
        ("Sqrt", ["c"], "d", {}),
        ("Reciprocal", ["d"], "e", {}),
        ("Mul", ["H", "e"], "Z", {}),
    ],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_function_is_computed_where_it_stands(tmp_path, name):
    nodes, tensors = between(WRITTEN[name])
    check_sequence(tmp_path, nodes, tensors, X)


WRITTEN |= {
    "features in another order": [("Gather", ["H", "order"], "Z", {"axis": -1})],
    "one feature": [
        ("Gather", ["H", "third place"], "a", {"axis": 2}),
        ("Unsqueeze", ["a", "axis"], "b", {}),
        ("Mul", ["H", "b"], "Z", {}),
    ],
    "features backwards": [("Slice", ["H", "last", "end", "axis", "axis"], "Z", {})],
}
NUMBERS |= {
    "order": np.array([3, -6, 5, 1, 1, 2]),
    "third place": np.array(2),
    "last": np.array([-1]),
    "end": np.array([-100]),
}


REFUSED = {
    "choice": (
        [
            ("Greater", ["H", "zero"], "a", {}),
            ("Tanh", ["H"], "b", {}),
            ("Where", ["a", "H", "b"], "Z", {}),
        ],
        "chooses between two values",
    ),
    "softplus that ends early": (
        [
            ("Softplus", ["H"], "a", {}),
            ("Greater", ["H", "two"], "b", {}),
            ("Where", ["b", "H", "a"], "Z", {}),
        ],
        "chooses between two values",
    ),
    "mean over time": (
        [("ReduceMean", ["H"], "a", {"axes": [1]}), ("Sub", ["H", "a"], "Z", {})],
        "runs along time: it needs inputs to come",
    ),
    "sine": ([("Sin", ["H"], "Z", {})], "Sin.*not supported"),
    "whole power": ([("Abs", ["H"], "a", {}), ("Pow", ["a", "power"], "Z", {})], "exponent is 5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_computes_is_refused_by_name(tmp_path, name):
    nodes, reason = REFUSED[name]
    made, tensors = between(nodes, {"power": np.float32(5)})
    gru = weights("GRU", 2, 4)
    made[-1].output[0] = "P"
    made += [
        H.make_node("Transpose", ["P"], ["T"], perm=[1, 0, 2]),
        H.make_node("GRU", ["T", "W", "R", "B"], ["Y"], linear_before_reset=1, hidden_size=4),
    ]
    path = graph_file(tmp_path / "m.onnx", made, tensors | gru, {"X": [1, "t", 3]})
    with pytest.raises(ModelFileError, match=reason):
        import_file(path)


def test_weight_norm_that_was_exported_is_folded(tmp_path):
    nodes = [
        H.make_node("ReduceL2", ["v"], ["n"], axes=[1], keepdims=1),
        H.make_node("Div", ["v", "n"], ["u"]),
        H.make_node("Mul", ["u", "g"], ["W"]),
        H.make_node("Transpose", ["W"], ["Wt"], perm=[1, 0]),
        H.make_node("MatMul", ["X", "Wt"], ["Y"]),
    ]
    check_sequence(tmp_path, nodes, {"v": draw(4, 3), "g": draw(4, 1)}, X)


def test_functions_of_the_input_with_its_channels_first(tmp_path):
    """A log-mel front end: which axis has the features is only known at the convolution."""
    nodes = [
        H.make_node("Mul", ["X", "X"], ["a"]),
        H.make_node("Add", ["a", "tiny"], ["b"]),
        H.make_node("Log", ["b"], ["c"]),
        H.make_node("Mul", ["c", "half"], ["d"]),
        H.make_node("Conv", ["d", "K", "k"], ["Y"], pads=[0, 0]),
    ]
    tensors = NUMBERS | {"K": draw(4, 3, 1), "k": draw(4)}
    check_sequence(tmp_path, nodes, tensors, X, first=True)
