"""What is missing at a stream's start is no change: in the trainer and in the engine."""

from dataclasses import replace

import numpy as np
import pytest

import streamrnn
from streamrnn import Engine, Model
from streamrnn.errors import SpecError
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn.training.data.dataset import encode
from streamrnn.training.verify import trainer_outputs, verify
from tests.support.models import random_model

LATE = InputSpec("y", difference=True, missing="hold", fill=5.0, starts_known=True)


def changes(item, *values):
    model_spec = random_model(np.random.default_rng(0), [("gru", 2)], [item], 1).spec
    x = np.array(values, np.float32)[:, None]
    return encode(model_spec, x).features[:, 0, 0].tolist()


def test_the_first_change_is_from_the_first_known_value():
    nan = np.nan
    assert changes(LATE, nan, nan, 105, 107, nan, 104) == [0, 0, 0, 2, 0, -3]
    before = replace(LATE, starts_known=False)
    assert changes(before, nan, nan, 105, 107, nan, 104) == [0, 0, 100, 2, 0, -3]
    assert changes(LATE, nan, nan) == [0, 0]
    assert changes(LATE, 3, nan, 4) == [0, 0, 1]


@pytest.fixture(scope="module")
def result():
    """Two random walks, one of which begins late."""
    rng = np.random.default_rng(1)
    y = np.cumsum(rng.normal(0, 1, (2, 200)), axis=1) + 1000.0
    y[1, :30] = np.nan
    return streamrnn.train(
        {"g": np.repeat(["a", "b"], 200), "y": y.reshape(-1)},
        predict="y", group="g", layers=["gru:4"], epochs=3, difference=["y"],
    )  # fmt: skip


def test_a_trained_model_does_so_and_the_engine_reproduces_it(result, tmp_path):
    [item] = result.model.spec.inputs
    assert (item.difference, item.missing, item.starts_known) == (True, "hold", True)
    assert verify(result.model, result.dataset) < 1e-4
    stream = result.dataset.streams[1]
    assert np.abs(stream.chunk.features).max() < 10  # standard deviations of a change
    y = Engine(result.model).steps("b", stream.x)[:, 0]
    exact = trainer_outputs(result.model, stream, np.float64)[:, 0]
    np.testing.assert_allclose(y, exact, rtol=1e-6)
    # In the gap too, where the mean stands for what is not known.
    assert np.abs(y[:30] - item.fill).max() < 10
    result.save(tmp_path / "m.safetensors")
    assert Model.load(tmp_path / "m.safetensors").spec == result.model.spec
    found = streamrnn.predict(result.model, {"y": stream.x[:, 0]}, group="")
    np.testing.assert_array_equal(found["y_h1"], y)


def test_outputs_follow_a_shift_of_all_values_after_a_gap(result):
    rng = np.random.default_rng(2)
    y = np.cumsum(np.round(rng.normal(0, 1, 40) * 4) / 4).astype(np.float32)
    y[:7] = np.nan
    engine = Engine(result.model)
    low, high = engine.steps("low", y[:, None]), engine.steps("high", y[:, None] + 4096)
    np.testing.assert_allclose(high[7:] - low[7:], 4096, atol=2e-3)
    np.testing.assert_array_equal(high[:7], low[:7])


def test_a_state_that_is_moved_within_the_gap_goes_on(result):
    x = np.array([[np.nan]] * 4 + [[1010.0], [1011.5]], np.float32)
    engine, other = Engine(result.model), Engine(result.model)
    whole = engine.steps("whole", x)
    first = engine.steps("s", x[:3])
    other.import_state("s", engine.export_state("s"))
    np.testing.assert_array_equal(np.concatenate([first, other.steps("s", x[3:])]), whole)


def test_outputs_of_a_model_that_does_not_say_have_the_change_from_the_fill(rng):
    outputs = [OutputSpec("next", difference_of="y")]
    before = random_model(rng, [("gru", 3)], [replace(LATE, starts_known=False)], outputs)
    after = Model(replace(before.spec, inputs=(LATE,)), before.parameters)
    x = np.array([[np.nan], [np.nan], [105.0], [106.0]], np.float32)
    y = [Engine(model).steps("s", x)[:, 0] for model in (before, after)]
    np.testing.assert_array_equal(y[0][:2], y[1][:2])
    assert abs(y[0][2] - y[1][2]) > 1e-3
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    "changes", [{"difference": False}, {"missing": "error"}, {"starts_known": 1}]
)
def test_where_it_means_nothing_it_is_refused(changes):
    with pytest.raises(SpecError, match="starts_known"):
        replace(LATE, **changes)
