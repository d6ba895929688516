"""What a recorded piece of a stream tells: gates, warm-up, and where its inputs lie."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.engine.sequences import Sequences
from streamrnn.kernels.row_layout import first_row
from streamrnn.model.model import Model
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.gates import run_gates
from streamrnn.training import TrainingConfig, train
from streamrnn.training.memory.drift import LEVELS, measure_drift
from streamrnn.training.memory.recording import measure_recording, measure_restarts
from streamrnn.training.memory.units import measure_units
from tests.support.models import random_inputs, random_model
from tests.support.tables import write_csv


def drift_of(spec, x):
    """Return what is told of drift, which is something, and of each input by its name."""
    found = measure_drift(spec, x)
    assert found is not None
    return found, {each["name"]: each for each in found["inputs"]}


def leaky(share, promised_steps):
    """Return y' = share * y + x, which forgets its start as powers of `share`."""
    spec = ModelSpec(
        (InputSpec("x"),),
        (LayerSpec("rnn_relu", 1),),
        (OutputSpec("y"),),
        HeadSpec(),
        warmup_steps=promised_steps,
    )
    one = np.ones((1, 1), np.float32)
    weights = {"weight_ih_l0": one, "weight_hh_l0": share * one, "head.weight": one}
    biases = {name: np.zeros(1, np.float32) for name in ("bias_ih_l0", "bias_hh_l0", "head.bias")}
    return Model(spec, weights | biases)


def test_gates_of_a_recording_are_those_of_the_whole_stream():
    rng = np.random.default_rng(1)
    model = random_model(rng, [("lstm", 24), ("gru", 8)], warmup_steps=3)
    x = random_inputs(rng, model.spec, 1, 300)[0]
    sequences = Sequences(model, x)
    states = sequences.new_states(1)
    sequences.run(np.array([0]), np.array([100]), states)
    facts = measure_recording(model, states[0], x[100:], 100)
    for found, told in zip(run_gates(model, x[None])[1], facts["layers"], strict=True):
        units = measure_units(found, 100)
        assert told["half_life"]["median"] == pytest.approx(np.median(units.half_lives), rel=1e-4)
        longest = told["half_life"]["longest"]
        assert [k for k, _ in longest] == np.argsort(-units.half_lives)[:16].tolist()
        assert [v for _, v in longest] == pytest.approx(-np.sort(-units.half_lives)[:16], rel=1e-4)
        shares = {name: share.mean() for name, share in units.saturated.items()}
        assert told["saturated"] == pytest.approx(shares, abs=1e-9)
        rms = {name: np.sqrt((state[:, 100:] ** 2).mean()) for name, state in found.states.items()}
        assert told["rms"] == pytest.approx(rms, rel=1e-4)
    assert facts["num_steps"] == 200
    assert facts["inputs"] is None


@pytest.mark.parametrize(("promised", "holds"), [(60, True), (20, False)])
def test_restarts_tell_whether_the_warm_up_holds(promised, holds):
    model = leaky(0.9, promised)
    x = np.random.default_rng(2).random((400, 1)).astype(np.float32)
    y, _ = run_gates(model, x[None])
    found = measure_restarts(model, x, y[0])
    length = max(2 * promised, 64)
    starts = np.linspace(1, 400 - length, 4).astype(int)
    missing = (
        np.sqrt(np.mean(y[0, starts - 1, 0] ** 2)) / y.std()
    )  # what the new ones begin without
    steps = np.arange(1, length + 1)
    needed = int(np.flatnonzero(missing * 0.9**steps > 0.01)[-1]) + 1
    assert found["needed_steps"] == needed
    assert found["distance"] == pytest.approx(missing * 0.9 ** (promised + 1), rel=1e-4)
    assert (found["holds"], found["promised_steps"]) == (holds, promised)
    assert found["num_restarts"] == 4


@pytest.mark.parametrize(
    ("x", "promised", "why"),
    [
        (np.random.default_rng(2).random((40, 1)), 30, "no more than 40 steps recorded"),
        (np.ones((400, 1)), 20, "the outputs hardly change"),
    ],
)
def test_restarts_that_tell_nothing_say_why(x, promised, why):
    model = leaky(0.5, promised)
    row = np.full(16, 0.0, np.float32)
    row[0] = 2.0  # where it rests with inputs of 1
    found = measure_recording(model, row, x.astype(np.float32), 1000)["warmup"]
    assert (found["holds"], found["why"], found["num_restarts"]) == (None, why, 0)


def test_a_stream_that_is_new_itself_is_no_measure_of_its_warm_up():
    model = leaky(0.9, 100)
    x = np.random.default_rng(2).random((160, 1)).astype(np.float32)
    row = first_row(model)
    assert measure_recording(model, row, x, 0)["warmup"]["num_restarts"] == 0
    assert measure_recording(model, row + 1, x, 1000)["warmup"]["num_restarts"] > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    rng = np.random.default_rng(4)
    directory = tmp_path_factory.mktemp("drift")
    level = np.cumsum(rng.standard_normal(400))
    columns = {
        "t": np.arange(400),
        "level": level,
        "kind": rng.choice(["a", "b"], 400),
        "y": np.sin(level),
    }
    path = write_csv(directory, **columns)
    config = TrainingConfig(
        path=path,
        time="t",
        predict=("y",),
        inputs=("level", "kind", "y"),
        difference=("level",),
        layers=("gru:4",),
        updates=2,
        batch_size=4,
        truncation_steps=8,
    )
    result = train(config)
    return result.model, result.dataset


def test_a_training_keeps_the_quantiles_of_its_inputs(trained, tmp_path):
    model, dataset = trained
    level, kind, y = model.spec.training["inputs"]
    stop = dataset.streams[0].stops[0]
    x = dataset.streams[0].x[:stop].astype(np.float64)
    np.testing.assert_allclose(level["quantiles"], np.quantile(np.diff(x[:, 0]), LEVELS))
    np.testing.assert_allclose(y["quantiles"], np.quantile(x[:, 2], LEVELS))
    counts = np.bincount(x[:, 1].astype(int), minlength=model.spec.inputs[1].num_categories)
    np.testing.assert_allclose(kind["shares"], counts / stop)
    model.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.spec.training["inputs"] == model.spec.training["inputs"]


def test_inputs_beyond_those_of_the_training_are_counted(trained):
    model, dataset = trained
    x = dataset.streams[0].x[: dataset.streams[0].stops[0]].copy()
    same, told = drift_of(model.spec, x)
    assert same["beyond"] == 0
    assert told["y"]["median_at"] == pytest.approx(0.5, abs=0.01)
    assert told["y"]["tails"] == pytest.approx(0.02, abs=0.01)
    x[:, 2] += 10.0  # its level is another one; that of a differenced input may be
    x[:, 0] += 1000.0
    moved, told = drift_of(model.spec, x)
    assert moved["inputs"][0]["name"] == "y"
    assert (told["y"]["beyond"], told["y"]["median_at"]) == (1.0, 1.0)
    assert told["level"]["beyond"] == 0
    assert moved["beyond"] == pytest.approx(1 / 3, abs=0.01)


def test_missing_values_and_new_categories_are_told():
    spec = ModelSpec(
        (
            InputSpec("kind", kind="categorical", num_categories=3),
            InputSpec("held", missing="hold"),
        ),
        (LayerSpec("gru", 2),),
        (OutputSpec("y"),),
        HeadSpec(),
        training={
            "inputs": [
                {"shares": [0.5, 0.5, 0.0]},
                {"quantiles": [0.0] * 5 + [1.0] * 4, "missing": 0.1},
            ]
        },
    )
    x = np.array([[0, np.nan], [2, 0.0], [2, np.nan], [1, 0.0]], np.float32)
    found, told = drift_of(spec, x)
    assert told["kind"]["beyond"] == 0.5
    assert told["held"] == {
        "name": "held",
        "beyond": 0.0,
        "tails": 0.0,
        "median_at": 0.25,
        "missing": 0.5,
        "trained_missing": 0.1,
    }
    assert found["beyond"] == pytest.approx(2 / 6)


GOOD = {"quantiles": [0.0] * 9, "missing": 0.0}


@pytest.mark.parametrize(
    "ranges",
    [
        None,
        "x",
        [],
        [GOOD, GOOD],
        [{"quantiles": [0.0] * 8, "missing": 0.0}],
        [{"quantiles": [1.0] + [0.0] * 8, "missing": 0.0}],
        [{"quantiles": [0.0] * 8 + ["a"], "missing": 0.0}],
        [{"quantiles": [0.0] * 8 + [float("nan")], "missing": 0.0}],
        [{"quantiles": [0.0] * 9}],
        [{"shares": [1.0]}],
        [None],
    ],
)
def test_models_of_before_and_damaged_reports_tell_no_drift(ranges):
    spec = leaky(0.5, 1).spec
    training = {} if ranges is None else {"inputs": ranges}
    spec = ModelSpec(spec.inputs, spec.layers, spec.outputs, spec.head, training=training)
    assert measure_drift(spec, np.zeros((5, 1), np.float32)) is None
    good = ModelSpec(spec.inputs, spec.layers, spec.outputs, spec.head, training={"inputs": [GOOD]})
    assert measure_drift(good, np.zeros((5, 1), np.float32)) is not None
