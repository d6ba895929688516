"""The optimisers, clipping and the learning rate."""

import numpy as np
import pytest

from streamrnn.errors import TrainingError
from streamrnn.training import TrainingConfig
from streamrnn.training.fit.optimisers import Adam, clip_by_global_norm, make_optimiser
from streamrnn.training.fit.schedule import learning_rate
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.train import train_to_file
from tests.support.tables import noisy_sine, write_csv


def test_adam_follows_the_paper(rng):
    adam = Adam(3, np.dtype(np.float64))
    weights = expected = rng.normal(size=3)
    weights = weights.copy()
    mean = square = np.zeros(3)
    for t in range(1, 6):
        gradient = rng.normal(size=3)
        adam.update(weights, gradient, rate=0.1)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        step = (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        expected = expected - 0.1 * step
        np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_weight_decay_shrinks_only_what_it_is_told_to():
    adam = Adam(2, np.dtype(np.float64))
    weights = np.array([2.0, 2.0])
    adam.update(weights, np.zeros(2), rate=0.1, decay=np.array([0.5, 0.0]))
    np.testing.assert_allclose(weights, [1.9, 2.0])


def test_clipping_keeps_the_direction_and_says_what_it_did():
    gradient = np.array([3.0, 4.0])
    assert clip_by_global_norm(gradient, 5.0) == (5.0, False)
    np.testing.assert_array_equal(gradient, [3.0, 4.0])
    assert clip_by_global_norm(gradient, 4.0) == (5.0, True)
    np.testing.assert_allclose(gradient, [2.4, 3.2])


def test_a_huge_float32_gradient_is_clipped_although_its_square_overflows():
    gradient = np.array([3e25, 4e25], np.float32)
    with np.errstate(over="ignore"):
        norm, clipped = clip_by_global_norm(gradient, 1.0)
    assert clipped
    assert norm == pytest.approx(5e25)
    np.testing.assert_allclose(gradient, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_an_error_with_advice(bad):
    with pytest.raises(TrainingError, match="Lower learning_rate"):
        clip_by_global_norm(np.array([1.0, bad]), 1.0)


def test_decay_of_adamw_is_no_part_of_the_gradient(rng):
    """Loshchilov and Hutter 2019, algorithm 2: the moments never see it."""
    plain, decayed = (Adam(4, np.dtype(np.float64)) for _ in range(2))
    weights = rng.normal(size=4)
    one, other = weights.copy(), weights.copy()
    for _ in range(5):
        gradient, before = rng.normal(size=4), other.copy()
        start = one.copy()
        plain.update(one, gradient, rate=0.1)
        decayed.update(other, gradient, rate=0.1, decay=0.3)
        np.testing.assert_allclose(other, (1 - 0.1 * 0.3) * before + (one - start), rtol=1e-12)
    np.testing.assert_array_equal(plain.mean, decayed.mean)


def test_sgd_gathers_momentum_and_decays_the_weights_alone(rng):
    sgd = make_optimiser("sgd", 0.8, 3, np.dtype(np.float64))
    weights = rng.normal(size=3)
    expected, velocity = weights.copy(), np.zeros(3)
    decay = np.array([0.5, 0.0, 2.0])
    for rate in (0.1, 0.05, 0.2, 0.01):
        gradient = rng.normal(size=3)
        sgd.update(weights, gradient, rate, decay)
        velocity = 0.8 * velocity + gradient
        expected = (1 - rate * decay) * expected - rate * velocity
        np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert sgd.num_updates == 4


def rate_of(progress, losses=(), **settings):
    config = TrainingConfig(path="-", learning_rate=1.0, **settings)
    return learning_rate(config, progress, losses)


def test_the_rate_rises_and_then_falls_along_a_cosine():
    assert rate_of(0.01) == pytest.approx(0.5)
    assert rate_of(0.02) == pytest.approx(1.0)
    assert rate_of(0.51) == pytest.approx(0.505)
    assert rate_of(1.0) == pytest.approx(0.01)
    assert rate_of(0.0) > 0
    assert rate_of(0.25, warmup=0.5) == pytest.approx(0.5)
    assert rate_of(0.75, warmup=0.5) == pytest.approx(0.505)
    assert rate_of(0.0, warmup=0.0) == pytest.approx(1.0)


def test_a_constant_rate_rises_and_stays():
    assert rate_of(0.05, schedule="constant", warmup=0.1) == pytest.approx(0.5)
    assert [rate_of(p, schedule="constant") for p in (0.02, 0.5, 1.0)] == [1.0, 1.0, 1.0]


def test_a_rate_is_halved_after_so_many_losses_that_are_no_better():
    settings = {"schedule": "plateau", "plateau_patience": 2}
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, np.nan, 3.0, 3.1, 3.2, 2.0]
    rates = [rate_of(0.5, losses[:k], **settings) for k in range(len(losses) + 1)]
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert rate_of(0.5, [1.0] * 100, **settings) == 0.01
    assert rate_of(0.01, [1.0] * 100, **settings) == 0.5  # while it rises


@pytest.mark.parametrize(
    "settings",
    [
        {"optimiser": "sgd", "learning_rate": 0.05, "momentum": 0.5},
        {"schedule": "plateau", "plateau_patience": 1, "learning_rate": 0.02},
        {"schedule": "constant", "initialisation": "uniform", "forget_bias": 2.0},
        {"chrono_steps": 40},
    ],
)
def test_a_training_learns_and_goes_on_to_the_bit_by_every_setting(tmp_path, settings):
    y = noisy_sine(300)
    config = TrainingConfig(
        path=write_csv(tmp_path, y=y), predict=("y",), layers=("lstm:8",), updates=120, **settings
    )
    whole = train_to_file(config, tmp_path / "whole.safetensors")
    assert whole.history[-1].best < 0.8 * whole.history[0].validation
    rates = [evaluation.learning_rate for evaluation in whole.history]
    assert max(rates) <= whole.config.learning_rate
    if config.schedule == "plateau":
        assert len(set(rates)) > 2
    path, asked = tmp_path / "broken.safetensors", iter(range(10_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "__call__", lambda _: next(asked) >= 70)
        with StopSignals() as stop:
            assert train_to_file(config, path, stop=stop).was_stopped
    gone_on = train_to_file(config, path, resume=True)
    assert gone_on.history == whole.history
    assert gone_on.model.fingerprint == whole.model.fingerprint
