"""`streamrnn train` and `streamrnn predict`, from file to file."""

import argparse
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import streamrnn
from streamrnn import Engine, Model
from streamrnn.commands import predict as predict_command
from streamrnn.commands import train as command
from streamrnn.errors import DataError, TrainingError
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.run.progress import TrainingProgress
from streamrnn.training.verify import verify
from streamrnn_server.cli import main
from tests.support.tables import noisy_sine, write_csv

CO2 = Path(streamrnn.__file__).parent / "data" / "co2_mauna_loa.csv"


def run(module, *words):
    parser = argparse.ArgumentParser()
    module.configure(parser)
    return module.run(parser.parse_args([str(word) for word in words]))


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def co2(tmp_path_factory):
    """The model that the defaults give for the weekly CO2 at Mauna Loa."""
    path = tmp_path_factory.mktemp("co2") / "co2.safetensors"
    assert run(command, CO2, "--predict", "co2", "--time", "date", "-o", path) == 0
    return path


def test_co2_beats_both_baselines(co2):
    report = Model.load(co2).spec.training
    own = report["errors"]["test"]["co2+1"]["rmse"]
    assert 0.36 < own < 0.40
    assert report["baselines"]["persistence"]["co2+1"]["rmse"] == pytest.approx(0.513, abs=0.001)
    assert report["baselines"]["autoregression"]["co2+1"]["rmse"] == pytest.approx(0.390, abs=0.001)
    assert own < report["baselines"]["autoregression"]["co2+1"]["rmse"]
    assert report["config"]["difference"] == ["co2"]
    assert 52 < report["memory"]["horizon_steps"] < 600


def test_predicting_the_file_gives_the_reported_error(co2, tmp_path, capsys):
    assert run(predict_command, co2, CO2, "-o", tmp_path / "out.csv") == 0
    assert "2,284 rows of 1 stream" in capsys.readouterr().err
    data, out = read_csv(CO2), read_csv(tmp_path / "out.csv")
    assert out[0] == ["date", "co2_h1"]
    assert [row[0] for row in out] == [row[0] for row in data]
    truth = np.array([float(row[1] or "nan") for row in data[1:]])
    guess = np.array([float(row[1]) for row in out[1:]])
    first = round(0.8 * len(truth))
    error = np.sqrt(np.nanmean((guess[first - 1 : -1] - truth[first:]) ** 2))
    expected = Model.load(co2).spec.training["errors"]["test"]["co2+1"]["rmse"]
    assert error == pytest.approx(expected, rel=1e-4)


def test_the_written_configuration_repeats_the_file_to_the_bit(tmp_path, capsys):
    path = write_csv(tmp_path, y=noisy_sine(200), colour=np.tile(["red", "blue"], 100))
    first, second = tmp_path / "a.safetensors", tmp_path / "sub" / "b.safetensors"
    second.parent.mkdir()
    options = ("--layers", "lstm:6,gru:4", "--epochs", 3, "--seed", 9)
    assert run(command, path, "--predict", "y", *options, "-o", first) == 0
    assert run(command, tmp_path / "a.toml", "-o", second) == 0
    assert first.read_bytes() == second.read_bytes()
    printed = capsys.readouterr()
    assert "test error of y+1" in printed.out
    assert "gradients reach" in printed.out
    assert "epoch 1/3" in printed.err


def test_groups_are_streams_of_their_own(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    rows = [(day, g) for day in range(60) for g in rng.permutation(["a", "b", "c"])]
    path = write_csv(
        tmp_path,
        day=[f"2000-{1 + d // 28:02}-{1 + d % 28:02}" for d, _ in rows],
        g=[g for _, g in rows],
        colour=rng.choice(["red", "green"], len(rows)),
        y=rng.normal(size=len(rows)),
    )
    model_path = tmp_path / "m.safetensors"
    config = TrainingConfig(path=path, predict=("y",), group=("g",), epochs=2, layers=("gru:5",))
    result = train_to_file(config, model_path)
    monkeypatch.setattr(predict_command, "BLOCK_ROWS", 7)
    num_rows, num_streams = predict_command.predict_file(
        Model.load(model_path), path, tmp_path / "out.csv"
    )
    assert (num_rows, num_streams) == (180, 3)
    out = read_csv(tmp_path / "out.csv")
    assert out[0] == ["day", "g", "y_h1"]
    engine = Engine(result.model)
    for stream in result.dataset.streams:
        expected = engine.steps(stream.name, stream.x)[:, 0]
        got = np.array([float(row[2]) for row in out if row[1] == stream.name], np.float32)
        np.testing.assert_array_equal(got, expected)


def test_predict_refuses_what_does_not_fit(tmp_path):
    rng = np.random.default_rng(2)
    colours = rng.choice(["red", "green"], 60)
    path = write_csv(tmp_path, t=range(60), y=rng.normal(size=60), colour=colours)
    config = TrainingConfig(path=path, predict=("y",), time="t", epochs=1, layers=("gru:3",))
    model = train_to_file(config, tmp_path / "m.safetensors").model
    for text, words in [
        ("t,y,color\n1,2,red\n", "no column 'colour'.*did you mean 'color'"),
        ("t,y,colour\n1,2,gren\n", "line 2, column 'colour': 'gren'.*did you mean 'green'"),
        ("t,y,colour\n1,,red\n", "line 2, column 'y': the value is missing"),
        (
            "t,y,colour\n1,x,red\n",
            "line 2: column 'y' holds numbers, but 'x' is.* --na 'x'$",
        ),
        ("t,y,colour\n1,2\n", "line 2: 2 cells"),
    ]:
        data = tmp_path / "bad.csv"
        data.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=words):
            predict_command.predict_file(model, data, tmp_path / "out.csv")
    with pytest.raises(DataError, match="is the file that is read"):
        predict_command.predict_file(model, path, path)


def test_a_model_that_the_engine_does_not_reproduce_is_an_error(tmp_path, monkeypatch):
    path = write_csv(tmp_path, y=noisy_sine(120))
    config = TrainingConfig(path=path, predict=("y",), epochs=2, layers=("gru:5",))
    result = train_to_file(config, tmp_path / "good.safetensors")
    assert verify(result.model, result.dataset) < 1e-5
    changed = {name: value.copy() for name, value in result.model.parameters.items()}
    changed["weight_hh_l0"][3, 2] += 0.01
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda path: Model(load(path).spec, changed))
    monkeypatch.setattr(
        "streamrnn.training.verify.trainer_outputs",
        lambda model, *rest: original(result.model, *rest),
    )
    from streamrnn.training.train import train_to_file as again

    with pytest.raises(TrainingError, match="does not reproduce its training: at step"):
        again(config, tmp_path / "bad.safetensors")
    assert [path.name for path in tmp_path.glob("bad*")] == ["bad.safetensors.checkpoint"]


from streamrnn.training.verify import trainer_outputs as original  # noqa: E402


def test_an_invalid_output_path_is_refused(tmp_path):
    config = TrainingConfig(path=str(CO2), predict=("co2",))
    with pytest.raises(TrainingError, match="kept for its configuration"):
        train_to_file(config, tmp_path / "model.toml")
    with pytest.raises(TrainingError, match="does not exist"):
        train_to_file(config, tmp_path / "absent" / "model.safetensors")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with TrainingProgress(console) as progress:
        for epoch in range(1, 101):
            progress(Evaluation(epoch, 100, 0.5, 0.25, 0.125))
    assert "validation 0.25" in text.getvalue()
    if not terminal:
        assert text.getvalue().count("\n") == 11
        assert "\x1b" not in text.getvalue()


@pytest.mark.parametrize("option", ["Site, name,unit", '"Site, name",unit'])
def test_groups_whose_names_hold_commas_are_put_together_again(tmp_path, option, capsys):
    """As `train` does; the cells `01` and `1` stay two streams."""
    y = noisy_sine(240)
    lines = [f"{('01', '1')[t % 2]},u,{y[t]:.4f}" for t in range(240)]
    data, model = tmp_path / "data.csv", tmp_path / "m.safetensors"
    data.write_text("\n".join(['"Site, name",unit,y', *lines]) + "\n", encoding="utf-8")
    options = ["--predict", "y", "--epochs", "1", "--layers", "gru:2", "--group", option]
    assert run(command, data, *options, "-o", model) == 0
    outputs = []
    for given in ([], ["--group", option]):
        assert run(predict_command, model, data, *given, "-o", "-") == 0
        captured = capsys.readouterr()
        assert "standard output: 240 rows of 2 streams" in captured.err
        outputs.append(captured.out[captured.out.index('"Site') :])
        assert main(["evaluate", str(model), str(data), "--json", *given]) == 0
        assert json.loads(capsys.readouterr().out)["num_streams"] == 2
    assert outputs[0] == outputs[1]
    assert outputs[0].splitlines()[0] == '"Site, name",unit,y_h1'
    assert outputs[0].splitlines()[1].startswith("01,u,")
    found = streamrnn.predict(model, data, group=["Site, name", "unit"])
    np.testing.assert_allclose(found["y_h1"][0], float(outputs[0].splitlines()[1][5:]), rtol=1e-6)
    for absent in (["--group", "Site"], ["--group", "Site, nam"]):
        with pytest.raises(DataError, match=r"no column 'Site.*', which tells the streams apart"):
            run(predict_command, model, data, *absent, "-o", "-")
    with pytest.raises(DataError, match="no column 'Site', which tells"):
        streamrnn.predict(model, data, group="Site")
