"""A linear path from recent steps to the outputs, beside the network."""

from dataclasses import replace

import numpy as np
import pytest

from streamrnn import Engine, Model
from streamrnn.errors import TrainingError
from streamrnn.training import TrainingConfig, train, train_to_file
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.diagnostics import measure_memory
from streamrnn.training.fit.lags import fit_path
from streamrnn.training.fit.loop import fit
from streamrnn.training.network.lags import network_of
from streamrnn.training.network.losses import loss_and_gradient
from streamrnn.training.network.network import Chunk
from tests.support.tables import noisy_sine, write_csv

RNG = np.random.default_rng(0)


def autoregressive(num_rows, weights=(0.5, 0.0, 0.4), noise=0.1):
    """Return a series of known law: each value by the last ones, the newest first."""
    rng = np.random.default_rng(7)
    y = list(rng.normal(size=len(weights)))
    for _ in range(num_rows):
        y.append(float(np.dot(weights, y[: -len(weights) - 1 : -1])) + noise * rng.normal())
    return np.array(y[len(weights) :])


def dataset_of(tmp_path, columns, **options):
    path = write_csv(tmp_path, **columns)
    return make_dataset(TrainingConfig(path=path, **options), read_table(path))


def test_the_law_of_a_series_is_found_with_its_lags(tmp_path):
    dataset = dataset_of(tmp_path, {"y": autoregressive(4000)}, predict=("y",))
    assert fit_path(dataset).lags >= 3
    exact = fit_path(dataset, 3)
    np.testing.assert_allclose(exact.weight[0, 0, ::-1], [0.5, 0.0, 0.4], atol=0.08)
    # What is left is the noise, in units of the series.
    assert exact.scale == pytest.approx(0.1 / dataset.spec.inputs[0].scale, rel=0.05)


def test_the_ridge_regression_is_that_of_numpy(tmp_path):
    y = noisy_sine(400)
    dataset = dataset_of(tmp_path, {"y": y}, predict=("y",))
    found = fit_path(dataset, 2)
    item = dataset.spec.inputs[0]
    z = (y[:240].astype(np.float32) - item.center) / item.scale
    rows = np.column_stack([np.concatenate([[0.0], z[:-1]]), z, np.ones(len(z))])[:239]
    target = dataset.streams[0].target[:239, 0]
    penalty = np.sqrt(found.ridge * len(rows)) * np.eye(3)[:2]  # of ridge regression, as rows
    expected = np.linalg.lstsq(
        np.vstack([rows, penalty]), np.concatenate([target, np.zeros(2)]), rcond=None
    )[0]
    np.testing.assert_allclose([*found.weight[0, 0], found.bias[0]], expected, atol=1e-5)


@pytest.mark.parametrize("block_steps", [1, 3, 7, 100])
def test_a_prediction_does_not_depend_on_its_blocks(tmp_path, monkeypatch, block_steps):
    dataset = dataset_of(tmp_path, {"y": noisy_sine(90), "x": noisy_sine(90)}, predict=("y",))
    found, features = fit_path(dataset, 5), dataset.streams[0].chunk.features[:, 0]
    padded = np.concatenate([np.zeros((4, features.shape[1])), features])
    expected = [
        found.bias[0] + np.sum(found.weight[0].T * padded[t : t + 5]) for t in range(len(features))
    ]
    monkeypatch.setattr("streamrnn.training.fit.lags.BLOCK_STEPS", block_steps)
    np.testing.assert_allclose(found.predict(features)[:, 0], expected, atol=1e-9)


@pytest.mark.parametrize("at_most", [10**6, 4000, 600])
def test_targets_that_are_few_and_regular_are_all_among_the_rows(tmp_path, monkeypatch, at_most):
    """As where one value an hour is known of minutes: every second row would meet none of them."""
    x = np.random.default_rng(1).normal(size=2000)
    y = [f"{3.0 * x[t - 1]:.6f}" if t % 4 == 3 else "" for t in range(2000)]
    options = {"predict": ("y",), "inputs": ("x",), "horizon": (0,)}
    dataset = dataset_of(tmp_path, {"x": x, "y": y}, **options)
    monkeypatch.setattr("streamrnn.training.fit.lags.MAX_ELEMENTS", at_most)
    found = fit_path(dataset, 3)
    law = 3.0 * dataset.spec.inputs[0].scale / dataset.spec.outputs[0].scale
    np.testing.assert_allclose(found.weight[0, 0, ::-1], [0.0, law, 0.0], atol=1e-4)
    assert found.scale < 0.01


def test_an_input_with_a_delay_is_seen_where_it_helps(tmp_path):
    x = RNG.normal(size=1500)
    y = np.concatenate([[0.0] * 2, 3.0 * x[:-2]]) + 0.01 * RNG.normal(size=1500)
    options = {"predict": ("y",), "inputs": ("x",), "horizon": (0,)}
    found = fit_path(dataset_of(tmp_path, {"x": x, "y": y}, **options))
    assert found.lags >= 3
    np.testing.assert_allclose(found.weight[0, 0, ::-1][:3], [0.0, 0.0, 1.0], atol=0.01)


def test_a_path_of_one_step_per_output_and_quantile(tmp_path):
    y = autoregressive(3000)
    dataset = dataset_of(
        tmp_path, {"y": y}, predict=("y",), horizon=(1, 2), quantiles=(0.1, 0.5, 0.9)
    )
    found = fit_path(dataset, 3)
    assert found.weight.shape == (6, 1, 3)
    z = found.predict(dataset.streams[0].chunk.features[:, 0])
    rows = dataset.streams[0].rows("validation")
    below = (dataset.streams[0].target[rows] < z[rows]).mean(axis=0)
    np.testing.assert_allclose(below, [0.1, 0.5, 0.9, 0.1, 0.5, 0.9], atol=0.05)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = write_csv(
        tmp_path_factory.mktemp("lags"),
        y=np.concatenate([autoregressive(300), autoregressive(200)]),
        x=RNG.normal(size=500),
        g=np.repeat(["a", "b"], [300, 200]),
    )
    return TrainingConfig(
        path=path, predict=("y",), group=("g",), layers=("gru:4",), updates=60, lags=3
    )


def test_the_engine_streams_what_was_trained(settings, tmp_path):
    """`train_to_file` compares them; here each step by itself, and the file."""
    result = train_to_file(settings, tmp_path / "m.safetensors")
    model = Model.load(tmp_path / "m.safetensors")
    assert [layer.op for layer in model.spec.layers] == ["", "time_conv", "activation"]
    stream = result.dataset.streams[0]
    engine = Engine(model)
    whole = engine.steps("whole", stream.x)
    one_by_one = np.concatenate([engine.steps("by one", row[None]) for row in stream.x[:40]])
    np.testing.assert_array_equal(whole[:40], one_by_one)
    network = network_of(model.spec, model.parameters, np.float64)
    chunk = Chunk(stream.chunk.features.astype(np.float64), {})
    y, _ = network.outputs(chunk, network.initial_state(1), max_steps=7)
    [output] = model.spec.outputs
    np.testing.assert_allclose(
        whole[:, 0], y[:, 0, 0] * output.scale + output.center + stream.level[:, 0], atol=1e-5
    )
    assert train(result.config).model.fingerprint == model.fingerprint


def test_it_is_no_worse_in_validation_than_the_path_alone(settings):
    """Of a linear series a network of many units learns the noise; then the path is left alone."""
    dataset = make_dataset(settings, read_table(settings.path))
    wild = replace(dataset, config=dataset.config.replace(learning_rate=1.0, updates=4))
    found = fit(wild)
    assert found.best_update == 0
    assert found.path is not None
    [a, b] = wild.streams
    errors = [
        (s.target - found.path.predict(s.chunk.features[:, 0]))[s.rows("validation")]
        for s in (a, b)
    ]
    assert found.loss == pytest.approx(np.nanmean(np.concatenate(errors) ** 2), rel=1e-4)


def test_the_gradient_goes_through_the_path(settings):
    dataset = make_dataset(settings, read_table(settings.path))
    network = fit(dataset).network
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9, 2, network.spec.num_features)).astype(np.float64)
    network = network_of(network.spec, network.parameters, np.float64)

    def total(x):
        z, _ = network.forward(Chunk(x, {}), network.initial_state(2))
        return float((z[-1] ** 2).sum())

    z, _ = network.forward(Chunk(x, {}), network.initial_state(2))
    grad_z = np.zeros_like(z)
    grad_z[-1] = 2.0 * z[-1]
    found = network.backward(grad_z, need_grad_x=True)
    assert found is not None
    for place in ((8, 0, 0), (6, 1, 1), (3, 0, 0)):
        step = np.zeros_like(x)
        step[place] = 1e-5
        expected = (total(x + step) - total(x - step)) / 2e-5
        assert found[place] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    memory = measure_memory(fit(dataset).network, dataset)
    assert memory.history is not None
    assert memory.gradients is not None
    assert [each["layer"] for each in memory.gradients["layers"]] == [0]


def test_a_refit_fits_the_path_to_all_rows(settings):
    result = train(settings.replace(refit=True))
    assert result.chosen is not None
    assert [layer.op for layer in result.model.spec.layers] == ["", "time_conv", "activation"]
    before, after = (m.parameters["weight_l1"] for m in (result.chosen, result.model))
    assert 0 < np.abs(before - after).max() < 0.2


@pytest.mark.parametrize(
    "options",
    [
        {"predict": ("g",)},
        {"predict": ("y",), "feedback": ("head",)},
    ],
)
def test_where_there_is_no_path_it_is_an_error(tmp_path, options):
    columns = {"y": noisy_sine(90), "g": np.resize(["a", "b", "c"], 90), "x": np.arange(90) % 5}
    path = write_csv(tmp_path, **columns)
    config = TrainingConfig(path=path, layers=("gru:3",), **{"lags": 3, **options})
    with pytest.raises(TrainingError, match="there is no linear path"):
        train(config)


@pytest.mark.parametrize("most_steps", [20, 4])
def test_the_loss_and_the_state_after_it_are_those_of_both(settings, monkeypatch, most_steps):
    dataset = make_dataset(settings, read_table(settings.path))
    found = fit(dataset).network
    network = network_of(found.spec, found.parameters, np.float64)
    rng = np.random.default_rng(3)
    chunk = Chunk(rng.normal(size=(9, 2, network.spec.num_features)), {})
    target = rng.normal(size=(9, 2, network.spec.output_size))
    state = [
        tuple(rng.normal(0.0, 0.5, s.shape) for s in layer) for layer in network.initial_state(2)
    ]
    z, after = network.forward(chunk, state)
    value, grad_z = loss_and_gradient("mse", "identity", z, target)
    network.backward(grad_z)
    gradient = network.gradient.copy()
    monkeypatch.setattr(network, "_spans", lambda *_: spans_of(9, most_steps))
    loss, end = network.loss(chunk, target, state, "mse")
    assert loss == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(network.gradient, gradient, rtol=0, atol=1e-12)
    for given in (end, network.advance(chunk, state)):
        for one, other in zip(given, after, strict=True):
            np.testing.assert_array_equal(one, other)


def spans_of(num_steps, length):
    return [slice(k, k + length) for k in range(0, num_steps, length)]
