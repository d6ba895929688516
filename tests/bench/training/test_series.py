"""`streamrnn bench training` on made series of seconds: who is judged on what, and how."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from streamrnn.training.baselines.autoregression import Autoregression
from streamrnn.training.baselines.compare import compare
from streamrnn.training.baselines.families import fit_baselines
from streamrnn.training.baselines.target import Baseline, Prediction, targets_of
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.train import TrainingResult
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.training import measure as measuring
from streamrnn_bench.training import run
from streamrnn_bench.training.lstm import Effort
from streamrnn_bench.training.measure import Against, Measured, effort_of, measure_file
from streamrnn_bench.training.prepare import columns
from streamrnn_bench.training.rivals import Rivals, checked, fit_rivals
from streamrnn_bench.training.show import lines, markdown
from streamrnn_bench.training.task import Task
from streamrnn_bench.training.tasks import tasks_of
from streamrnn_server.cli import main

EFFORT = Effort(2, 10, 3, 20, batch_size=8, truncation_steps=32)


def made_task(name, predict, **changes):
    return Task(name, "made", "", (), columns(("y",)), "", predict=predict, time="", **changes)


@pytest.fixture(scope="module")
def swing(tmp_path_factory):
    """A damped swing with noise: an AR(2), 600 rows, [path]."""
    rng = np.random.default_rng(3)
    y = np.zeros(600)
    for t in range(2, len(y)):
        y[t] = 1.6 * y[t - 1] - 0.8 * y[t - 2] + rng.normal()
    path = tmp_path_factory.mktemp("swing") / "swing.csv"
    path.write_text("y\n" + "\n".join(f"{value:.9g}" for value in y) + "\n")
    return path


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Classes that follow each other in a ring, nine times of ten, [path]."""
    rng = np.random.default_rng(4)
    code = np.cumsum(rng.random(500) < 0.9) % 3
    path = tmp_path_factory.mktemp("states") / "states.csv"
    path.write_text("y\n" + "\n".join("abc"[k] for k in code) + "\n")
    return path


def dataset_of(path, **settings):
    config = TrainingConfig(path=str(path), predict=("y",), time="", horizon=(1,), **settings)
    dataset = make_dataset(config, read_table(path, config.read_options(), config.kinds()))
    [target] = targets_of(dataset.config, dataset.spec)
    return dataset, target


SHORT = {"epochs": 2, "layers": ("lstm:4",), "lags": 0}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(measuring, "LEAST_TARGETS", 100)


@pytest.fixture(scope="module")
def measured(swing):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "LEAST_TARGETS", 100)
        return measure_file(made_task("swing", "y"), swing, SHORT, peers=())


# The judgement


def against(ratio, low, high):
    return Against("some baseline", 1.0, 1.0, ratio, low, high)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "holds"),
    [
        (0.9, 0.8, 1.0, True),
        (1.03, 1.01, 1.05, True),  # within 3 %
        (1.2, 0.99, 1.4, True),  # within the interval
        (1.031, 1.001, 1.06, False),
    ],
)
def test_ours_holds_unless_it_is_worse_beyond_chance_and_three_percent(ratio, low, high, holds):
    assert against(ratio, low, high).holds is holds


def test_the_rival_is_the_one_best_in_validation():
    rivals = Rivals([], {"a": 2.0, "b": 1.0, "boosting": 0.5})
    assert rivals.best() == "boosting"
    assert rivals.best(leave_out=("boosting",)) == "b"


def test_a_prediction_that_is_missing_counts_for_nobody_and_is_refused(swing):
    dataset, target = dataset_of(swing)
    [persistence] = [b for b in fit_baselines(dataset)[target.name] if b.name == "persistence"]
    rows = dataset.streams[0].rows("test")
    right = persistence.predict(dataset.streams[0], rows)
    assert checked(persistence).predict(dataset.streams[0], rows).values is not None

    class Missing:
        name = "some"

        def predict(self, stream, rows):
            return Prediction(np.where(np.arange(len(right.values)) == 7, np.nan, right.values))

    with pytest.raises(BenchError, match=r"some predicts 120 rows, 1 values missing, of the 120"):
        checked(cast(Baseline, Missing())).predict(dataset.streams[0], rows)


def test_baselines_are_chosen_by_errors_on_rows_that_they_have_not_seen(swing):
    dataset, target = dataset_of(swing)
    rivals = fit_rivals(dataset, target, EFFORT, peers=())
    stream = dataset.streams[0]
    first, second, _ = stream.stops
    # Least squares on the training part alone, in units of the data.
    y = stream.target[:, 0].astype(float) * target.scale
    found = rivals.validation["persistence"]
    assert found == pytest.approx(
        np.sqrt(np.mean((y[first:second] - y[first - 1 : second - 1]) ** 2))
    )
    lags = fit_baselines(
        replace(dataset, streams=(replace(stream, stops=(first - first // 4, first, second)),))
    )[target.name]
    [own] = [b for b in lags if b.name == "autoregression"]
    z = own.predict(stream, slice(first, second)).values * target.scale
    assert rivals.validation["autoregression"] == pytest.approx(
        np.sqrt(np.mean((y[first:second] - z) ** 2))
    )


def test_all_are_judged_on_the_rows_of_the_test_part(swing, measured):
    assert (measured.num_targets, measured.metric) == (120, "rmse")
    y = np.loadtxt(swing, skiprows=1)
    error = np.sqrt(np.mean(np.diff(y)[-120:] ** 2))
    assert measured.against["persistence"].error == pytest.approx(error, rel=1e-5)
    assert measured.against["persistence"].ratio == pytest.approx(measured.ours / error, rel=1e-5)
    assert measured.rival == "autoregression"
    assert measured.effort == Effort(0, 0, 1, measured.effort.full_updates, 4, 64)


def test_a_model_with_a_linear_path_is_judged_as_a_whole(swing, few):
    measured = measure_file(made_task("swing", "y"), swing, SHORT | {"lags": 3}, peers=())
    assert measured.against["autoregression"].ratio < 1.03


def test_pytorch_may_do_what_the_search_did():
    trials = [{"updates": updates} for updates in (50, 50, 50, 200, 200, 200)]

    config = TrainingConfig(path="y.csv", batch_size=3, truncation_steps=9)
    report = {"search": {"trials": trials}, "updates": {"num_updates": 123}}
    result = cast(TrainingResult, SimpleNamespace(config=config, report=report))
    assert effort_of(result) == Effort(3, 50, 3, 200, 3, 9)


def test_too_few_targets_are_refused(swing):
    with pytest.raises(BenchError, match="120 targets in the test part are too few; at least 1000"):
        measure_file(made_task("swing", "y"), swing, SHORT, peers=())


def test_what_was_written_is_read_again(measured):
    assert Measured.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


def test_the_tables_show_the_best_and_count_what_holds(measured):
    worse = replace(
        measured,
        series="worse",
        ours=9.0,
        against={n: replace(a, ratio=9.0, low=8.0) for n, a in measured.against.items()},
    )
    better = replace(
        measured, ours=0.5, against={n: replace(a, ratio=0.5) for n, a in measured.against.items()}
    )
    text = lines([better, worse])
    assert text[-1].endswith("on 1 of 2; gradient boosting left out: on 1")
    assert text[1].split()[:4] == ["swing", "120", "rmse", "0.5000"]
    shown = markdown([better, worse])
    assert "| **0.5000** |" in shown[2]
    assert "| 9.000 |" in shown[3]
    assert shown[3].count("**") == 2


# Beside independent computations


@pytest.mark.slow
def test_our_autoregression_is_that_of_statsmodels(swing):
    models = pytest.importorskip("statsmodels.tsa.ar_model")
    dataset, target = dataset_of(swing)
    own = Autoregression.fit(dataset, target)
    assert own is not None
    lags = len(own.weights) - 1
    y = np.loadtxt(swing, skiprows=1)
    num_known = dataset.streams[0].stops[1] + 1
    theirs = models.AutoReg(y[:num_known], lags=lags).fit()
    item = dataset.spec.outputs[0]
    weights = own.weights[:-1][::-1] * item.scale / dataset.spec.inputs[0].scale
    np.testing.assert_allclose(weights, theirs.params[1:], rtol=2e-4, atol=2e-5)
    rows = dataset.streams[0].rows("test")
    z = own.predict(dataset.streams[0], rows).values * item.scale + item.center
    past = np.stack([y[rows.start - k : rows.stop - k] for k in range(lags)], axis=1)
    np.testing.assert_allclose(z, theirs.params[0] + past @ theirs.params[1:], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_lstm_of_pytorch_learns_and_keeps_its_best(swing):
    pytest.importorskip("torch")
    from streamrnn_bench.training.lstm import fit_lstm

    dataset, target = dataset_of(swing, layers=("lstm:8",))
    rivals = fit_rivals(dataset, target, EFFORT, peers=("pytorch",))
    more = replace(EFFORT, num_full=1, full_updates=300)
    better = fit_lstm(dataset, target, more)
    z = better.z[""]
    rows = dataset.streams[0].rows("test")
    assert len(z) == rows.stop
    found = compare(
        dataset, "test", lambda t, s, r: better.predict(s, r), {target.name: rivals.fitted}
    )
    error = found["errors"][target.name]["rmse"]
    assert error < 0.9 * found["baselines"]["persistence"][target.name]["rmse"]
    assert error < found["baselines"]["pytorch"][target.name]["rmse"]
    assert error > 0.9  # the noise is 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peers_know_classes(states, few):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    measured = measure_file(made_task("states", "y"), states, SHORT | {"epochs": 4})
    assert measured.metric == "cross_entropy"
    best = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert best - 0.1 < measured.against["boosting"].error < best + 0.25
    assert 0 < measured.against["pytorch"].error < 1.2
    assert {"constant", "persistence", "logistic"} < set(measured.against)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_boosting_sees_a_row_and_those_before_it_alone(swing):
    pytest.importorskip("sklearn")
    from streamrnn_bench.training.boosting import fit_boosting, lagged

    dataset, target = dataset_of(swing)
    stream = dataset.streams[0]
    seen = stream.chunk.features[:, 0, 0]
    rows = lagged(stream, np.array([0, 5]), 3)
    np.testing.assert_array_equal(rows[0], [seen[0], np.nan, np.nan])
    np.testing.assert_array_equal(rows[1], seen[[5, 4, 3]])
    before, after = fit_boosting(dataset, target)
    assert before.num_rows == stream.stops[0]
    assert after.num_rows == stream.stops[1]
    assert before.num_lags == after.num_lags


def test_missing_packages_are_named(monkeypatch):
    from streamrnn_bench.training import rivals

    monkeypatch.setattr(rivals, "_PACKAGES", {"no_such_module": "no-such-package"})
    with pytest.raises(BenchError, match=r"not installed: no-such-package; `make bench-training`"):
        rivals.require_peers()


# The command


@pytest.fixture
def command(monkeypatch, tmp_path, measured):
    """Run `streamrnn bench training` with measurements that are there already."""
    calls = []

    def measure_made(task, path, settings):
        calls.append((task.name, settings))
        return replace(measured, series=task.name)

    monkeypatch.setattr(run, "require_peers", lambda: None)
    monkeypatch.setattr(run, "version", lambda name: "0")
    monkeypatch.setattr(run, "fetch", lambda task: tmp_path / task.name)
    monkeypatch.setattr(run, "measure_file", measure_made)
    monkeypatch.setattr(run, "commit", lambda: "abc")
    monkeypatch.setattr(measuring, "commit", lambda: "abc")

    def call(*arguments):
        calls.clear()
        assert main(["bench", "training", *arguments]) == 0
        return list(calls)

    return call


def test_the_judged_ten_are_measured_and_written_down(command, tmp_path, capsys):
    json_path, table = tmp_path / "o.jsonl", tmp_path / "t.md"
    calls = command("--json", str(json_path), "--markdown", str(table))
    names = [task.name for task in tasks_of("judged")]
    assert calls == [(name, {}) for name in names]
    assert [json.loads(line)["series"] for line in json_path.read_text().splitlines()] == names
    assert len(table.read_text().splitlines()) == 2 + len(names)
    assert "in validation: on 0 of 10; " in capsys.readouterr().out.splitlines()[-1]


def test_what_is_measured_of_this_commit_is_not_measured_again(command, tmp_path, monkeypatch):
    json_path = str(tmp_path / "o.jsonl")
    assert len(command("--series", "walking", "nasdaq", "--json", json_path)) == 2
    assert command("--series", "nasdaq", "glucose", "--json", json_path) == [("glucose", {})]
    monkeypatch.setattr(run, "commit", lambda: "abd")
    assert len(command("--series", "nasdaq", "--json", json_path)) == 1
    monkeypatch.setattr(run, "commit", lambda: "abc+")  # nobody knows of which sources
    assert len(command("--series", "nasdaq", "--json", json_path)) == 1


def test_the_budget_is_handed_on_and_the_set_chosen(command):
    calls = command("--set", "tuning", "--budget", "60s")
    assert [name for name, _ in calls] == [task.name for task in tasks_of("tuning")]
    assert all(settings == {"budget": "60s"} for _, settings in calls)
