"""Trainings that begin with the weights of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import ModelFileError, TrainingError
from streamrnn.model.model import Model
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training import TrainingConfig, train
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.evaluate import NetworkOutputs
from streamrnn.training.fit.start import starting_weights
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.network.network import Network
from streamrnn.training.train import train_to_file
from tests.support.models import random_parameters
from tests.support.tables import noisy_sine, write_csv

NUM_ROWS = 300


def write_table(directory, scale=1.0, shift=0.0, **columns):
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    rows = {
        "y": noisy_sine(NUM_ROWS) * scale + shift,
        "a": rng.normal(size=NUM_ROWS) * scale - shift,
        "place": [f"p{k:02}" for k in rng.integers(0, 12, NUM_ROWS)],
        "color": [("red", "green", "blue")[k] for k in rng.integers(0, 3, NUM_ROWS)],
    }
    return write_csv(directory, **rows | columns)


def config_of(path, **options):
    given = {"predict": ("y",), "layers": ("gru:5", "lstm:4"), "difference": ()} | options
    return TrainingConfig(path=path, **given)


def dataset_of(path, **options):
    config = config_of(path, **options)
    return make_dataset(config, read_table(path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a model briefly, and return its path."""
    directory = tmp_path_factory.mktemp("trained")
    path = directory / "first.safetensors"
    train_to_file(config_of(write_table(directory / "data"), epochs=4), path)
    return path


def outputs_in_units(dataset, weights):
    """Run a network of such weights over the only stream, in the user's units."""
    [stream] = dataset.streams
    z = NetworkOutputs.of(Network(dataset.spec, weights), dataset).z[stream.name]
    scale, center = (
        np.array([getattr(o, name) for o in dataset.spec.outputs]) for name in ("scale", "center")
    )
    origin = np.array([o.origin for o in dataset.spec.outputs])
    return z * scale + center + stream.level[: len(z)] + origin


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (50.0, 3.0), (0.01, -200.0)])
def test_a_network_begins_as_the_model_whatever_the_new_data_s_scale(
    tmp_path, trained, scale, shift
):
    path = write_table(tmp_path, scale, shift)
    dataset = dataset_of(path)
    [stream] = dataset.streams
    found = outputs_in_units(dataset, starting_weights(str(trained), dataset.spec))
    origins = np.array([item.origin for item in dataset.spec.inputs])
    expected = Engine(Model.load(trained)).steps("a", stream.x.astype(np.float64) + origins)
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-3, atol=2e-3)


def test_origins_are_part_of_where_the_data_lie(tmp_path):
    first = tmp_path / "first.safetensors"
    train_to_file(config_of(write_table(tmp_path / "a", 1.0, 1e7), epochs=2), first)
    dataset = dataset_of(write_table(tmp_path / "b", 1.5, 1e7 + 2.0))
    model, [stream] = Model.load(first), dataset.streams
    origins = [np.array([i.origin for i in spec.inputs]) for spec in (model.spec, dataset.spec)]
    assert origins[0].any()
    assert (origins[0] != origins[1]).any()
    found = outputs_in_units(dataset, starting_weights(str(first), dataset.spec))
    expected = Engine(model).steps("a", stream.x.astype(np.float64) + origins[1])
    np.testing.assert_allclose(found, expected[: len(found)], rtol=0, atol=1e-3)


def test_changes_begin_as_the_model_too(tmp_path):
    options = {"difference": ("y", "a"), "missing": {"a": "mask"}}
    gaps = np.where(np.arange(NUM_ROWS) % 7, np.arange(NUM_ROWS) % 11, np.nan)
    first = tmp_path / "first.safetensors"
    train_to_file(config_of(write_table(tmp_path / "a", a=gaps), epochs=2, **options), first)
    dataset = dataset_of(write_table(tmp_path / "b", 4.0, 1.0, a=3 * gaps), **options)
    found = outputs_in_units(dataset, starting_weights(str(first), dataset.spec))
    expected = Engine(Model.load(first)).steps("a", dataset.streams[0].x)
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-4, atol=1e-4)


def test_a_training_goes_on_from_what_the_model_has_learned(tmp_path, trained):
    path = write_table(tmp_path)
    settings = {"updates": 50, "learning_rate": 1e-6, "averaging": 0.0}
    found = train(config_of(path, start_from=str(trained), **settings))
    scale = found.model.spec.outputs[0].scale
    kept = Model.load(trained).spec.training["errors"]["validation"]["y+1"]["rmse"]
    assert found.history[0].validation == pytest.approx((kept / scale) ** 2, rel=1e-3)
    assert train(config_of(path, **settings)).history[0].validation > 1.05 * (kept / scale) ** 2
    assert found.config.start_from == str(trained)
    assert found.model.spec.training["config"]["start_from"] == trained.name


LAYERS = LayerSpec("gru", 5), LayerSpec("lstm", 4)


def saved(tmp_path, inputs, outputs, layers=LAYERS):
    spec = ModelSpec(inputs, layers, outputs, HeadSpec("identity"))
    path = tmp_path / "other.safetensors"
    Model(spec, random_parameters(np.random.default_rng(0), spec)).save(path)
    return str(path)


PLACES = InputSpec(
    "x2",
    kind="categorical",
    categories=tuple(f"p{k:02}" for k in range(12)),
    num_categories=12,
    embedding_size=5,
)
COLORS = InputSpec("x3", kind="categorical", categories=("blue", "green", "red"), num_categories=3)
INPUTS = (InputSpec("x0"), InputSpec("x1"), PLACES, COLORS)


def test_inputs_of_an_imported_model_are_taken_in_their_order(tmp_path):
    dataset = dataset_of(write_table(tmp_path, 20.0, 5.0), embedding_size=5)
    path = saved(tmp_path, INPUTS, (OutputSpec("y0"),))
    found = outputs_in_units(dataset, starting_weights(path, dataset.spec))
    expected = Engine(Model.load(path)).steps("a", dataset.streams[0].x)
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-4, atol=1e-4)


SAME = tuple(
    replace(item, name=name)
    for item, name in zip(INPUTS, ("y", "a", "place", "color"), strict=True)
)


@pytest.mark.parametrize(
    ("inputs", "outputs", "layers", "message"),
    [
        ((SAME[1], SAME[0], *SAME[2:]), "y+1", None, "its inputs are a, y, place, color; the .*"
         "y, a, place, color"),
        (SAME[:3], "y+1", None, "its inputs are y, a, place; the training's are y, a, place, c"),
        (SAME, "z", None, None),
        ((*SAME[:3], InputSpec("color")), "y+1", None, "input 4, 'color', is a number; the train"),
        ((SAME[0], replace(SAME[1], difference=True), *SAME[2:]), "y+1", None,
         "input 2, 'a', is the change of a number; the training's, 'a', is a number"),
        (SAME, "y+1", (LayerSpec("gru", 5), LayerSpec("lstm", 5)),
         "layers are gru:5,lstm:5, the training's gru:5,lstm:4"),
        (SAME, "y+1", (LayerSpec("gru", 5), LayerSpec("gru", 4)),
         "layers are gru:5,gru:4, the training's gru:5,lstm:4"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused(tmp_path, inputs, outputs, layers, message):
    dataset = dataset_of(write_table(tmp_path), embedding_size=5)
    path = saved(tmp_path, inputs, (OutputSpec(outputs),), layers or LAYERS)
    if message is None:  # an output of an imported model, whose name says nothing
        assert starting_weights(path, dataset.spec)
        return
    with pytest.raises(TrainingError, match=f"start_from .*other.*{message}"):
        starting_weights(path, dataset.spec)


def test_a_trained_model_s_other_output_or_head_is_refused(tmp_path, trained):
    path = write_table(tmp_path)
    with pytest.raises(TrainingError, match=r"its outputs are y\+1; the training's are a\+1"):
        train(config_of(path, predict=("a",), start_from=str(trained)))
    binary = write_table(tmp_path / "binary", y=np.arange(NUM_ROWS) % 2)
    with pytest.raises(TrainingError, match=r"head's activation is identity, .* sigmoid"):
        train(config_of(binary, start_from=str(trained), loss="binary_cross_entropy"))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = write_table(tmp_path)
    for start in (path, str(tmp_path / "nothing.safetensors")):
        with pytest.raises(ModelFileError, match=start):
            train(config_of(path, start_from=start))
    with pytest.raises(TrainingError, match="a linear path is fitted anew"):
        config_of(path, start_from="x", lags=3)


def test_the_start_is_found_beside_a_configuration_and_never_overwritten(tmp_path, trained):
    config = config_of(write_table(tmp_path), start_from=str(trained), epochs=1)
    config.write(tmp_path / "model.toml")
    text = (tmp_path / "model.toml").read_text()
    assert str(trained) not in text
    assert trained.name in text
    assert TrainingConfig.read(tmp_path / "model.toml").start_from.endswith(trained.name)
    train(TrainingConfig.read(tmp_path / "model.toml"))
    before = trained.read_bytes()
    with pytest.raises(TrainingError, match="the model to start from"):
        train_to_file(config, trained)
    assert trained.read_bytes() == before


def test_a_training_goes_on_from_the_same_start_alone(tmp_path, trained):
    start = tmp_path / "start.safetensors"
    start.write_bytes(trained.read_bytes())
    config = config_of(write_table(tmp_path), start_from=str(start), updates=60)
    whole = train_to_file(config, tmp_path / "whole.safetensors")
    path, asked = tmp_path / "broken.safetensors", iter(range(10_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "__call__", lambda _: next(asked) >= 30)
        with StopSignals() as stop:
            assert train_to_file(config, path, stop=stop).was_stopped
    model = Model.load(start)
    changed = dict(model.parameters) | {"head.bias": model.parameters["head.bias"] + 1}
    Model(model.spec, changed).save(start)
    with pytest.raises(TrainingError, match="start_from is"):
        train_to_file(config, path, resume=True)
    model.save(start)
    gone_on = train_to_file(config, path, resume=True)
    assert gone_on.model.fingerprint == whole.model.fingerprint
