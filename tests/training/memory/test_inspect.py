"""`streamrnn inspect --data`: of models that were trained here, and of imported ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from streamrnn.errors import DataError
from streamrnn.model.model import Model
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn_server.cli import main
from tests.support.models import random_parameters
from tests.support.tables import noisy_sine, write_csv
from tests.training.memory.made import delay

LAG = 11


@pytest.fixture
def imported(tmp_path):
    """Save a network that passes its input on 11 steps later; return its file and the data's."""
    _, model = delay(tmp_path, LAG)
    plain = replace(model.spec, outputs=(OutputSpec("out"),), training={})
    path = tmp_path / "imported.safetensors"
    Model(plain, model.parameters).save(path)
    return str(path), str(tmp_path / "data.csv")


def inspected(capsys, *arguments):
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_an_imported_network_is_measured_by_the_column_that_is_named(imported, capsys):
    model, data = imported
    out = inspected(capsys, model, "--data", data, "--predict", "y")
    assert f"memory: uses {LAG} steps before a row" in out
    assert "|dL/dh| of layer 1 by lag" in out


def test_without_a_column_its_outputs_are_compared_with_themselves(imported, capsys):
    model, data = imported
    out = inspected(capsys, model, "--data", data)
    assert f"memory: outputs with {LAG} steps before a row are those with all of the past" in out
    assert "|dy/dh| of layer 1 by lag" in out
    found = json.loads(inspected(capsys, model, "--data", data, "--json"))["data"]
    assert found["history"]["uses_steps"] == LAG
    assert found["gradients"]["is_of_outputs"]
    # What comes in is passed from unit to unit unchanged: the Jacobian by h stays as it is.
    by_h = found["gradients"]["layers"][0]["by_h"]
    assert by_h["8"] == pytest.approx(by_h["0"])
    assert by_h["16"] == 0.0


def test_a_network_without_skill_is_told_so(imported, capsys):
    model, data = imported
    out = inspected(capsys, model, "--data", data, "--predict", "y", "--horizon", "30")
    assert "no skill" in out


def test_a_trained_network_needs_no_column(tmp_path, capsys):
    data = write_csv(tmp_path, y=noisy_sine(400))
    path = tmp_path / "m.safetensors"
    train_to_file(TrainingConfig(path=data, predict=("y",), layers=("lstm:6",), updates=150), path)
    out = inspected(capsys, str(path), "--data", data, "--unit", "2", "--rows", "20-60")
    assert "memory: uses " in out
    assert "half-lives in steps by the forget gate" in out
    assert "unit 2 of layer 1 (lstm): gate 0 forgets, gate 1 keeps" in out
    assert "line forget gate, dots input gate" in out


def test_a_unit_of_a_gru_shows_its_update_gate_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    spec = ModelSpec(
        (InputSpec("y"),), (LayerSpec("gru", 3),), (OutputSpec("a"), OutputSpec("b")),
        HeadSpec("softmax"),
    )  # fmt: skip
    path = tmp_path / "m.safetensors"
    Model(spec, random_parameters(np.random.default_rng(0), spec)).save(path)
    data = write_csv(tmp_path, y=noisy_sine(100))
    picture = tmp_path / "unit.png"
    out = inspected(capsys, str(path), "--data", data, "--unit", "0", "--plot", str(picture))
    assert "line update gate, dots reset gate" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    picture.write_bytes(b"mine")
    assert main(["inspect", str(path), "--data", data, "--unit", "0", "--plot", str(picture)]) == 1
    assert "is no picture of a training; it is not overwritten" in capsys.readouterr().err
    assert picture.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--unit", "12"), "layer 1 has units 0 to 11"),
        (("--unit", "0", "--layer", "3"), "layer 3 is not recurrent; recurrent layers are 1"),
        (("--unit", "0", "--rows", "9-3"), "two rows such as 1-100"),
        (("--unit", "0", "--rows", "1-99999999"), "at most"),
        (("--unit", "0", "--rows", "2000-2100"), "the longest stream has 1500 rows"),
        (("--predict", "x,y"), "names 2 columns, but the model has 1 output"),
        (("--predict", "z"), "no column 'z'"),
        (("--horizon", "-1"), "from 0 to"),
    ],
)
def test_what_cannot_be_shown_is_said(imported, capsys, arguments, message):
    model, data = imported
    assert main(["inspect", model, "--data", data, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_unit_without_a_file_is_refused(imported, capsys):
    assert main(["inspect", imported[0], "--unit", "0"]) == 1
    assert "--data" in capsys.readouterr().err


def test_an_input_that_is_a_frame_has_no_targets_in_a_table(tmp_path):
    from streamrnn.training.memory.file import read_streams

    spec = ModelSpec((InputSpec("x", shape=(2,)),), (LayerSpec("gru", 1),), (OutputSpec("z"),))
    model = Model(spec, random_parameters(np.random.default_rng(0), spec))
    with pytest.raises(DataError, match="leave out --predict"):
        read_streams(model, tmp_path / "none.csv", predict=("z",))
