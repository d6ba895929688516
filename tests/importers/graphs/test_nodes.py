"""`streamrnn import` of ONNX files, made node by node."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.reference.activations import GATE_FUNCTIONS
from streamrnn.reference.model import ReferenceModel
from streamrnn_server.cli import main
from tests.importers.files.onnx import GATES, H, X, draw, graph_file, run, state_graph, weights
from tests.tolerances import REFERENCE_FLOAT64

onnx = pytest.importorskip("onnx")


@pytest.fixture
def importing(tmp_path):
    def do(nodes, tensors, *, options=None, **more):
        path = graph_file(tmp_path / "m.onnx", nodes, tensors, **more)
        return import_file(path, TorchOptions(**(options or {})))

    return do


def answers(found, x=X[0]):
    return ReferenceModel(found.model).steps(x)


# --- one node ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [1, 4, 7])
def test_gates_and_biases_arrive_in_our_order(importing, op, bias, hidden):
    tensors = weights(op, hidden=hidden)
    if not bias:
        del tensors["B"]
    node = H.make_node(op, list("XWRB"[: 3 + bias]), ["Y"], hidden_size=hidden)
    options = {"reset_after": False} if op == "GRU" else {}
    wanted = run(op, tensors, X[0], **options)
    found = importing([node], tensors)
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64
    assert found.became["weight_ih_l0"] == "W"
    assert found.became["bias_hh_l0"] == ("B (Rb)" if bias else "nothing (zeros)")


def test_every_published_form_of_a_gru_and_of_gates(importing):
    tensors = weights("GRU")
    node = H.make_node("GRU", list("XWRB"), ["Y"], linear_before_reset=1)
    assert np.abs(answers(importing([node], tensors)) - run("GRU", tensors, X[0])).max() < 1e-12
    for alpha, name in ((0.2, "hard_sigmoid_fifth"), (1 / 6, "hard_sigmoid_sixth")):
        tensors = weights("LSTM")
        node = H.make_node(
            "LSTM",
            list("XWRB"),
            ["Y"],
            activations=["HardSigmoid", "tanh", "Tanh"],
            activation_alpha=[alpha],
            activation_beta=[0.5],
        )
        wanted = run("LSTM", tensors, X[0], gate=GATE_FUNCTIONS[name])
        assert np.abs(answers(importing([node], tensors)) - wanted).max() < 1e-12
    tensors = weights("RNN")
    node = H.make_node("RNN", list("XWRB"), ["Y"], activations=["Relu"])
    wanted = run("RNN", tensors, X[0], step="relu")
    assert np.abs(answers(importing([node], tensors)) - wanted).max() < 1e-12


def test_peepholes_are_read_in_their_order(importing):
    tensors = weights("LSTM") | {"P": draw(1, 12)}
    node = H.make_node("LSTM", ["X", "W", "R", "B", "", "", "", "P"], ["Y"])
    i, o, f = np.split(tensors["P"][0].astype(np.float64), 3)
    wanted = run("LSTM", tensors, X[0], peepholes=(i, f, o))
    assert np.abs(answers(importing([node], tensors)) - wanted).max() <= REFERENCE_FLOAT64


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("LSTM", {"direction": "bidirectional"}, "bidirectional: .* cannot be streamed"),
        ("GRU", {"direction": "reverse"}, "runs backwards .* cannot be streamed"),
        ("LSTM", {"clip": 3.0}, "clips its gates at 3"),
        ("LSTM", {"input_forget": 1}, "input_forget"),
        ("LSTM", {"layout": 2}, "layout is 2"),
        ("LSTM", {"hidden_size": 5}, "hidden_size is 5, and R has 4"),
        ("RNN", {"activations": ["Affine"]}, "activation affine"),
        ("GRU", {"activations": ["Sigmoid", "ScaledTanh"]}, "activation scaledtanh; a GRU layer"),
        (
            "GRU",
            {"activations": ["Sigmoid", "Affine"], "activation_alpha": [2.0]},
            "activation affine; a GRU layer has one",
        ),
        ("LSTM", {"activations": ["Relu", "Tanh", "Tanh"]}, "gates have the activation relu"),
        ("LSTM", {"activations": ["Sigmoid"]}, "has 1 activations; expected 3"),
        (
            "LSTM",
            {"activations": ["HardSigmoid", "Tanh", "Tanh"], "activation_alpha": [0.3]},
            "alpha 0.3 and beta 0.5",
        ),
    ],
)
def test_what_a_model_has_not_is_refused_by_name(importing, op, attributes, reason):
    node = H.make_node(op, list("XWRB"), ["Y"], **attributes)
    with pytest.raises(ModelFileError, match=f"node 'Y' \\({op}\\): it.*{reason}|{reason}"):
        importing([node], weights(op))


def test_all_reasons_are_listed(importing):
    nodes = [
        H.make_node("LSTM", list("XWRB"), ["Y"], clip=1.0, input_forget=1),
        H.make_node("ArgMax", ["Y"], ["A"]),
        H.make_node("Foo", ["A"], ["Z"], domain="com.example"),
    ]
    with pytest.raises(ModelFileError) as caught:
        importing(nodes, weights("LSTM"), outputs=["Z"])
    message = str(caught.value)
    for reason in ("clips", "input_forget", "ArgMax", "'com.example' is not supported"):
        assert reason in message


def test_a_first_state_is_kept_or_left_out(importing):
    tensors = weights("LSTM") | {"h0": draw(1, 1, 4), "zero": np.zeros((1, 1, 4), np.float32)}
    node = H.make_node("LSTM", ["X", "W", "R", "B", "", "h0", "zero"], ["Y"])
    found = importing([node], tensors)
    first = tensors["h0"].astype(np.float64).reshape(-1)
    wanted = run("LSTM", tensors, X[0], first=(first, np.zeros(4)))
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64
    assert found.became["first_h_l0"] == "h0"
    found = importing([node], tensors, options={"first_state": "zeros"})
    assert np.abs(answers(found) - run("LSTM", tensors, X[0])).max() <= REFERENCE_FLOAT64
    assert "left out the first state h0" in found.notes[0]


def test_a_first_state_of_another_shape_is_no_first_state(importing):
    # PyTorch's exporter loses the projection of an LSTM, and leaves a state of the wrong width.
    tensors = weights("LSTM") | {"zero": np.zeros((1, 1, 5), np.float32)}
    node = H.make_node("LSTM", ["X", "W", "R", "B", "", "", "zero"], ["Y"])
    with pytest.raises(ModelFileError, match=r"shape \[1, 1, 5\]; expected \[1, 1, 4\]"):
        importing([node], tensors)


# --- graphs ------------------------------------------------------------------------------------


def test_batch_first_stacks_with_a_dense_head(importing):
    first, second = weights("LSTM"), weights("GRU", 4, 5)
    tensors = {f"{k}1": v for k, v in first.items()} | {f"{k}2": v for k, v in second.items()}
    tensors |= {"K": draw(5, 2), "b": draw(2), "axes": np.array([1]), "flat": np.array([-1, 5])}
    tensors |= {"shape": np.array([0, 1, -1])}
    nodes = [
        H.make_node("Transpose", ["X"], ["X1"], perm=[1, 0, 2]),
        H.make_node("LSTM", ["X1", "W1", "R1", "B1"], ["Y1"]),
        H.make_node("Squeeze", ["Y1", "axes"], ["Y2"]),
        H.make_node("GRU", ["Y2", "W2", "R2", "B2"], ["Y3"], linear_before_reset=1),
        H.make_node("Squeeze", ["Y3", "axes"], ["Y4"]),
        H.make_node("Transpose", ["Y4"], ["Y5"], perm=[1, 0, 2]),
        H.make_node("Reshape", ["Y5", "flat"], ["Y6"]),
        H.make_node("Gemm", ["Y6", "K", "b"], ["Y7"]),
        H.make_node("Sigmoid", ["Y7"], ["Y"]),
    ]
    found = importing(nodes, tensors, inputs={"X": ["batch", "time", 3]})
    hidden = run("GRU", second, run("LSTM", first, X[0]))
    wanted = 1 / (1 + np.exp(-(hidden @ tensors["K"].astype(np.float64) + tensors["b"])))
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64
    assert found.model.spec.head.activation == "sigmoid"
    assert found.became["head.bias"] == "b"


def test_a_normalised_input_keeps_its_centre_and_its_scale(importing):
    tensors = weights("GRU") | {"mean": np.array([1e5, 2, -3], np.float32)}
    tensors |= {"std": np.array([2, 0.5, 4], np.float32)}
    nodes = [
        H.make_node("Sub", ["X", "mean"], ["X1"]),
        H.make_node("Div", ["X1", "std"], ["X2"]),
        H.make_node("GRU", ["X2", "W", "R", "B"], ["Y"], linear_before_reset=1),
    ]
    found = importing(nodes, tensors)
    spec = found.model.spec
    assert [(i.center, i.scale) for i in spec.inputs] == [(1e5, 2), (2, 0.5), (-3, 4)]
    x = X[0] * tensors["std"] + tensors["mean"]
    wanted = run("GRU", tensors, (x.astype(np.float64) - tensors["mean"]) / tensors["std"])
    assert np.abs(answers(found, x) - wanted).max() <= REFERENCE_FLOAT64


def test_an_embedding_takes_tokens(importing):
    tensors = weights("LSTM") | {"E": draw(11, 3)}
    nodes = [H.make_node("Gather", ["E", "X"], ["e"]), H.make_node("LSTM", ["e", *"WRB"], ["Y"])]
    kinds = onnx.TensorProto.INT64
    found = importing(nodes, tensors, inputs={"X": [9, 1]}, kinds=kinds)
    tokens = np.arange(9)[:, None]
    wanted = run("LSTM", tensors, tensors["E"][tokens[:, 0]])
    assert np.abs(answers(found, tokens) - wanted).max() <= REFERENCE_FLOAT64


def test_a_packed_state_is_kept_by_the_stream(importing):
    nodes, tensors, inputs = state_graph()
    # [1, 2, 4] parts along axis 1 into [1, 1, 4] twice: layers, batch, H.
    found = importing(nodes, tensors, inputs=inputs, outputs=["Y", "S1"])
    assert found.notes == ["the state 'S' -> 'S1' is kept by the stream; it begins with zeros"]
    assert np.abs(answers(found) - run("LSTM", tensors, X[0])).max() <= REFERENCE_FLOAT64


def test_states_that_are_exchanged_are_refused(importing):
    nodes, tensors, inputs = state_graph(swapped=True)
    with pytest.raises(ModelFileError, match="'S' is none of what S1 gives back"):
        importing(nodes, tensors, inputs=inputs, outputs=["Y", "S1"])


@pytest.mark.parametrize("how", ["Gather", "Slice", "Y_h"])
def test_the_last_step_alone_makes_a_model_of_every_step(importing, how):
    tensors = weights("LSTM") | {"K": draw(4, 2), "i": np.array(-1), "end": np.array([99])}
    tensors |= {"start": np.array([-1]), "zero": np.array([0]), "axes": np.array([0, 1])}
    nodes = [H.make_node("LSTM", list("XWRB"), ["Y", "h"])]
    if how == "Y_h":
        nodes.append(H.make_node("Squeeze", ["h", "zero"], ["L"]))
    elif how == "Gather":
        nodes.append(H.make_node("Gather", ["Y", "i"], ["l"], axis=0))
        nodes.append(H.make_node("Squeeze", ["l", "zero"], ["L"]))
    else:
        nodes.append(H.make_node("Slice", ["Y", "start", "end", "zero"], ["l"]))
        nodes.append(H.make_node("Squeeze", ["l", "axes"], ["L"]))
    nodes.append(H.make_node("MatMul", ["L", "K"], ["Z"]))
    found = importing(nodes, tensors, outputs=["Z"])
    wanted = run("LSTM", tensors, X[0]) @ tensors["K"].astype(np.float64)
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64
    assert "the file gives the last step alone ('Z')" in found.notes[-1]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Softmax", ["Y"], {"axis": 0})], "a softmax along another axis"),
        ([("Softmax", ["Y"], {})], None),
        ([("Elu", ["Y"], {})], None),
        ([("ReduceSum", ["Y"], {})], "reduces all axes"),
        ([("ReduceMean", ["Y"], {"axes": [0]})], "another axis than that of the places"),
        ([("Slice", ["Y", "two", "nine", "zero"], {})], "a part .* along another axis"),
        ([("MatMul", ["K", "Y"], {})], "no product of what the network computes with a constant"),
    ],
)
def test_what_follows_is_computed_or_refused(importing, nodes, reason):
    tensors = weights("LSTM") | {"K": draw(4, 2), "zero": np.array([0])}
    tensors |= {"two": np.array([2]), "nine": np.array([9])}
    made = [H.make_node("LSTM", list("XWRB"), ["Y"])]
    made += [H.make_node(op, names, ["Z"], **attributes) for op, names, attributes in nodes]
    if reason is None:
        last = importing(made, tensors, outputs=["Z"]).model.spec.layers[-1]
        assert last.activation == nodes[0][0].lower()
        return
    with pytest.raises(ModelFileError, match=reason):
        importing(made, tensors, outputs=["Z"])


def test_a_softmax_of_old_went_over_all_axes_after_the_first(importing):
    made = [
        H.make_node("LSTM", list("XWRB"), ["Y"]),
        H.make_node("Softmax", ["Y"], ["Z"]),
    ]
    with pytest.raises(ModelFileError, match="softmax along another axis"):
        importing(made, weights("LSTM"), outputs=["Z"], opset=11)


def test_options_of_a_state_dict_are_refused(importing):
    node = H.make_node("LSTM", list("XWRB"), ["Y"])
    with pytest.raises(ModelError, match="leave out --head, --activation"):
        importing([node], weights("LSTM"), options={"head": "fc", "activation": "tanh"})


def test_the_command_imports_and_proves_it(tmp_path, capsys):
    tensors = weights("LSTM")
    node = H.make_node("LSTM", list("XWRB"), ["Y"])
    path = graph_file(tmp_path / "m.onnx", [node], tensors)
    np.save(tmp_path / "in.npy", X)
    np.save(tmp_path / "out.npy", run("LSTM", tensors, X[0])[None])
    recorded = [str(tmp_path / name) for name in ("in.npy", "out.npy")]
    assert main(["import", str(path), "-o", str(tmp_path / "m"), "--check", *recorded]) == 0
    assert "ONNX opset 17: 3 inputs -> lstm 4" in capsys.readouterr().out
    assert main(["import", str(path), "-o", str(tmp_path / "m"), "--no-run"]) == 0
    assert "NOT PROVED: it was read as the file says" in capsys.readouterr().out


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions_are_converted(importing, kind):
    tensors = {name: value.astype(kind) for name, value in weights("LSTM").items()}
    found = importing([H.make_node("LSTM", list("XWRB"), ["Y"])], tensors)
    assert found.model.parameters["weight_ih_l0"].dtype == np.float32
    assert np.abs(answers(found) - run("LSTM", tensors, X[0])).max() <= 1e-6


def external(tmp_path, **entries):
    """Write a model whose W lies in a file beside it."""
    tensors = weights("LSTM")
    path = graph_file(tmp_path / "m.onnx", [H.make_node("LSTM", list("XWRB"), ["Y"])], tensors)
    model = onnx.ModelProto()
    model.ParseFromString(path.read_bytes())
    (tmp_path / "w.bin").write_bytes(bytes(64) + tensors["W"].tobytes())
    w = next(tensor for tensor in model.graph.initializer if tensor.name == "W")
    w.ClearField("raw_data")
    w.data_location = onnx.TensorProto.EXTERNAL
    chosen = {"location": "w.bin", "offset": "64", "length": str(tensors["W"].nbytes)} | entries
    for key, value in chosen.items():
        w.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path, tensors


def test_tensors_may_lie_beside_the_file(tmp_path):
    path, tensors = external(tmp_path)
    found = import_file(path)
    assert np.abs(answers(found) - run("LSTM", tensors, X[0])).max() <= REFERENCE_FLOAT64


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "../w.bin"}, "must be a file beside the model"),
        ({"location": "/etc/passwd"}, "must be a file beside the model"),
        ({"location": ""}, "must be a file beside the model"),
        ({"location": "absent.bin"}, "cannot be read"),
        ({"location": "out.bin"}, "leads out of the model's folder"),
        ({"location": "."}, "must be a file|cannot be read|not a regular file"),
        ({"offset": "65"}, "which has 256"),
        ({"offset": "-1"}, "bytes -1 to"),
        ({"offset": "x"}, "is no number"),
        ({"offset": str(1 << 70)}, "which has 256"),
        ({"length": "8"}, "needs 192 bytes"),
    ],
)
def test_external_tensors_are_read_from_their_place_alone(tmp_path, entries, reason):
    inside = tmp_path / "models"
    inside.mkdir()
    path, _ = external(inside, **entries)
    (tmp_path / "out.bin").write_bytes(bytes(1000))
    (inside / "out.bin").symlink_to(tmp_path / "out.bin")
    with pytest.raises(ModelFileError, match=reason):
        import_file(path)


@pytest.mark.parametrize(
    ("op", "tensors"),
    [
        ("Expand", {"a": np.zeros(1, np.float32), "b": np.array([1 << 20, 1 << 20])}),
        ("ConstantOfShape", {"a": np.array([1 << 20, 1 << 20])}),
        ("Gather", {"a": np.zeros((1, 1 << 16), np.float32), "b": np.zeros(1 << 14, np.int64)}),
    ],
)
def test_a_graph_cannot_ask_for_more_memory_than_is_sensible(importing, op, tensors):
    nodes = [
        H.make_node(op, list(tensors), ["big"]),
        H.make_node("MatMul", ["X", "big"], ["Y"]),
    ]
    with pytest.raises(ModelFileError, match=r"elements|makes the shape"):
        importing(nodes, tensors)


def test_every_pair_of_kinds_stacks(importing):
    for first, second in itertools.product(GATES, GATES):
        a, b = weights(first), weights(second, 4, 3)
        tensors = {f"{k}1": v for k, v in a.items()} | {f"{k}2": v for k, v in b.items()}
        tensors |= {"axes": np.array([1])}
        nodes = [
            H.make_node(first, ["X", "W1", "R1", "B1"], ["Y1"]),
            H.make_node("Squeeze", ["Y1", "axes"], ["Y2"]),
            H.make_node(second, ["Y2", "W2", "R2", "B2"], ["Y"]),
        ]
        form = {"GRU": {"reset_after": False}}
        hidden = run(first, a, X[0], **form.get(first, {}))
        wanted = run(second, b, hidden, **form.get(second, {}))
        assert np.abs(answers(importing(nodes, tensors)) - wanted).max() <= REFERENCE_FLOAT64
