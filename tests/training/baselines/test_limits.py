"""What baselines may cost: memory, time, and weights in the model's file."""

import tracemalloc

import numpy as np
import pytest

from streamrnn.training import TrainingConfig
from streamrnn.training.baselines import logistic, regression
from streamrnn.training.baselines.autoregression import Autoregression
from streamrnn.training.baselines.families import fit_baselines
from streamrnn.training.baselines.logistic import fit_logistic
from streamrnn.training.baselines.regression import LinearRegression
from streamrnn.training.baselines.shifted import Shifted
from streamrnn.training.baselines.target import blocks_of, targets_of
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from tests.support.tables import noisy_sine, write_csv


def dataset_of(path, **options):
    return make_dataset(TrainingConfig(path=path, **options), read_table(path))


def test_regressions_need_no_memory_for_the_features_of_all_rows(tmp_path):
    """3,000 rows of 300 categories: their features as float64 would be 7.2 MB."""
    names = [f"c{k * 7 % 300}" for k in range(3000)]
    gap = ["" if k % 5 == 0 else k % 3 for k in range(3000)]
    path = write_csv(tmp_path, c=names, y=np.arange(3000) % 7, gap=gap)
    dataset = dataset_of(path, predict=("y",), missing={"gap": "mask"})
    [target] = targets_of(dataset.config, dataset.spec)
    baseline = LinearRegression.fit(dataset, target)
    assert baseline is not None
    [stream] = dataset.streams
    tracemalloc.start()
    found = baseline.predict(stream, slice(0, 2900)).values
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    features = regression._features(dataset.spec, stream, np.arange(2900))
    expected = features @ baseline.weights[:-1] + baseline.weights[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("at_most", "expected"), [(0, 150), (300, 150), (100, 75), (1, 1)])
def test_rows_are_taken_among_those_with_a_target(tmp_path, at_most, expected):
    """One value in four is known: of all 600 rows every second would meet none."""
    known = np.arange(1000) % 4 == 3
    y = [f"{k % 7}" if is_known else "" for k, is_known in enumerate(known)]
    columns = {"x": noisy_sine(1000), "y": y}
    dataset = dataset_of(
        write_csv(tmp_path, **columns), predict=("y",), inputs=("x",), horizon=(0,)
    )
    [target] = targets_of(dataset.config, dataset.spec)
    [(_, index, truth)] = blocks_of(dataset, target, ("train",), 1, at_most)
    assert len(index) == len(truth) == expected
    assert known[index].all()
    assert not np.isnan(truth).any()


def test_every_quantile_has_the_fit_of_its_target(tmp_path, monkeypatch):
    dataset = dataset_of(
        write_csv(tmp_path, y=noisy_sine(300)), predict=("y",), horizon=(1, 3),
        loss="pinball", quantiles=(0.1, 0.5, 0.9),
    )  # fmt: skip
    fits, original = [], Autoregression.fit

    def counted(cls, dataset, target):
        fits.append(target.name)
        return original(dataset, target)

    monkeypatch.setattr(Autoregression, "fit", classmethod(counted))
    fitted = fit_baselines(dataset)
    assert len(fits) == 2  # one for each horizon
    for target in targets_of(dataset.config, dataset.spec):
        own = {baseline.name: baseline for baseline in fitted[target.name]}
        assert all(baseline.target == target for baseline in own.values())
        base = original(dataset, target)
        assert base is not None
        alone = Shifted.fit(base, dataset)
        assert own["autoregression"].to_dict() == alone.to_dict()


@pytest.mark.parametrize("num_horizons", [1, 40])
def test_the_weights_of_all_outputs_together_are_limited(tmp_path, monkeypatch, num_horizons):
    monkeypatch.setattr(regression, "MAX_WEIGHTS_OF_ALL", 60)  # 20 of 2 inputs and a constant
    path = write_csv(tmp_path, y=noisy_sine(400), x=noisy_sine(400, 1))
    dataset = dataset_of(path, predict=("y",), horizon=tuple(range(1, num_horizons + 1)))
    target = targets_of(dataset.config, dataset.spec)[0]
    assert (LinearRegression.fit(dataset, target) is None) == (num_horizons > 20)


def test_a_logistic_regression_stops_where_its_budget_ends(monkeypatch):
    """Classes that collinear columns separate: without an end the fit takes a hundred times it."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 5, 400)
    x = rng.normal(size=(5, 6))[classes] + 0.3 * rng.normal(size=(400, 6))
    x[:, 1:] = 0.01 * x[:, 1:] + x[:, :1]
    rows = np.column_stack([x, np.ones(400)])
    passes, original = [], logistic._objective

    def counted(*arguments):
        passes.append(1)
        return original(*arguments)

    monkeypatch.setattr(logistic, "_objective", counted)
    start = np.zeros((7, 5))
    budget = logistic.Budget(rows, 5)
    budget.left = 7
    few = fit_logistic(rows, classes, 1e-3, start, budget)
    assert budget.left == 0
    assert 2 <= len(passes) <= 9

    def value(weights):
        log_p = logistic.log_softmax(rows @ weights)
        return -log_p[np.arange(400), classes].sum()

    assert value(few) < value(start)
    passes.clear()
    fit_logistic(rows, classes, 1e-3, start)
    assert len(passes) > 9


def test_a_budget_is_smaller_for_more_rows_features_and_classes():
    assert logistic.Budget(np.zeros((20_000, 101)), 100).left == 100
    assert logistic.Budget(np.zeros((1000, 11)), 3).left > 100_000
