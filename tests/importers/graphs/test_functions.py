"""ONNX functions of single elements, and what exporters write out of several."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from tests.importers.files.onnx import RNG, H, draw, graph_file, weights
from tests.importers.graphs.judge import STEPS, check_sequence
from tests.importers.graphs.made import NUMBERS, WRITTEN, between

X = RNG.standard_normal((STEPS, 3)) * 2.0


@pytest.mark.parametrize("name", WRITTEN)
def test_a_function_is_computed_where_it_stands(tmp_path, name):
    nodes, tensors = between(WRITTEN[name])
    check_sequence(tmp_path, nodes, tensors, X)


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
