"""Baselines against values that were computed independently of them."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.errors import ModelFileError
from streamrnn.training import TrainingConfig
from streamrnn.training.baselines import autoregression
from streamrnn.training.baselines.autoregression import Autoregression
from streamrnn.training.baselines.compare import judge
from streamrnn.training.baselines.constant import Constant
from streamrnn.training.baselines.families import (
    baselines_from_dict,
    baselines_to_dict,
    fit_baselines,
)
from streamrnn.training.baselines.logistic import fit_logistic
from streamrnn.training.baselines.persistence import ClassPersistence, Persistence
from streamrnn.training.baselines.regression import LinearRegression, LogisticRegression
from streamrnn.training.baselines.seasonal import Seasonal, find_period
from streamrnn.training.baselines.target import targets_of
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from tests.support.tables import NILE, noisy_sine, write_csv


def dataset_of(path, **options):
    return make_dataset(TrainingConfig(path=path, **options), read_table(path))


def errors_of(dataset, family):
    """Errors on the test part of a baseline of the first target."""
    target = targets_of(dataset.config, dataset.spec)[0]
    baseline = family.fit(dataset, target)
    return judge(dataset, target, "test", baseline.predict).measures, baseline


@pytest.mark.parametrize(("lags", "rmse"), [(1, 128.97), (3, 123.94), (9, 116.37), (26, 139.48)])
def test_an_autoregression_of_the_nile_has_the_error_that_numpy_gives(
    tmp_path, monkeypatch, lags, rmse
):
    """The values come from `numpy.linalg.lstsq` on the flow itself, outside of this project."""
    monkeypatch.setattr(autoregression, "_choose_lags", lambda *_: lags)
    dataset = dataset_of(write_csv(tmp_path, volume=NILE), predict=("volume",))
    errors, baseline = errors_of(dataset, Autoregression)
    assert errors["rmse"] == pytest.approx(rmse, abs=0.005)
    assert baseline.label == f"autoregression, {lags} lag{'s' if lags > 1 else ''}"


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_lags_are_chosen_in_validation_and_fitted_to_both_parts(tmp_path, horizon):
    """NumPy alone does the same on raw values: 800 rows of an AR(2)."""
    rng = np.random.default_rng(8)
    y = np.zeros(800)
    for t in range(2, 800):
        y[t] = 1.2 * y[t - 1] - 0.6 * y[t - 2] + rng.normal()
    y = y.astype(np.float32).astype(np.float64)
    path = write_csv(tmp_path, y=[repr(float(value)) for value in y])
    dataset = dataset_of(path, predict=("y",), difference=(), horizon=horizon)

    def fitted(lags, stop):
        windows = np.lib.stride_tricks.sliding_window_view(y, lags)
        rows = np.column_stack([windows, np.ones(len(windows))])
        # Rows whose target comes before `stop`.
        count = stop - horizon - lags + 1
        weights = np.linalg.lstsq(rows[:count], y[lags - 1 + horizon : stop], rcond=None)[0]
        return np.concatenate([np.full(lags - 1, np.nan), rows @ weights])

    def rmse(guess, start, stop):
        return np.sqrt(np.mean((guess[start - horizon : stop - horizon] - y[start:stop]) ** 2))

    errors = {lags: rmse(fitted(lags, 480), 480, 640) for lags in range(1, 61)}
    best = min(errors, key=lambda lags: errors[lags])
    found, baseline = errors_of(dataset, Autoregression)
    assert len(baseline.weights) - 1 == best > 1
    assert found["rmse"] == pytest.approx(rmse(fitted(best, 640), 640, 800), rel=1e-5)


def test_persistence_and_the_constant_are_in_the_users_units(tmp_path):
    y = np.cumsum(np.random.default_rng(1).normal(0.3, 1.0, 300)) + 1000
    dataset = dataset_of(write_csv(tmp_path, y=y), predict=("y",))
    assert dataset.config.difference == ("y",)
    errors, _ = errors_of(dataset, Persistence)
    assert errors["rmse"] == pytest.approx(np.sqrt(np.mean(np.diff(y)[239:] ** 2)), rel=1e-3)
    assert errors["mae"] == pytest.approx(np.mean(np.abs(np.diff(y)[239:])), rel=1e-3)
    errors, _ = errors_of(dataset, Constant)
    expected = np.sqrt(np.mean((y[240:] - y[1:240].mean()) ** 2))
    assert errors["rmse"] == pytest.approx(expected, rel=1e-5)


def test_persistence_holds_what_was_last_known(tmp_path):
    y = noisy_sine(200)
    cells = [("" if t % 3 == 1 else f"{value:.6f}") for t, value in enumerate(y)]
    dataset = dataset_of(write_csv(tmp_path, y=cells, t=range(200)), predict=("y",), inputs=("y",))
    known = [y[t - 1] if t % 3 == 1 else y[t] for t in range(159, 199)]
    error = [guess - y[t + 1] for guess, t in zip(known, range(159, 199), strict=True)]
    kept = [e for e, t in zip(error, range(160, 200), strict=True) if t % 3 != 1]
    errors, _ = errors_of(dataset, Persistence)
    assert errors["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(kept))), rel=1e-4)


@pytest.mark.parametrize("horizon", [1, 9, 25])
def test_the_seasonal_forecast_is_the_value_of_the_last_period_that_is_known(tmp_path, horizon):
    rng = np.random.default_rng(2)
    y = np.tile(rng.normal(size=12), 30) + 0.2 * rng.normal(size=360)
    dataset = dataset_of(write_csv(tmp_path, y=y), predict=("y",), horizon=horizon, difference=())
    errors, baseline = errors_of(dataset, Seasonal)
    assert baseline.label == "seasonal naive, period of 12 rows"
    back = 12 * -(-horizon // 12)
    expected = [y[t] - y[t - back] for t in range(288, 360)]
    assert errors["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(expected))), rel=1e-4)
    given_period = replace(dataset, config=dataset.config.replace(season=5))
    assert errors_of(given_period, Seasonal)[1].period == 5


@settings(max_examples=60, deadline=None)
@given(
    period=st.integers(3, 60),
    periods=st.integers(8, 15),
    seed=st.integers(0, 2**32 - 1),
    slope=st.sampled_from([0.0, 0.02]),
    is_smooth=st.booleans(),
)
def test_a_planted_period_is_found(period, periods, seed, slope, is_smooth):
    rng = np.random.default_rng(seed)
    t = np.arange(period * periods)
    pattern = np.sin(2 * np.pi * (np.arange(period) / period + rng.random()))
    if not is_smooth:
        pattern = rng.permutation(np.linspace(-1.7, 1.7, period))
    y = pattern[t % period] + slope * t + 0.05 * rng.normal(size=len(t))
    # By chance a multiple of a short period may be the one that errs least.
    found = find_period([y])
    multiple = max(1, round(found / period))
    assert multiple <= 3
    assert abs(found - multiple * period) <= multiple * period // 20


def test_a_period_that_is_no_whole_number_is_found_and_not_a_multiple():
    rng = np.random.default_rng(0)
    y = np.sin(np.arange(20_000) / 4) + rng.normal(size=20_000)  # 25.13 rows
    assert find_period([y]) == 25


def test_streams_share_their_period():
    """No stream alone is long enough to tell."""
    rng = np.random.default_rng(5)
    streams = [np.sin(np.arange(n) / 7 * 2 * np.pi) + rng.normal(size=n) for n in [25] * 40]
    assert find_period(streams) == 7
    assert find_period(streams[:1]) == 0


def test_noise_a_walk_a_line_and_a_constant_have_no_period():
    rng = np.random.default_rng(3)
    for series in (
        rng.normal(size=2000),
        np.cumsum(rng.normal(size=2000)),
        np.arange(500.0) * 0.1 + 3,
        (np.arange(500.0) * 0.1 + 3).astype(np.float32).astype(np.float64),
        np.full(300, 2.5),
        np.zeros(2),
        np.zeros(0),
    ):
        assert find_period([series]) == 0


def test_linear_regression_on_a_row_is_ridge_on_its_levels(tmp_path):
    """Forty rows for thirty inputs: without a penalty it would learn them by heart."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(120, 30)) * 3 + 7
    y = x[:, 0] - x[:, 1] + 3 * rng.normal(size=120)
    columns = {f"x{k}": x[:, k] for k in range(30)}
    dataset = dataset_of(
        write_csv(tmp_path, **columns, y=y), predict=("y",), horizon=0, split=(0.34, 0.33, 0.33)
    )
    train, both = dataset.streams[0].stops[:2]
    center, scale = x[:train].mean(axis=0), x[:train].std(axis=0)
    rows = np.column_stack([(x - center) / scale, np.ones(120)])

    def solved(ridge, stop):
        penalty = ridge * np.diag([*np.ones(30), 0.0])
        return np.linalg.solve(rows[:stop].T @ rows[:stop] + penalty, rows[:stop].T @ y[:stop])

    ridges = [0.0, *(10.0**k for k in range(-1, 6))]
    scale_y = dataset.spec.outputs[0].scale  # what is penalised is in network units: the same
    errors = [np.sum((rows[train:both] @ solved(r, train) - y[train:both]) ** 2) for r in ridges]
    best = ridges[int(np.argmin(errors))]
    assert best > 0
    expected = np.sqrt(np.mean((rows[both:] @ solved(best, both) - y[both:]) ** 2))
    found, _ = errors_of(dataset, LinearRegression)
    assert found["rmse"] == pytest.approx(expected, rel=1e-4)
    assert scale_y != 1.0


def test_logistic_regression_is_that_of_scikit_learn():
    """`LogisticRegression(C=0.5, tol=1e-12)` of scikit-learn 1.9.1 on the same rows."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(300, 3))
    classes = (x @ rng.normal(size=(3, 4)) + rng.gumbel(size=(300, 4))).argmax(axis=1)
    rows = np.column_stack([x, np.ones(300)])
    weights = fit_logistic(rows, classes, 2.0, np.zeros((4, 4)))
    expected = [
        [0.270495, -0.384478, -0.02033],
        [-0.814403, 0.406753, 0.562112],
        [1.459522, -1.027279, 0.460152],
        [-0.915614, 1.005004, -1.001934],
    ]
    np.testing.assert_allclose(weights[:3].T, expected, atol=2e-5)
    free = weights[3] - weights[3].mean()
    np.testing.assert_allclose(free, [-0.041067, 0.04313, 0.14289, -0.144952], atol=2e-5)


@pytest.fixture
def weather(tmp_path):
    """Classes that follow from the row's number and stay for a while, and another column."""
    rng = np.random.default_rng(6)
    kinds, state = [], 0
    for _ in range(600):
        if rng.random() < 0.3:
            state = int(rng.choice(3, p=[0.6, 0.3, 0.1]))
        kinds.append(state)
    heat = np.array(kinds) + rng.normal(size=600)
    path = write_csv(tmp_path, kind=[["sun", "rain", "fog"][k] for k in kinds], heat=heat)
    return dataset_of(path, predict=("kind",))


def test_class_persistence_says_the_last_class_with_a_finite_cross_entropy(weather):
    names = [output.name for output in weather.spec.outputs]
    classes = [names.index(cell) for cell in weather.table.column("kind").texts(0, 600)]
    old, new = np.array(classes[:-1]), np.array(classes[1:])
    fit = slice(0, 479)
    stays = np.array([np.sum((old[fit] == k) & (new[fit] == k)) for k in range(3)])
    count = np.array([np.sum(old[fit] == k) for k in range(3)])
    mean = (stays.sum() + 1) / (479 + 2)
    stay = (stays + 2 * mean) / (count + 2)
    moved = new[fit][old[fit] != new[fit]]
    leave = np.array([np.sum(moved == k) + 1 for k in range(3)]) / (len(moved) + 3)
    terms = [
        stay[i] if i == j else (1 - stay[i]) * leave[j] / (1 - leave[i])
        for i, j in zip(old[479:], new[479:], strict=True)
    ]
    found, baseline = errors_of(weather, ClassPersistence)
    assert found["cross_entropy"] == pytest.approx(-np.mean(np.log(terms)), rel=1e-9)
    assert found["accuracy"] == np.mean(old[479:] == new[479:])
    stream = weather.streams[0]
    p = np.exp(baseline.predict(stream, slice(0, 50)).values)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)


def test_rare_names_that_the_network_sees_as_one_are_still_classes(tmp_path):
    """The index of a name among the inputs is not that of the class then."""
    names = np.repeat(["b", "rare", "c", "a", "b", "c"] * 10, 10)
    names[50:52] = "odd"  # sorts between those that stay
    dataset = dataset_of(write_csv(tmp_path, kind=names), predict=("kind",), other=90)
    assert dataset.spec.inputs[0].categories == ("b", "c", "other")
    found, baseline = errors_of(dataset, ClassPersistence)
    classes = [output.name for output in dataset.spec.outputs]
    assert classes == ["a", "b", "c", "odd", "rare"]
    likeliest = classes[int(baseline.leave.argmax())]
    guess = [name if name in "bc" else likeliest for name in names[479:-1]]
    assert found["accuracy"] == pytest.approx(np.mean(np.array(guess) == names[480:]))


def test_logistic_regression_beats_the_frequencies(weather):
    found, _ = errors_of(weather, LogisticRegression)
    constant, _ = errors_of(weather, Constant)
    assert found["cross_entropy"] < 0.9 * constant["cross_entropy"]
    assert found["accuracy"] > constant["accuracy"]


def test_classes_written_as_numbers_persist(tmp_path):
    values = np.repeat([3, 10, -2, 3, -2, 10], 20)
    path = write_csv(tmp_path, y=np.tile(values, 2))
    dataset = dataset_of(path, predict=("y",), loss="cross_entropy")
    assert dataset.spec.inputs[0].kind == "numeric"
    found, _ = errors_of(dataset, ClassPersistence)
    test = np.tile(values, 2)[191:]
    assert found["accuracy"] == np.mean(test[1:] == test[:-1])


TABLES: dict[str, dict[str, Any]] = {
    "numbers": {"predict": ("y",)},
    "changes": {"predict": ("y",), "difference": ("y",), "horizon": 3},
    "classes": {"predict": ("kind",)},
    "binary": {"predict": ("flag",)},
}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(sorted(TABLES)), num=st.integers(1, 3))
def test_nothing_of_the_test_part_is_fitted(tmp_path_factory, seed, kind, num):
    """Other values in the test part, of one or several streams, change no coefficient."""
    rng = np.random.default_rng(seed)
    num_rows = 90
    columns = {
        "g": np.repeat(np.arange(num), num_rows),
        "y": np.tile(np.tile(rng.normal(size=7), 13)[:num_rows], num)
        + rng.normal(size=num_rows * num),
        "kind": np.array(["a", "b", "c"])[rng.integers(0, 3, num_rows * num)],
        "flag": rng.integers(0, 2, num_rows * num),
    }
    changed = {name: values.copy() for name, values in columns.items()}
    first = round(0.8 * num_rows)
    for start in range(0, num_rows * num, num_rows):
        rows = slice(start + first, start + num_rows)
        for name in ("y", "kind", "flag"):
            changed[name][rows] = rng.permutation(columns[name])[: num_rows - first]
        changed["y"][rows] *= 100.0
    fitted = []
    for table in (columns, changed):
        path = write_csv(tmp_path_factory.mktemp("leak"), **table)
        dataset = dataset_of(
            path, group=("g",), split_by="time", **{"difference": ()} | TABLES[kind]
        )
        fitted.append(baselines_to_dict(fit_baselines(dataset)))
    assert fitted[0] == fitted[1]
    [names] = fitted[0].values()
    assert len(names) >= 3


def test_a_stored_baseline_predicts_the_same_to_the_bit(tmp_path, weather):
    numbers = dataset_of(write_csv(tmp_path, y=noisy_sine(400)), predict=("y",))
    for dataset, names in (
        (numbers, {"constant", "persistence", "seasonal", "linear", "autoregression"}),
        (weather, {"constant", "persistence", "logistic"}),
    ):
        fitted = fit_baselines(dataset)
        plain = json.loads(json.dumps(baselines_to_dict(fitted), allow_nan=False))
        targets = targets_of(dataset.config, dataset.spec)
        again = baselines_from_dict(plain, targets)[targets[0].name]
        stream = dataset.streams[0]
        assert {baseline.name for baseline in again} == names
        by_name = {baseline.name: baseline for baseline in fitted[targets[0].name]}
        for baseline in again:
            assert baseline.label == by_name[baseline.name].label
            for rows in (stream.rows("test"), slice(0, 3), slice(7, 7)):
                ours, theirs = (b.predict(stream, rows) for b in (by_name[baseline.name], baseline))
                assert np.array_equal(ours.values, theirs.values)
                assert len(ours.values) == rows.stop - rows.start


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"autoregression": {"lags": 2, "weights": [1.0]}}, "weights.*shape \\[3\\]"),
        ({"autoregression": {"lags": 10**9, "weights": []}}, "lags.*from 1 to 60"),
        ({"autoregression": {"lags": True, "weights": []}}, "lags"),
        ({"seasonal": {"period": 0}}, "period"),
        ({"constant": {"values": ["x"]}}, "values"),
        ({"constant": {"values": [float("inf")]}}, "values"),
        ({"linear": {"weights": [[1.0], [1.0, 2.0]]}}, "weights"),
        ({"logistic": {"weights": [1.0]}}, "makes no sense"),
        ({"magic": {}}, "'magic'"),
        ({"constant": 3}, "no fitted baselines"),
        (None, "no fitted baselines"),
    ],
)
def test_a_damaged_baseline_is_refused(tmp_path, changes, words):
    dataset = dataset_of(write_csv(tmp_path, y=noisy_sine(100)), predict=("y",))
    targets = targets_of(dataset.config, dataset.spec)
    plain = None if changes is None else {"y+1": changes}
    with pytest.raises(ModelFileError, match=words):
        baselines_from_dict(plain, targets)


def test_what_the_network_does_not_see_has_no_persistence(tmp_path):
    path = write_csv(tmp_path, x=noisy_sine(100), y=noisy_sine(100, 1))
    hidden = dataset_of(path, predict=("y",), inputs=("x",))
    [names] = baselines_to_dict(fit_baselines(hidden)).values()
    assert set(names) == {"constant", "linear"}
    assert fit_baselines(dataset_of(path, predict=("y",), horizon=0)).keys() == {"y"}


@pytest.mark.parametrize("difference", [(), ("y",)])
def test_an_autoregression_learns_nothing_of_what_stands_for_values_before_the_first(
    tmp_path, monkeypatch, difference
):
    """Where a stream begins late its weights are those of the known rows, by NumPy alone."""
    lags = 5
    rng = np.random.default_rng(4)
    y = 50 + np.cumsum(rng.normal(size=400) - 0.02 * np.arange(400) % 3).astype(np.float32)
    y = y.astype(np.float64)
    cells = ["" if t < 40 else repr(float(value)) for t, value in enumerate(y)]
    path = write_csv(tmp_path, y=cells, t=range(400))
    dataset = dataset_of(path, predict=("y",), inputs=("y",), difference=difference)
    monkeypatch.setattr(autoregression, "_choose_lags", lambda *_: lags)
    target = targets_of(dataset.config, dataset.spec)[0]
    baseline = Autoregression.fit(dataset, target)
    series = np.concatenate([[0.0], np.diff(y[40:])]) if difference else y[40:]
    item = dataset.spec.inputs[0]
    series = (series - item.center) / item.scale
    output = dataset.spec.outputs[0]
    truth = y[41:320] - (y[40:319] if difference else 0.0)
    truth = (truth - output.center) / output.scale
    rows = [[*series[t - lags + 1 : t + 1], 1.0] for t in range(lags - 1, 279)]
    expected = np.linalg.lstsq(rows, truth[lags - 1 :], rcond=None)[0]
    assert baseline is not None
    np.testing.assert_allclose(baseline.weights, expected, rtol=1e-4, atol=1e-5)
    # Before the first value there is the mean, as before the first row of a stream.
    found = baseline.predict(dataset.streams[0], slice(40, 50)).values
    padded = np.concatenate([np.zeros(lags - 1), series])
    for t in range(10):
        expected = padded[t : t + lags] @ baseline.weights[:-1] + baseline.weights[-1]
        assert found[t] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_lags_are_chosen_by_full_histories_alone(tmp_path):
    """A late stream's gap is no history: with it, many lags would seem to need little."""
    y = noisy_sine(300)
    cells = ["" if t < 150 else f"{value:.6f}" for t, value in enumerate(y)]
    late = dataset_of(write_csv(tmp_path, y=cells), predict=("y",), difference=())
    target = targets_of(late.config, late.spec)[0]
    blocks = list(autoregression._rows(late, target, 9, ("train", "validation")))
    assert np.concatenate([before for _, _, before in blocks]).tolist() == list(range(-1, 89))


def test_a_class_before_the_first_known_one_is_unknown(tmp_path):
    rng = np.random.default_rng(5)
    on = (rng.random(200) < 0.7).astype(int)
    cells = ["" if t < 12 else str(value) for t, value in enumerate(on)]
    dataset = dataset_of(write_csv(tmp_path, on=cells), predict=("on",))
    target = targets_of(dataset.config, dataset.spec)[0]
    baseline = ClassPersistence.fit(dataset, target)
    assert baseline is not None
    log_p = baseline.predict(dataset.streams[0], slice(0, 14)).values
    np.testing.assert_allclose(log_p[:12], np.tile(np.log(baseline.leave), (12, 1)))
    assert log_p[12, on[12]] == pytest.approx(np.log(baseline.stay[on[12]]))


def test_a_period_is_looked_for_from_the_first_known_value_on(tmp_path):
    rng = np.random.default_rng(6)
    y = np.tile(rng.normal(size=7), 40) + 0.1 * rng.normal(size=280)
    cells = ["" if t < 90 else f"{value + 1000:.6f}" for t, value in enumerate(y)]
    dataset = dataset_of(write_csv(tmp_path, y=cells), predict=("y",))
    assert errors_of(dataset, Seasonal)[1].period == 7
