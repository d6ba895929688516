"""Intervals of the difference to a baseline, and the verdict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.training import TrainingConfig, train
from streamrnn.training.baselines import bootstrap
from streamrnn.training.baselines.autoregression import Autoregression
from streamrnn.training.baselines.bootstrap import (
    Interval,
    Units,
    choose_units,
    ratio_interval,
    sums_by_time,
)
from streamrnn.training.baselines.compare import Rival, percent, sides, verdict
from streamrnn.training.baselines.constant import Constant
from streamrnn.training.metrics import METRICS, of_mean, row_losses
from streamrnn.training.report import report_lines
from tests.support.tables import noisy_sine, write_csv


def correlated(rng, share, num_rows):
    """Return a stationary autoregression of variance 1."""
    noise = rng.normal(size=num_rows + 100)
    values = np.zeros(num_rows + 100)
    for t in range(1, num_rows + 100):
        values[t] = share * values[t - 1] + np.sqrt(1 - share**2) * noise[t]
    return values[100:]


@pytest.mark.parametrize(("share", "num_rows"), [(0.0, 60), (0.6, 200), (0.9, 1500)])
def test_the_interval_of_blocks_covers_the_true_ratio(share, num_rows):
    """Of 100 simulated pairs of errors about 95 intervals hold the truth; 84 is 5 sigmas away."""
    rng = np.random.default_rng(5)
    covered = above = 0
    for _ in range(100):
        own, other = (correlated(rng, share, num_rows) ** 2 for _ in range(2))
        other *= 1.1**2
        units = choose_units([own - other], 1)
        found = ratio_interval("rmse", [own], [other], units)
        covered += found.low <= 1 / 1.1 <= found.high
        above += found.low > 1 / 1.1
    assert 84 <= covered < 100
    assert above < 10


def test_the_interval_of_streams_covers_where_the_rows_of_a_stream_are_alike():
    """Each stream has its own difference, so that blocks of rows would be far too sure."""
    rng = np.random.default_rng(6)
    covered = by_blocks = 0
    for _ in range(100):
        own, other = [], []
        for _ in range(20):
            hard = rng.gamma(4.0)
            own.append(rng.gamma(2.0, hard * rng.gamma(9.0) / 9, 30))
            other.append(rng.gamma(2.0, hard, 30))
        units = choose_units([a - b for a, b in zip(own, other, strict=True)], 1)
        assert units == Units(20, 0)
        found = ratio_interval("mae", own, other, units)
        covered += found.low <= 1 <= found.high
        found = ratio_interval("mae", own, other, Units(200, 3))
        by_blocks += found.low <= 1 <= found.high
    assert covered >= 84
    assert by_blocks < 84


def test_errors_that_streams_share_at_a_time_make_no_chance_significant():
    """Two predictors equally good, nine tenths of whose errors all 12 streams have at once."""
    rng = np.random.default_rng(1)
    moments = [np.arange(100)] * 12

    def losses():
        common = np.sqrt(0.9) * rng.normal(size=100)
        return [(common + np.sqrt(0.1) * rng.normal(size=100)) ** 2 for _ in moments]

    by_times = by_streams = 0
    for _ in range(60):
        own, other = losses(), losses()
        by_streams += ratio_interval("rmse", own, other, Units(12, 0)).is_clear
        own, other = [sums_by_time(own, moments)], [sums_by_time(other, moments)]
        units = choose_units([own[0] - other[0]], 1)
        by_times += ratio_interval("rmse", own, other, units).is_clear
    assert by_times <= 9
    assert by_streams > 30


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_sums_by_time_are_those_of_all_streams_and_nan_where_no_target_is(lengths, seed):
    rng = np.random.default_rng(seed)
    moments = [rng.permutation(10)[:length] for length in lengths]
    losses = [np.where(rng.random(num) < 0.4, np.nan, rng.random(num)) for num in lengths]
    found = sums_by_time(losses, moments)
    for t, value in enumerate(found):
        own = np.concatenate([x[when == t] for x, when in zip(losses, moments, strict=True)])
        own = own[~np.isnan(own)]
        np.testing.assert_allclose(value, own.sum() if len(own) else np.nan)


@pytest.mark.parametrize(
    ("day", "changes", "drawn"),
    [
        (lambda s, t: t, {}, "times"),
        (lambda s, t: t + s / 24, {}, "times"),  # an hour apart
        (lambda s, t: t, {"split_by": "stream"}, "times"),
        (lambda s, t: t + 200 * s, {"split_by": "time"}, "12 whole streams"),
        (lambda s, t: t, {"time": ""}, "12 whole streams"),
    ],
)
def test_blocks_of_times_are_drawn_where_streams_share_dates(tmp_path, day, changes, drawn):
    num = 60 if changes.get("split_by") == "stream" else 12
    s, t = np.repeat(np.arange(num), 100), np.tile(np.arange(100), num)
    minutes = np.round(1440 * day(s, t)).astype("timedelta64[m]")
    y = np.random.default_rng(2).normal(size=(len(s), 1))[:, 0]
    path = write_csv(tmp_path, at=np.datetime64("2020-01-01T00:00") + minutes, s=s, y=y)
    config = TrainingConfig(path=path, predict=("y",), group=("s",), inputs=("y",), time="at")
    if changes.get("time") == "":
        changes = changes | {"split_by": "time"}
    result = train(config.replace(epochs=1, layers=("gru:2",), **changes))
    constant = result.report["comparison"]["y+1"]["against"]["constant"]["drawn"]
    assert constant.endswith(drawn)
    if drawn == "times":
        num_blocks, length = (int(word) for word in constant.split() if word.isdigit())
        assert num_blocks * length <= 100


def test_blocks_are_as_long_as_the_horizon_and_the_correlation():
    rng = np.random.default_rng(7)
    assert choose_units([rng.normal(size=1000)], 1) == Units(100, 10)
    assert choose_units([rng.normal(size=1000)], 25).length == 25
    lengths = [choose_units([correlated(rng, share, 4000)], 1).length for share in (0.0, 0.95)]
    assert lengths[0] == 16
    assert 40 < lengths[1] < 1000
    swing = np.sin(np.arange(400) / 3) + 0.1 * rng.normal(size=400)
    assert choose_units([swing], 1).length < 19
    few = [rng.normal(size=100) for _ in range(bootstrap.LEAST_STREAMS - 1)]
    assert choose_units(few, 1).length > 0
    assert choose_units([*few, rng.normal(size=3)], 1) == Units(10, 0)
    assert choose_units([*few, np.full(3, np.nan)], 1).length > 0
    assert choose_units([rng.normal(size=2_000_000)], 1).count <= 1000


def test_missing_targets_change_no_ratio():
    rng = np.random.default_rng(8)
    own, other = rng.gamma(2.0, size=400), rng.gamma(3.0, size=400)
    own[::3] = other[::3] = np.nan
    found = ratio_interval("mae", [own], [other], choose_units([own - other], 1))
    assert found.ratio == pytest.approx(np.nanmean(own) / np.nanmean(other))
    assert found.low < 2 / 3 < found.high


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 60), metric=st.sampled_from(METRICS))
def test_the_interval_holds_the_ratio_and_scales_with_neither_error(seed, num, metric):
    rng = np.random.default_rng(seed)
    own, other = rng.gamma(1.0, size=(2, num))
    units = choose_units([own - other], 1)
    found = ratio_interval(metric, [own], [other], units)
    assert found.low <= found.ratio <= found.high
    assert found.is_bounded == (units.count >= bootstrap.LEAST_BLOCKS)
    larger = ratio_interval(metric, [4.0 * own], [4.0 * other], units)
    np.testing.assert_allclose(
        [larger.ratio, larger.low, larger.high], [found.ratio, found.low, found.high]
    )
    same = ratio_interval(metric, [own], [own], units)
    assert same.ratio == 1.0
    assert not same.is_clear
    nothing = ratio_interval(metric, [own], [0.0 * own], units)
    assert np.isfinite([nothing.ratio, nothing.low, nothing.high]).all()


def test_row_losses_are_the_definitions():
    values, target = np.array([1.0, 2.0, 5.0]), np.array([2.0, np.nan, 3.0])
    np.testing.assert_array_equal(row_losses("rmse", values, target), [1, np.nan, 4])
    np.testing.assert_array_equal(row_losses("mae", values, target), [1, np.nan, 2])
    np.testing.assert_allclose(row_losses("pinball", values, target, 0.9), [0.9, np.nan, 0.2])
    np.testing.assert_array_equal(row_losses("coverage", values, target), [0, np.nan, 1])
    log_p = np.log([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    found = row_losses("cross_entropy", log_p, np.array([1, np.nan, 1]))
    np.testing.assert_allclose(found, [-np.log(0.8), np.nan, -np.log(0.1)])
    assert of_mean("rmse", 9.0) == 3.0
    assert of_mean("mae", 9.0) == 9.0


def rival(family, error, ratio, low, high):
    return Rival(family, error, Interval(ratio, low, high), "8 blocks of 3 rows")


@pytest.mark.parametrize(
    ("rivals", "words"),
    [
        (
            [
                rival(Autoregression, 116.4, 1.1443, 1.02, 1.27),
                rival(Constant, 200, 0.67, 0.5, 0.8),
            ],
            "use the autoregression: its rmse 116.4 is 13 % smaller than the network's, 95 % "
            "interval 2.0 % to 21 %",
        ),
        (
            [rival(Autoregression, 140.0, 0.9514, 0.9, 0.99), rival(Constant, 200, 0.67, 0.5, 0.8)],
            "the network is better than every baseline: its rmse 133.2 is 4.9 % smaller than 140.0 "
            "of the best of them, the autoregression, 95 % interval 1.0 % to 10 %",
        ),
        (
            [rival(Autoregression, 130.0, 1.0246, 0.9, 1.2), rival(Constant, 140, 0.95, 0.8, 1.1)],
            "no difference can be told: the network's rmse 133.2 is 2.5 % larger than 130.0 of the "
            "autoregression, 95 % interval -10 % to 20 %; take the simpler, the autoregression",
        ),
        (
            [rival(Constant, 1e-9, 1.332e11, 1e11, 1e12)],
            "use the constant: its rmse is 1.000e-09, next to nothing beside 133.2 of the network",
        ),
        (
            # What drifts away from the constant is no reason to take it.
            [rival(Autoregression, 140.0, 0.95, 0.9, 0.99), rival(Constant, 9e3, 0.01, 0.0, 1e9)],
            "the network is better than every baseline: its rmse 133.2 is 5.0 % smaller than 140.0 "
            "of the best of them, the autoregression, 95 % interval 1.0 % to 10 %",
        ),
        (
            [rival(Constant, 133.2, 1.0000002, 0.98, 1.02)],
            "no difference can be told: the network's rmse 133.2 is the same within 0.0001 % as "
            "133.2 of the constant, 95 % interval -2.0 % to 2.0 %; take the simpler, the constant",
        ),
        (
            [rival(Constant, 133.19, 1.000034, 0.98, 1.02)],
            "no difference can be told: the network's rmse 133.2 is 0.0034 % larger than 133.2 of "
            "the constant, 95 % interval -2.0 % to 2.0 %; take the simpler, the constant",
        ),
        (
            [rival(Constant, 140.0, 0.95, 0.0, 1e9)],
            "too few rows to tell: the network's rmse 133.2 is 5.0 % smaller than 140.0 of the "
            "constant, with no interval from 8 blocks of 3 rows; take the simpler, the constant",
        ),
    ],
)
def test_the_verdict_is_one_sentence(rivals, words):
    assert verdict("rmse", 133.2, rivals) == words


def test_few_dates_of_many_streams_are_said_to_be_too_little(tmp_path):
    """Of 40 streams there are 400 targets, but at 10 times."""
    s, t = np.repeat(np.arange(40), 50), np.tile(np.arange(50), 40)
    y = np.random.default_rng(3).normal(size=2000)
    path = write_csv(tmp_path, day=np.datetime64("2020-01-01") + t, s=s, y=y)
    config = TrainingConfig(path=path, predict=("y",), group=("s",), inputs=("y",), epochs=1)
    lines = list(report_lines(train(config.replace(layers=("gru:2",))).report))
    assert "  95 % intervals need more than 3 blocks of 3 times" in lines
    assert any("with no interval from 3 blocks of 3 times" in line for line in lines)


def test_percentages_have_a_decimal_where_it_says_something():
    assert [percent(x) for x in (0.132, 0.0951, 0.004, -0.0549, -0.3, 1e6)] == [
        "13 %", "10 %", "0.4 %", "-5.5 %", "-30 %", "more than 100,000 %",
    ]  # fmt: skip
    assert [percent(x) for x in (0.00094, 0.0005, -0.00032, 0.00009, 3.4e-5, -2e-6, 9e-7, 0.0)] == [
        "0.09 %", "0.05 %", "-0.03 %", "0.009 %", "0.0034 %", "-0.0002 %", "0 %", "0 %",
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(ratio=st.floats(0.5, 2.0).map(lambda x: 1 + (x - 1) ** 5))
def test_errors_that_differ_are_never_said_to_differ_by_nothing(ratio):
    words, _, _ = sides(Interval(ratio, ratio - 0.1, ratio + 0.1))
    if words == "the same within 0.0001 %":
        assert abs(ratio - 1) < 1e-6
    else:
        share, side = words.split(" % ")
        assert side == ("smaller" if ratio < 1 else "larger")
        assert float(share) > 0
        assert float(share) / 100 == pytest.approx(abs(ratio - 1), rel=0.5, abs=0.6e-6)


def test_a_report_ends_in_the_verdict_and_its_baselines_say_what_they_are(tmp_path):
    result = train(
        TrainingConfig(path=write_csv(tmp_path, y=noisy_sine(300)), predict=("y",), epochs=2)
    )
    report = result.report
    lines = list(report_lines(report))
    comparison = report["comparison"]["y+1"]
    lags = report["fitted"]["y+1"]["autoregression"]["lags"]
    assert comparison["num_targets"] == 60
    assert comparison["against"]["autoregression"]["label"] == f"autoregression, {lags} lags"
    assert f"verdict on y+1: {comparison['verdict']}" in lines
    assert any(line.startswith(f"  autoregression, {lags} lags  ") for line in lines)
    assert any("fitted to the training and the validation part" in line for line in lines)
    assert "use the autoregression" in comparison["verdict"]  # two epochs are nothing
    order = [line.split("  ")[1] for line in lines if line.startswith("  ")]
    assert order.index(f"autoregression, {lags} lags") < order.index("this model")
    parts = next(line for line in lines if "by part" in line)
    assert parts.index("train") < parts.index("validation") < parts.index("test")


def test_a_report_of_an_earlier_version_is_still_shown(tmp_path):
    result = train(
        TrainingConfig(path=write_csv(tmp_path, y=noisy_sine(200)), predict=("y",), epochs=2)
    )
    names = ("persistence", "autoregression")
    report = {k: v for k, v in result.report.items() if k not in ("comparison", "fitted")}
    report["baselines"] = {name: report["baselines"][name] for name in names}
    lines = list(report_lines(report))
    assert any(line.startswith("  linear autoregression  ") for line in lines)
    assert not any("verdict" in line for line in lines)
