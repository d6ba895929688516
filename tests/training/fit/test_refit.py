"""`--refit`: once more on every row, by what the measured training has settled."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import streamrnn
from streamrnn import Model
from streamrnn.errors import TrainingError
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.loop import fit
from streamrnn.training.fit.optimisers import Adam
from streamrnn.training.fit.refit import refit
from streamrnn.training.fit.trainer import Trainer
from streamrnn.training.report import evaluation_lines, report_lines
from streamrnn.training.unseen import evaluate_file
from streamrnn_server.cli import main
from tests.support.tables import noisy_sine, write_csv
from tests.training.run.stop import StopAfter


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("refit")
    day = np.arange("2001-01-01", "2001-09-08", dtype="datetime64[D]")
    path = write_csv(directory, day=day, y=noisy_sine(250).round(5))
    return TrainingConfig(
        path=path, predict=("y",), layers=("gru:4",), epochs=6, truncation_steps=16, refit=True
    )


def parameters(model):
    return {name: value.tobytes() for name, value in model.parameters.items()}


@pytest.fixture(scope="module")
def refitted(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return train_to_file(config, path), path


def test_the_chosen_model_is_that_of_a_training_without_refit(config, refitted):
    result, path = refitted
    plain = streamrnn.train(config.path, predict="y", layers=["gru:4"], epochs=6,
                            truncation_steps=16)  # fmt: skip
    chosen = Model.load(path.with_name("m.chosen.safetensors"))
    assert parameters(chosen) == parameters(plain.model) != parameters(result.model)
    assert "refit" not in chosen.spec.training
    assert result.report["errors"] == plain.report["errors"]
    # Without a refit there is nothing beside the model.
    assert plain.chosen is None
    plain.save(path.with_name("plain.safetensors"))
    assert not path.with_name("plain.chosen.safetensors").exists()


def test_a_refit_has_the_updates_of_the_best_weights_at_their_rates_and_every_target(
    config, monkeypatch
):
    dataset = make_dataset(config, read_table(config.path))
    rates: list[float] = []
    seen: set[int] = set()
    update, train = Adam.update, Trainer.train

    def note_rate(self, parameters, gradient, rate, decay):
        rates.append(rate)
        update(self, parameters, gradient, rate, decay)

    def note_rows(self, piece):
        seen.update(range(*piece_rows(self, piece)))
        train(self, piece)

    def piece_rows(trainer, piece):
        segments = [trainer.segments[k] for k in piece.rows]
        return min(s.start for s in segments), max(s.stop for s in segments)

    monkeypatch.setattr(Adam, "update", note_rate)
    monkeypatch.setattr(Trainer, "train", note_rows)
    fitted = fit(dataset)
    assert seen == set(range(149))
    num_updates = fitted.best_update
    expected = rates[:num_updates]
    rates.clear()
    network: Any = refit(dataset, fitted, lambda: False)
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    assert seen == set(range(249))
    again: Any = refit(dataset, fitted, lambda: False)
    np.testing.assert_array_equal(again.flat, network.flat)


def test_a_category_of_the_test_part_alone_is_learned(tmp_path):
    rng = np.random.default_rng(0)
    x = np.array(["a", "b", "c"])[rng.integers(0, 2, 400) + (np.arange(400) >= 300)]
    y = np.select([x == "a", x == "b"], [0.0, 1.0], 4.0) + rng.normal(0, 0.1, 400).round(3)
    result: Any = streamrnn.train(
        {"x": x, "y": y}, predict="y", inputs=["x"], horizon=0, layers=["rnn_tanh:4"],
        updates=300, learning_rate=0.02, truncation_steps=16, refit=True, split=[0.5, 0.2, 0.3],
    )  # fmt: skip
    before, after = (
        np.abs(streamrnn.predict(model, {"x": x})["y"][300:] - y[300:]).mean()
        for model in (result.chosen, result.model)
    )
    assert after < 0.5 * before


def test_the_report_says_what_was_refitted_and_that_it_was_not_measured(config, refitted):
    result, path = refitted
    stored = Model.load(path).spec.training["refit"]
    assert stored["rows"] == [1, 250]
    assert stored["times"] == ["2001-01-01", "2001-09-07"]
    assert stored["sha256"] == read_table(config.path).sha256
    assert stored["is_measured"] is False
    text = "\n".join(report_lines(result.report))
    assert "not itself measured" in text
    assert "rows, 1 to 250 (2001-01-01 to 2001-09-07)" in text
    assert "the model before the refit   " in text
    assert "this model   " not in text


def test_the_configuration_repeats_it_to_the_bit(refitted, tmp_path, capsys):
    result, path = refitted
    assert "refit = true" in path.with_suffix(".toml").read_text(encoding="utf-8")
    again = tmp_path / "again.safetensors"
    assert main(["train", str(path.with_suffix(".toml")), "-o", str(again), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["chosen"] == str(tmp_path / "again.chosen.safetensors")
    assert Model.load(again).fingerprint == result.model.fingerprint
    assert Model.load(facts["chosen"]).fingerprint == result.chosen.fingerprint


@pytest.mark.parametrize(("setting", "value"), [("refit", True), ("set", "true")])
def test_the_command_takes_it_as_an_option_and_a_setting(config, tmp_path, setting, value):
    out = tmp_path / "m.safetensors"
    option = ["--refit"] if setting == "refit" else ["--set", f"refit={value}"]
    args = ["train", config.path, "--predict", "y", "-o", str(out), "--epochs", "1"]
    assert main([*args, "--layers", "gru:2", *option]) == 0
    assert (tmp_path / "m.chosen.safetensors").exists()


def test_a_setting_that_is_no_truth_value_is_refused():
    for value in ("yes", 1, None):
        given: Any = {"path": "a.csv", "refit": value}
        with pytest.raises(TrainingError, match="it must be true or false"):
            TrainingConfig(**given)


def test_a_chosen_model_is_written_over_no_other_file(config, tmp_path):
    (tmp_path / "m.chosen.safetensors").write_bytes(b"mine")
    with pytest.raises(TrainingError, match=r"m\.chosen\.safetensors exists and is no model"):
        train_to_file(config, tmp_path / "m.safetensors")
    assert (tmp_path / "m.chosen.safetensors").read_bytes() == b"mine"


def test_a_stopped_refit_leaves_the_chosen_model_and_goes_on_to_the_bit(
    config, refitted, tmp_path, monkeypatch
):
    path = tmp_path / "m.safetensors"
    calls = refitted[0].history[-1].num_updates + 6 + 3
    stopped = train_to_file(config, path, stop=StopAfter(calls))
    assert stopped.was_stopped
    assert stopped.chosen is None
    assert parameters(Model.load(path)) == parameters(refitted[0].chosen)
    ended = train_to_file(config, path, resume=True)
    assert ended.model.fingerprint == refitted[0].model.fingerprint
    assert not (tmp_path / "m.safetensors.checkpoint").exists()


def rows_of(path, rows, tmp_path, more=0):
    with open(path, encoding="utf-8") as file:
        header, *lines = file.read().splitlines()
    days = np.arange("2001-09-08", "2002-09-08", dtype="datetime64[D]")
    y = noisy_sine(len(days), seed=7).round(5)
    new = [f"{days[k]},{y[k]}" for k in range(more)]
    out = tmp_path / "new.csv"
    out.write_text("\n".join([header, *lines[rows], *new]) + "\n", encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("rows", "more", "refit_rows", "chosen_rows"),
    [
        (slice(0, None), 0, [1, 249], [1, 199]),
        (slice(0, None), 60, [1, 249], [1, 199]),
        (slice(200, None), 40, [1, 49], None),
        (slice(90, 230), 0, [1, 140], [1, 109]),
        (slice(0, 0), 80, None, None),
    ],
)
def test_evaluate_marks_the_rows_that_were_learned_from(
    config, refitted, tmp_path, rows, more, refit_rows, chosen_rows
):
    path = rows_of(config.path, rows, tmp_path, more)
    for model, expected in (
        (refitted[0].model, refit_rows),
        (refitted[0].chosen, chosen_rows),
    ):
        found = evaluate_file(model, path)
        assert found["in_sample"]["rows"] == ({"": expected} if expected else {})
        text = "\n".join(evaluation_lines(found))
        assert ("in-sample:" in text) == (expected is not None)
        assert found["has_training_rows"] or not expected


def test_in_sample_rows_and_the_others_are_measured_apart(config, refitted, tmp_path):
    path = rows_of(config.path, slice(0, None), tmp_path, 60)
    model = refitted[0].model
    found = evaluate_file(model, path)["in_sample"]
    table = read_table(path)
    y = np.asarray(table.column("y").numbers)
    forecast = streamrnn.predict(model, path)["y_h1"]
    errors = (forecast[:-1] - y[1:]) ** 2
    assert found["errors"]["y+1"]["rmse"] == pytest.approx(np.sqrt(errors[:249].mean()), rel=1e-5)
    other = found["other_errors"]["y+1"]["rmse"]
    assert other == pytest.approx(np.sqrt(errors[249:].mean()), rel=1e-5)


@pytest.mark.parametrize(
    "seen",
    [
        None, [], {"window": 4}, {"window": 10**9, "step": 1, "streams": [[9, ["1"]]]},
        {"window": 4, "step": 0, "streams": [[9, ["1"]]]},
        {"window": 4, "step": 4, "streams": [[9, ["f" * 99]]]},
        {"window": 4, "step": 4, "streams": [[9, [1]]]}, {"window": 4, "step": 4, "streams": [9]},
        {"window": 4, "step": float("inf"), "streams": []},
    ],
)  # fmt: skip
def test_a_damaged_report_marks_nothing(config, refitted, seen):
    model = refitted[0].model
    training = {**model.spec.training, "seen": seen}
    if isinstance(seen, dict) and seen.get("step") == float("inf"):
        training["seen"] = {**seen, "step": "inf"}
    damaged = Model(replace(model.spec, training=training), model.parameters)
    found = evaluate_file(damaged, config.path)
    assert found["in_sample"]["num_rows"] == 0
