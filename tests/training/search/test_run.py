"""Searches that train: what they write, that they repeat, and that they go on after a break."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

import streamrnn
from streamrnn import Model
from streamrnn.commands import train as command
from streamrnn.errors import TrainingError, TrainingStopped
from streamrnn.training import TrainingConfig, train, train_to_file
from streamrnn.training.report import report_lines
from streamrnn.training.search.budget import Budget
from tests.support.tables import noisy_sine, write_csv
from tests.training.run.stop import StopAfter

BUDGET = Budget(3)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = write_csv(tmp_path_factory.mktemp("search"), y=noisy_sine(150))
    return TrainingConfig(path=path, predict=("y",), layers=("gru:3",), updates=120)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "m.safetensors"
    return train_to_file(config, path, budget=BUDGET, seeds=2), path


def test_the_configuration_that_was_written_repeats_it_without_a_search(whole, tmp_path):
    result, path = whole
    chosen = TrainingConfig.read(path.with_suffix(".toml"))
    assert chosen.replace(path=result.config.path) == result.config
    assert chosen.open_settings == ()
    again = train_to_file(chosen, tmp_path / "again.safetensors")
    assert "search" not in again.report
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.safetensors", "m.toml"]


def test_a_search_repeats_to_the_bit(whole, config):
    result, _ = whole
    again = train(config, budget=BUDGET, seeds=2)
    assert again.model.fingerprint == result.model.fingerprint
    for one, other in zip(
        again.report["search"]["trials"], result.report["search"]["trials"], strict=True
    ):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_the_report_has_a_table_and_the_seeds(whole):
    result, _ = whole
    trials = result.report["search"]["trials"]
    assert [trial["updates"] for trial in trials[:3]] == [100] * 3
    text = "\n".join(report_lines(result.report))
    assert f"search: {len(trials)} trainings, judged by the validation part" in text
    assert "2 seeds, mean and spread" in text
    (kept,) = (line for line in text.splitlines() if line.endswith("  kept"))
    assert f"{min(t['loss'] for t in trials if t['updates'] == 120):#.4g}" in kept
    losses = [t["loss"] for t in trials if t["updates"] == 120]
    assert result.history[-1].best == min(losses)
    assert all(t["test"]["y+1"]["rmse"] > 0 for t in trials if t["updates"] == 120)


@pytest.mark.parametrize("stops", [[60], [1, 40], [130, 250], [200, 60, 60]])
def test_a_search_that_was_stopped_goes_on_to_the_bit(whole, config, tmp_path, stops):
    path = tmp_path / "m.safetensors"
    for k, num_updates in enumerate(stops):
        try:
            result = train_to_file(
                config, path, stop=StopAfter(num_updates), resume=k > 0, budget=BUDGET, seeds=2
            )
            assert result.was_stopped
            assert Model.load(path).spec.training["updates"]["was_stopped"]
        except TrainingStopped:
            assert num_updates < 5 or k > 0  # what was saved before is better
        with pytest.raises(TrainingError, match="was not ended: go on with it"):
            train_to_file(config, path, budget=BUDGET, seeds=2)
    result = train_to_file(config, path, resume=True, budget=BUDGET, seeds=2)
    assert not result.was_stopped
    assert path.read_bytes() == whole[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "m.toml"]


def test_updates_that_are_given_are_not_changed_by_a_time(config, monkeypatch):
    monkeypatch.setattr("streamrnn.training.search.search._seconds_an_update", lambda _: 1e-3)
    result = train(config, budget=Budget(1, 10.0), seeds=1)
    assert result.config.updates == config.updates
    assert {t["updates"] for t in result.report["search"]["trials"]} == {100, 120}


def test_a_search_that_was_killed_in_its_first_trial_keeps_its_plan(config, tmp_path, monkeypatch):
    def killed(evaluation):
        raise KeyboardInterrupt

    path, lengths = tmp_path / "m.safetensors", []
    for k, measured_s in enumerate([1e-3, 2e-3]):
        timed = "streamrnn.training.search.search._seconds_an_update"
        monkeypatch.setattr(timed, lambda _, seconds=measured_s: seconds)
        with pytest.raises(KeyboardInterrupt):
            train_to_file(
                config.replace(updates=0), path, killed, resume=k > 0, budget=Budget(9, 10.0)
            )
        kept = json.loads(path.with_name("m.safetensors.search").read_text(encoding="utf-8"))
        lengths.append(kept["streamrnn.search"]["plan"]["updates"])
    assert lengths[0] == lengths[1]


def test_a_second_stop_does_not_put_a_worse_model_in_its_place(config, tmp_path):
    path = tmp_path / "m.safetensors"
    best = stopped(config, path)
    kept = json.loads(best.read_text(encoding="utf-8"))["streamrnn.search"]["saved"]
    assert kept == train_loss(path)
    before = path.read_bytes()
    with pytest.raises(TrainingStopped, match=r"saved before the break, is better"):
        train_to_file(config, path, stop=StopAfter(4), resume=True, budget=BUDGET, seeds=2)
    assert path.read_bytes() == before
    assert best.exists()


def train_loss(path):
    """Return the least validation loss of a series without a level, in network units."""
    report = Model.load(path).spec.training
    scale = Model.load(path).spec.outputs[0].scale
    return pytest.approx((report["errors"]["validation"]["y+1"]["rmse"] / scale) ** 2, rel=1e-4)


def stopped(config, path):
    train_to_file(config, path, stop=StopAfter(150), budget=BUDGET, seeds=2)
    return path.with_name(f"{path.name}.search")


def test_another_search_is_not_gone_on_with(config, tmp_path):
    path = tmp_path / "m.safetensors"
    kept = stopped(config, path).read_bytes()
    for changed, budget in ((config.replace(seed=4), BUDGET), (config, Budget(5))):
        with pytest.raises(TrainingError, match=r"is of another search: (budget|seed) differ"):
            train_to_file(changed, path, resume=True, budget=budget, seeds=2)
    assert path.with_name("m.safetensors.search").read_bytes() == kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: text.replace('"trials": [', '"trials": [7, '),
        lambda text: text.replace('"loss"', '"less"'),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"num_trials"', '"number"'),
        lambda text: "[]",
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_file_of_trials_is_refused(config, tmp_path, damage):
    path = tmp_path / "m.safetensors"
    file = stopped(config, path)
    file.write_text(damage(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(TrainingError, match="is damaged"):
        train_to_file(config, path, resume=True, budget=BUDGET, seeds=2)


def test_a_file_that_is_no_search_is_not_written_over(config, tmp_path):
    file = tmp_path / "m.safetensors.search"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(TrainingError, match="is no search of a training; it is not overwritten"):
        train_to_file(config, tmp_path / "m.safetensors", budget=BUDGET)
    assert file.read_text(encoding="utf-8") == "mine"


def run(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_the_command_searches_a_table_and_tells_all_of_it(config, tmp_path, capsys):
    path, log = tmp_path / "m.safetensors", tmp_path / "log"
    words = (config.path, "--predict", "y", "--layers", "gru:3", "--updates", 100)
    assert run(*words, "--budget", 2, "-o", path, "--log", log, "--json") == 0
    out, err = capsys.readouterr()
    trials = json.loads(out)["report"]["search"]["trials"]
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [line["ended"] for line in lines if "ended" in line] == [*range(1, len(trials) + 1)]
    assert {line["trial"] for line in lines if "trial" in line} == {*range(1, len(trials) + 1)}
    assert err.count("trial ") == len(trials)
    assert run(*words, "-o", path, "--json") == 0  # these settings say that nothing is searched
    assert "search" not in json.loads(capsys.readouterr().out)["report"]
    assert run(path.with_suffix(".toml"), "-o", tmp_path / "n.safetensors", "--json") == 0
    assert "search" not in json.loads(capsys.readouterr().out)["report"]


def test_the_api_has_a_budget(config):
    y = np.loadtxt(config.path, delimiter=",", skiprows=1, usecols=0)
    found = streamrnn.train({"y": y}, predict="y", layers=["gru:3"], updates=100, budget=2, seeds=1)
    assert len(found.report["search"]["trials"]) == 2  # no shorter ones
    plain = streamrnn.train({"y": y}, predict="y", layers=["gru:3"], updates=100)
    assert "search" not in plain.report
    assert plain.config.lags == 0
    assert Path(config.path).exists()
