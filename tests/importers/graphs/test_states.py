"""ONNX graphs of one step whose states are no recurrent layer's: kept inputs, and any value."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.model.layers.memory import TimeConvSpec
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.onnx import RNG, H, draw, graph_file
from tests.importers.graphs.judge import STEPS, check_sequence, check_steps
from tests.importers.graphs.made import NEW, ONE, conv_cache, gru_cell

X = RNG.standard_normal((STEPS, 3))


@pytest.mark.parametrize("how", NEW)
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (2, 3)])
def test_the_inputs_that_a_convolution_keeps_are_its_state(tmp_path, how, kernel, dilation):
    nodes, tensors, states = conv_cache(NEW[how], kernel, dilation)
    tensors["sizes"] = np.array([1, (kernel - 1) * dilation])
    model = check_steps(tmp_path, nodes, tensors, X, states)
    assert any(isinstance(layer, TimeConvSpec) for layer in model.spec.layers)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ([H.make_node("Slice", ["Z", "n0", "last", "n2"], ["S_out"])], "exchanged|gives back"),
        ([H.make_node("Identity", ["S"], ["S_out"])], "exchanged|gives back|same ones|joins"),
    ],
    ids=["the first ones", "nothing new"],
)
def test_a_state_that_is_not_the_last_inputs_is_refused(tmp_path, new, reason):
    nodes, tensors, states = conv_cache(new)
    inputs = {"X": [1, 3], "S": list(states["S"][1])}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, ("Y", "S_out"))
    with pytest.raises(ModelFileError, match=reason):
        import_file(path)


def test_a_convolution_that_takes_fewer_steps_than_are_kept_is_refused(tmp_path):
    nodes, tensors, _ = conv_cache(NEW["a slice of all"])
    tensors["K"] = draw(4, 3, 2)
    nodes[4] = H.make_node("Flatten", ["B"], ["Y"])
    inputs = {"X": [1, 3], "S": [1, 3, 2]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, ("Y", "S_out"))
    with pytest.raises(ModelFileError, match=r"causal|pads time"):
        import_file(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_places_of_the_frame_before_are_kept_in_front_of_a_frame(tmp_path, channels):
    nodes = [
        H.make_node("Concat", ["S", "X"], ["Z"], axis=2),
        H.make_node("Conv", ["Z", "K", "b"], ["A"], strides=[2]),
        H.make_node("Tanh", ["A"], ["B"]),
        H.make_node("GlobalAveragePool", ["B"], ["C"]),
        H.make_node("Flatten", ["C"], ["Y"]),
        H.make_node("Slice", ["Z", "n4", "end", "n2"], ["S_out"]),
    ]
    tensors = ONE | {"K": draw(4, channels, 3), "b": draw(4), "n4": np.array([8])}
    x = RNG.standard_normal((STEPS, channels * 8))
    states, shape = {"S": ("S_out", (1, channels, 4))}, [1, channels, 8]
    inputs = {"X": shape, "S": list(states["S"][1])}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, ("Y", "S_out"))
    assert import_file(path).model.spec.inputs[0].shape == (8, channels)
    if channels == 1:
        check_steps(tmp_path, nodes, tensors, x, states, shape=shape)


def test_one_place_of_several_channels_is_a_step(tmp_path):
    nodes, tensors, states = conv_cache(NEW["a slice of all"])
    nodes[0] = H.make_node("Identity", ["X"], ["U"])
    check_steps(tmp_path, nodes, tensors, X, states, shape=[1, 3, 1])


def test_a_row_of_the_last_steps_features_is_read_by_a_product(tmp_path):
    nodes = [
        H.make_node("Concat", ["S", "X"], ["Z"], axis=1),
        H.make_node("Gemm", ["Z", "W", "c"], ["A"]),
        H.make_node("Tanh", ["A"], ["Y"]),
        H.make_node("Slice", ["Z", "n3", "end", "n1"], ["S_out"]),
    ]
    tensors = ONE | {"W": draw(9, 4), "c": draw(4)}
    check_steps(tmp_path, nodes, tensors, X, {"S": ("S_out", (1, 6))})


def smoothed(tmp_path, nodes, tensors, size=3, **options):
    return check_steps(tmp_path, nodes, tensors, X, {"S": ("S_out", (1, size))}, **options)


def test_a_value_that_is_computed_with_at_the_next_step_is_kept(tmp_path):
    """An exponential average, whose size only the other operand tells."""
    nodes = [
        H.make_node("Mul", ["S", "a"], ["A"]),
        H.make_node("Mul", ["X", "b"], ["B"]),
        H.make_node("Add", ["A", "B"], ["S_out"]),
        H.make_node("Tanh", ["S_out"], ["Y"]),
    ]
    smoothed(tmp_path, nodes, {"a": np.float32(0.9), "b": np.float32(0.1)})


def test_the_input_itself_of_the_step_before_is_kept(tmp_path):
    nodes = [
        H.make_node("Sub", ["X", "S"], ["A"]),
        H.make_node("MatMul", ["A", "W"], ["Y"]),
        H.make_node("Identity", ["X"], ["S_out"]),
    ]
    smoothed(tmp_path, nodes, {"W": draw(3, 2)})


def test_a_cell_written_by_hand_with_a_norm_within(tmp_path):
    nodes = [
        H.make_node("Gemm", ["X", "W"], ["A"]),
        H.make_node("Gemm", ["S", "R"], ["B"]),
        H.make_node("Add", ["A", "B"], ["C"]),
        H.make_node("Split", ["C"], ["i", "g"], axis=1),
        H.make_node("Sigmoid", ["i"], ["z"]),
        H.make_node("Tanh", ["g"], ["h"]),
        H.make_node("Sub", ["h", "S"], ["d"]),
        H.make_node("Mul", ["z", "d"], ["e"]),
        H.make_node("Add", ["S", "e"], ["f"]),
        H.make_node("LayerNormalization", ["f", "gain", "shift"], ["S_out"], axis=-1),
        H.make_node("MatMul", ["S_out", "Q"], ["Y"]),
    ]
    tensors = {"W": draw(3, 8), "R": draw(4, 8), "gain": draw(4), "shift": draw(4)}
    smoothed(tmp_path, nodes, tensors | {"Q": draw(4, 2)}, size=4)


def test_a_cell_whose_state_comes_back_as_it_is_stays_a_cell(tmp_path):
    nodes, tensors = gru_cell(
        [H.make_node("Identity", ["H"], ["S_out"]), H.make_node("MatMul", ["S_out", "Q"], ["Y"])]
    )
    model = smoothed(tmp_path, nodes, tensors, size=4)
    assert [layer.op for layer in model.spec.layers] == [""]


@pytest.mark.parametrize("function", ["Tanh", "Relu"])
def test_a_cell_with_a_bias_for_each_of_its_products(tmp_path, function):
    nodes = [
        H.make_node("MatMul", ["X", "W"], ["A"]),
        H.make_node("MatMul", ["S", "R"], ["B"]),
        H.make_node("Add", ["A", "B"], ["C"]),
        H.make_node("Add", ["C", "b"], ["D"]),
        H.make_node("Add", ["D", "c"], ["E"]),
        H.make_node(function, ["E"], ["S_out"]),
        H.make_node("MatMul", ["S_out", "Q"], ["Y"]),
    ]
    tensors = {"W": draw(3, 4), "R": draw(4, 4), "b": draw(4), "c": draw(4), "Q": draw(4, 2)}
    model = smoothed(tmp_path, nodes, tensors, size=4)
    assert len(model.spec.layers) == 1


def test_two_products_of_one_value_with_a_bias_each_are_no_cell(tmp_path):
    nodes = [
        H.make_node("MatMul", ["X", "W"], ["A"]),
        H.make_node("MatMul", ["X", "V"], ["B"]),
        H.make_node("Add", ["A", "B"], ["C"]),
        H.make_node("Add", ["C", "b"], ["D"]),
        H.make_node("Add", ["D", "c"], ["E"]),
        H.make_node("Tanh", ["E"], ["Y"]),
    ]
    tensors = {"W": draw(3, 4), "V": draw(3, 4), "b": draw(4), "c": draw(4)}
    check_sequence(tmp_path, nodes, tensors, X)


@pytest.mark.parametrize("after", ["Tanh", "Relu"])
def test_a_cell_whose_state_comes_back_changed_is_computed_node_by_node(tmp_path, after):
    nodes, tensors = gru_cell(
        [H.make_node(after, ["H"], ["S_out"]), H.make_node("MatMul", ["H", "Q"], ["Y"])]
    )
    smoothed(tmp_path, nodes, tensors, size=4)


def test_an_answer_of_the_state_before_is_given_at_its_step(tmp_path):
    nodes, tensors = gru_cell(
        [H.make_node("Mul", ["H", "half"], ["S_out"]), H.make_node("MatMul", ["S", "Q"], ["Y"])]
    )
    smoothed(tmp_path, nodes, tensors, size=4)


def test_an_output_that_is_fed_back_to_the_input(tmp_path):
    nodes = [
        H.make_node("Concat", ["X", "S"], ["Z"], axis=1),
        H.make_node("Gemm", ["Z", "W", "c"], ["A"]),
        H.make_node("Tanh", ["A"], ["Y"]),
        H.make_node("Identity", ["Y"], ["S_out"]),
    ]
    smoothed(tmp_path, nodes, {"W": draw(5, 2), "c": draw(2)}, size=2)


def test_several_outputs_are_one_side_by_side(tmp_path):
    """As one graph with one output gives them."""
    nodes = [
        H.make_node("MatMul", ["X", "W"], ["A"]),
        H.make_node("Tanh", ["A"], ["P"]),
        H.make_node("Sigmoid", ["A"], ["Q"]),
    ]
    tensors = {"W": draw(3, 2)}
    whole = [*nodes, H.make_node("Concat", ["P", "Q"], ["Y"], axis=2)]
    wanted = check_sequence(tmp_path, whole, tensors, X)
    path = graph_file(tmp_path / "two.onnx", nodes, tensors, {"X": [1, "t", 3]}, ("P", "Q"))
    found = import_file(path)
    answers = ReferenceModel(found.model).steps(X)
    np.testing.assert_array_equal(answers, ReferenceModel(wanted).steps(X))
    assert "its outputs are one, side by side: P, Q" in found.notes


@pytest.mark.parametrize("outputs", [("P", "Q"), ("Q", "P")], ids=" ".join)
def test_a_product_without_and_with_a_bias_are_two_outputs(tmp_path, outputs):
    nodes = [H.make_node("MatMul", ["X", "W"], ["P"]), H.make_node("Add", ["P", "b"], ["Q"])]
    tensors = {"W": draw(3, 2), "b": draw(2)}
    path = graph_file(tmp_path / "two.onnx", nodes, tensors, {"X": [1, "t", 3]}, outputs)
    found = ReferenceModel(import_file(path).model).steps(X)
    product = X @ tensors["W"]
    wanted = {"P": product, "Q": product + tensors["b"]}
    np.testing.assert_allclose(found, np.hstack([wanted[name] for name in outputs]), atol=1e-5)
