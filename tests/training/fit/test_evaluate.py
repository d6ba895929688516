"""Outputs of a network on a dataset: many streams side by side, against each in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamrnn import Engine, predict
from streamrnn.model.model import Model
from streamrnn.training import TrainingConfig, train
from streamrnn.training import evaluate as module
from streamrnn.training.baselines.target import targets_of
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.evaluate import CarriedOutputs, NetworkOutputs, PartLoss, mean_loss
from streamrnn.training.fit.lags import fit_path
from streamrnn.training.network.losses import sum_of_losses
from streamrnn.training.network.network import Chunk, Network, initial_parameters
from tests.support.tables import noisy_sine, write_csv

NUM_ROWS = 400


def write_streams(tmp_path, **columns):
    """Write streams of 30 to 70 rows with gaps at the start and on the way."""
    rng = np.random.default_rng(1)
    names = np.repeat([f"s{k}" for k in range(8)], [30, 70, 50, 50, 60, 40, 35, 65])
    a = noisy_sine(NUM_ROWS) + 5.0
    a[rng.random(NUM_ROWS) < 0.1] = np.nan
    a[np.r_[0:4, 100:103]] = np.nan
    place = rng.integers(0, 12, NUM_ROWS)
    color = np.array(["red", "green", "blue"])[rng.integers(0, 3, NUM_ROWS)]
    rows = {"y": noisy_sine(NUM_ROWS, 2), "a": a, "place": place, "color": color, "s": names}
    return write_csv(tmp_path, **rows | columns)


TABLES: dict[str, dict[str, Any]] = {
    "one stream": {},
    "many streams": {"group": ("s",)},
    "changes": {"group": ("s",), "difference": ("y", "a"), "missing": {"a": "mask"}},
    "means": {"missing": {"a": "mean"}, "categorical": ("place",), "layers": ("lstm:5", "gru:4")},
    "classes": {"predict": ("color",), "group": ("s",), "categorical": ("place",)},
    "one-hot": {"predict": ("color",), "categorical": ("place",), "embedding_size": -1},
    "layer feedback": {"layers": ("gru:5", "lstm:4"), "feedback": ("layer2:layer1",)},
    "linear head fed back": {"feedback": ("head",)},
    "softmax fed back": {"predict": ("color",), "feedback": ("head",), "inputs": ("a",)},
}


def dataset_of(path, **options):
    config = TrainingConfig(path=path, **{"predict": ("y",), "layers": ("gru:6",)} | options)
    return make_dataset(config, read_table(path, config.read_options(), config.kinds()))


def network_of(dataset, dtype=np.float32):
    drawn = initial_parameters(dataset.spec, np.random.default_rng(4))
    return Network(dataset.spec, drawn, dtype)


def exact_outputs(dataset):
    """Every stream's pre-activations in float64, by the network alone, in one go."""
    network = network_of(dataset, np.float64)
    found = {}
    for stream in dataset.streams:
        chunk = Chunk(stream.chunk.features.astype(np.float64), stream.chunk.codes)
        found[stream.name] = network.forward(chunk, network.initial_state(1))[0][:, 0].copy()
    return found


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outputs_and_losses_are_those_of_each_stream_from_its_first_row(tmp_path, table, dtype):
    dataset = dataset_of(write_streams(tmp_path), **TABLES[table])
    network, exact = network_of(dataset, dtype), exact_outputs(dataset)
    found = NetworkOutputs.of(network, dataset).z
    assert set(found) == {stream.name for stream in dataset.streams}
    for stream in dataset.streams:
        assert found[stream.name].dtype == dtype
        expected = exact[stream.name][: stream.stops[2]]
        np.testing.assert_allclose(found[stream.name], expected, atol=2e-6)
    for part in ("train", "validation", "test"):
        total, count = 0.0, 0
        for stream in dataset.streams:
            rows = stream.rows(part)
            z, target = exact[stream.name][rows], stream.target[rows]
            settings = dataset.loss_settings
            more, num = sum_of_losses(dataset.loss, network.activation, z, target, settings)
            total, count = total + more, count + num
        assert mean_loss(network, dataset, part) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("table", ["many streams", "classes", "softmax fed back"])
def test_outputs_that_are_not_kept_are_the_same(tmp_path, table):
    dataset = dataset_of(write_streams(tmp_path), **TABLES[table])
    network = network_of(dataset)
    kept, carried = NetworkOutputs.of(network, dataset), CarriedOutputs(network)
    [target] = targets_of(dataset.config, dataset.spec)
    for stream in dataset.streams:
        stop = stream.stops[2]
        for rows in (slice(3, 9), slice(9, stop), slice(5, stop)):
            expected = kept.predict(target, stream, rows).values
            np.testing.assert_allclose(
                carried.predict(target, stream, rows).values, expected, atol=1e-6
            )


def test_pieces_of_a_long_part_are_warmed_up_and_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_STEPS", 7)
    monkeypatch.setattr(module, "HISTORY_STEPS", 200)
    monkeypatch.setattr(module, "MAX_ELEMENTS", 500)
    monkeypatch.setattr(module, "LOSS_ROWS", 3)
    dataset = dataset_of(write_streams(tmp_path))
    network, exact = network_of(dataset), exact_outputs(dataset)
    [stream] = dataset.streams
    rows = stream.rows("validation")
    expected = np.nanmean((exact[stream.name][rows] - stream.target[rows]) ** 2)
    assert mean_loss(network, dataset, "validation") == pytest.approx(expected, rel=1e-5)


def test_a_loss_is_of_the_weights_as_they_are_now(tmp_path):
    dataset = dataset_of(write_streams(tmp_path), group=("s",))
    network = network_of(dataset)
    loss = PartLoss(network, dataset, "validation")
    first = loss.now()
    network.flat *= np.float32(1.5)
    assert loss.now() == mean_loss(network, dataset, "validation") != first
    network.flat[0] = np.nan
    assert np.isnan(loss.now())
    network.flat[:] = network_of(dataset).flat
    assert loss.now() == first


def test_a_linear_path_beside_a_network_is_part_of_its_outputs(tmp_path):
    dataset = dataset_of(write_streams(tmp_path), group=("s",))
    network = fit_path(dataset, 3).compose(network_of(dataset))
    found = NetworkOutputs.of(network, dataset).z
    engine = Engine(Model(network.spec, network.parameters))
    [output] = dataset.spec.outputs
    for stream in dataset.streams:
        y = engine.steps(stream.name, stream.x)[: stream.stops[2]]
        z = (y - stream.level[: len(y)] - output.center) / output.scale
        np.testing.assert_allclose(found[stream.name], z, atol=1e-5)


def test_rows_side_by_side_are_so_few_that_they_take_little_memory(tmp_path, monkeypatch):
    dataset = dataset_of(write_streams(tmp_path), group=("s",))
    network = network_of(dataset)
    expected = NetworkOutputs.of(network, dataset).z
    step_bytes = sum(node.bytes_a_step for node in network.nodes)
    monkeypatch.setattr(module, "MAX_BYTES", 3 * 70 * step_bytes)
    seen, forward = [], Network.forward

    def spy(self, chunk, state):
        seen.append(chunk.features.shape[:2])
        return forward(self, chunk, state)

    monkeypatch.setattr(Network, "forward", spy)
    found = NetworkOutputs.of(network, dataset).z
    assert {rows * steps <= 3 * 70 for steps, rows in seen} == {True}
    assert 3 <= len(seen) < len(dataset.streams)
    for name, z in expected.items():
        np.testing.assert_array_equal(found[name], z)


def test_streams_of_a_table_are_predicted_as_if_each_were_stepped_alone(tmp_path):
    path = write_streams(tmp_path, a=noisy_sine(NUM_ROWS))
    shuffled = np.random.default_rng(3).permutation(NUM_ROWS)
    table = read_table(path)
    model = train(TrainingConfig(path=path, predict=("y",), group=("s",), epochs=1)).model
    columns = {name: np.array(column.texts(0, NUM_ROWS)) for name, column in table.columns.items()}
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    other = write_csv(mixed, **{name: values[shuffled] for name, values in columns.items()})
    [found] = predict(model, other, group=("s",)).values()
    engine = Engine(model)
    for row, index in enumerate(shuffled):
        x = {name: columns[name][index] for name in ("y", "a", "place", "color")}
        x = {name: value if name == "color" else float(value) for name, value in x.items()}
        stream = columns["s"][index]
        assert engine.step({stream: x})[stream] == found[row]
