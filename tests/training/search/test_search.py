"""What a search tries, in which order, and what it takes; trainings are made up here."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from streamrnn.errors import TrainingError
from streamrnn.training import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.chunks import choose_sizes
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.search import search as module
from streamrnn.training.search import trial as trial_module
from streamrnn.training.search.budget import NUM_TRIALS, Budget, parse_budget
from streamrnn.training.search.search import search
from streamrnn.training.search.table import search_lines
from tests.support.tables import noisy_sine, write_csv

FREE = ("layers", "learning_rate", "lags")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", None),
        ("auto", Budget(NUM_TRIALS)),
        ("12", Budget(12)),
        ("60s", Budget(64, 60.0)),
        ("5m", Budget(64, 300.0)),
        ("1.5h", Budget(64, 5400.0)),
    ],
)
def test_a_budget_is_read(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "65", "0s", "-3", "1.5", "soon", "60 s s", "1e9s", "inf"]
)
def test_what_is_no_budget_is_an_error(text):
    with pytest.raises(TrainingError, match="write auto, off, a number of trials"):
        parse_budget(text)


@pytest.mark.parametrize("name", ["layers", "learning_rate", "lags", "updates", "epochs"])
def test_by_itself_nothing_is_searched_where_such_a_setting_is_given(name):
    assert parse_budget("auto", {name}) is None
    assert parse_budget("auto", {"predict", "seed"}) is not None
    assert parse_budget("6", {name}) == Budget(6)


@pytest.fixture
def dataset(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(300))
    config = TrainingConfig(path=path, predict=("y",))
    made = make_dataset(config, read_table(path))
    return replace(made, config=made.config.replace(updates=choose_sizes(made).updates))


@pytest.fixture
def made_up(monkeypatch):
    """Return what is asked for; the loss of each is what a test says."""
    asked: list[Any] = []
    rule: dict[str, Any] = {"loss": lambda config: 1.0, "seconds": 1.0}

    def fit(dataset, progress, should_stop, keeper):
        asked.append(dataset.config)
        loss = rule["loss"](dataset.config)
        if not math.isfinite(loss):
            raise TrainingError("it diverged")
        last = Evaluation(1.0, 1.0, loss, loss, loss, seconds=rule["seconds"])
        network = SimpleNamespace(spec=dataset.spec)
        return SimpleNamespace(
            loss=loss, best_update=7, was_stopped=False, history=[last], network=network
        )

    monkeypatch.setattr(trial_module, "fit", fit)
    monkeypatch.setattr(trial_module, "outputs_of", lambda *_: SimpleNamespace(predict=None))
    monkeypatch.setattr(
        trial_module,
        "measures",
        lambda dataset, *_: {"y+1": {"rmse": 1.0 + dataset.config.seed}},
    )
    monkeypatch.setattr(module, "fit_path", lambda *_: SimpleNamespace(lags=24))
    return rule, asked


def distance(config):
    """The least loss is that of gru:32, 0.001 and no lags."""
    return (
        abs(math.log10(config.learning_rate / 1e-3))
        + 0.5 * (config.lags > 0)
        + 0.25 * (config.layers != ("gru:32",))
        + 0.01 * abs(config.seed - 1)
        + 1.0
    )


def test_one_setting_after_the_other_is_varied_from_the_best(dataset, made_up):
    rule, asked = made_up
    rule["loss"] = distance
    found = search(dataset, FREE, Budget(6), 0)
    tried = [(c.layers[0], c.learning_rate, c.lags, c.updates) for c in asked]
    assert tried[:6] == [
        ("lstm:32", 3e-3, 24, 500),
        ("lstm:32", 3e-3, 0, 500),
        ("lstm:32", 1e-2, 0, 500),
        ("lstm:32", 1e-3, 0, 500),
        ("lstm:64", 1e-3, 0, 500),
        ("gru:32", 1e-3, 0, 500),
    ]
    # The best one for the full length (one with lags is far behind), then with more seeds.
    assert tried[6:] == [("gru:32", 1e-3, 0, 2000)] * 3
    assert [c.seed for c in asked[6:]] == [0, 1, 2]
    chosen = found.dataset.config
    assert (chosen.layers, chosen.learning_rate, chosen.lags) == (("gru:32",), 1e-3, 0)
    assert (chosen.seed, chosen.updates) == (1, 2000)
    assert found.dataset.spec.layers == parse_layers(("gru:32",))


def test_of_a_near_second_the_full_length_decides(dataset, made_up):
    rule, asked = made_up
    # The path is ahead at first, and behind in the end.
    rule["loss"] = lambda c: (1.0 if c.lags else 1.2) if c.updates < 2000 else 2.0 - (c.lags == 0)
    found = search(dataset, ("lags",), Budget(2), 1)
    assert [(c.lags, c.updates) for c in asked] == [(24, 500), (0, 500), (24, 2000), (0, 2000)]
    assert found.dataset.config.lags == 0


def test_mean_and_spread_are_those_of_the_seeds(dataset, made_up):
    rule, _ = made_up
    rule["loss"] = lambda c: 3.0 + c.seed
    report = search(dataset, (), None, 3).report
    assert report["seeds"]["seeds"] == [0, 1, 2]
    assert report["seeds"]["best"] == 0
    assert report["seeds"]["validation"] == {"mean": 4.0, "spread": 1.0}
    assert report["seeds"]["test"] == {"y+1": {"rmse": {"mean": 2.0, "spread": 1.0}}}
    lines = list(search_lines(report))
    assert lines[0].startswith("search: 3 trainings, judged by the validation part; of those of")
    assert lines[2].split() == ["lstm:32", "0.003", "0", "0", "2,000", "7", "3.000", "kept"]
    assert not any(line.endswith("kept") for line in lines[3:-1])
    assert "validation loss 4.000 +- 1, test rmse of y+1 2.000 +- 1; seed 0 is kept" in lines[-1]


def test_what_is_given_is_not_varied(dataset, made_up):
    _, asked = made_up
    search(dataset, ("learning_rate",), Budget(3), 1)
    assert {(c.layers, c.lags) for c in asked} == {(("lstm:32",), 0)}
    assert [c.learning_rate for c in asked[:3]] == [3e-3, 1e-2, 1e-3]


def test_no_setting_is_tried_twice(dataset, made_up):
    _, asked = made_up
    search(dataset, FREE, Budget(30), 1)
    short = [(c.layers, c.learning_rate, c.lags) for c in asked if c.updates == 500]
    assert len(short) == len(set(short)) == 30
    again = list(asked)
    asked.clear()
    search(dataset, FREE, Budget(30), 1)
    assert asked == again  # nothing but the seed draws them


def test_a_setting_that_diverges_is_left(dataset, made_up):
    rule, _ = made_up
    rule["loss"] = lambda c: math.inf if c.learning_rate > 5e-3 else c.learning_rate
    found = search(dataset, FREE, Budget(6), 1)
    assert found.dataset.config.learning_rate == 1e-3
    assert found.report["trials"][2]["loss"] is None
    assert any("diverged" in line for line in search_lines(found.report))
    rule["loss"] = lambda c: math.inf
    with pytest.raises(TrainingError, match="every training of the search diverged"):
        search(dataset, FREE, Budget(6), 1)


def test_the_length_follows_from_the_time(dataset, made_up, monkeypatch):
    """Of 10 s at 1 ms an update, 10,000 updates are shared out."""
    rule, asked = made_up
    rule["seconds"] = 0.1
    monkeypatch.setattr(module, "_seconds_an_update", lambda _: 1e-3)
    search(dataset, FREE, Budget(64, 10.0), 0)
    lengths = [c.updates for c in asked]
    num_short = sum(length < max(lengths) for length in lengths)
    assert num_short == 4
    assert max(lengths) == 2000
    spent = sum(lengths)
    assert spent <= 12_000


def test_a_search_that_is_late_ends_with_one_training(dataset, made_up, monkeypatch):
    rule, asked = made_up
    rule["seconds"] = 100.0
    monkeypatch.setattr(module, "_seconds_an_update", lambda _: 1e-3)
    found = search(dataset, FREE, Budget(64, 10.0), 3)
    assert len(asked) == 2
    assert found.dataset.config.updates == asked[1].updates


def test_lags_that_cannot_be_are_named_and_no_divergence(tmp_path):
    path = write_csv(tmp_path, letter=["a", "b", "c"] * 40)
    config = TrainingConfig(path=path, predict=("letter",), lags=3)
    with pytest.raises(TrainingError, match="there is no linear path"):
        search(make_dataset(config, read_table(path)), (), None, 2)
