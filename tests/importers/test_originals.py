"""The original is run where its framework is installed, and compared with the model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest

from streamrnn.importers.original import run
from streamrnn.importers.original.keras import plan_keras
from streamrnn.importers.original.plan import NotRun
from streamrnn.importers.original.trial import num_trial_steps
from streamrnn.importers.proof import Recording, prove
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.model.model import Model
from streamrnn_server.cli import main
from tests.importers.shared import shared_files
from tests.support.models import random_model

ONNX_FILES = [path for path in shared_files("models", "*.onnx") if path.stat().st_size < 1 << 20]
KERAS_FILES = shared_files("models", "keras_*.keras")


def exported(path, *layers, **more):
    pytest.importorskip("onnx")
    from streamrnn.exporters.onnx.model import export_onnx

    path.write_bytes(export_onnx(random_model(np.random.default_rng(0), layers, **more)).data)
    return path


def test_a_state_that_comes_back_is_run_as_a_sequence_and_step_by_step(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = exported(tmp_path / "m.onnx", ("lstm", 5), ("gru", 4))
    assert main(["import", str(path), "-o", str(tmp_path / "m")]) == 0
    printed = capsys.readouterr().out
    assert "a sequence of 200 steps" in printed
    assert "200 steps, one by one" in printed
    assert "proved with 800 outputs of the original" in printed
    proof = Model.load(tmp_path / "m").proof
    assert proof["compared_with"].startswith("onnxruntime ")
    assert proof["num_outputs"] == 800
    assert main(["import", str(path), "-o", str(tmp_path / "n"), "--no-run"]) == 0
    assert "NOT PROVED" in capsys.readouterr().out
    assert Model.load(tmp_path / "n").fingerprint == Model.load(tmp_path / "m").fingerprint


@pytest.mark.parametrize("square", [False, True], ids=["more steps", "as many steps as channels"])
def test_an_original_with_its_channels_before_the_steps_is_run(tmp_path, capsys, square):
    pytest.importorskip("onnxruntime")
    from tests.importers.files.onnx import H, draw, graph_file

    nodes = [
        H.make_node("Conv", ["X", "K"], ["A"], pads=[2, 0]),
        H.make_node("Sigmoid", ["A"], ["B"]),
        H.make_node("Mul", ["X", "B"], ["Y"]),
    ]
    shape = [1, 16, 16 if square else "t"]
    path = graph_file(tmp_path / "m.onnx", nodes, {"K": draw(16, 16, 3)}, {"X": shape})
    assert main(["import", str(path), "-o", str(tmp_path / "m")]) == 0
    assert "proved with" in capsys.readouterr().out


def test_an_original_of_one_place_of_several_channels_a_step_is_run(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    from tests.importers.files.onnx import H, graph_file
    from tests.importers.graphs.made import NEW, conv_cache

    nodes, tensors, _ = conv_cache(NEW["a slice of all"])
    nodes[0] = H.make_node("Identity", ["X"], ["U"])
    inputs = {"X": [1, 3, 1], "S": [1, 3, 2]}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, ("Y", "S_out"))
    assert main(["import", str(path), "-o", str(tmp_path / "m")]) == 0
    printed = capsys.readouterr().out
    assert "one by one" in printed
    assert "proved with" in printed


def test_an_original_that_answers_otherwise_keeps_the_model_from_being_written(
    tmp_path, capsys, monkeypatch
):
    path = exported(tmp_path / "m.onnx", ("lstm", 5))
    x = np.zeros((1, 4, 3), np.float32)
    y = np.ones((1, 4, 2))
    recording = Recording(x, y, np.dtype(np.float32), "another")
    monkeypatch.setattr(
        "streamrnn.commands.import_model.record_original", lambda *_: ([recording], "")
    )
    assert main(["import", str(path), "-o", str(tmp_path / "m")]) == 1
    assert "check failed" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_without_the_framework_the_reason_is_told(tmp_path, monkeypatch, capsys):
    path = exported(tmp_path / "m.onnx", ("lstm", 5))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["import", str(path), "-o", str(tmp_path / "m")]) == 0
    printed = capsys.readouterr().out
    assert "note: onnxruntime is not installed, so the original was not run" in printed
    assert "NOT PROVED" in printed


@pytest.mark.parametrize(
    ("framework", "reason"),
    [
        ("raise ValueError('no such\\noperator')", "says ValueError: no such operator"),
        ("import os; os.kill(os.getpid(), 11)", r"crashed \(code -11\)"),
        ("print('hello'); raise MemoryError", "says MemoryError"),
    ],
)
def test_a_framework_that_fails_ends_nothing(tmp_path, monkeypatch, framework, reason):
    path = exported(tmp_path / "m.onnx", ("lstm", 5))
    found = import_file(path)
    stand_in = tmp_path / "onnxruntime"
    stand_in.mkdir()
    (stand_in / "__init__.py").write_text(framework)
    monkeypatch.syspath_prepend(str(tmp_path))
    recordings, why = run.record_original(str(path), found)
    assert recordings == []
    assert "the original was not run" in why
    assert re.search(reason, why)


@pytest.mark.parametrize("path", ONNX_FILES, ids=lambda path: path.name)
def test_onnxruntime_agrees_with_every_model(path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    try:
        found = import_file(path)
    except Exception:  # tests/importers/test_shared_models.py knows which
        pytest.skip("not imported")
    recordings, why = run.record_original(str(path), found)
    if path.stem in ("onnx_lstm_f64", "onnx_lstm_layout1"):  # onnxruntime has no such LSTM
        assert "not run" in why
        return
    assert recordings
    assert [prove(found.model, item).failure for item in recordings] == [None] * len(recordings)


@pytest.mark.slow
@pytest.mark.parametrize("path", KERAS_FILES, ids=lambda path: path.name)
def test_keras_agrees_with_every_model(path):
    pytest.importorskip("h5py")
    pytest.importorskip("keras")
    try:
        found = import_file(path)
    except Exception:
        pytest.skip("not imported")
    recordings, why = run.record_original(str(path), found)
    assert recordings, why
    assert [prove(found.model, item).failure for item in recordings] == [None] * len(recordings)


NESTED = """
import sys, keras
L = keras.layers
i = keras.Input((None, 3))
f = keras.Model(i, L.Dense(5)(L.LSTM(4, return_sequences=True)(i)), name="inner")
inner = keras.Sequential([f, L.BatchNormalization(), L.Dense(4)])
outer = [L.Input((None, 3)), inner, L.GRU(2, return_sequences=True)]
keras.Sequential(outer).save(sys.argv[1])
j = keras.Input((None, 3))
keras.Model(j, L.Dense(2)(inner(j))).save(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_keras_agrees_with_models_within_models(tmp_path, ending):
    pytest.importorskip("h5py")
    pytest.importorskip("keras")
    paths = [str(tmp_path / f"{k}.{ending}") for k in range(2)]
    subprocess.run([sys.executable, "-c", NESTED, *paths], check=True, capture_output=True)
    for path in paths:
        found = import_file(path)
        recordings, why = run.record_original(path, found)
        assert recordings, why
        assert [prove(found.model, item).failure for item in recordings] == [None] * len(recordings)


SIDE_BY_SIDE = """
import sys, keras
L = keras.layers
x, t = keras.Input((None, 3)), keras.Input((None, 2))
h = L.LSTM(4, return_sequences=True)(L.Concatenate()([x, t]))
keras.Model([x, t], [L.Dense(2)(h), L.Dense(1, activation="sigmoid")(h)]).save(sys.argv[1])
"""


@pytest.mark.slow
def test_keras_agrees_with_several_inputs_and_outputs(tmp_path):
    pytest.importorskip("h5py")
    pytest.importorskip("keras")
    path = str(tmp_path / "m.keras")
    subprocess.run([sys.executable, "-c", SIDE_BY_SIDE, path], check=True, capture_output=True)
    found = import_file(path)
    recordings, why = run.record_original(path, found)
    assert recordings, why
    assert [prove(found.model, item).failure for item in recordings] == [None] * len(recordings)


def keras_archive(tmp_path, **change):
    pytest.importorskip("h5py")
    from tests.importers.files.keras import archive, dense, recurrent, sequential

    layers = [recurrent("LSTM"), dense()]
    config = sequential(layers)
    config["config"]["layers"][1]["config"] |= change
    return archive(tmp_path / "m.keras", layers, config)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel_initializer": {"module": "os", "class_name": "system"}}, "the module 'os'"),
        ({"kernel_constraint": {"class_name": "function", "config": "x"}}, "holds functions"),
    ],
)
def test_keras_makes_no_object_of_anything_but_its_own(tmp_path, monkeypatch, change, reason):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.15.1")
    path = keras_archive(tmp_path, **change)
    model = import_file(path).model
    with pytest.raises(NotRun, match=reason):
        plan_keras(str(path), model)


def test_a_file_of_another_keras_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0")
    path = keras_archive(tmp_path)
    with pytest.raises(NotRun, match=r"Keras 3.15.1 made it, not 4.0.0"):
        plan_keras(str(path), import_file(path).model)


def test_what_lacks_its_first_state_is_not_run(tmp_path):
    pytest.importorskip("onnx")
    from tests.importers.files.onnx import H, draw, graph_file, weights

    tensors = weights("GRU") | {"h0": draw(1, 1, 4)}
    node = H.make_node("GRU", ["X", "W", "R", "B", "", "h0"], ["Y"])
    path = graph_file(tmp_path / "m.onnx", [node], tensors)
    found = import_file(path, TorchOptions(first_state="zeros"))
    recordings, why = run.record_original(str(path), found)
    assert recordings == []
    assert "first state was left out" in why or "not installed" in why


def test_large_models_are_compared_over_fewer_steps():
    small = random_model(np.random.default_rng(0), [("lstm", 4)])
    large = random_model(np.random.default_rng(0), [("gru", 1000)])
    assert num_trial_steps(small) == 200
    assert 10 <= num_trial_steps(large) < 100
