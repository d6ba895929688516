"""ONNX graphs of convolutions over time, in the ways in which exporters make them causal."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.model.layers.frame import ConvSpec
from streamrnn.model.layers.memory import TimeConvSpec
from tests.importers.files.onnx import RNG, H, draw, graph_file, weights
from tests.importers.graphs.judge import STEPS, check_sequence
from tests.importers.graphs.made import END, chomped, cut, plane

X = RNG.standard_normal((STEPS, 3))


@pytest.mark.parametrize("between", [(), (("Relu", ["A"]),)], ids=["alone", "relu"])
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 2), (5, 3)])
def test_a_convolution_that_pads_both_sides_and_is_cut_is_causal(
    tmp_path, kernel, dilation, between
):
    nodes, tensors = chomped(kernel, dilation, between)
    model = check_sequence(tmp_path, nodes, tensors, X, first=True)
    assert isinstance(model.spec.layers[0], TimeConvSpec)


def test_a_cut_of_other_steps_than_those_padded_is_refused(tmp_path):
    nodes, tensors = chomped(3, 2)
    tensors["Y.end"] = np.array([-3])
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, {"X": [1, 3, "t"]})
    with pytest.raises(ModelFileError, match="takes steps 0 to"):
        import_file(path)


def test_a_residual_beside_what_is_not_cut_yet_is_refused(tmp_path):
    nodes, tensors = chomped(3, 1)
    tensors["K"] = draw(3, 3, 3)
    tensors["b"] = draw(3)
    nodes[1], numbers = cut("A", "Z", 2, END)  # the later steps: each one early
    nodes.append(H.make_node("Add", ["Z", "X"], ["Y"]))
    path = graph_file(tmp_path / "m.onnx", nodes, tensors | numbers, {"X": [1, 3, "t"]})
    with pytest.raises(ModelFileError, match="takes steps 2 to"):
        import_file(path)


@pytest.mark.parametrize("is_scalar", [True, False])
def test_the_last_step_of_a_convolutional_network_is_one(tmp_path, is_scalar):
    nodes, tensors = chomped(3, 2)
    nodes[-1].output[0] = "C"
    nodes += [
        H.make_node("Gather", ["C", "last"], ["D"], axis=2),
        H.make_node("Reshape", ["D", "flat"], ["E"]),
        H.make_node("Gemm", ["E", "W", "c"], ["Y"]),
    ]
    tensors |= {"last": np.array(-1 if is_scalar else [-1]), "flat": np.array([1, 4])}
    tensors |= {"W": draw(4, 2), "c": draw(2)}
    check_sequence(tmp_path, nodes, tensors, X, first=True)


def test_a_sequence_of_a_fixed_length_is_still_time(tmp_path):
    nodes, tensors = chomped(3, 2)
    model = check_sequence(tmp_path, nodes, tensors, X, first=True, fixed=True)
    assert model.spec.num_inputs == 3
    notes = import_file(tmp_path / "m.onnx").notes
    assert any(f"the axis of {STEPS} steps is taken for time" in note for note in notes)


@pytest.mark.parametrize("steps", [1, 2])
def test_zeros_in_place_of_the_last_steps_are_a_delay(tmp_path, steps):
    node, numbers = cut("X", "C", 0, -steps, axis=1)
    nodes = [
        node,
        H.make_node("Pad", ["C", "pads"], ["Z"]),
        H.make_node("Mul", ["Z", "X"], ["A"]),
        H.make_node("MatMul", ["A", "W"], ["Y"]),
    ]
    tensors = {"pads": np.array([0, steps, 0, 0, 0, 0]), "W": draw(3, 2)} | numbers
    check_sequence(tmp_path, nodes, tensors, X)


DELAYS = {
    "zeros, then a cut": [
        H.make_node("Pad", ["X", "pads"], ["P"]),
        H.make_node("Slice", ["P", "zero", "minus", "one"], ["D"]),
    ],
    "a cut, then zeros": [
        H.make_node("Slice", ["X", "zero", "minus", "one"], ["C"]),
        H.make_node("Concat", ["zeros", "C"], ["D"], axis=1),
    ],
}


@pytest.mark.parametrize("how", DELAYS)
def test_a_difference_from_the_step_before_is_one(tmp_path, how):
    tensors = {"pads": np.array([0, 1, 0, 0, 0, 0]), "zeros": np.zeros((1, 1, 3), np.float32)}
    tensors |= {"zero": np.array([0]), "minus": np.array([-1]), "one": np.array([1])}
    nodes = [
        *DELAYS[how],
        H.make_node("Sub", ["X", "D"], ["E"]),
        H.make_node("MatMul", ["E", "W"], ["Y"]),
    ]
    check_sequence(tmp_path, nodes, tensors | {"W": draw(3, 2)}, X)


FEATURES = RNG.standard_normal((STEPS, 10))


@pytest.mark.parametrize(
    ("weight", "options"),
    [
        (draw(4, 2, 1, 3), {"strides": [1, 2]}),
        (draw(4, 2, 2, 3), {"strides": [1, 2], "before": 1}),
        (draw(4, 2, 3, 1), {"dilations": [2, 1]}),
        (draw(4, 1, 2, 3), {"groups": 2, "dilations": [1, 2]}),
    ],
    ids=["along places alone", "along both", "along time alone", "grouped"],
)
def test_a_convolution_along_steps_and_places_keeps_the_steps_before(tmp_path, weight, options):
    nodes, tensors = plane(weight, draw(len(weight)), **options)
    model = check_sequence(tmp_path, nodes, tensors, FEATURES)
    assert model.spec.inputs[0].shape == (10, 1)
    assert any(isinstance(layer, ConvSpec) for layer in model.spec.layers)


def test_a_mask_of_features_multiplies_the_frame_it_was_made_of(tmp_path):
    nodes, tensors = plane(draw(4, 2, 2, 3), draw(4), before=1)
    nodes[-1].output[0] = "Z"
    nodes += [
        H.make_node("MatMul", ["Z", "Q"], ["M_"]),
        H.make_node("Sigmoid", ["M_"], ["M"]),
        H.make_node("Mul", ["X", "M"], ["Y"]),
    ]
    check_sequence(tmp_path, nodes, tensors | {"Q": draw(4, 10)}, FEATURES)


def test_a_convolution_along_two_axes_that_needs_steps_to_come_is_refused(tmp_path):
    nodes, tensors = plane(draw(4, 2, 3, 3), draw(4), before=1)
    tensors["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, {"X": [1, "t", 10]})
    with pytest.raises(ModelFileError, match=r"padding \[1, 1\] and stride 1; causal"):
        import_file(path)


def test_a_batch_norm_of_the_input_works_on_its_channels(tmp_path):
    tensors = {key: draw(3) for key in ("scale", "shift", "mean")}
    tensors |= {"variance": np.array([0.5, 2.0, 1.0], np.float32)} | weights("GRU", 3, 4)
    tensors |= {"one": np.array([1])}
    nodes = [
        H.make_node("BatchNormalization", ["X", "scale", "shift", "mean", "variance"], ["N"]),
        H.make_node("Transpose", ["N"], ["T"], perm=[2, 0, 1]),
        H.make_node("GRU", ["T", "W", "R", "B"], ["G"], linear_before_reset=1, hidden_size=4),
        H.make_node("Squeeze", ["G", "one"], ["S"]),
        H.make_node("Transpose", ["S"], ["Y"], perm=[1, 0, 2]),
    ]
    check_sequence(tmp_path, nodes, tensors, X, first=True)
