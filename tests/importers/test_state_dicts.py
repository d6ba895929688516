"""What a PyTorch state dict can look like, and what it cannot say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from streamrnn import Model
from streamrnn.errors import ModelFileError
from streamrnn.importers.torch import TorchOptions, import_torch
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.model import ReferenceModel
from streamrnn_server.cli import main
from tests.importers.files.state_dicts import draw, linear, recurrent
from tests.importers.shared import SHARED
from tests.tolerances import REFERENCE_FLOAT32, REFERENCE_FLOAT64


def run_cell(tensors, x, prefix="rnn.", suffix="_l0"):
    """Run one LSTM or GRU over x [T, I] in float64: h of every step."""
    weights = [
        tensors[f"{prefix}{name}{suffix}"].astype(np.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    hidden = weights[1].shape[1]
    h = c = np.zeros((1, hidden))
    steps = []
    for row in x:
        if weights[0].shape[0] == 4 * hidden:
            h, c = lstm_step(row[None], h, c, *weights)
        else:
            h = gru_step(row[None], h, *weights)
        steps.append(h[0])
    return np.array(steps)


def dense(tensors, x, name="fc"):
    bias = tensors.get(f"{name}.bias", np.zeros(1))
    return x @ tensors[f"{name}.weight"].T.astype(np.float64) + bias


def relu(x):
    return np.maximum(x, 0)


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves tensors, with metadata, and returns the path."""

    def do(tensors, metadata=None):
        path = tmp_path / "state.safetensors"
        safetensors.numpy.save_file(tensors, path, metadata)
        return path

    return do


@pytest.fixture
def importing(saved):
    return lambda tensors, metadata=None, **options: import_torch(
        saved(tensors, metadata), TorchOptions(**options)
    )


def answers(model, x):
    return ReferenceModel(model).steps(x.astype(np.float32))


X = draw(12, 3)


# --- layers around the recurrent ones ----------------------------------------------------------


def test_a_linear_layer_before_with_relu_is_computed(importing):
    tensors = recurrent(gates=3, inputs=4) | linear("proj", 4, 3) | linear()
    found = importing(tensors, before="proj", before_activation="relu", head="fc")
    wanted = dense(tensors, run_cell(tensors, relu(dense(tensors, X, "proj"))))
    assert np.abs(answers(found.model, X) - wanted).max() <= REFERENCE_FLOAT64
    assert found.became["weight_l0"] == "proj.weight"


def test_a_linear_layer_before_without_activation_is_multiplied_in(importing):
    tensors = recurrent(inputs=4) | linear("proj", 4, 3) | linear()
    found = importing(tensors, before="proj", before_activation="identity")
    wanted = dense(tensors, run_cell(tensors, dense(tensors, X, "proj")))
    assert np.abs(answers(found.model, X) - wanted).max() <= REFERENCE_FLOAT32
    assert found.became["weight_ih_l0"] == "rnn.weight_ih_l0, proj.weight, proj.bias"


def test_what_follows_a_layer_before_is_asked_for(importing):
    tensors = recurrent(inputs=4) | linear("proj", 4, 3) | linear()
    with pytest.raises(ModelFileError, match="proj: say it with --before-activation identity"):
        importing(tensors)


@pytest.mark.parametrize("bias", [True, False])
def test_a_square_layer_is_not_guessed_to_be_before_or_after(importing, bias):
    tensors = recurrent(inputs=5) | linear("proj", 5, 5)
    if not bias:
        tensors = {k: v for k, v in tensors.items() if k != "proj.bias"} | linear()
    with pytest.raises(ModelFileError, match=r"[23] ways.*--before 'proj'"):
        importing(tensors)


def test_as_many_outputs_as_inputs_are_a_head(importing):
    tensors = recurrent() | linear("fc", 3)
    model = importing(tensors).model
    wanted = dense(tensors, run_cell(tensors, X))
    assert np.abs(answers(model, X) - wanted).max() <= REFERENCE_FLOAT64


def test_relu_before_the_head_is_an_option(importing):
    tensors = recurrent() | linear()
    model = importing(tensors, head_input="relu").model
    wanted = dense(tensors, relu(run_cell(tensors, X)))
    assert np.abs(answers(model, X) - wanted).max() <= REFERENCE_FLOAT64


def test_several_linear_layers_after_have_their_activations(importing):
    tensors = recurrent() | linear("a", 8) | linear("b", 2, 8)
    model = importing(tensors, activation=["relu", "tanh"]).model
    wanted = np.tanh(dense(tensors, relu(dense(tensors, run_cell(tensors, X), "a")), "b"))
    assert np.abs(answers(model, X) - wanted).max() <= REFERENCE_FLOAT64


def test_a_large_bias_is_added_last(importing):
    tensors = recurrent() | {
        "fc.weight": draw(2, 5),
        "fc.bias": np.array([101325, 0.25], np.float32),
    }
    model = importing(tensors).model
    assert [output.center for output in model.spec.outputs] == [101325, 0]
    assert model.parameters["head.bias"].tolist() == [0, 0.25]
    wanted = dense(tensors, run_cell(tensors, X))
    assert np.abs(answers(model, X) - wanted).max() <= 1e-10  # float64 of 1e5
    # Behind another activation an output has no centre.
    assert importing(tensors, activation="tanh").model.parameters["head.bias"][0] == 101325


# --- modules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gates", "cell"), [(1, "rnn_tanh"), (3, "gru"), (4, "lstm")])
def test_cells_have_names_without_a_number(importing, gates, cell):
    tensors = recurrent("cell.", gates, suffix="") | linear()
    model = importing(tensors).model
    assert [layer.cell for layer in model.spec.layers] == [cell]
    assert np.array_equal(model.parameters["weight_hh_l0"], tensors["cell.weight_hh"])
    assert np.array_equal(model.parameters["bias_ih_l0"], tensors["cell.bias_ih"])


def test_modules_in_a_row_are_one_stack(importing):
    tensors = recurrent("z.", hidden=4) | recurrent("a.", gates=3, inputs=4) | linear()
    found = importing(tensors)
    wanted = dense(tensors, run_cell(tensors, run_cell(tensors, X, "z."), "a."))
    assert np.abs(answers(found.model, X) - wanted).max() <= REFERENCE_FLOAT64
    assert (
        "read z -> a, one after the other: the only order that their sizes allow"
        in (found.notes[0])
    )


@pytest.mark.parametrize("names", [("rnn.", "rnn2."), ("cells.2.", "cells.10.")])
def test_modules_of_one_size_go_by_their_numbers(importing, names):
    tensors = recurrent(names[1], inputs=5) | recurrent(names[0], inputs=5)
    found = importing(tensors)
    assert "by their numbers" in found.notes[0]
    assert np.array_equal(
        found.model.parameters["weight_ih_l0"], tensors[f"{names[0]}weight_ih_l0"]
    )


def test_modules_in_no_known_order_are_asked_for(importing):
    tensors = recurrent("left.", inputs=5) | recurrent("right.", inputs=5)
    with pytest.raises(ModelFileError, match=r"several orders; choose with --order left.,right."):
        importing(tensors)
    model = importing(tensors, order=["right", "left"]).model
    assert np.array_equal(model.parameters["weight_ih_l0"], tensors["right.weight_ih_l0"])
    with pytest.raises(ModelFileError, match="names a module twice"):
        importing(tensors, order=["right", "right"])
    wide = recurrent("a.", hidden=4) | recurrent("b.", inputs=4)
    with pytest.raises(ModelFileError, match=r"'a\.' takes 3 values, but 'b\.' gives 5"):
        importing(wide, order=["b", "a"])


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_wrapped_names_and_their_options_are_understood(importing, wrapper):
    plain = recurrent() | linear("a") | linear("b")
    tensors = {f"{wrapper}{name}": value for name, value in plain.items()}
    for options in ({"prefix": "rnn", "head": "b"}, {"prefix": f"{wrapper}rnn.", "head": "b"}):
        model = importing(tensors, **options).model
        assert np.array_equal(model.parameters["head.weight"], plain["b.weight"])


def test_tied_tensors_come_back_from_the_metadata(importing):
    tensors = recurrent(inputs=5) | linear("decoder", 9)
    found = importing(tensors, {"encoder.weight": "decoder.weight", "format": "pt"})
    assert found.model.spec.is_token
    assert np.array_equal(
        found.model.parameters["embedding.token.weight"], tensors["decoder.weight"]
    )
    assert "encoder.weight is tied to decoder.weight" in found.notes[0]


def test_one_matrix_may_be_chosen_for_both_ends(importing):
    tensors = recurrent(inputs=5) | linear("decoder", 9)
    model = importing(tensors, embedding="decoder", head="decoder").model
    assert np.array_equal(model.parameters["embedding.token.weight"], tensors["decoder.weight"])
    assert np.array_equal(model.parameters["head.weight"], tensors["decoder.weight"])


@pytest.mark.parametrize(
    ("names", "cure"),
    [
        (
            ("parametrizations.weight_hh_l0.original0", "parametrizations.weight_hh_l0.original1"),
            r"remove_parametrizations",
        ),
        (("weight_hh_l0_g", "weight_hh_l0_v"), r"remove_weight_norm"),
    ],
)
def test_a_weight_norm_is_named_with_its_cure(importing, names, cure):
    tensors = recurrent()
    whole = tensors.pop("rnn.weight_hh_l0")
    tensors |= {f"rnn.{names[0]}": whole[:, :1].copy(), f"rnn.{names[1]}": whole}
    with pytest.raises(ModelFileError, match=f"rnn.{names[0]}, rnn.{names[1]}.*{cure}"):
        importing(tensors)


def test_a_first_state_is_refused_by_name_or_left_out(importing):
    tensors = recurrent() | linear() | {"h0": draw(1, 1, 5), "c0": draw(1, 1, 5)}
    with pytest.raises(
        ModelFileError, match=r"h0, c0 look like a trained first .*--first-state h0,c0"
    ):
        importing(tensors)
    found = importing(tensors, first_state="zeros")
    assert found.notes == [
        "left out the first state c0, h0: streams begin with zeros, and their first outputs differ "
        "from the original's"
    ]


def test_all_that_has_no_part_is_listed(importing):
    tensors = recurrent() | linear()
    tensors |= {f"conv{i}.weight": draw(3, 3, 3) for i in range(12)}
    tensors |= {"bn.weight": draw(5), "bn.bias": draw(5), "bn.running_mean": draw(5)}
    with pytest.raises(ModelFileError) as caught:
        importing(tensors)
    message = str(caught.value)
    assert all(f"conv{i}.weight [3, 3, 3]: a convolution" in message for i in range(12))
    assert "bn.bias [5], bn.running_mean [5], bn.weight [5]: a batch normalisation" in message


# --- the command: what it says of a model, and of its proof -------------------------------------


def record(tmp_path, x, y):
    np.save(tmp_path / "in.npy", x)
    np.save(tmp_path / "out.npy", y)
    return ["--check", str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]


def run(path, tmp_path, *options):
    return main(["import", str(path), "-o", str(tmp_path / "model.safetensors"), *options])


def test_without_a_check_nothing_is_proved_and_it_says_so(saved, tmp_path, capsys):
    path = saved(recurrent() | linear())
    assert run(path, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "NOT PROVED: a state dict does not hold the graph" in printed
    assert "  weight_hh_l0              20x5  from rnn.weight_hh_l0\n" in printed
    main(["inspect", str(tmp_path / "model.safetensors")])
    assert "proof: none: nothing was compared with the original" in capsys.readouterr().out


def test_a_proof_stands_in_the_metadata_and_in_inspect(saved, tmp_path, capsys):
    tensors = recurrent() | linear()
    wanted = dense(tensors, run_cell(tensors, X)).astype(np.float32)
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, wanted)) == 0
    assert "proved with 24 recorded outputs" in capsys.readouterr().out
    model = Model.load(tmp_path / "model.safetensors")
    assert model.proof["compared_with"] == "in.npy, out.npy"
    assert 0 < model.proof["max_abs_error"]["engine"] < 1e-5
    assert model.spec.training["tensors"]["head.bias"] == "fc.bias"
    main(["inspect", str(tmp_path / "model.safetensors"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["proof"]["num_outputs"] == 24
    main(["inspect", str(tmp_path / "model.safetensors")])
    assert "proof\n  compared_with: in.npy, out.npy\n" in capsys.readouterr().out


def test_a_proof_does_not_change_what_the_model_is(saved, tmp_path):
    tensors = recurrent() | linear()
    wanted = dense(tensors, run_cell(tensors, X)).astype(np.float32)
    fingerprints = set()
    recorded = record(tmp_path, X, wanted)
    for count in (0, len(recorded)):
        assert run(saved(tensors), tmp_path, *recorded[:count]) == 0
        fingerprints.add(Model.load(tmp_path / "model.safetensors").fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.parametrize("scale", [1e-4, 1.0, 400.0])
def test_outputs_are_compared_on_their_own_scale(saved, tmp_path, capsys, scale):
    tensors = recurrent() | linear()
    tensors |= {name: tensors[name] * np.float32(scale) for name in ("fc.weight", "fc.bias")}
    y = dense(tensors, run_cell(tensors, X))
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, y.astype(np.float32))) == 0
    span = (y.max(axis=0) - y.min(axis=0)).max()
    y[7, 0] += 1e-3 * span
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, y)) == 1
    assert "first at stream 0, step 7, output 'y0'" in capsys.readouterr().err
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, y), "--tolerance", "0.01") == 0


def test_what_float32_costs_is_no_error_and_a_coarse_check_says_so(saved, tmp_path, capsys):
    # Outputs near 1e5 that vary by 1e-2: float32 has 0.008 between two numbers there.
    tensors = recurrent() | {
        "fc.weight": draw(1, 5) / 500,
        "fc.bias": np.array([101325], np.float32),
    }
    y = dense(tensors, run_cell(tensors, X))
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, y.astype(np.float32))) == 0
    assert "check: this is coarse" in capsys.readouterr().out
    assert Model.load(tmp_path / "model.safetensors").proof["is_coarse"]


def test_of_a_long_recording_every_step_is_compared(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("streamrnn.importers.proof._MOVED_STEPS", 5)
    tensors = recurrent() | linear()
    y = dense(tensors, run_cell(tensors, X))
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, y.astype(np.float32))) == 0
    y[9, 1] += 1e-3
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, y.astype(np.float32))) == 1
    assert "first at stream 0, step 9, output 'y1'" in capsys.readouterr().err


def test_half_precision_says_so(saved, tmp_path, capsys):
    tensors = recurrent() | linear()
    y = dense(tensors, run_cell(tensors, X)).astype(np.float16)
    assert run(saved(tensors), tmp_path, *record(tmp_path, X, y)) == 0
    assert "recorded in half precision (float16)" in capsys.readouterr().out


def test_last_outputs_are_compared_with_the_last_step(saved, tmp_path, capsys):
    tensors = recurrent() | linear()
    x = draw(4, 12, 3)
    y = np.array([dense(tensors, run_cell(tensors, row))[-1] for row in x], np.float32)
    assert run(saved(tensors), tmp_path, *record(tmp_path, x, y)) == 0
    assert run(saved(tensors), tmp_path, *record(tmp_path, x[0], y[0])) == 0
    y[2, 1] += 0.01
    assert run(saved(tensors), tmp_path, *record(tmp_path, x, y)) == 1
    assert "first at stream 2, step 11, output 'y1'" in capsys.readouterr().err
    assert run(saved(tensors), tmp_path, *record(tmp_path, x, y[:3])) == 1
    assert "[3, T, 3] if they are of the last step alone" in capsys.readouterr().err


def test_a_skip_connection_is_found_by_the_check(saved, tmp_path, capsys):
    tensors = recurrent(inputs=1) | linear("fc", 1)
    x = draw(30, 1)
    y = dense(tensors, run_cell(tensors, x)) + x
    assert run(saved(tensors), tmp_path, *record(tmp_path, x, y.astype(np.float32))) == 1
    assert "With the input added, the outputs agree" in capsys.readouterr().err


# --- the cases of others -----------------------------------------------------------------------

CASES = SHARED / "cases" / "import"


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not at hand")
@pytest.mark.parametrize(
    ("case", "options", "code"),
    [
        ("check_tolerance", [], 0),
        ("head_bias_first", [], 0),
        ("linear_before", ["--before=proj", "--before-activation=relu", "--head=none"], 0),
        ("linear_before", [], 1),
        ("relu_before_head", ["--head-input=relu"], 0),
        ("relu_before_head", [], 1),
        ("sequence_to_one_check", [], 0),
        ("tied_weights", [], 0),
        ("two_modules", [], 0),
        ("skip_connection", [], 1),
        ("skip_connection", ["--skip"], 0),
        ("initial_state", [], 1),
        ("initial_state", ["--first-state=h0,c0"], 0),
        ("weight_norm", [], 1),
    ],
)
def test_cases_of_others(case, options, code, tmp_path):
    recorded = [str(CASES / case / name) for name in ("in.npy", "out.npy")]
    path = CASES / case / "weights.safetensors"
    assert run(path, tmp_path, "--check", *recorded, *options) == code


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not at hand")
def test_a_head_with_a_large_bias_is_as_good_as_float32_can_be(tmp_path):
    folder = CASES / "head_bias_first"
    assert run(folder / "weights.safetensors", tmp_path) == 0
    from streamrnn import Engine

    x, exact = np.load(folder / "in.npy"), np.load(folder / "float64.npy")
    y = Engine(Model.load(tmp_path / "model.safetensors")).steps("a", x[0])
    assert np.abs(y - exact[0]).max() <= 0.5 * np.spacing(np.float32(101325)) * 1.001
