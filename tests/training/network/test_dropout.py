"""Dropout: what is set to 0, and the gradients behind it."""

import numpy as np
import pytest

from streamrnn.model.spec import InputSpec
from streamrnn.training import TrainingConfig
from streamrnn.training.fit.augment.dropout import add_dropout
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.network import network as module
from streamrnn.training.network.network import Chunk, Mask
from streamrnn.training.train import train_to_file
from tests.support.tables import noisy_sine, write_csv
from tests.training.network.gradients import (
    assert_gradient,
    assert_gradient_by_the_features,
    make_case,
)

INPUTS = (
    InputSpec("a"),
    InputSpec("b"),
    InputSpec("place", kind="categorical", num_categories=5, embedding_size=3),
)
CONFIG = TrainingConfig(path="-", dropout=0.4, input_dropout=0.3)


def case_of(rng, layers, feedback=()):
    case = make_case(rng, parse_layers(layers, feedback), "mse", "tanh", INPUTS)
    add_dropout(case[1], case[0], CONFIG, update=3)
    return case


@pytest.mark.parametrize(
    ("layers", "feedback"),
    [
        (("lstm:5",), ()),
        (("gru:4", "rnn_tanh:5", "lstm:3"), ()),
        (("gru:4", "lstm:5"), ("layer2:layer1",)),
        (("lstm:4",), ("head",)),
    ],
)
def test_gradients_go_through_what_is_kept(rng, layers, feedback):
    assert_gradient("mse", case_of(rng, layers, feedback))
    network, chunk, target, state = case_of(rng, layers, feedback)
    chunk.codes.clear()
    network._embedded.clear()  # so that all features vary
    assert_gradient_by_the_features("mse", (network, chunk, target, state))


@pytest.mark.parametrize("feedback", [(), ("layer2:layer1",)])
def test_spans_of_a_long_chunk_drop_the_same(rng, monkeypatch, feedback):
    network, chunk, target, state = case_of(rng, ("gru:4", "lstm:5"), feedback)
    loss, _ = network.loss(chunk, target, state, "mse")
    gradient = network.gradient.copy()
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 0)
    monkeypatch.setattr(module, "SPAN_BYTES", 0)
    assert len(network._spans(*chunk.features.shape[:2])) > 2
    again, _ = network.loss(chunk, target, state, "mse")
    assert again == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(network.gradient, gradient, rtol=1e-9, atol=1e-12)


def test_dropped_inputs_are_as_inputs_of_zero(rng):
    network, chunk, _, state = case_of(rng, ("gru:4",))
    del chunk.masks[0]
    found = network.forward(chunk, state)[0].copy()
    features = chunk.features.copy()
    weight = network.parameters["embedding.place.weight"]
    features[..., 2:] = weight[chunk.codes["place"]]
    features *= np.where(chunk.masks[-1].kept, 1 / 0.7, 0.0)
    network._embedded.clear()
    expected = network.forward(Chunk(features, {}), state)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_states_and_what_is_fed_back_are_never_dropped(rng):
    """Whatever of the outputs is dropped, the states that a layer goes on from are the same."""
    network, chunk, _, state = case_of(rng, ("gru:4",))
    del chunk.masks[-1]
    after = network.forward(chunk, state)[1]
    plain = network.forward(Chunk(chunk.features, chunk.codes), state)[1]
    np.testing.assert_array_equal(after[0][0], plain[0][0])
    network, chunk, _, state = case_of(rng, ("gru:4", "lstm:5"), ("layer2:layer1",))
    whole = np.zeros_like(chunk.masks[1].kept)
    chunk.masks = {1: Mask(whole, 1.0)}  # the head sees nothing of the second layer, the first does
    z, after = network.forward(chunk, state)
    np.testing.assert_allclose(z, np.broadcast_to(network.parameters["head.bias"], z.shape))
    plain = network.forward(Chunk(chunk.features, chunk.codes), state)[1]
    np.testing.assert_array_equal(after[0][0], plain[0][0])


def test_the_mean_stays_and_the_share_is_what_was_asked_for(rng):
    network, _, _, _ = make_case(rng, parse_layers(("gru:40",), ()), "mse", "tanh", INPUTS)
    chunk = Chunk(np.ones((100, 30, network.spec.num_features)), {})
    add_dropout(chunk, network, CONFIG, update=0)
    assert set(chunk.masks) == {-1, 0}
    for k, share in ((-1, 0.3), (0, 0.4)):
        values = np.ones(chunk.masks[k].kept.shape)
        dropped = chunk.masks[k].apply(values)
        assert np.mean(dropped == 0) == pytest.approx(share, abs=0.02)
        assert dropped.max() == pytest.approx(1 / (1 - share))
        assert dropped.mean() == pytest.approx(1.0, abs=0.03)
        # Each step, row and unit by itself.
        for axes in ((0, 1), (0, 2), (1, 2)):
            assert np.mean(dropped == 0, axis=axes).std() < 0.1


def test_what_is_dropped_follows_from_seed_and_update_alone(rng):
    network, plain, _, _ = make_case(rng, parse_layers(("gru:4",), ()), "mse", "tanh", INPUTS)

    def drawn(config, update):
        chunk = Chunk(plain.features, plain.codes)
        add_dropout(chunk, network, config, update)
        return np.concatenate([mask.kept.ravel() for mask in chunk.masks.values()])

    np.testing.assert_array_equal(drawn(CONFIG, 1), drawn(CONFIG, 1))
    assert (drawn(CONFIG, 1) != drawn(CONFIG, 2)).any()
    assert (drawn(CONFIG, 1) != drawn(CONFIG.replace(seed=1), 1)).any()
    assert not plain.masks


def test_a_training_with_dropout_learns_and_goes_on_to_the_bit(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(300))
    config = TrainingConfig(
        path=path,
        predict=("y",),
        layers=("lstm:8", "gru:6"),
        updates=150,
        dropout=0.2,
        input_dropout=0.1,
    )
    whole = train_to_file(config, tmp_path / "whole.safetensors")
    assert whole.history[-1].best < 0.8 * whole.history[0].validation
    plain = train_to_file(
        config.replace(dropout=0.0, input_dropout=0.0), tmp_path / "plain.safetensors"
    )
    assert plain.history[0].train < whole.history[0].train
    broken, asked = tmp_path / "broken.safetensors", iter(range(10_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "__call__", lambda _: next(asked) >= 70)
        with StopSignals() as stop:
            assert train_to_file(config, broken, stop=stop).was_stopped
    gone_on = train_to_file(config, broken, resume=True)
    assert gone_on.model.fingerprint == whole.model.fingerprint
