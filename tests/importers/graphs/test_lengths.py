"""What a graph computes from the sizes of axes that its file leaves open."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.network import GraphOptions, Names
from streamrnn.importers.onnx.network import import_onnx
from streamrnn.importers.source import import_file
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.onnx import H, draw, graph_file
from tests.importers.graphs.judge import check_sequence, evaluator

NUMBERS = {"0": np.array(0), "1": np.array(1), "-4": np.array([-4]), "end": np.array([1 << 30])}
NUMBERS |= {"axis": np.array([1]), "Q": draw(4, 2), "K": draw(2, 1, 3)}
SIZE = [
    H.make_node("Shape", ["X"], ["s"]),
    H.make_node("Gather", ["s", "1"], ["size"]),
    H.make_node("Cast", ["size"], ["number"], to=1),
]
STEPS = [1, "steps", 4]
DEPENDENT = {
    "a quotient by the length": (
        [*SIZE, H.make_node("Div", ["X", "number"], ["d"]), H.make_node("MatMul", "dQ", ["Y"])],
        STEPS,
    ),
    "a quotient by the batch": (
        [
            H.make_node("Shape", ["X"], ["s"]),
            H.make_node("Gather", ["s", "0"], ["size"]),
            H.make_node("Cast", ["size"], ["number"], to=1),
            H.make_node("MatMul", "XQ", ["d"]),
            H.make_node("Div", ["d", "number"], ["Y"]),
        ],
        ["batch", 4],
    ),
    "a ramp over the length": (
        [
            *SIZE,
            H.make_node("Range", ["0", "size", "1"], ["r"]),
            H.make_node("Cast", ["r"], ["f"], to=1),
            H.make_node("Mul", ["X", "f"], ["Y"]),
        ],
        [1, "steps"],
    ),
    "an axis that is named as a value is": (
        [*SIZE, H.make_node("Div", ["X", "number"], ["d"]), H.make_node("MatMul", "dQ", ["Y"])],
        [1, "number", 4],
    ),
    "less the mean of all": (
        [
            H.make_node("ReduceMean", ["X"], ["m"], axes=[1]),
            H.make_node("Sub", ["X", "m"], ["Y"]),
        ],
        ["batch", "steps"],
    ),
    "a softmax of all": ([H.make_node("Softmax", ["X"], ["Y"], axis=1)], ["batch", "steps"]),
    "the last four": (
        [H.make_node("Slice", ["X", "-4", "end", "axis"], ["p"]), H.make_node("MatMul", "pQ", "Y")],
        ["batch", None],
    ),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_network_that_depends_on_an_open_size_is_refused(tmp_path, name):
    nodes, shape = DEPENDENT[name]
    path = graph_file(tmp_path / "m.onnx", nodes, NUMBERS, {"X": shape})
    with pytest.raises(ModelFileError, match="depends on sizes that the file leaves open"):
        import_file(path)


def test_the_network_of_one_length_is_imported_where_that_is_given(tmp_path):
    nodes, shape = DEPENDENT["a quotient by the length"]
    path = graph_file(tmp_path / "m.onnx", nodes, NUMBERS, {"X": shape})
    found = import_onnx(path, Names(), GraphOptions({"steps": 5}))
    x = np.linspace(-1, 1, 20).reshape(5, 4)
    wanted = evaluator(path).run(None, {"X": x[None].astype(np.float32)})[0][0]
    assert np.allclose(ReferenceModel(found.model).steps(x), wanted, atol=1e-6)


REJOINED = {
    "reshaped by its length": [
        *SIZE,
        H.make_node("Unsqueeze", ["size", "first"], ["n"]),
        H.make_node("Concat", ["one", "n", "four"], ["all"], axis=0),
        H.make_node("Reshape", ["X", "all"], ["d"]),
    ],
    "a slice up to its length": [
        *SIZE,
        H.make_node("Unsqueeze", ["size", "first"], ["n"]),
        H.make_node("Slice", ["X", "first", "n", "axis"], ["d"]),
    ],
    "zeros of its length": [
        H.make_node("Shape", ["X"], ["s"]),
        H.make_node("ConstantOfShape", ["s"], ["z"]),
        H.make_node("ReduceSum", ["z"], ["none"], keepdims=0),
        H.make_node("Add", ["X", "none"], ["d"]),
    ],
}


@pytest.mark.parametrize("name", REJOINED)
def test_an_open_size_that_only_moves_is_followed(tmp_path, name):
    nodes = [*REJOINED[name], H.make_node("MatMul", "dQ", ["Y"])]
    tensors = NUMBERS | {"first": np.array([0]), "one": np.array([1]), "four": np.array([4])}
    check_sequence(tmp_path, nodes, tensors, np.linspace(-1, 1, 28).reshape(7, 4))


def test_an_input_may_be_named_as_its_axis(tmp_path):
    path = graph_file(
        tmp_path / "m.onnx", [H.make_node("MatMul", "XQ", "Y")], NUMBERS, {"X": ["X", 4]}
    )
    assert import_file(path).model.spec.output_size == 2


def test_what_is_no_number_depends_on_no_size(tmp_path):
    nodes = [H.make_node("MatMul", "XQ", ["h"]), H.make_node("Clip", ["h", "nan"], "Y")]
    tensors = NUMBERS | {"nan": np.float32(np.nan)}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, {"X": STEPS})
    with pytest.raises(ModelFileError) as caught:
        import_file(path)
    assert "leaves open" not in str(caught.value)
