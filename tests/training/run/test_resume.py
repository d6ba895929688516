"""A training that was stopped goes on to the bit; what would not is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamrnn import Model
from streamrnn.errors import TrainingError, TrainingStopped
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.checkpoint import METADATA_KEY, Checkpoint, is_checkpoint
from streamrnn.training.fit.loop import fit
from streamrnn.training.fit.optimisers import clip_by_global_norm
from streamrnn.training.fit.trainer import Evaluation
from tests.support.tables import noisy_sine, write_csv
from tests.training.run.stop import StopAfter


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two layers, streams of several lengths, categories, gaps: all that a checkpoint holds."""
    rng = np.random.default_rng(0)
    y = noisy_sine(300)
    y[rng.random(300) < 0.1] = np.nan
    path = write_csv(
        tmp_path_factory.mktemp("resume"),
        y=["" if np.isnan(value) else value for value in y],
        g=np.repeat(["a", "b", "c"], [150, 100, 50]),
        place=rng.choice([f"p{k}" for k in range(12)], 300),
    )
    return TrainingConfig(
        path=path,
        predict=("y",),
        group=("g",),
        layers=("lstm:4", "gru:3"),
        batch_size=3,
        truncation_steps=16,
        epochs=3,
        weight_decay=0.01,
        noise=0.2,
    )


@pytest.fixture(scope="module")
def dataset(config):
    return make_dataset(config, read_table(config.path))


@pytest.fixture(scope="module")
def uninterrupted(dataset):
    return fit(dataset)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_a_stopped_fit_goes_on_to_the_bit(tmp_path, dataset, uninterrupted, stops):
    path = tmp_path / "model.checkpoint"
    for k, num_updates in enumerate(stops):
        try:
            fit(dataset, None, StopAfter(num_updates), Checkpoint(path, {}, k > 0))
        except TrainingStopped:
            assert num_updates < 9
    seen: list[Evaluation] = []
    found = fit(dataset, seen.append, keeper=Checkpoint(path, {}, True))
    assert found.network.flat.tobytes() == uninterrupted.network.flat.tobytes()
    assert found.history == uninterrupted.history == seen
    assert all(each.memory for each in seen[:2])
    for name in ("best_epoch", "best_update", "num_updates", "clipped_share", "max_gradient_norm"):
        assert getattr(found, name) == getattr(uninterrupted, name)


def test_a_file_that_was_resumed_is_the_one_without_a_break(tmp_path, config):
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    train_to_file(config, whole)
    result = train_to_file(config, broken, stop=StopAfter(9))
    assert result.was_stopped
    assert Model.load(broken).spec.training["updates"]["was_stopped"]
    assert is_checkpoint(tmp_path / "broken.safetensors.checkpoint")
    assert not train_to_file(config, broken, resume=True).was_stopped
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken.safetensors",
        "broken.toml",
        "whole.safetensors",
        "whole.toml",
    ]


def test_a_stop_before_the_first_epoch_keeps_the_model_that_was_there(tmp_path, config):
    path = tmp_path / "m.safetensors"
    train_to_file(config.replace(epochs=1), path)
    before = path.read_bytes()
    with pytest.raises(TrainingStopped, match="no model yet"):
        train_to_file(config, path, stop=StopAfter(1))
    assert path.read_bytes() == before
    train_to_file(config, path, resume=True)
    assert path.read_bytes() != before


def test_a_process_that_was_killed_goes_on_from_its_last_epoch(tmp_path, config):
    class Killed(BaseException):
        pass

    def kill(epoch):
        if epoch.epoch == 2:
            raise Killed

    path = tmp_path / "m.safetensors"
    with pytest.raises(Killed):
        train_to_file(config, path, kill)
    seen: list[Evaluation] = []
    train_to_file(config, path, seen.append, resume=True)
    whole = tmp_path / "whole.safetensors"
    train_to_file(config, whole)
    assert path.read_bytes() == whole.read_bytes()
    assert [epoch.epoch for epoch in seen] == [1, 2, 3]


def stopped(tmp_path, config):
    path = tmp_path / "m.safetensors"
    train_to_file(config, path, stop=StopAfter(9))
    return path, tmp_path / "m.safetensors.checkpoint"


def test_what_has_changed_since_is_named_and_nothing_is_lost(tmp_path, config):
    path, checkpoint = stopped(tmp_path, config)
    kept = checkpoint.read_bytes()
    for changed, words in [
        (config.replace(learning_rate=0.5), "learning_rate is 0.5, was 0.003"),
        (config.replace(seed=4, epochs=9), "epochs is 9, was 3; seed is 4, was 0"),
    ]:
        with pytest.raises(TrainingError, match=words):
            train_to_file(changed, path, resume=True)
    with pytest.raises(TrainingError, match="threads is 2, was 1"):
        train_to_file(config, path, resume=True, threads=2)
    data = tmp_path / "other.csv"
    with open(config.path, encoding="utf-8") as file:
        data.write_text(file.read() + "\n0.25,c,p1", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"the data's sha256 is '\w+', was '"):
        train_to_file(config.replace(path=str(data)), path, resume=True)
    with pytest.raises(TrainingError, match="not ended: go on with it"):
        train_to_file(config, path)
    assert checkpoint.read_bytes() == kept
    train_to_file(config, path, resume=True)
    with pytest.raises(TrainingError, match="nothing to go on with"):
        train_to_file(config, path, resume=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused(tmp_path, dataset, data):
    path = tmp_path / "damaged.checkpoint"
    if not path.exists():
        fit(dataset, None, StopAfter(9), Checkpoint(path, {"a": 1}, False))
        (tmp_path / "whole").write_bytes(path.read_bytes())
    raw = bytearray((tmp_path / "whole").read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[place:]
    path.write_bytes(raw)
    with pytest.raises(TrainingError):
        fit(dataset, keeper=Checkpoint(path, {"a": 1}, True))


@pytest.mark.parametrize(
    "hostile",
    [
        {"num_pieces": 10**6},
        {"num_pieces": -1},
        {"num_updates": 1.5},
        {"best_evaluation": True},
        {"best_evaluation": 9},
        {"seconds": 1e400},
        {"more": 1},
    ],
)
def test_counts_that_were_made_up_are_refused(tmp_path, dataset, monkeypatch, hostile):
    path = tmp_path / "m.checkpoint"
    original = json.dumps

    def forged(value, **options):
        if isinstance(value, dict) and "counts" in value:
            value = value | {"counts": value["counts"] | hostile}
        return original(value, **options)

    with monkeypatch.context() as patch:
        patch.setattr("streamrnn.training.fit.checkpoint.json.dumps", forged)
        fit(dataset, None, StopAfter(9), Checkpoint(path, {}, False))
    assert METADATA_KEY.encode() in path.read_bytes()
    with pytest.raises(TrainingError, match="damaged, or no checkpoint"):
        fit(dataset, keeper=Checkpoint(path, {}, True))


@pytest.mark.parametrize("hostile", [None, {}, [None] * 9, [1], "a"])
def test_probes_that_were_made_up_are_refused(tmp_path, dataset, monkeypatch, hostile):
    path = tmp_path / "m.checkpoint"
    original = json.dumps

    def forged(value, **options):
        if isinstance(value, dict) and "memory" in value and "counts" in value:
            value = value | {"memory": hostile}
        return original(value, **options)

    with monkeypatch.context() as patch:
        patch.setattr("streamrnn.training.fit.checkpoint.json.dumps", forged)
        fit(dataset, None, StopAfter(9), Checkpoint(path, {}, False))
    with pytest.raises(TrainingError, match="damaged, or no checkpoint"):
        fit(dataset, keeper=Checkpoint(path, {}, True))


def test_a_checkpoint_of_another_network_is_refused(tmp_path, config, dataset):
    path = tmp_path / "m.checkpoint"
    fit(dataset, None, StopAfter(9), Checkpoint(path, {}, False))
    other = make_dataset(config.replace(layers=("lstm:5", "gru:3")), read_table(config.path))
    with pytest.raises(TrainingError, match="weights is float32"):
        fit(other, keeper=Checkpoint(path, {}, True))


def test_a_training_that_diverges_leaves_no_checkpoint(tmp_path, config, monkeypatch):
    checkpoint = tmp_path / "m.safetensors.checkpoint"

    def diverge(gradient, max_norm):
        if checkpoint.exists():  # so that an epoch has ended
            raise TrainingError("the gradient is not finite")
        return clip_by_global_norm(gradient, max_norm)

    monkeypatch.setattr("streamrnn.training.fit.trainer.clip_by_global_norm", diverge)
    with pytest.raises(TrainingError, match="in epoch 2 of 3: the gradient is not finite"):
        train_to_file(config, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_does_not_depend_on_where_the_data_lie(tmp_path, config):
    path, _ = stopped(tmp_path, config)
    moved = tmp_path / "moved.csv"
    with open(config.path, encoding="utf-8") as file:
        moved.write_text(file.read(), encoding="utf-8")
    assert not train_to_file(replace(config, path=str(moved)), path, resume=True).was_stopped


@pytest.mark.parametrize("identity", [[], [{"a": 1}], "a", 3, None])
def test_a_checkpoint_whose_identity_is_no_table_is_refused(tmp_path, dataset, identity):
    path = tmp_path / "m.checkpoint"
    kept = Checkpoint(path, {}, False)
    kept.identity = identity
    fit(dataset, None, StopAfter(9), kept)
    with pytest.raises(TrainingError, match=r"damaged, or no checkpoint.*its identity is"):
        fit(dataset, keeper=Checkpoint(path, {}, True))
