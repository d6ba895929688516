"""Several horizons, quantiles, losses for numbers, class weights, targets as changes."""

import csv
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamrnn
from streamrnn import Engine
from streamrnn.commands.predict import predict_file
from streamrnn.errors import DataError, TrainingError
from streamrnn.model.spec import InputSpec
from streamrnn.training.config import PARTS, TrainingConfig
from streamrnn.training.config_file import read_config
from streamrnn.training.data.class_weights import class_weights
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.network.losses import LossSettings, loss_and_gradient
from streamrnn.training.report import report_lines
from streamrnn.training.train import train, train_to_file
from streamrnn.training.unseen import evaluate_file
from tests.support.tables import noisy_sine, write_csv
from tests.training.network.gradients import STEP, assert_gradient, make_case


def dataset_of(path, **options):
    config = TrainingConfig(path=path, **options)
    return make_dataset(config, read_table(path, config.read_options(), config.kinds()))


def in_units(dataset, stream):
    """Return a stream's targets in the user's units, [T, O]."""
    outputs = dataset.spec.outputs
    return (
        stream.target.astype(float) * [item.scale for item in outputs]
        + [item.center for item in outputs]
        + stream.level
    )


def test_every_target_has_an_output_for_each_horizon_and_quantile(tmp_path):
    t = np.arange(200.0)
    path = write_csv(tmp_path, a=np.sin(t), b=np.cos(t / 5))
    dataset = dataset_of(path, predict=("a", "b"), horizon=(1, 6), quantiles=(0.1, 0.9))
    assert [item.name for item in dataset.spec.outputs] == [
        "a+1 q0.1", "a+1 q0.9", "a+6 q0.1", "a+6 q0.9",
        "b+1 q0.1", "b+1 q0.9", "b+6 q0.1", "b+6 q0.9",
    ]  # fmt: skip
    [stream] = dataset.streams
    assert stream.stops == (114, 154, 194)
    found = in_units(dataset, stream)
    for o, (values, ahead) in enumerate([(np.sin(t), 1)] * 2 + [(np.sin(t), 6)] * 2):
        np.testing.assert_allclose(found[:114, o], values[ahead:][:114], atol=1e-6)
    assert dataset.loss == "pinball"
    assert dataset.loss_settings.quantiles == (0.1, 0.9) * 4


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_targets_of_a_part_lie_in_no_other_whatever_the_horizons(tmp_path_factory, data):
    """The value of a row is its number: so a target tells which row it lies in."""
    horizon = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4, unique=True))
    kind = data.draw(st.sampled_from(["time", "date", "stream", "file", "column:part"]))
    lengths = data.draw(st.lists(st.integers(30, 60), min_size=4, max_size=6))
    starts = data.draw(st.lists(st.integers(0, 90), min_size=len(lengths), max_size=len(lengths)))
    day = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    cuts: list[tuple[int, ...]] = [
        tuple(sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in lengths
    ]
    cuts[0] = (15, 22)  # so that no part is empty
    told = [
        PARTS[(k >= a) + (k >= b)] for (a, b), n in zip(cuts, lengths, strict=True)
        for k in range(n)
    ]  # fmt: skip
    path = write_csv(
        tmp_path_factory.mktemp("parts"),
        day=(np.datetime64("2000-01-01") + day).astype(str),
        g=np.repeat([f"s{k}" for k in range(len(lengths))], lengths),
        y=np.concatenate([np.arange(n) for n in lengths]),
        x=np.random.default_rng(0).normal(size=sum(lengths)),
        part=told,
    )
    options = {"predict": ("y",), "group": ("g",), "inputs": ("x",), "split_by": kind}
    try:
        dataset = dataset_of(path, **options, horizon=tuple(horizon))
    except DataError as error:  # a part too short for the nearer of two horizons
        if "holds no value of the target" in str(error):
            return
        raise
    lasts: dict[str, list[str]] = {part: [] for part in PARTS}
    firsts: dict[str, list[str]] = {part: [] for part in PARTS}
    for k, stream in enumerate(dataset.streams):
        days = (np.datetime64("2000-01-01") + starts[k] + np.arange(lengths[k])).astype(str)
        before = -1.0
        for part in PARTS:
            values = np.round(in_units(dataset, stream)[stream.rows(part)])
            known = values[~np.isnan(values)]
            if len(known):
                assert known.min() > before
                before = known.max()
                lasts[part].append(days[int(before)])
                firsts[part].append(days[int(known.min())])
        rows = np.arange(len(stream.x))[:, None] + np.array(horizon)
        found = np.round(in_units(dataset, stream))
        np.testing.assert_array_equal(found[~np.isnan(found)], rows[~np.isnan(found)])
    if kind == "date":
        for early, late in (("train", "validation"), ("validation", "test")):
            assert not lasts[early] or not firsts[late] or max(lasts[early]) < min(firsts[late])


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=40),
    st.floats(0.02, 0.98),
    st.floats(-60, 60),
)
def test_pinball_is_least_at_the_quantile(values, quantile, other):
    target = np.array(values)[:, None, None]
    chosen = LossSettings(quantiles=(quantile,))

    def loss_of(z):
        everywhere = np.full_like(target, z)
        return loss_and_gradient("pinball", "identity", everywhere, target, chosen)[0]

    at = np.quantile(target, quantile, method="inverted_cdf")
    assert loss_of(at) <= loss_of(other) + 1e-9


def test_losses_of_numbers_by_hand():
    z, target = np.array([[[1.0, 1.0, 1.0]]]), np.array([[[4.0, 0.5, np.nan]]])

    def of(loss, **chosen):
        value, gradient = loss_and_gradient(loss, "identity", z, target, LossSettings(**chosen))
        return value, gradient.ravel().tolist()

    assert of("mae") == (1.75, [-0.5, 0.5, 0.0])
    assert of("huber") == ((2.5 + 0.125) / 2, [-0.5, 0.25, 0.0])
    assert of("huber", delta=2.0) == ((4.0 + 0.125) / 2, [-1.0, 0.25, 0.0])
    value, gradient = of("pinball", quantiles=(0.9, 0.2, 0.5))
    assert value == pytest.approx((0.9 * 3 + 0.8 * 0.5) / 2)
    assert gradient == pytest.approx([-0.45, 0.4, 0.0])


@pytest.mark.parametrize("loss", ["mae", "huber", "pinball"])
def test_gradient_of_losses_of_numbers(loss):
    rng = np.random.default_rng(11)
    assert_gradient(loss, make_case(rng, [("gru", 4)], loss, "identity", (InputSpec("a"),)))


@pytest.mark.parametrize(
    ("loss", "activation", "width"),
    [("cross_entropy", "softmax", 1), ("binary_cross_entropy", "sigmoid", 2)],
)
def test_class_weights_multiply_loss_and_gradient_by_the_class(loss, activation, width):
    rng = np.random.default_rng(2)
    z, target = rng.normal(size=(6, 2, 2)), rng.integers(0, 2, (6, 2, width)).astype(float)
    target[0, 0] = np.nan
    chosen = LossSettings(class_weights=(0.5, 3.0))
    value, gradient = loss_and_gradient(loss, activation, z, target, chosen)
    by_class = []
    for index in (0, 1):
        own = np.where(target == index, target, np.nan)
        found, _ = loss_and_gradient(loss, activation, z, own)
        by_class.append(found * np.count_nonzero(~np.isnan(own)))
    count = np.count_nonzero(~np.isnan(target))
    assert value == pytest.approx((0.5 * by_class[0] + 3.0 * by_class[1]) / count)
    for place in np.ndindex(*z.shape):
        sides = []
        for change in (STEP, -STEP):
            moved = z.copy()
            moved[place] += change
            sides.append(loss_and_gradient(loss, activation, moved, target, chosen)[0])
        assert gradient[place] == pytest.approx((sides[0] - sides[1]) / (2 * STEP), abs=1e-6)


def test_weights_have_a_mean_of_one_over_the_training_part():
    codes = [np.array([0, 0, 0, 1, np.nan], np.float32), np.array([0], np.float32)]
    assert class_weights(("balanced",), ("a", "b"), codes) == pytest.approx((0.625, 2.5))
    # As scikit-learn: targets / (classes x targets of the class).
    assert class_weights(("b=3",), ("a", "b"), codes) == pytest.approx((5 / 7, 15 / 7))
    for text, message in (("c=2", "is no class"), ("b", "NAME=WEIGHT"), ("b=-1", "above 0")):
        with pytest.raises(TrainingError, match=message):
            class_weights((text,), ("a", "b"), codes)


def test_weights_are_learned_from_but_not_reported(tmp_path):
    rng = np.random.default_rng(3)
    rare = rng.random(600) < 0.1
    x = rare * 0.7 + rng.normal(size=600)
    path = write_csv(tmp_path, x=x, kind=np.where(rare, "rare", "usual"))
    config = TrainingConfig(
        path=path,
        predict=("kind",),
        inputs=("x",),
        horizon=(0,),
        layers=("gru:3",),
        epochs=40,
        learning_rate=0.02,
        truncation_steps=8,
    )
    plain, weighted = train(config), train(config.replace(class_weights=("balanced",)))
    seen = plain.dataset.streams[0].x
    is_rare = [
        np.mean(Engine(each.model).steps("s", seen)[:, 0] > 0.5) for each in (plain, weighted)
    ]
    assert is_rare[0] < 0.1 < 0.3 < is_rare[1]
    # Reported as they are: the weighted network's accuracy is the lower one.
    errors = [each.report["errors"]["test"]["kind"] for each in (plain, weighted)]
    assert errors[0]["accuracy"] > errors[1]["accuracy"]
    assert errors[0]["cross_entropy"] < errors[1]["cross_entropy"]
    with pytest.raises(TrainingError, match="learns numbers"):
        dataset_of(path, predict=("x",), class_weights=("balanced",))


@pytest.fixture(scope="module")
def quantiles(tmp_path_factory):
    """A model of quantiles of noise whose spread an input tells, and its file of data."""
    directory = tmp_path_factory.mktemp("quantiles")
    rng = np.random.default_rng(4)
    spread = np.where(rng.random(4000) < 0.5, 1.0, 4.0)
    path = write_csv(
        directory, spread=spread, y=np.append(0.0, spread[:-1] * rng.normal(size=3999))
    )
    config = TrainingConfig(
        path=path,
        predict=("y",),
        horizon=(1, 2),
        quantiles=(0.1, 0.5, 0.9),
        layers=("gru:4",),
        epochs=40,
        learning_rate=0.02,
        truncation_steps=16,
    )
    return train_to_file(config, directory / "m.safetensors"), path


def test_quantiles_cover_what_they_say_and_follow_the_spread(quantiles):
    result, _ = quantiles
    found = result.report["intervals"]["y+1"]
    assert (found["low"], found["high"]) == (0.1, 0.9)
    assert found["coverage"] == pytest.approx(0.8, abs=0.05)
    assert found["crossings"] < 0.02
    stream = result.dataset.streams[0]
    y = Engine(result.model).steps("s", stream.x)
    test, names = stream.rows("test"), [item.name for item in result.model.spec.outputs]
    for spread in (1.0, 4.0):
        rows = stream.x[test, 0] == spread
        high = y[test, names.index("y+1 q0.9")][rows].mean()
        assert high == pytest.approx(1.2816 * spread, rel=0.15)  # of the normal distribution
    # Counted from what is served, in the user's units.
    truth = np.asarray(result.dataset.table.column("y").numbers)[1:][test]
    low, high = (y[test, names.index(f"y+1 q{q}")] for q in ("0.1", "0.9"))
    assert found["coverage"] == pytest.approx(np.mean((low <= truth) & (truth <= high)), abs=1e-3)
    # Two rows ahead nothing tells the spread: the interval is that of the mixture.
    assert result.report["intervals"]["y+2"]["coverage"] == pytest.approx(0.8, abs=0.06)
    text = "\n".join(report_lines(result.report))
    assert "from q0.1 to q0.9 lie" in text
    assert "(80.0% wanted); quantiles cross in" in text
    assert result.report["errors"]["test"]["y+1 q0.9"]["coverage"] == pytest.approx(0.9, abs=0.04)


def test_baselines_of_a_quantile_are_moved_to_it(quantiles):
    """Persistence knows no quantile: its errors in the fitted rows say where that lies."""
    result, path = quantiles
    y = np.asarray(result.dataset.table.column("y").numbers)
    stream = result.dataset.streams[0]
    test, changes = stream.rows("test"), np.diff(y)
    # Two rows ahead is predicted too: of a part's first row the next one lies in the part before.
    errors = np.delete(changes[: stream.stops[1]], stream.stops[0])
    rest = changes[test][1:] - np.quantile(errors, 0.9)
    expected = np.mean(np.maximum(0.9 * rest, -0.1 * rest))
    reported = result.report["baselines"]["persistence"]["y+1 q0.9"]
    assert reported["pinball"] == pytest.approx(expected, rel=1e-4)
    assert reported["coverage"] == pytest.approx(0.9, abs=0.04)
    found = evaluate_file(result.model, path, warmup_rows=test.start)
    again = found["baselines"]["persistence"]["y+1 q0.9"]
    assert again["pinball"] == pytest.approx(reported["pinball"], rel=1e-3)


def test_a_file_through_a_model_of_quantiles_is_named_and_judged_alike(quantiles, tmp_path):
    result, path = quantiles
    predict_file(result.model, path, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "y_h1_q0.1", "y_h1_q0.5", "y_h1_q0.9", "y_h2_q0.1", "y_h2_q0.5", "y_h2_q0.9",
    ]  # fmt: skip
    expected = Engine(result.model).steps("s", result.dataset.streams[0].x)
    np.testing.assert_array_equal(np.array(rows[1:], np.float32), expected)
    test = result.dataset.streams[0].rows("test")
    found = evaluate_file(result.model, path, warmup_rows=test.start + 1)
    reported = result.report["errors"]["test"]["y+2 q0.9"]
    assert found["errors"]["y+2 q0.9"]["pinball"] == pytest.approx(reported["pinball"], rel=1e-3)


@pytest.mark.parametrize("loss", ["mae", "huber"])
def test_outliers_do_not_draw_the_forecast(tmp_path, loss):
    """Of a target that is 0 in 9 rows of 10 and 100 else, the mean is 10 and the median 0."""
    rng = np.random.default_rng(5)
    path = write_csv(tmp_path, x=rng.normal(size=1000), y=100.0 * (rng.random(1000) < 0.1) + 0.5)
    guesses = {}
    config = TrainingConfig(
        path=path,
        predict=("y",),
        inputs=("x",),
        layers=("gru:2",),
        huber_delta=0.05,
        epochs=20,
        learning_rate=0.02,
    )
    for name in ("mse", loss):
        result = train(config.replace(loss=name))
        guesses[name] = np.median(Engine(result.model).steps("s", result.dataset.streams[0].x))
    assert guesses["mse"] > 6
    assert guesses[loss] < 3


def test_a_target_is_learned_as_told_whatever_the_inputs_are(tmp_path):
    path = write_csv(tmp_path, y=np.arange(120.0) + noisy_sine(120))
    dataset = dataset_of(path, predict=("y",))
    assert dataset.config.difference_target == ("y",)
    assert dataset.spec.outputs[0].difference_of == "y"
    config = TrainingConfig(
        path=path, predict=("y",), difference_target=(), horizon=(1, 3), epochs=2, layers=("gru:3",)
    )
    result = train_to_file(config, tmp_path / "m.safetensors")  # the engine verifies it
    assert result.config.difference == ("y",)
    assert [item.difference_of for item in result.model.spec.outputs] == [None, None]
    assert not result.dataset.streams[0].level.any()
    assert read_config(tmp_path / "m.toml").difference_target == ()
    with pytest.raises(TrainingError, match="does not see its changes"):
        dataset_of(path, predict=("y",), difference=(), difference_target=("y",))
    with pytest.raises(TrainingError, match="which is no target"):
        dataset_of(path, predict=("y",), difference_target=("z",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": (1, 1)}, "horizon names 1 rows twice"),
        ({"horizon": (-2,)}, "horizon is -2; it must be from 0 to 1000000 rows"),
        ({"quantiles": (0.9, 0.1)}, r"quantiles are 0.9, 0.1; .* in rising order"),
        ({"quantiles": (0.5, 1.0)}, "between 0 and 1"),
        ({"quantiles": (float("nan"),)}, "between 0 and 1"),
        ({"quantiles": (0.5,), "loss": "mse"}, "learned by pinball, not by mse"),
        ({"loss": "pinball"}, "which quantiles"),
        ({"huber_delta": 0.0}, "huber_delta is 0"),
    ],
)
def test_forecasts_that_make_no_sense_are_refused(options: dict[str, Any], message):
    with pytest.raises(TrainingError, match=message):
        TrainingConfig(path="x.csv", **options)


def test_classes_have_one_horizon(tmp_path):
    path = write_csv(tmp_path, y=range(60), kind=["a", "b", "b"] * 20)
    with pytest.raises(TrainingError, match="2 horizons are named; train one model for each"):
        dataset_of(path, predict=("kind",), horizon=(1, 2))
    with pytest.raises(TrainingError, match="holds names, not numbers; pinball cannot"):
        dataset_of(path, predict=("kind",), quantiles=(0.5,))


@pytest.mark.parametrize(("known", "part"), [(range(70), "validation"), (range(160), "test")])
def test_a_part_without_a_value_of_one_target_is_refused(tmp_path, known, part):
    rng = np.random.default_rng(2)
    y = ["" if t not in known else f"{rng.normal():.3f}" for t in range(200)]
    path = write_csv(tmp_path, x=rng.normal(size=200), y=y)
    config = TrainingConfig(path=path, predict=("x", "y"), split=(0.4, 0.4, 0.2))
    with pytest.raises(DataError, match=rf"the {part} part .* no value of the target 'y\+1'"):
        make_dataset(config, read_table(path))


def test_quantiles_and_horizons_are_one_table_of_the_report(tmp_path):
    path = write_csv(tmp_path, a=noisy_sine(300), b=noisy_sine(300, 1), t=range(300))
    result = streamrnn.train(
        path, predict=["a", "b"], time="t", horizon=[1, 6], quantiles=[0.1, 0.5, 0.9], updates=60,
        layers=["gru:3"],
    )  # fmt: skip
    report = result.report
    lines = list(report_lines(report))
    assert not any(line.startswith("test error of a+1") for line in lines)
    for column in ("a", "b"):
        title = f"test error of {column} (pinball loss and share of targets below; the last 20%"
        [start] = [k for k, line in enumerate(lines) if line.startswith(title)]
        assert lines[start].endswith("55 to 60 targets):")
        assert lines[start + 1].split() == ["rows", "ahead", "q0.1", "q0.5", "q0.9"]
        for k, ahead in enumerate((1, 6)):
            own, other = lines[start + 2 + 2 * k].split(), lines[start + 3 + 2 * k].split()
            assert own[0] == str(ahead)
            assert other[0] == "baseline"
            for j, quantile in enumerate(("q0.1", "q0.5", "q0.9")):
                target = f"{column}+{ahead} {quantile}"
                errors = report["errors"]["test"][target]
                assert float(own[1 + 2 * j]) == pytest.approx(errors["pinball"], rel=1e-3)
                coverage = float(own[2 + 2 * j].rstrip("%")) / 100
                assert coverage == pytest.approx(errors["coverage"], abs=1e-3)
                best = report["comparison"][target]["best"]
                error = report["baselines"][best][target]["pinball"]
                assert any(float(x) == pytest.approx(error, rel=1e-3) for x in numbers(other))
        verdicts = [line for line in lines if line.startswith(f"verdict on {column}")]
        assert 1 <= len(verdicts) <= 6
    uses = {found["use"] for found in report["comparison"].values()}
    assert uses <= {"network", "baseline", "either"}


def numbers(words):
    return [word for word in words if word.replace(".", "").isdigit()]


def test_one_quantile_has_a_table_of_its_own(tmp_path):
    path = write_csv(tmp_path, a=noisy_sine(200))
    result = streamrnn.train(path, predict="a", quantiles=[0.9], updates=10, layers=["gru:2"])
    lines = list(report_lines(result.report))
    assert any(line.startswith("test error of a+1 q0.9 (pinball; ") for line in lines)
    assert any(line.startswith("verdict on a+1 q0.9: ") for line in lines)
