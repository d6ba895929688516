"""`streamrnn import` of PyTorch state dicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from streamrnn import Model
from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.torch import TorchOptions, import_torch
from streamrnn.model.spec import LayerSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn_server.cli import main
from tests.support.models import random_model
from tests.tolerances import REFERENCE_FLOAT64

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]


def recurrent(prefix="rnn.", gates=4, inputs=3, hidden=5, layers=1, bias=True):
    """Make the tensors of an nn.RNN, nn.GRU or nn.LSTM."""
    rng = np.random.default_rng(hash((gates, inputs, hidden)) & 0xFFFF)
    tensors = {}
    for k in range(layers):
        columns = inputs if k == 0 else hidden
        tensors[f"{prefix}weight_ih_l{k}"] = rng.standard_normal((gates * hidden, columns))
        tensors[f"{prefix}weight_hh_l{k}"] = rng.standard_normal((gates * hidden, hidden))
        if bias:
            tensors[f"{prefix}bias_ih_l{k}"] = rng.standard_normal(gates * hidden)
            tensors[f"{prefix}bias_hh_l{k}"] = rng.standard_normal(gates * hidden)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def projected(layers=2):
    """Make the tensors of an nn.LSTM(3, 5, layers, proj_size=2)."""
    tensors = {}
    for k in range(layers):
        tensors[f"rnn.weight_ih_l{k}"] = matrix(20, 2 if k else 3)
        tensors[f"rnn.weight_hh_l{k}"] = matrix(20, 2)
        tensors[f"rnn.bias_ih_l{k}"] = tensors[f"rnn.bias_hh_l{k}"] = matrix(20)
        tensors[f"rnn.weight_hr_l{k}"] = matrix(2, 5) * (k + 1)
    return tensors


def matrix(*shape):
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def linear(name="fc", outputs=2, hidden=5, bias=True):
    tensors = {f"{name}.weight": matrix(outputs, hidden)}
    return tensors | ({f"{name}.bias": matrix(outputs)} if bias else {})


@pytest.fixture
def importing(tmp_path):
    """Return a function that saves tensors and imports them."""

    def do(tensors, **options):
        safetensors.numpy.save_file(tensors, tmp_path / "state.safetensors")
        return import_torch(tmp_path / "state.safetensors", TorchOptions(**options))

    return do


# --- roles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "rnn.", "module.model.encoder.0.", "a_"])
@pytest.mark.parametrize(("gates", "cell"), [(1, "rnn_tanh"), (3, "gru"), (4, "lstm")])
@pytest.mark.parametrize("layers", [1, 3, 11])
def test_kind_and_sizes_are_read_off_the_shapes(importing, prefix, gates, cell, layers):
    tensors = recurrent(prefix, gates, layers=layers)
    spec = importing(tensors).model.spec
    assert [(layer.cell, layer.hidden_size) for layer in spec.chain] == [(cell, 5)] * layers
    assert [item.name for item in spec.inputs] == ["x0", "x1", "x2"]
    assert spec.head is None
    assert [item.name for item in spec.outputs] == [f"y{o}" for o in range(5)]


def test_tensors_arrive_where_they_belong(importing):
    tensors = recurrent(layers=2) | linear()
    parameters = importing(tensors).model.parameters
    for name, value in tensors.items():
        ours = name.removeprefix("rnn.").replace("fc.", "head.")
        assert parameters[ours].tobytes() == value.tobytes()
    assert len(parameters) == len(tensors)


def test_a_projection_is_read_off_the_shapes(importing):
    tensors = projected() | linear(hidden=2)
    model = importing(tensors).model
    assert model.spec.chain == (LayerSpec("lstm", 5, projection_size=2),) * 2
    for k in range(2):
        expected = tensors[f"rnn.weight_hr_l{k}"]
        assert np.array_equal(model.parameters[f"weight_hr_l{k}"], expected)
    without = importing({k: v for k, v in tensors.items() if "bias" not in k}).model
    assert not without.parameters["bias_hh_l1"].any()


def test_absent_biases_are_zero(importing):
    tensors = recurrent(bias=False) | linear(bias=False)
    parameters = importing(tensors).model.parameters
    for name in ("bias_ih_l0", "bias_hh_l0", "head.bias"):
        assert not parameters[name].any()


def test_an_embedding_makes_a_token_model(importing):
    tensors = {"embed.weight": matrix(9, 3)} | recurrent() | linear()
    model = importing(tensors, inputs=["word"], outputs=["a", "b"]).model
    (item,) = model.spec.inputs
    assert (item.name, item.kind, item.num_categories, item.embedding_size) == (
        "word",
        "token",
        9,
        3,
    )
    assert np.array_equal(model.parameters["embedding.word.weight"], tensors["embed.weight"])
    assert [output.name for output in model.spec.outputs] == ["a", "b"]


def test_an_embedding_as_wide_as_h_is_told_from_the_linear_layer(importing):
    tensors = {"in.weight": matrix(7, 5)} | recurrent(inputs=5) | linear("out", 7)
    model = importing(tensors).model
    assert model.spec.is_token
    assert np.array_equal(model.parameters["head.weight"], tensors["out.weight"])


def test_two_ways_to_read_a_file_are_both_named(importing):
    tensors = {"a.weight": matrix(7, 5), "b.weight": matrix(7, 5) * 2} | recurrent(inputs=5)
    with pytest.raises(ModelFileError) as caught:
        importing(tensors)
    assert "--embedding 'b' --head 'a'; --embedding 'a' --head 'b'" in str(caught.value)
    model = importing(tensors, head="a").model
    assert np.array_equal(model.parameters["head.weight"], tensors["a.weight"])
    assert np.array_equal(model.parameters["embedding.token.weight"], tensors["b.weight"])


def test_one_matrix_that_could_be_either_is_not_guessed_and_never_both(importing):
    tensors = {"a.weight": matrix(7, 5)} | recurrent(inputs=5)
    with pytest.raises(ModelFileError, match="can be read in 2 ways"):
        importing(tensors)
    assert importing(tensors, embedding="a").model.spec.head is None
    assert not importing(tensors, head="a").model.spec.is_token


def test_several_networks_are_listed_with_the_option_that_chooses(importing):
    tensors = recurrent("encoder.", hidden=5) | recurrent("decoder.", 3, hidden=4)
    tensors |= linear("out", 2, 4)
    with pytest.raises(ModelFileError, match=r"--prefix 'decoder\.' or --prefix 'encoder\.'"):
        importing(tensors)
    for prefix in ("decoder.", "decoder"):
        found = importing(tensors, prefix=prefix)
        assert found.model.spec.chain[0].cell == "gru"
        assert found.model.spec.head is not None
        (note,) = found.notes
        assert note.startswith("left out: encoder.bias_hh_l0, ")
    found = importing(tensors, prefix="encoder")
    assert found.model.spec.head is None
    assert "out.weight" in found.notes[0]
    with pytest.raises(ModelFileError, match=r"prefix 'x'; there is 'decoder\.' and 'encoder\.'"):
        importing(tensors, prefix="x")


def test_nothing_is_left_out_silently(importing):
    # Linear -> ReLU -> Linear: with the first alone, the model would be another one.
    tensors = recurrent() | linear("fc1", 8) | linear("fc2", 1, 8)
    with pytest.raises(ModelFileError, match=r"fc1, fc2: say it with --activation relu,identity"):
        importing(tensors)
    found = importing(tensors, prefix="rnn", head="fc1")
    assert found.notes == ["left out: fc2.bias, fc2.weight"]


def test_head_and_embedding_can_be_chosen(importing):
    tensors = recurrent() | linear("a") | linear("b", 3)
    with pytest.raises(ModelFileError, match=r"(?s)b\.bias \[3\], b\.weight \[3, 5\].*--prefix"):
        importing(tensors)
    with pytest.raises(ModelFileError, match=r"2 ways.*--head 'a'.*--head 'b'"):
        importing(tensors, prefix="rnn")
    assert importing(tensors, prefix="rnn", head="b").model.spec.output_size == 3
    assert importing(tensors, prefix="rnn", head="none").model.spec.head is None
    with pytest.raises(ModelFileError, match=r"'c' cannot be the head; 'a' or 'b' can"):
        importing(tensors, head="c")
    with pytest.raises(ModelFileError, match=r"the layers chosen do not fit: .* there is a "):
        importing(tensors, embedding="a")


# --- what cannot be told or taken --------------------------------------------------------------


def test_the_nonlinearity_is_an_option_and_its_default_a_note(importing):
    assert "took tanh" in importing(recurrent(gates=1)).notes[0]
    found = importing(recurrent(gates=1), nonlinearity="relu")
    assert found.model.spec.chain[0].cell == "rnn_relu"
    assert found.notes == []
    with pytest.raises(ModelError, match=r"nn.LSTM, whose nonlinearity is fixed"):
        importing(recurrent(), nonlinearity="relu")


def test_the_activation_needs_a_linear_layer(importing):
    tensors = recurrent() | linear()
    assert importing(tensors, activation="softmax").model.spec.head.activation == "softmax"
    with pytest.raises(ModelError, match="no linear layer that --activation tanh could follow"):
        importing(recurrent(), activation="tanh")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (recurrent() | {"rnn.weight_ih_l0_reverse": matrix(20, 3)}, "bidirectional.*be streamed"),
        (
            projected() | {"rnn.weight_hr_l0": matrix(5)},
            r"weight_hr_l0' has shape \[5\]; expected \[R, H\]",
        ),
        (
            projected() | {"rnn.weight_hh_l1": matrix(20, 5)},
            r"weight_hh_l1' has shape \[20, 5\]; layer 1 .* and proj_size = 2 asks for \[20, 2\]",
        ),
        (
            {k: v for k, v in projected().items() if k != "rnn.weight_hr_l1"},
            "tensor 'rnn.weight_hr_l1' is missing",
        ),
        ({"conv.weight": matrix(3, 3)}, "no nn.RNN, nn.GRU or nn.LSTM.*conv.weight"),
        (
            {"rnn.weight_ih_l0": matrix(10, 3), "rnn.weight_hh_l0": matrix(10, 5)},
            r"weight_hh_l0' has shape \[10, 5\]; expected \[H, H\]",
        ),
        ({"weight_ih_l0": matrix(5, 3)}, "tensor 'weight_hh_l0' is missing"),
        ({"weight_hh_l0": matrix(5, 5)}, "tensor 'weight_ih_l0' is missing"),
        (
            recurrent() | {"rnn.weight_ih_l2": matrix(20, 5)},
            "tensor 'rnn.weight_ih_l1' is missing",
        ),
        (
            {k: v for k, v in recurrent().items() if k != "rnn.bias_hh_l0"},
            "tensor 'rnn.bias_hh_l0' is missing",
        ),
        (
            recurrent() | {"rnn.bias_hh_l0": matrix(19)},
            r"bias_hh_l0' has shape \[19\]; layer 0 of this nn.LSTM with H = 5 asks for \[20\]",
        ),
        (
            recurrent(layers=2) | {"rnn.weight_ih_l1": matrix(20, 3)},
            r"weight_ih_l1' has shape \[20, 3\].*asks for \[20, 5\]",
        ),
        (
            {k: v.astype(np.int8) for k, v in recurrent().items()},
            "is I8; expected one of F32.*quantised",
        ),
        (
            recurrent() | {"rnn.bias_hh_l0": np.full(20, np.nan, np.float32)},
            r"state.safetensors: parameter bias_hh_l0\[0\] is nan",
        ),
        (
            recurrent() | {"rnn.bias_hh_l0": np.full(20, 1e300)},
            r"state.safetensors: parameter bias_hh_l0\[0\] is inf",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(importing, tensors, message):
    with pytest.raises(ModelFileError, match=message):
        importing(tensors)


def test_other_precisions_are_converted_with_a_note(importing):
    tensors = {name: value.astype(np.float64) / 3 for name, value in recurrent().items()}
    found = importing(tensors)
    assert found.notes == ["converted from F64 to F32, which rounds"]
    expected = tensors["rnn.weight_hh_l0"].astype(np.float32)
    assert np.array_equal(found.model.parameters["weight_hh_l0"], expected)
    half = {name: value.astype(np.float16) for name, value in recurrent().items()}
    assert importing(half).notes == ["converted from F16 to F32"]


def test_names_must_be_as_many_as_there_are(importing):
    with pytest.raises(ModelError, match=r"--inputs names 2 inputs \(a, b\); the model has 3"):
        importing(recurrent(), inputs=["a", "b"])
    with pytest.raises(ModelError, match="--outputs names 1 outputs"):
        importing(recurrent() | linear(), outputs=["a"])
    with pytest.raises(ModelError, match="two inputs are named 'a'"):
        importing(recurrent(), inputs=["a", "a", "b"])


def test_files_of_other_writers_are_read_but_our_own_are_not(importing, rng, tmp_path):
    data = safetensors.numpy.save(recurrent())
    num_bytes = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + num_bytes]), indent=1).encode()
    path = tmp_path / "indented.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + num_bytes :])
    assert import_torch(path).model.spec.chain[0].cell == "lstm"
    random_model(rng).save(path)
    with pytest.raises(ModelFileError, match="is a model of StreamRNN already"):
        import_torch(path)


# --- the command -------------------------------------------------------------------------------


def record(case, tmp_path, change=None, dtype=None):
    """Write a golden case's inputs and outputs as .npy files."""
    with np.load(GOLDEN / f"{case}.npz") as golden:
        x, y = golden["x"], golden["y_float32"].copy()
    if change is not None:
        x, y = change(x, y)
    paths = [str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    np.save(paths[0], x if dtype is None else x.astype(dtype))
    np.save(paths[1], y)
    return paths


@pytest.mark.parametrize("case", CASES)
def test_import_verifies_the_outputs_it_recorded(case, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    options = [f"--{key}={value}" for key, value in CASES[case].items()]
    arguments = ["import", str(GOLDEN / f"{case}.safetensors"), "-o", str(output), *options]
    assert main([*arguments, "--check", *record(case, tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "check: float64 reference: max abs error" in printed
    assert "check: engine: max abs error" in printed
    assert f"wrote {output}" in printed
    with np.load(GOLDEN / f"{case}.npz") as golden:
        y = ReferenceModel(Model.load(output)).steps(golden["x"])
        assert np.abs(y - golden["y_float64"]).max() <= REFERENCE_FLOAT64


def run_check(tmp_path, paths, case="lstm_2_linear", *options):
    output = tmp_path / "model.safetensors"
    arguments = ["import", str(GOLDEN / f"{case}.safetensors"), "-o", str(output), *options]
    code = main([*arguments, "--check", *paths])
    assert output.exists() == (code == 0)
    return code


def test_a_failed_check_says_where_and_writes_nothing(tmp_path, capsys):
    def bend(x, y):
        y[1, 30, 2] += 2e-5
        y[0, 31, 0] += 1
        return x, y

    assert run_check(tmp_path, record("lstm_2_linear", tmp_path, bend)) == 1
    message = capsys.readouterr().err
    assert "first at stream 1, step 30, output 'y2': got" in message
    assert "The first 30 steps agree" in message
    assert "was not written" in message


def test_a_nan_in_the_recording_is_a_difference(tmp_path):
    def spoil(x, y):
        y[0, 3, 1] = np.nan
        return x, y

    assert run_check(tmp_path, record("lstm_2_linear", tmp_path, spoil)) == 1


def test_a_wrong_activation_fails_the_check(tmp_path, capsys):
    paths = record("lstm_2_linear", tmp_path)
    assert run_check(tmp_path, paths, "lstm_2_linear", "--activation", "tanh") == 1
    assert "The first step differs already. Of a state dict try" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[..., :5], y), r"in.npy has shape [2, 40, 5]; with outputs"),
        (lambda x, y: (x[:, :-1], y), r"expected [2, 40, 6]"),
        (lambda x, y: (x, y[..., :3]), "out.npy has shape [2, 40, 3]; expected [T, 4]"),
        (lambda x, y: (x, y[0, 0]), "out.npy has shape [4]"),
        (lambda x, y: (x[:, :0], y[:, :0]), "out.npy has shape [2, 0, 4]"),
        (lambda x, y: (x, y.astype(complex)), "out.npy holds complex128; expected numbers"),
        (lambda x, y: (x, y.astype(object)), "no array in NumPy's .npy format"),
    ],
)
def test_recordings_that_do_not_fit_are_refused(tmp_path, capsys, change, message):
    assert run_check(tmp_path, record("lstm_2_linear", tmp_path, change)) == 1
    assert message in capsys.readouterr().err


def test_one_stream_needs_no_batch_axis_and_one_token_no_input_axis(tmp_path):
    paths = record("lstm_2_linear", tmp_path, lambda x, y: (x[1], y[1]))
    assert run_check(tmp_path, paths) == 0
    softmax = ("--activation", "softmax")
    paths = record("token_lstm_softmax", tmp_path, lambda x, y: (x[..., 0], y), np.int64)
    assert run_check(tmp_path, paths, "token_lstm_softmax", *softmax) == 0
    paths = record("token_lstm_softmax", tmp_path, lambda x, y: (x[1, :, 0], y[1]), np.int64)
    assert run_check(tmp_path, paths, "token_lstm_softmax", *softmax) == 0


def test_float_tokens_and_files_that_are_no_arrays_are_refused(tmp_path, capsys):
    paths = record("token_lstm_softmax", tmp_path, dtype=np.float32)
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert run_check(tmp_path, paths, "token_lstm_softmax") == 1
    assert "token ids are whole numbers" in capsys.readouterr().err
    Path(paths[1]).write_text("time,value\n")
    assert run_check(tmp_path, paths) == 1
    assert "save it with numpy.save" in capsys.readouterr().err
    assert run_check(tmp_path, [str(tmp_path / "absent.npy"), paths[0]]) == 1
    assert "absent.npy" in capsys.readouterr().err


def test_names_come_from_the_command_line(tmp_path):
    output = tmp_path / "model.safetensors"
    arguments = ["import", str(GOLDEN / "gru_3_linear.safetensors"), "-o", str(output)]
    assert main([*arguments, "--inputs", "wind, sun,rain", "--outputs", "kW,kWh"]) == 0
    spec = Model.load(output).spec
    assert [item.name for item in spec.inputs] == ["wind", "sun", "rain"]
    assert [item.name for item in spec.outputs] == ["kW", "kWh"]


def test_wrong_usage_and_wrong_files_have_their_exit_codes(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["import", "a.safetensors"])
    assert caught.value.code == 2
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(40))
    assert main(["import", str(tmp_path / "a.pt"), "-o", str(tmp_path / "b")]) == 1
    assert "safetensors.torch.save_file" in capsys.readouterr().err
