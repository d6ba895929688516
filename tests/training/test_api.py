"""``streamrnn.train`` and ``streamrnn.predict``: frames in, frames out, as the command does it."""

import os
import signal
from typing import Any

import numpy as np
import pytest

import streamrnn
from streamrnn import Engine
from streamrnn.errors import DataError, TrainingError
from streamrnn.training import TrainingConfig
from streamrnn.training import train as train_config
from streamrnn.training.report import report_lines
from tests.support.tables import noisy_sine, write_csv

SMALL: dict[str, Any] = {"epochs": 2, "layers": ["gru:4"]}


def columns():
    y = noisy_sine(160).round(4)
    when = np.arange("2000-01-01", "2000-06-09", dtype="datetime64[D]").astype("datetime64[ms]")
    return {"when": when, "other": np.cos(np.arange(160)).round(3), "y": y}


@pytest.mark.parametrize("kind", ["mapping", "pandas", "polars"])
def test_frames_train_and_predict_as_their_file_does_whatever_the_order(tmp_path, kind, capfd):
    data = columns()
    path = write_csv(tmp_path, **{**data, "when": data["when"].astype("datetime64[D]")})
    expected = train_config(TrainingConfig(path=path, predict=("y",), epochs=2, layers=("gru:4",)))
    shuffled = np.random.default_rng(0).permutation(160)
    mixed = {name: data[name][shuffled] for name in ("y", "when", "other")}
    if kind == "mapping":
        frame, again = data, mixed
    else:
        module = pytest.importorskip(kind)
        frame, again = module.DataFrame(data), module.DataFrame(mixed)
    result = streamrnn.train(frame, predict="y", **SMALL)
    for name, value in expected.model.parameters.items():
        np.testing.assert_array_equal(result.model.parameters[name], value)
    assert len(result.history) == 2
    y = streamrnn.predict(result.model, again)
    assert type(y) is type(again)
    assert list(getattr(y, "columns", y)) == ["y_h1"]
    x = {name: data[name] for name in ("other", "y")}
    in_order = Engine(result.model).steps("s", x)[:, 0]
    np.testing.assert_array_equal(np.asarray(y["y_h1"]), in_order[shuffled])
    result.save(tmp_path / "m.safetensors")
    by_path = streamrnn.predict(tmp_path / "m.safetensors", path)
    np.testing.assert_array_equal(by_path["y_h1"], in_order)
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.csv", "m.safetensors"]


def test_a_result_shows_its_model_and_prints_its_report():
    result = streamrnn.train(columns(), predict="y", **SMALL)
    assert repr(result) == f"<TrainingResult {result.model!r}; print it for the report>"
    assert str(result).splitlines() == list(report_lines(result.report))


def test_a_frame_keeps_its_index():
    pd = pytest.importorskip("pandas")
    data = columns()
    frame = pd.DataFrame({"y": data["y"]}, index=pd.DatetimeIndex(data["when"], name="day"))
    result = streamrnn.train(frame, predict="y", **SMALL)
    assert result.config.time == "day"
    y = streamrnn.predict(result.model, frame.iloc[::-1])
    assert y.index.equals(frame.index[::-1])
    np.testing.assert_array_equal(
        y["y_h1"].to_numpy()[::-1], Engine(result.model).steps("s", data["y"])[:, 0]
    )


def test_sequences_with_a_class_each():
    rng = np.random.default_rng(0)
    labels = [("up", "down")[k % 2] for k in range(40)]
    xs = [rng.normal(0, 0.1, (5 + k % 4, 1)) + (1 - 2 * (k % 2)) for k in range(40)]
    result = streamrnn.train((xs, labels), epochs=20, layers=["gru:4"])
    assert result.report["data"]["split"] == "20% of the streams, drawn by chance"
    y = streamrnn.predict(result.model, (xs, None))
    assert [item.shape for item in y] == [(len(x), 2) for x in xs]
    names = [item.name for item in result.model.spec.outputs]
    assert [names[int(item[-1].argmax())] for item in y] == labels


def test_settings_that_are_not_known_and_data_that_does_not_fit_are_refused():
    with pytest.raises(TrainingError, match=r"unknown setting 'epoch' \(did you mean 'epochs'"):
        streamrnn.train(columns(), predict="y", epoch=3)
    with pytest.raises(TrainingError, match="unknown setting 'path'"):
        streamrnn.train(columns(), predict="y", path="x")
    with pytest.raises(DataError, match="no column 'z'"):
        streamrnn.train(columns(), predict="z")
    result = streamrnn.train(columns(), predict="y", **SMALL)
    with pytest.raises(DataError, match="no column 'other'"):
        streamrnn.predict(result.model, {"y": [1.0, 2.0]})


def test_an_interrupt_gives_the_best_so_far():
    def interrupt(epoch):
        if epoch.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = streamrnn.train(
        columns(), predict="y", epochs=200, layers=["gru:4"], progress=interrupt
    )
    assert result.was_stopped
    assert len(result.history) < 5
    assert result.report["updates"]["was_stopped"]
