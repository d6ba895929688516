"""The losses beside their definitions, target by target."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.training.network.losses import (
    LOSSES,
    LossSettings,
    Outputs,
    loss_and_gradient,
    set_gradient,
    sum_of_losses,
)

SETTINGS = LossSettings(quantiles=(0.1, 0.5, 0.8), delta=0.7)
CASES = [*LOSSES.items(), ("mse", "tanh"), ("mse", "sigmoid")]


def of_one(loss, activation, z, y, quantile, weights):
    """Return a target's loss and its slope by z; of a binary one with the weights of 0 and of 1."""
    sigmoid = 1.0 / (1.0 + math.exp(-z))
    if loss == "binary_cross_entropy":
        p = sigmoid if y else 1.0 - sigmoid
        return -weights[int(y)] * math.log(p), weights[int(y)] * (sigmoid - y)
    output, by_z = {
        "identity": (z, 1.0),
        "tanh": (math.tanh(z), 1.0 - math.tanh(z) ** 2),
        "sigmoid": (sigmoid, sigmoid * (1.0 - sigmoid)),
    }[activation]
    error = output - y
    if loss == "mse":
        return error * error, 2.0 * error * by_z
    if loss == "huber":
        if abs(error) <= 0.7:
            return error * error / 2, error
        return 0.7 * (abs(error) - 0.35), math.copysign(0.7, error)
    share = {"mae": 1.0, "pinball": 1.0 - quantile if error > 0 else quantile}[loss]
    return share * abs(error), math.copysign(share, error) if error else 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "activation"), [case for case in CASES if case[0] != "cross_entropy"]
)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_loss_is_the_mean_over_its_targets(loss, activation, dtype, seed, num_rows, missing):
    rng = np.random.default_rng(seed)
    z = rng.normal(0.0, 2.0, (num_rows, 1, 3)).astype(dtype)
    weights, target = (0.5, 2.0), rng.normal(0.0, 2.0, z.shape).astype(dtype)
    target[0, 0, 0], settings = z[0, 0, 0], SETTINGS
    if loss == "binary_cross_entropy":
        target, settings = (target > 0).astype(dtype), LossSettings(class_weights=weights)
    target[rng.random(z.shape) < missing] = np.nan
    total, slopes = 0.0, np.zeros(z.shape)
    for place in np.argwhere(~np.isnan(target)):
        at = tuple(place)
        quantile = SETTINGS.quantiles[at[2]]
        y = float(target[at]) if loss != "binary_cross_entropy" else int(target[at])
        term, slopes[at] = of_one(loss, activation, float(z[at]), y, quantile, weights)
        total += term
    count = int(np.count_nonzero(~np.isnan(target)))
    value, gradient = loss_and_gradient(loss, activation, z, target, settings)
    limit = 1e-5 if dtype == np.float32 else 1e-12
    assert value == pytest.approx(total / max(count, 1), rel=limit, abs=limit)
    np.testing.assert_allclose(gradient * max(count, 1), slopes, rtol=limit, atol=limit)
    found, known = sum_of_losses(loss, activation, z, target, settings)
    assert known == count
    assert found == pytest.approx(total, rel=limit, abs=limit)


@pytest.mark.parametrize(("loss", "activation"), CASES)
def test_rows_that_are_longer_are_set_where_outputs_are(loss, activation):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6, 1, 3)).astype(np.float32)
    target = rng.integers(0, 2, (6, 1, 1 if loss == "cross_entropy" else 3)).astype(np.float32)
    target[2] = np.nan
    padded = np.full((6, 16), np.nan, np.float32)
    padded[:, :3] = z[:, 0]
    gradient = np.full_like(padded, 7.0)
    value = set_gradient(
        loss, activation, Outputs(padded, gradient, 3), target, LossSettings(), num_targets=40
    )
    expected, expected_gradient = loss_and_gradient(
        loss, activation, z, target, LossSettings(), num_targets=40
    )
    assert value == expected
    np.testing.assert_array_equal(gradient[:, :3], expected_gradient[:, 0])
    assert (gradient[:, 3:] == 7.0).all()


@pytest.mark.parametrize(("loss", "activation"), CASES)
@pytest.mark.parametrize("num_columns", [1, 2, 4])
def test_targets_of_other_outputs_are_refused(loss, activation, num_columns):
    z = np.zeros((5, 1, 3), np.float32)
    num_columns = 2 if loss == "cross_entropy" else num_columns
    with pytest.raises(ValueError, match="reshape"):
        loss_and_gradient(loss, activation, z, np.zeros((5, 1, num_columns), np.float32))


@pytest.mark.parametrize(("loss", "activation"), CASES)
def test_the_loss_of_no_rows_is_zero(loss, activation):
    z = np.zeros((0, 4, 3), np.float32)
    target = z[:, :, :1] if loss == "cross_entropy" else z
    assert sum_of_losses(loss, activation, z, target) == (0.0, 0)
