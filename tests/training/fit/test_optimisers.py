"""Adam, clipping and the schedule."""

import numpy as np
import pytest

from streamrnn.errors import TrainingError
from streamrnn.training.fit.optimisers import Adam, clip_by_global_norm, cosine_rate


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


def test_the_rate_rises_and_then_falls_along_a_cosine():
    assert cosine_rate(1.0, 0.01) == pytest.approx(0.5)
    assert cosine_rate(1.0, 0.02) == pytest.approx(1.0)
    assert cosine_rate(1.0, 0.51) == pytest.approx(0.505)
    assert cosine_rate(1.0, 1.0) == pytest.approx(0.01)
    assert cosine_rate(1.0, 0.0) > 0
