"""ONNX graphs of one step: which output is which input at the next step, and what is data."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.network import GraphOptions
from streamrnn.importers.source import import_file
from streamrnn_server.cli import main
from tests.importers.files.onnx import RNG, H, draw, graph_file, weights
from tests.importers.graphs.judge import STEPS, check_steps
from tests.importers.graphs.made import gru_cell

X = RNG.standard_normal((STEPS, 4))


def two_averages(first, second):
    """Average twice; states are ``h1`` and ``h2``, the names of the new ones are given."""
    nodes = [
        H.make_node("MatMul", ["X", "W"], ["A"]),
        H.make_node("Mul", ["h1", "slow"], ["B"]),
        H.make_node("Mul", ["h2", "fast"], ["C"]),
        H.make_node("Add", ["A", "B"], [first]),
        H.make_node("Add", [first, "C"], [second]),
        H.make_node("MatMul", [second, "Q"], ["Y"]),
    ]
    tensors = {"slow": np.float32(0.9), "fast": np.float32(0.5), "W": draw(4, 4), "Q": draw(4, 2)}
    return nodes, tensors


@pytest.mark.parametrize(
    "outputs",
    [("Y", "h1_out", "h2_out"), ("Y", "h2_out", "h1_out"), ("h2_out", "Y", "h1_out")],
    ids=" ".join,
)
def test_names_say_which_state_is_which_in_any_order(tmp_path, outputs):
    nodes, tensors = two_averages("h1_out", "h2_out")
    states = {"h1": ("h1_out", (1, 4)), "h2": ("h2_out", (1, 4))}
    check_steps(tmp_path, nodes, tensors, X, states, outputs=outputs)


def product(state, new, answer="Y"):
    """Add a product of the input and one of a state; the answer is made of the new state."""
    nodes = [
        H.make_node("MatMul", ["X", "W"], ["A"]),
        H.make_node("MatMul", [state, "U"], ["B"]),
        H.make_node("Add", ["A", "B"], ["C"]),
        H.make_node("Sigmoid", ["C"], [new]),
        H.make_node("MatMul", [new, "V"], [answer]),
    ]
    return nodes, {"W": draw(4, 4), "U": draw(4, 4), "V": draw(4, 4)}


@pytest.mark.parametrize(
    ("state", "new"),
    [
        ("h", "h_new"),
        ("h0", "hn"),
        ("c_0", "c_n"),
        ("state", "stateN"),
        ("prev_h12", "next_h12"),
        ("lstm.1_in", "lstm.1_out"),
        ("input_states", "output_states"),
        ("h_l0", "next_h_l0"),
    ],
)
def test_the_usual_names_of_a_new_state_say_that_it_is_one_though_it_comes_first(
    tmp_path, state, new
):
    nodes, tensors = product(state, new)
    check_steps(tmp_path, nodes, tensors, X, {state: (new, (1, 4))}, outputs=(new, "Y"))


def test_a_state_of_a_shape_that_one_output_has_alone_needs_no_name(tmp_path):
    nodes, tensors = product("S", "N")
    tensors |= {"W": draw(4, 5), "U": draw(5, 5), "V": draw(5, 3)}
    outputs = {"N": [1, 5], "Y": [1, 3]}
    check_steps(tmp_path, nodes, tensors, X, {"S": ("N", (1, 5))}, outputs=outputs)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 3)], ids=["alike", "the input may be a state too"])
def test_an_input_that_may_be_data_is_asked_about(tmp_path, sizes):
    nodes, tensors = product("cond", "P", "Q")
    tensors["V"] = draw(*sizes)
    outputs = {"P": [1, 4], "Q": [1, sizes[1]]}
    inputs = {"X": [1, 4], "cond": [1, 4]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    with pytest.raises(ModelFileError, match=r"X, cond.*P, Q.*--state INPUT=OUTPUT"):
        import_file(path)


@pytest.mark.parametrize("new", ["h_out", "s"])
def test_a_first_input_whose_name_comes_back_is_asked_about_beside_what_may_be_a_state(
    tmp_path, new
):
    nodes, tensors = product("h", new, "X_out")
    inputs, outputs = {"X": [1, 4], "h": [1, 4]}, {"X_out": [1, 4], new: [1, 4]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    with pytest.raises(ModelFileError, match=rf"X, h.*X_out, {new}.*--state INPUT=OUTPUT"):
        import_file(path)


def test_the_data_of_a_recurrent_layer_may_have_the_name_of_the_answer(tmp_path):
    nodes = [
        H.make_node("GRU", ["X", "W", "R", "B", "", "h"], ["G", "hn"], hidden_size=4),
        H.make_node("Squeeze", ["G", "one"], ["X_out"]),
    ]
    tensors = weights("GRU", 4, 4) | {"one": np.array([1])}
    states = {"h": ("hn", (1, 1, 4))}
    check_steps(tmp_path, nodes, tensors, X, states, shape=[1, 1, 4], output="X_out")


@pytest.mark.parametrize("new", ["P", "Q"])
def test_an_option_says_which_output_a_state_is(tmp_path, new):
    nodes, tensors = product("S", "P", "Q")
    options = GraphOptions(states={"S": new})
    answer = "Q" if new == "P" else "P"
    states = {"S": (new, (1, 4))}
    check_steps(tmp_path, nodes, tensors, X, states, output=answer, options=options)


def test_the_command_takes_the_option_and_runs_the_original_with_it(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    nodes, tensors = product("S", "P", "Q")
    inputs, outputs = {"X": [1, 4], "S": [1, 4]}, {"P": [1, 4], "Q": [1, 4]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    words = ["import", str(path), "-o", str(tmp_path / "m.safetensors")]
    assert main(words) == 1
    assert "--state INPUT=OUTPUT" in capsys.readouterr().err
    assert main([*words, "--state", "S=P"]) == 0
    printed = capsys.readouterr().out
    assert "'S' is 'P' of the step before, as --state says" in printed
    assert "proved with" in printed


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"S": "Z"}, "S=Z names no input and output; it has X, S and P, Q"),
        ({"T": "P"}, "T=P names no input"),
        ({"S": "Q"}, "differ in type or shape"),
        ({"S": "P", "X": "P"}, "no output is two states"),
    ],
)
def test_an_option_that_names_no_pair_is_an_error(tmp_path, told, reason):
    nodes, tensors = product("S", "P", "Q")
    tensors["V"] = draw(4, 3)
    inputs, outputs = {"X": [1, 4], "S": [1, 4]}, {"P": [1, 4], "Q": [1, 3]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    with pytest.raises(ModelError, match=reason):
        import_file(path, graph=GraphOptions(states=told))


def over_time(inputs, outputs):
    """A GRU over steps; ``spk`` is added to all it gives, and the second output is a product."""
    aux = list(outputs)[1]
    nodes = [
        H.make_node("GRU", ["X", "W", "R", "B"], ["G"], hidden_size=4),
        H.make_node("Squeeze", ["G", "one"], ["S"]),
        H.make_node("Add", ["S", "spk"], ["Y"]),
        H.make_node("MatMul", ["S", "V"], [aux]),
    ]
    return nodes, weights("GRU", 3, 4) | {"one": np.array([1]), "V": draw(4, 4)}


@pytest.mark.parametrize(
    ("aux", "size", "reason"),
    [
        ("aux", 4, "which of its inputs X, spk are states"),
        ("aux", 5, "'spk' would be 'Y' of the step before, by their shapes; but the graph takes"),
        ("spk_out", 4, "'spk' would be 'spk_out' of the step before, by their names; but the"),
    ],
)
def test_an_input_of_every_step_of_a_sequence_is_no_state(tmp_path, aux, size, reason):
    inputs = {"X": ["t", 1, 3], "spk": ["t", 1, 4]}
    outputs = {"Y": ["t", 1, 4], aux: ["t", 1, size]}
    nodes, tensors = over_time(inputs, outputs)
    tensors["V"] = draw(4, size)
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    with pytest.raises(ModelFileError, match=reason):
        import_file(path)


def test_a_state_of_an_open_number_of_features_is_refused(tmp_path):
    nodes = [
        H.make_node("MatMul", ["X", "W"], ["A"]),
        H.make_node("ReduceMean", ["S"], ["B"], axes=[-1]),
        H.make_node("Add", ["A", "B"], ["Y"]),
        H.make_node("Mul", ["S", "half"], ["S_out"]),
    ]
    tensors = {"W": draw(4, 2), "half": np.float32(0.5)}
    inputs = {"X": [1, 4], "S": [1, "n"]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, ("Y", "S_out"))
    with pytest.raises(ModelFileError, match=r"'S': .* sizes that the file leaves open \(n\)"):
        import_file(path)


def test_a_value_of_the_shape_of_a_first_state_is_an_answer_and_not_lost(tmp_path):
    nodes = [
        H.make_node("GRU", ["X", "W", "R", "B", "", "h"], ["G", "last"], hidden_size=4),
        H.make_node("Squeeze", ["G", "one"], ["Y"]),
        H.make_node("Tanh", ["last"], ["summary"]),
    ]
    tensors = weights("GRU", 3, 4) | {"one": np.array([1])}
    inputs = {"X": ["t", 1, 3], "h": [1, 1, 4]}
    outputs = {"Y": ["t", 1, 4], "summary": [1, 1, 4]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    with pytest.raises(ModelFileError, match=r"\(Y, summary\), and cannot be one"):
        import_file(path)


def test_a_recurrent_layers_own_state_that_a_name_gives_to_another_output_is_refused(tmp_path):
    nodes = [
        H.make_node("GRU", ["X", "W", "R", "B", "", "h"], ["G", "last"], hidden_size=4),
        H.make_node("Squeeze", ["G", "one"], ["Y"]),
        H.make_node("Tanh", ["last"], ["h_out"]),
    ]
    tensors = weights("GRU", 3, 4) | {"one": np.array([1])}
    inputs = {"X": [1, 1, 3], "h": [1, 1, 4]}
    outputs = {"Y": [1, 1, 4], "h_out": [1, 1, 4]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    with pytest.raises(ModelFileError, match="what input 'h' is at the next step"):
        import_file(path)


def test_the_scaled_input_of_the_step_before_is_kept(tmp_path):
    nodes = [
        H.make_node("Mul", ["X", "two"], ["N"]),
        H.make_node("Sub", ["N", "S"], ["A"]),
        H.make_node("MatMul", ["A", "W"], ["Y"]),
        H.make_node("Identity", ["N"], ["S_out"]),
    ]
    tensors = {"two": np.float32(2), "W": draw(4, 2)}
    check_steps(tmp_path, nodes, tensors, X, {"S": ("S_out", (1, 4))})


def test_a_state_beside_a_recurrent_layers_own_is_told_by_its_shape(tmp_path):
    nodes = [
        H.make_node("GRU", ["X", "W", "R", "B", "", "h"], ["G", "last"], hidden_size=5),
        H.make_node("Squeeze", ["G", "one"], ["A"]),
        H.make_node("MatMul", ["A", "V"], ["C"]),
        H.make_node("Mul", ["S", "half"], ["D"]),
        H.make_node("Add", ["C", "D"], ["N"]),
        H.make_node("MatMul", ["N", "Q"], ["Y"]),
    ]
    tensors = weights("GRU", 4, 5) | {"one": np.array([1]), "half": np.float32(0.5)}
    tensors |= {"V": draw(5, 2), "Q": draw(2, 3)}
    states = {"h": ("last", (1, 1, 5)), "S": ("N", (1, 1, 2))}
    outputs = {"Y": [1, 1, 3], "N": [1, 1, 2], "last": [1, 1, 5]}
    check_steps(tmp_path, nodes, tensors, X, states, shape=[1, 1, 4], outputs=outputs)


def test_a_cell_whose_new_state_may_be_either_output_is_asked_about(tmp_path):
    nodes, tensors = gru_cell([H.make_node("Relu", ["H"], ["P"]), H.make_node("Exp", ["H"], ["Q"])])
    del tensors["Q"]
    inputs, outputs = {"X": [1, 3], "S": [1, 4]}, {"P": [1, 4], "Q": [1, 4]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    with pytest.raises(ModelFileError, match=r"X, S are states.*P, Q.*--state INPUT=OUTPUT"):
        import_file(path)


@pytest.mark.parametrize("is_told", [False, True])
def test_the_graph_pairs_a_recurrent_layers_states_and_an_option_must_agree(tmp_path, is_told):
    """Their names are exchanged; only an option says that they are so on purpose."""
    nodes = [
        H.make_node("GRU", ["X", "W", "R", "B", "", "h1"], ["G", "h2_out"], hidden_size=4),
        H.make_node("Squeeze", ["G", "one"], ["A"]),
        H.make_node("GRU", ["A", "W", "R", "B", "", "h2"], ["K", "h1_out"], hidden_size=4),
        H.make_node("Squeeze", ["K", "one"], ["Y"]),
    ]
    tensors = weights("GRU", 4, 4) | {"one": np.array([1])}
    if not is_told:
        states = {"h1": ("h2_out", (1, 1, 4)), "h2": ("h1_out", (1, 1, 4))}
        check_steps(tmp_path, nodes, tensors, X, states, shape=[1, 1, 4])
        return
    inputs = {"X": [1, 1, 4], "h1": [1, 1, 4], "h2": [1, 1, 4]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, ("Y", "h2_out", "h1_out"))
    with pytest.raises(ModelFileError, match="would be exchanged at every step"):
        import_file(path, graph=GraphOptions(states={"h1": "h1_out", "h2": "h2_out"}))
