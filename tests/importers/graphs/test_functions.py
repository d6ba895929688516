"""ONNX functions of single elements, and what exporters write out of several."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.onnx import RNG, H, draw, graph_file, weights
from tests.importers.graphs.judge import STEPS, check_sequence, evaluator
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
    "mean that lies along another axis": (
        [("ReduceMean", ["H"], "a", {"axes": [-1], "keepdims": 0}), ("Sub", ["H", "a"], "Z", {})],
        "joins results of the network of shapes",
    ),
    "dropout in training": (
        [("Dropout", ["H", "half", "yes"], "Z", {})],
        "in training mode",
    ),
    "whole power": ([("Abs", ["H"], "a", {}), ("Pow", ["a", "power"], "Z", {})], "exponent is 5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_computes_is_refused_by_name(tmp_path, name):
    nodes, reason = REFUSED[name]
    made, tensors = between(nodes, {"power": np.float32(5), "yes": np.array(True)})
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


C, STEP = 3, [1, 2, 6]
FRAME = {"K": draw(C, 2, 3), "g": np.ones(C, np.float32), "z": np.zeros(C, np.float32)}
CONV = H.make_node("Conv", ["X", "K"], ["c"], pads=[2, 0])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [[1, 2, "t"], STEP])
def test_a_softmax_of_old_over_places_or_time_too_is_refused(tmp_path, op, shape):
    nodes = [CONV, H.make_node(op, ["c"], ["Y"])]
    path = graph_file(tmp_path / "m.onnx", nodes, FRAME, {"X": shape}, opset=11)
    with pytest.raises(ModelFileError, match="softmax over the features and all axes after them"):
        import_file(path)


@pytest.mark.parametrize("channels", [1, C])
def test_a_softmax_over_a_flattened_frame_is_refused(tmp_path, channels):
    nodes = [
        H.make_node("Conv", ["X", "K"], ["c"], pads=[1, 1]),
        H.make_node("Flatten", ["c"], ["f"]),
        H.make_node("Softmax", ["f"], ["s"], axis=-1),
        H.make_node("MatMul", ["s", "Q"], ["Y"]),
    ]
    tensors = {"K": draw(channels, 2, 3), "Q": draw(6 * channels, 4)}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, {"X": STEP})
    with pytest.raises(ModelFileError, match="softmax over the places of a frame"):
        import_file(path)


OPTIONS = {
    "pads with ones": (
        [
            H.make_node("Pad", ["X"], ["p"], pads=[0, 0, 2, 0, 0, 0], value=1.0),
            H.make_node("Conv", ["p", "K"], ["Y"]),
        ],
        9,
        "pads with another number than zero",
    ),
    "batch norm in training": (
        [CONV, H.make_node("BatchNormalization", [*"cgzzg"], ["Y"], training_mode=1)],
        15,
        "in training mode",
    ),
    "batch norm that gives a mean": (
        [CONV, H.make_node("BatchNormalization", [*"cgzzg"], ["Y", "mean", "variance"])],
        9,
        "in training mode",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_no_layer_has_is_refused(tmp_path, name):
    nodes, opset, reason = OPTIONS[name]
    path = graph_file(tmp_path / "m.onnx", nodes, FRAME, {"X": [1, 2, "t"]}, opset=opset)
    with pytest.raises(ModelFileError, match=reason):
        import_file(path)


def test_a_mean_that_was_turned_is_no_norm(tmp_path):
    """Every step less the mean of the step that its feature has as its number."""
    nodes = [
        H.make_node("ReduceMean", ["X"], ["a"], axes=[2], keepdims=1),
        H.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        H.make_node("Sub", ["X", "b"], ["c"]),
        H.make_node("MatMul", ["c", "Q"], ["Y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, {"Q": draw(4, 2)}, {"X": [1, 4, 4]})
    with pytest.raises(ModelFileError, match="joins results of the network"):
        import_file(path)


FLAT = {
    "a factor for each": [H.make_node("Mul", ["f", "each"], ["s"])],
    "a shift for each": [H.make_node("Sub", ["f", "each"], ["s"])],
    "a factor": [H.make_node("Mul", ["f", "tenth"], ["s"])],
}


@pytest.mark.parametrize("channels", [1, C])
@pytest.mark.parametrize("name", FLAT)
def test_numbers_for_all_of_a_flattened_frame_go_to_their_places(tmp_path, name, channels):
    nodes = [
        H.make_node("Conv", ["X", "K"], ["c"], pads=[1, 1]),
        H.make_node("Flatten", ["c"], ["f"]),
        *FLAT[name],
        H.make_node("MatMul", ["s", "Q"], ["Y"]),
    ]
    tensors = {"K": draw(channels, 2, 3), "Q": draw(6 * channels, 4), "each": draw(6 * channels)}
    path = graph_file(tmp_path / "m.onnx", nodes, NUMBERS | tensors, {"X": STEP})
    x = RNG.standard_normal((1, 2, 6)).astype(np.float32)
    wanted = evaluator(path).run(None, {"X": x})[0]
    found = ReferenceModel(import_file(path).model).steps(x[0].T.reshape(1, -1))
    assert np.allclose(found, wanted, atol=1e-5)


def test_parts_of_a_flattened_frame_of_one_channel_are_not_joined_as_channels(tmp_path):
    nodes = [
        H.make_node("Conv", ["X", "K"], ["c"], pads=[1, 1]),
        H.make_node("Flatten", ["c"], ["f"]),
        H.make_node("Split", ["f"], ["a", "b"], axis=1),
        H.make_node("Concat", ["b", "a"], ["s"], axis=1),
        H.make_node("MatMul", ["s", "Q"], ["Y"]),
    ]
    path = graph_file(
        tmp_path / "m.onnx", nodes, {"K": draw(1, 2, 3), "Q": draw(6, 4)}, {"X": STEP}
    )
    with pytest.raises(ModelFileError, match="joins results along another axis"):
        import_file(path)


@pytest.mark.parametrize("to", [6, 7, 9])
@pytest.mark.parametrize("of", ["X", "h"])
def test_whole_numbers_of_what_is_computed_are_refused(tmp_path, of, to):
    nodes = [
        H.make_node("MatMul", ["X", "Q"], ["h"]),
        H.make_node("Cast", [of], ["i"], to=to),
        H.make_node("Cast", ["i"], ["j"], to=1),
        H.make_node("MatMul", ["j", "Q"], ["Y"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, {"Q": draw(3, 3)}, {"X": [1, "t", 3]})
    with pytest.raises(ModelFileError, match="makes whole numbers of what the network computes"):
        import_file(path)
