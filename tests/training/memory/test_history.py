"""Loss against history given, on networks whose memory is known."""

import numpy as np
import pytest

from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.memory.history import history_lines, measure_history
from streamrnn.training.memory.rows import choose_rows
from streamrnn.training.memory.targets import TargetsOf
from tests.support.models import random_parameters
from tests.support.tables import write_csv
from tests.training.memory.made import delay, made

LAG = 11


@pytest.fixture
def delayed(tmp_path):
    return delay(tmp_path, LAG)


def test_a_network_that_passes_on_what_it_saw_uses_just_so_many_steps(delayed):
    dataset, model = delayed
    found = measure_history(model, dataset, "test")
    assert found is not None
    assert found.uses_steps == LAG
    assert found.has_skill
    assert found.full < 1e-3
    assert found.shares["8"] > 1.0  # nothing has come to the output yet
    assert found.shares["12"] < 1e-3
    [words, shares] = history_lines(found.to_dict())
    assert words.startswith(f"memory: uses {LAG} steps before a row")
    assert "by steps given before a row: 0: " in shares


def test_without_targets_outputs_are_compared_with_those_of_all_the_past(delayed):
    dataset, model = delayed
    found = measure_history(model, dataset, "test", targets_are_outputs=True)
    assert found is not None
    assert found.uses_steps == LAG
    words = history_lines(found.to_dict())[0]
    assert words == f"memory: outputs with {LAG} steps before a row are those with all of the " + (
        "past, within 1 %"
    )


def test_figures_of_a_model_without_skill_mean_nothing(delayed):
    dataset, model = delayed
    other = dict(model.parameters)
    other["head.weight"] = np.zeros_like(other["head.weight"])
    other["head.bias"] = np.zeros(1, np.float32)  # the mean, always
    found = measure_history(Model(model.spec, other), dataset, "test")
    assert found is not None
    assert not found.has_skill
    assert found.full == pytest.approx(1.0, abs=0.02)
    assert "no skill" in history_lines(found.to_dict())[0]
    assert "do not mean memory" in history_lines(found.to_dict())[0]


@pytest.mark.parametrize(
    ("settings", "constant"),
    [
        ({"loss": "mse"}, lambda y: np.mean((y - y.mean()) ** 2)),
        ({"loss": "mae"}, lambda y: np.mean(np.abs(y - np.median(y)))),
        (
            {"quantiles": (0.9,)},
            lambda y: np.mean(
                np.maximum(0.9 * (y - np.quantile(y, 0.9)), 0.1 * (np.quantile(y, 0.9) - y))
            ),
        ),
    ],
)
def test_the_constant_is_the_best_one_of_each_loss(tmp_path, settings, constant):
    rng = np.random.default_rng(1)
    y = rng.exponential(size=300)
    path = write_csv(tmp_path, x=rng.normal(size=300), y=y)
    config = TrainingConfig(
        path=path, predict=("y",), inputs=("x",), horizon=(0,), difference=(), **settings
    )
    dataset = make_dataset(config, read_table(path))
    rows = choose_rows(dataset, "test", 1000, 0)
    target = dataset.streams[0].target[rows.rows, 0].astype(float)
    targets = TargetsOf(dataset, rows)
    assert targets.of_constant() == pytest.approx(constant(target), rel=1e-6)


def test_the_constant_of_classes_is_their_frequencies(tmp_path):
    dataset, _ = made("gru", tmp_path)
    rows = choose_rows(dataset, "test", 1000, 0)
    classes = dataset.streams[0].target[rows.rows, 0].astype(int)
    p = np.bincount(classes) / len(classes)
    entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    assert TargetsOf(dataset, rows).of_constant() == pytest.approx(entropy, rel=1e-9)


def test_rows_that_are_asked_about_have_the_history(tmp_path):
    dataset, _ = made("lstm", tmp_path)
    rows = choose_rows(dataset, "test", 20, 500)
    assert len(rows.rows) == 20
    assert (rows.rows >= rows.history).all()
    own = dataset.streams[0].rows("test")
    assert rows.rows.min() >= own.start
    assert rows.rows.max() < own.stop


def test_a_spec_without_a_head_is_measured_by_its_outputs(tmp_path):
    spec = ModelSpec((InputSpec("x"), InputSpec("y")), (LayerSpec("gru", 1),), (OutputSpec("z"),))
    dataset, _ = made("lstm", tmp_path)
    model = Model(spec, random_parameters(np.random.default_rng(0), spec))
    found = measure_history(model, dataset, "test", targets_are_outputs=True)
    assert found is not None
    assert found.is_of_outputs
    assert found.full == 0.0
