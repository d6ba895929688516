"""Cells compared: the figures of `train`, outcomes known by construction, and what is refused."""

import argparse
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamrnn
from streamrnn import Model
from streamrnn.commands import compare as command
from streamrnn.errors import ModelFileError, TrainingError
from streamrnn.training import TrainingConfig, train
from streamrnn.training.baselines.bootstrap import Interval
from streamrnn.training.cells.compare import _Other, rate_budget, stacks_of
from streamrnn.training.cells.table import comparison_lines
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.search.budget import Budget
from tests.support.tables import noisy_sine, write_csv
from tests.training.run.stop import StopAfter

OPTIONS = ("--cells", "rnn,gru:4", "--units", 3, "--seeds", 2, "--updates", 60)


def run(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("cells"), y=noisy_sine(150))


@pytest.fixture(scope="module")
def bits():
    """Signs by chance: what was there two rows ago can only be remembered, and noise cannot."""
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], 600)
    return {"x": x, "before": np.roll(x, 2), "noise": rng.normal(size=600)}


def test_each_cell_is_what_train_gives_with_its_layers_and_seeds(path, tmp_path, capsys):
    assert run(path, "--predict", "y", *OPTIONS, "--json", "-o", tmp_path / "kept") == 0
    found = json.loads(capsys.readouterr().out)
    assert [cell["layers"] for cell in found["cells"]] == ["rnn_tanh:3", "gru:4"]
    for cell in found["cells"]:
        layers = (cell["layers"],)
        config = TrainingConfig(path=path, predict=("y",), layers=layers, lags=0, updates=60)
        alone = train(config, seeds=2)
        expected = alone.report["search"]["seeds"]["test"]["y+1"]["rmse"]
        assert {name: cell["test"]["y+1"][name] for name in ("mean", "spread")} == expected
        assert len(cell["test"]["y+1"]["of_seeds"]) == 2
        assert cell["seeds"] == [0, 1]
        assert cell["memory"]["uses_steps"] == alone.report["memory"]["history"]["uses_steps"]
        assert cell["num_parameters"] == alone.model.num_parameters
        assert math.isfinite(cell["step_us"])
        assert cell["step_us"] > 0
        kept = Model.load(found["models"][cell["layers"]])
        assert kept.fingerprint == alone.model.fingerprint
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "gru-4.safetensors",
        "rnn_tanh-3.safetensors",
    ]


def test_the_cell_that_can_remember_is_kept_where_memory_is_needed(bits):
    found = streamrnn.compare(
        {"x": bits["x"], "before": bits["before"]},
        cells=["rnn_tanh:1", "gru:12"],
        predict="before",
        horizon=0,
        updates=300,
        learning_rate=0.02,
    ).report
    told = found["targets"]["before"]
    assert (told["best"], told["keep"], told["is_clear"]) == ("gru:12", "gru:12", True)
    assert told["against"]["rnn_tanh:1"]["high"] < 0.5
    assert told["verdict"].startswith("keep gru:12: its rmse is ")
    gru = found["cells"][1]
    assert gru["memory"]["has_skill"]
    assert 2 <= gru["memory"]["uses_steps"] < 10  # without two nothing is known
    assert gru["learning_rate"] == 0.02


def test_nothing_can_be_told_of_noise_and_the_smallest_is_taken(bits):
    found = streamrnn.compare(
        {"x": bits["x"], "noise": bits["noise"]},
        cells=("lstm", "gru"),
        units=2,
        predict="noise",
        horizon=0,
        updates=40,
        seeds=2,
    ).report
    told = found["targets"]["noise"]
    assert not told["is_clear"]
    assert told["keep"] == "gru:2"
    assert told["verdict"].startswith("cannot tell ")
    assert told["verdict"].endswith("take the one with the fewest parameters, gru:2")
    text = "\n".join(comparison_lines(found))
    assert f"  {told['baseline']['name']} " in text
    one, other = found["cells"]
    one = one | {"memory": {"uses_steps": 5, "tried_steps": 64, "has_skill": False}}
    other = other | {"memory": {"uses_steps": 64, "tried_steps": 64, "has_skill": True}}
    lines = list(comparison_lines(found | {"cells": [one, other | {"num_diverged": 1}]}))
    assert " no skill " in lines[3]
    assert " 64 or more " in lines[4]
    assert "(1 diverged)" in lines[4]


def test_each_cell_chooses_among_the_same_rates(path):
    cells = ("gru:2", "rnn:2")
    found = streamrnn.compare(path, predict="y", cells=cells, seeds=2, budget=3, updates=100)
    for each in found.candidates:
        trials = each.result.report["search"]["trials"]
        assert {trial["learning_rate"] for trial in trials} == {0.003, 0.01, 0.001}
        assert {trial["lags"] for trial in trials} == {0}
        assert len(each.trials) == 2


@given(ratio=st.floats(0.1, 2.0), above=st.floats(0.0, 1.0), seeds_differ=st.booleans())
def test_one_is_worse_only_beyond_the_chance_of_rows_and_of_seeds(ratio, above, seeds_differ):
    nobody: Any = None
    other = _Other(nobody, Interval(ratio, ratio / 2, ratio + above), "", seeds_differ)
    assert other.is_worse == (seeds_differ and ratio + above < 1.0)


def test_the_budget_is_a_number_of_rates():
    assert rate_budget("auto") == Budget(3)
    assert rate_budget("auto", {"learning_rate": 0.1}) is None
    assert rate_budget("auto", {"updates": 10}) is None
    assert rate_budget("5", {"updates": 10}) == Budget(5)
    assert rate_budget("off") is None
    with pytest.raises(TrainingError, match="a slower cell would be trained less"):
        rate_budget("60s")


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (["gru"], "give 2 to 16 different ones"),
        (["gru", "gru:8"], "give 2 to 16 different ones"),
        (["gru", "lstn"], "unknown cell 'lstn' .did you mean 'lstm'"),
        (["gru", ""], "unknown cell"),
        (["gru", "lstm:0"], "write cell and hidden size"),
        (["gru", "lstm:8+"], "unknown cell"),
    ],
)
def test_cells_that_cannot_be_compared_are_refused(cells, what):
    with pytest.raises(TrainingError, match=what):
        stacks_of(cells, 8)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--layers", "gru:4"), "give --cells"),
        (("--seeds", 1), "one training shows no spread"),
        (("--start-from", "m.safetensors"), "leave it out"),
        (("--budget", "1m"), "number of trials"),
    ],
)
def test_contradictions_are_refused_before_a_training(path, words, what):
    with pytest.raises(TrainingError, match=what):
        run(path, "--predict", "y", *words)


def test_a_file_that_is_no_model_is_never_overwritten(path, tmp_path):
    mine = tmp_path / "gru-4.safetensors"
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises((TrainingError, ModelFileError), match="not overwritten"):
        run(path, "--predict", "y", *OPTIONS, "-o", tmp_path)
    assert mine.read_text(encoding="utf-8") == "mine"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stops", [[20], [90], [130, 5], [235]])
def test_a_comparison_that_was_stopped_goes_on_to_the_bit(
    path, tmp_path, monkeypatch, capsys, stops
):
    """Two cells of two seeds: 60 updates each."""
    words = (path, "--predict", "y", *OPTIONS, "--json", "-o")
    assert run(*words, tmp_path / "whole") == 0
    whole = json.loads(capsys.readouterr().out)
    for k, num_updates in enumerate(stops):
        stop = StopAfter(num_updates)
        monkeypatch.setattr(command, "StopSignals", lambda notice, stop=stop: stop)
        more = ("--resume",) if k else ()
        assert run(*words, tmp_path / "broken", *more) == 130
        told = capsys.readouterr()
        assert "To go on, give the same command with --resume" in told.err
        assert re.search(r"stopped in \S+: [01] of 2 cells are done", told.err)
        assert not told.out
        with pytest.raises(TrainingError, match=r"not ended: go on with it \(--resume\)"):
            run(*words, tmp_path / "broken")
        with pytest.raises(TrainingError, match=r"with .*rnn_tanh-3.* not among the cells asked"):
            run(path, *words[1:], tmp_path / "broken", "--cells", "lstm,gru", "--resume")
    monkeypatch.setattr(command, "StopSignals", StopSignals)
    assert run(*words, tmp_path / "broken", "--resume") == 0
    found = json.loads(capsys.readouterr().out)
    assert names(tmp_path / "broken") == names(tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for cell in (*found["cells"], *whole["cells"]):
        del cell["step_us"]
    assert found["cells"] == whole["cells"]
    assert found["targets"] == whole["targets"]
    with pytest.raises(TrainingError, match="nothing to go on with"):
        run(*words, tmp_path / "broken", "--resume")


def test_a_comparison_of_which_nothing_is_kept_says_so(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "StopSignals", lambda notice: StopAfter(20))
    words = (path, "--predict", "y", *OPTIONS)
    assert run(*words) == 130
    assert "stopped in rnn_tanh:3: 0 of 2 cells are done. Nothing is left of it" in (
        capsys.readouterr().err
    )
    with pytest.raises(TrainingError, match="give the folder"):
        run(*words, "--resume")


@pytest.mark.parametrize("num_updates", [20, 90])  # in its first training, and in its second one
def test_a_comparison_goes_on_with_its_own_settings_only(path, tmp_path, monkeypatch, num_updates):
    words = (path, "--predict", "y", *OPTIONS, "-o", tmp_path / "kept")
    monkeypatch.setattr(command, "StopSignals", lambda notice: StopAfter(num_updates))
    assert run(*words) == 130
    before = {name: (tmp_path / "kept" / name).read_bytes() for name in names(tmp_path / "kept")}
    with pytest.raises(TrainingError, match="is of another search: learning_rate, open differ"):
        run(*words, "--resume", "--learning-rate", "0.5")
    after = {name: (tmp_path / "kept" / name).read_bytes() for name in names(tmp_path / "kept")}
    assert after == before
