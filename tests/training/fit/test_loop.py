"""Trainings from table to model."""

from dataclasses import replace

import numpy as np
import pytest

from streamrnn.errors import TrainingError
from streamrnn.model.spec import CELLS
from streamrnn.training import TrainingConfig, train
from streamrnn.training.baselines.compare import measures
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.diagnostics import measure_memory
from streamrnn.training.evaluate import NetworkOutputs, mean_loss
from streamrnn.training.fit.chunks import choose_sizes, cut_segments
from streamrnn.training.fit.loop import fit
from streamrnn.training.fit.optimisers import Adam
from streamrnn.training.network.network import Network, initial_parameters
from tests.support.tables import noisy_sine, write_csv


def dataset_of(path, **options):
    return make_dataset(TrainingConfig(path=path, **options), read_table(path))


def test_a_seed_repeats_to_the_bit(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(300), g=np.repeat(["a", "b", "c"], 100))
    config = TrainingConfig(path=path, predict=("y",), group=("g",), epochs=5, layers=("gru:6",))
    first, second = train(config), train(config)
    assert first.model.fingerprint == second.model.fingerprint
    assert train(first.config).model.fingerprint == first.model.fingerprint
    other = train(config.replace(seed=1))
    assert (
        other.model.parameters["head.weight"][0, 0] != first.model.parameters["head.weight"][0, 0]
    )


@pytest.mark.parametrize("cell", list(CELLS))
def test_every_cell_learns_a_season(tmp_path, cell):
    path = write_csv(tmp_path, y=noisy_sine(600))
    result = train(TrainingConfig(path=path, predict=("y",), layers=(f"{cell}:12",), updates=400))
    own = result.report["errors"]["test"]["y+1"]["rmse"]
    assert 0.09 < own < 0.16  # the noise alone is 0.1
    assert result.report["baselines"]["persistence"]["y+1"]["rmse"] > 0.2


def test_classes_that_need_memory(tmp_path):
    """The next letter follows from the one two rows back, so that one step is not enough."""
    rng = np.random.default_rng(3)
    letters = list(rng.integers(0, 3, 2))
    for _ in range(900):
        letters.append((letters[-2] + 1) % 3 if rng.random() < 0.95 else rng.integers(0, 3))
    path = write_csv(tmp_path, letter=["xyz"[k] for k in letters])
    result = train(TrainingConfig(path=path, predict=("letter",), layers=("gru:12",), epochs=120))
    errors = result.report["errors"]["test"]["letter"]
    assert errors["accuracy"] > 0.9
    assert errors["cross_entropy"] < 0.5
    assert result.report["baselines"]["constant"]["letter"]["cross_entropy"] > 1.0


def test_two_outputs_of_yes_and_no(tmp_path):
    rng = np.random.default_rng(4)
    x = rng.normal(size=500)
    up = (np.concatenate([[0], x[:-1]]) > 0).astype(int)
    path = write_csv(tmp_path, x=x, up=up, now=(x > 0.3).astype(int))
    result = train(
        TrainingConfig(
            path=path, predict=("up", "now"), horizon=(0,), layers=("lstm:12",), epochs=150
        )
    )
    for name in ("up", "now"):
        assert result.report["errors"]["test"][name]["accuracy"] > 0.9
        assert result.report["baselines"]["constant"][name]["accuracy"] < 0.7


def test_tokens(tmp_path):
    path = str(tmp_path / "tokens.npz")
    np.savez(path, X=np.tile(np.array([3, 1, 4, 1, 5], np.uint32), 60))
    result = train(TrainingConfig(path=path, layers=("gru:10",), epochs=100))
    assert result.report["errors"]["test"]["token"]["accuracy"] > 0.95


def test_missing_targets_do_not_spread(tmp_path):
    values = noisy_sine(200)
    clean = dataset_of(write_csv(tmp_path, y=values), predict=("y",), epochs=2)
    stream = clean.streams[0]
    target = stream.target.copy()
    target[30:40] = np.nan
    wild = stream.target.copy()
    wild[30:40] = 1e6
    results = []
    for changed in (target, wild):
        dataset = replace(clean, streams=(replace(stream, target=changed),))
        results.append(fit(dataset).network.flat.copy())
    assert np.isfinite(results[0]).all()
    assert not np.array_equal(results[0], results[1])


def test_segments_cover_each_training_part_once_and_know_their_predecessor(tmp_path):
    group = np.repeat(["a", "b"], [70, 30])
    dataset = dataset_of(
        write_csv(tmp_path, y=noisy_sine(100), g=group), predict=("y",), group=("g",)
    )
    segments = cut_segments(dataset.streams, 16)
    for k, stream in enumerate(dataset.streams):
        own = [s for s in segments if s.stream == k]
        rows = [row for s in own for row in range(s.start, s.stop)]
        assert rows == list(range(stream.stops[0]))
        assert own[0].before == -1
        assert all(segments[b.before].stop == b.start for b in own[1:])


def test_a_segment_starts_from_the_state_that_its_predecessor_ended_with(tmp_path, monkeypatch):
    """With the weights held still, the last epoch sees exactly the states of one long run."""
    dataset = dataset_of(
        write_csv(tmp_path, y=noisy_sine(200)),
        predict=("y",),
        batch_size=4,
        epochs=4,
        averaging=0.0,
    )
    monkeypatch.setattr("streamrnn.training.fit.optimisers.Adam.update", lambda *a: None)
    seen = []
    original = Network.loss

    def spy(self, chunk, target, state, *rest):
        seen.append((chunk, [tuple(s.copy() for s in layer) for layer in state]))
        return original(self, chunk, target, state, *rest)

    monkeypatch.setattr(Network, "loss", spy)
    # num_updates stays 0, so the average stays what it was: the initial weights.
    network = fit(dataset).network
    sizes = choose_sizes(dataset)
    size, steps = sizes.batch_size, sizes.segment_steps
    assert size == 4
    rows = [(0, k * steps, (k + 1) * steps) for k in range(3)]
    features = dataset.streams[0].chunk.features
    for _, start, _ in rows:
        _, expected = (
            network.outputs(type(seen[0][0])(features[:start], {}), network.initial_state(1))
            if start
            else (None, network.initial_state(1))
        )
        begins = [
            state[0][0][b]
            for chunk, state in seen[-1:]
            for b in range(size)
            if np.array_equal(chunk.features[:5, b], features[start : start + 5, 0])
        ]
        assert len(begins) == 1
        np.testing.assert_allclose(begins[0], expected[0][0][0], atol=1e-6)


def test_the_state_is_carried_from_part_to_part(tmp_path):
    dataset = dataset_of(write_csv(tmp_path, y=noisy_sine(300)), predict=("y",))
    network = Network(dataset.spec, initial_parameters(dataset.spec, np.random.default_rng(0)))
    stream = dataset.streams[0]
    chunk, _ = stack_rows(dataset.streams, [(0, 0, len(stream.x))])
    y, _ = network.outputs(chunk, network.initial_state(1))
    error = y[:, 0, 0] - stream.target[:, 0]
    scale = dataset.spec.outputs[0].scale
    predict = NetworkOutputs.of(network, dataset).predict
    for part in ("train", "validation", "test"):
        own = error[stream.rows(part)]
        expected = np.sqrt(np.nanmean(own**2))
        errors = measures(dataset, part, predict)
        assert errors["y+1"]["rmse"] == pytest.approx(expected * scale, rel=1e-5)
        assert mean_loss(network, dataset, part) == pytest.approx(expected**2, rel=1e-5)


def test_divergence_is_an_error_with_advice(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(300))
    config = TrainingConfig(
        path=path,
        predict=("y",),
        layers=("rnn_relu:16",),
        learning_rate=10.0,
        clip_norm=1e9,
        epochs=50,
        patience=50,
    )
    with pytest.raises(TrainingError, match=r"in epoch \d+ of 50: .*Lower learning_rate"):
        train(config)


def test_the_weights_with_the_best_validation_error_are_kept(tmp_path):
    """Pure noise: the network soon learns it by heart, and validation says when to stop."""
    noise = np.random.default_rng(5).normal(size=200)
    dataset = dataset_of(
        write_csv(tmp_path, y=noise), predict=("y",), learning_rate=0.02, epochs=100, patience=20
    )
    found = fit(dataset)
    losses = [epoch.validation for epoch in found.history]
    assert found.num_epochs == len(losses) == found.best_epoch + 20 < 100
    assert losses[int(found.best_epoch) - 1] == min(losses) == found.history[-1].best
    assert losses[-1] > 1.01 * min(losses)
    assert mean_loss(found.network, dataset, "validation") == min(losses)


def test_what_is_validated_is_the_average_of_the_weights(tmp_path, monkeypatch):
    dataset = dataset_of(
        write_csv(tmp_path, y=noisy_sine(200)),
        predict=("y",),
        batch_size=1,
        truncation_steps=64,
        epochs=9,
        averaging=0.8,
    )
    weights, validated = [], []
    update = Adam.update

    def spy(self, parameters, *rest):
        update(self, parameters, *rest)
        weights.append(parameters.astype(np.float64))

    def validate(self):
        validated.append((len(weights), self._network.flat.copy()))
        return 1.0

    monkeypatch.setattr(Adam, "update", spy)
    monkeypatch.setattr("streamrnn.training.evaluate.PartLoss.now", validate)
    fit(dataset)
    initial = initial_parameters(dataset.spec, np.random.default_rng(dataset.config.seed))
    average = np.concatenate([value.ravel() for value in initial.values()])
    averages = []
    for n, now in enumerate(weights, start=1):
        average += max(0.2, 1 / (1 + n / 10)) * (now - average)
        averages.append(average.copy())
    assert len(weights) >= 18
    for num_updates, seen in validated:
        np.testing.assert_allclose(seen, averages[num_updates - 1], atol=1e-5)
    distance = [np.abs(a - w).max() for a, w in zip(averages, weights, strict=True)]
    assert max(distance) > 1e-3


def test_memory_is_measured(tmp_path):
    """A network that forgets by 0.5 a step: the gradient halves with every lag."""
    dataset = dataset_of(
        write_csv(tmp_path, y=noisy_sine(400)), predict=("y",), layers=("rnn_relu:1",)
    )
    parameters = initial_parameters(dataset.spec, np.random.default_rng(0))
    for name, value in {
        "weight_ih_l0": 1.0,
        "weight_hh_l0": 0.5,
        "bias_ih_l0": 100.0,  # so that relu never cuts
        "head.weight": 1.0,
    }.items():
        parameters[name][:] = value
    network = Network(dataset.spec, parameters, np.float64)
    memory = measure_memory(network, dataset)
    assert memory.gradients is not None
    [layer] = memory.gradients["layers"]
    assert layer["by_h"]["8"] == pytest.approx(0.5**8 * layer["by_h"]["0"])
    assert layer["reach"] == 6  # 0.5**7 is below a hundredth
    # Answer n differs by 100 * 0.5**n, and the answers spread by about 1.77: below 1 % from 13 on.
    assert memory.horizon_steps == 13
    assert memory.forgets
    parameters["weight_hh_l0"][:] = 1.0
    endless = measure_memory(Network(dataset.spec, parameters, np.float64), dataset)
    assert not endless.forgets


def test_the_report_says_what_a_reader_needs(tmp_path):
    result = train(
        TrainingConfig(path=write_csv(tmp_path, y=noisy_sine(200)), predict=("y",), epochs=3)
    )
    report = result.model.spec.training
    assert set(report) == {
        "data", "config", "versions", "errors", "baselines", "comparison", "fitted",
        "inputs", "intervals", "memory", "sample", "seen", "updates",
    }  # fmt: skip
    assert report["data"]["num_rows"] == 200
    assert len(report["data"]["sha256"]) == 64
    assert 0 <= report["updates"]["clipped_share"] <= 1
    assert result.model.spec.warmup_steps == report["memory"]["horizon_steps"]
    assert str(tmp_path) not in repr(report)
