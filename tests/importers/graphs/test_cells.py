"""Cells that an exporter wrote out node by node."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.model import ReferenceModel
from streamrnn.reference.rnn import rnn_step
from tests.tolerances import REFERENCE_FLOAT32, REFERENCE_FLOAT64

onnx = pytest.importorskip("onnx")
H = onnx.helper
RNG = np.random.default_rng(4)
X = RNG.standard_normal((9, 3)).astype(np.float32)


def draw(*shape):
    return (RNG.standard_normal(shape) * 0.6).astype(np.float32)


def tensors(gates, inputs=3, hidden=5):
    rows = gates * hidden
    return {
        "weight_ih": draw(rows, inputs),
        "weight_hh": draw(rows, hidden),
        "bias_ih": draw(rows),
        "bias_hh": draw(rows),
    }


def products(x="x", h="h"):
    return [
        H.make_node("Gemm", [x, "weight_ih", "bias_ih"], ["a"], transB=1),
        H.make_node("Gemm", [h, "weight_hh", "bias_hh"], ["b"], transB=1),
    ]


def lstm_nodes():
    return [
        *products(),
        H.make_node("Add", ["b", "a"], ["gates"]),
        H.make_node("Split", ["gates"], ["i", "f", "g", "o"], axis=1, num_outputs=4),
        *(H.make_node("Sigmoid", [name], [f"s{name}"]) for name in "ifo"),
        H.make_node("Tanh", ["g"], ["tg"]),
        H.make_node("Mul", ["sf", "c"], ["kept"]),
        H.make_node("Mul", ["si", "tg"], ["added"]),
        H.make_node("Add", ["kept", "added"], ["c1"]),
        H.make_node("Tanh", ["c1"], ["shown"]),
        H.make_node("Mul", ["so", "shown"], ["h1"]),
    ]


def gru_nodes(form):
    last = [
        H.make_node("Sub", ["h", "n"], ["d"]),
        H.make_node("Mul", ["d", "z"], ["zd"]),
        H.make_node("Add", ["zd", "n"], ["h1"]),
    ]
    if form == "kept":
        last = [
            H.make_node("Sub", ["one", "z"], ["rest"]),
            H.make_node("Mul", ["rest", "n"], ["new"]),
            H.make_node("Mul", ["z", "h"], ["old"]),
            H.make_node("Add", ["new", "old"], ["h1"]),
        ]
    return [
        *products(),
        H.make_node("Split", ["a"], ["xr", "xz", "xn"], axis=1, num_outputs=3),
        H.make_node("Split", ["b"], ["hr", "hz", "hn"], axis=1, num_outputs=3),
        H.make_node("Add", ["xr", "hr"], ["r0"]),
        H.make_node("Sigmoid", ["r0"], ["r"]),
        H.make_node("Add", ["xz", "hz"], ["z0"]),
        H.make_node("Sigmoid", ["z0"], ["z"]),
        H.make_node("Mul", ["hn", "r"], ["rn"]),
        H.make_node("Add", ["xn", "rn"], ["n0"]),
        H.make_node("Tanh", ["n0"], ["n"]),
        *last,
    ]


def rnn_nodes(function):
    return [
        *products(),
        H.make_node("Add", ["a", "b"], ["sum"]),
        H.make_node(function, ["sum"], ["h1"]),
    ]


@pytest.fixture
def importing(tmp_path):
    def do(nodes, constants, inputs, outputs):
        model = H.make_model(
            H.make_graph(
                nodes,
                "g",
                [H.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
                [H.make_tensor_value_info(name, 1, None) for name in outputs],
                [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
            ),
            opset_imports=[H.make_opsetid("", 18)],
        )
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        return import_file(tmp_path / "m.onnx")

    return do


def run(step, x, hidden, num_states=1):
    state = (np.zeros((1, hidden)),) * num_states
    steps = []
    for row in x.astype(np.float64):
        state = step(row[None], *state)
        steps.append(state[0][0])
    return np.array(steps)


def widened(constants):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [constants[name].astype(np.float64) for name in names]


def head(constants):
    constants |= {"K": draw(5, 2)}
    return H.make_node("MatMul", ["h1", "K"], ["y"])


STATE = {"x": [1, 3], "h": [1, 5]}


def test_an_lstm_cell_is_found(importing):
    constants = tensors(4)
    nodes = [*lstm_nodes(), head(constants)]
    found = importing(nodes, constants, STATE | {"c": [1, 5]}, ["y", "h1", "c1"])
    w = widened(constants)
    hidden = run(lambda x, h, c: lstm_step(x, h, c, *w), X, 5, 2)
    wanted = hidden @ constants["K"].astype(np.float64)
    assert np.abs(ReferenceModel(found.model).steps(X) - wanted).max() <= REFERENCE_FLOAT64
    assert found.became["bias_hh_l0"] == "bias_hh"
    assert len(found.notes) == 2


@pytest.mark.parametrize("form", ["difference", "kept"])
def test_a_gru_cell_is_found(importing, form):
    constants = tensors(3) | ({"one": np.ones(1, np.float32)} if form == "kept" else {})
    found = importing(gru_nodes(form), constants, STATE, ["h1"])
    w = widened(constants)
    wanted = run(lambda x, h: (gru_step(x, h, *w),), X, 5)
    assert np.abs(ReferenceModel(found.model).steps(X) - wanted).max() <= REFERENCE_FLOAT64


@pytest.mark.parametrize("function", ["Tanh", "Relu"])
def test_a_simple_cell_is_found(importing, function):
    constants = tensors(1)
    nodes = [*rnn_nodes(function), head(constants)]
    found = importing(nodes, constants, STATE, ["y", "h1"])
    a, b, c, d = widened(constants)
    hidden = run(lambda x, h: (rnn_step(x, h, a, b, c, d, function.lower()),), X, 5)
    wanted = hidden @ constants["K"].astype(np.float64)
    assert np.abs(ReferenceModel(found.model).steps(X) - wanted).max() <= REFERENCE_FLOAT64


def test_a_second_input_is_no_state_unless_it_comes_back(importing):
    constants = tensors(1)
    nodes = [*rnn_nodes("Relu"), head(constants)]
    with pytest.raises(ModelFileError, match="no output gives back what input 'h' is"):
        importing(nodes, constants, STATE, ["y"])


def test_states_that_come_back_exchanged_are_refused(importing):
    constants = tensors(4)
    nodes = [*lstm_nodes(), head(constants)]
    nodes[-2].output[0], nodes[-4].output[0] = "c1", "h1"
    for node in nodes:
        for k, name in enumerate(node.input):
            if name in ("c1", "h1"):
                node.input[k] = {"c1": "h1", "h1": "c1"}[name]
    inputs = STATE | {"c": [1, 5]}
    found = importing(nodes, constants, inputs, ["y", "h1", "c1"])  # other names, the same graph
    assert "the state 'h' -> 'c1'" in found.notes[0]
    # h is the old c now: what is given back as c is none of the inputs' own.
    for node in nodes:
        if node.op_type == "Mul" and "c" in node.input:
            node.input[1] = "h"
    with pytest.raises(ModelFileError):
        importing(nodes, constants, inputs, ["y", "h1", "c1"])


@pytest.mark.parametrize("swap", [("i", "f"), ("g", "o")])
def test_gates_in_another_order_are_not_taken_for_pytorchs(importing, swap):
    constants = tensors(4)
    nodes = lstm_nodes()
    split = next(node for node in nodes if node.op_type == "Split")
    names = list(split.output)
    a, b = (names.index(name) for name in swap)
    split.output[a], split.output[b] = names[b], names[a]
    with pytest.raises(
        ModelFileError, match=r"network computes of two inputs|computes with states"
    ):
        importing(nodes, constants, STATE | {"c": [1, 5]}, ["h1", "c1"])


def written_out(num_steps=4, *, first=None, skipped=None):
    """Write out a simple layer step by step, as PyTorch's exporter does."""
    constants = {"W_ih": draw(3, 5), "b_ih": draw(5), "W_hh": draw(5, 5), "b_hh": draw(5)}
    constants["first"] = constants["b_hh"][None, None] if first is None else first
    constants |= {f"i{t}": np.array([t]) for t in range(num_steps + 1)} | {"axis": np.array([0])}
    nodes = [
        H.make_node("MatMul", ["x", "W_ih"], ["p"]),
        H.make_node("Add", ["p", "b_ih"], ["L"]),
    ]
    for t in range(num_steps):
        cut = ["L", f"i{t}", f"i{t + 1}", "axis"]
        nodes.append(H.make_node("Slice", cut, [f"c{t}"]))
        nodes.append(H.make_node("Squeeze", [f"c{t}", "axis"], [f"x{t}"]))
        if t:
            before = f"h{t - 2}" if t == skipped else f"h{t - 1}"
            nodes.append(H.make_node("MatMul", [before, "W_hh"], [f"m{t}"]))
            nodes.append(H.make_node("Add", [f"m{t}", "b_hh"], [f"w{t}"]))
        nodes.append(H.make_node("Add", [f"w{t}" if t else "first", f"x{t}"], [f"s{t}"]))
        nodes.append(H.make_node("Tanh", [f"s{t}"], [f"h{t}"]))
    nodes.append(H.make_node("Concat", [f"h{t}" for t in range(num_steps)], ["y"], axis=0))
    return nodes, constants, {"x": [num_steps, 1, 3]}


def test_a_layer_that_was_written_out_is_put_together(importing):
    nodes, constants, inputs = written_out()
    found = importing(nodes, constants, inputs, ["y"])
    a, b, c, d = (constants[k].astype(np.float64) for k in ("W_ih", "W_hh", "b_ih", "b_hh"))
    wanted = run(lambda x, h: (rnn_step(x, h, a.T, b.T, c, d, "tanh"),), X, 5)
    assert np.abs(ReferenceModel(found.model).steps(X) - wanted).max() <= REFERENCE_FLOAT32


@pytest.mark.parametrize("options", [{"first": np.ones((1, 1, 5), np.float32)}, {"skipped": 3}])
def test_what_only_looks_like_a_layer_is_refused(importing, options):
    with pytest.raises(ModelFileError, match="along another axis"):
        importing(*written_out(**options), ["y"])


@pytest.mark.parametrize(
    ("make", "gates"),
    [
        (lstm_nodes, 4),
        (lambda: gru_nodes("difference"), 3),
        (lambda: gru_nodes("kept"), 3),
        (lambda: rnn_nodes("Tanh"), 1),
    ],
    ids=["lstm", "gru", "gru_kept", "rnn"],
)
def test_a_cell_whose_nodes_lost_inputs_is_refused(importing, make, gates):
    constants = tensors(gates) | {"one": np.ones(1, np.float32)}
    states = {"c": [1, 5]} if gates == 4 else {}
    outputs = ["h1", "c1"] if gates == 4 else ["h1"]
    for k in range(len(make())):
        for num_left in (0, 1):
            nodes = make()
            if len(nodes[k].input) <= num_left or nodes[k].op_type == "Gemm":
                continue
            del nodes[k].input[num_left:]
            with pytest.raises(ModelFileError):
                importing(nodes, constants, STATE | states, outputs)
