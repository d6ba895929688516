"""The activations over their whole range, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.kernels.activations import RELU, SIGMOID, SOFTMAX, TANH
from streamrnn.kernels.cpu.activations import activate

ALL_FLOATS = np.arange(0, 2**32, 977, dtype=np.uint64).astype(np.uint32).view(np.float32)


def applied(kind, x):
    y = np.zeros(len(x) + 16, np.float32)
    y[: len(x)] = x
    activate(kind, y.ctypes.data, len(x))
    return y[: len(x)]


def relative_error(y, expected):
    return np.max(np.abs(y.astype(np.float64) - expected) / np.abs(expected))


def test_sigmoid():
    x = ALL_FLOATS[np.isfinite(ALL_FLOATS)]
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    y = applied(SIGMOID, x)
    inside = np.abs(x) < 87
    assert relative_error(y[inside], expected[inside]) < 1.6e-7
    assert np.max(np.abs(y - expected)) < 1e-7
    assert y.min() >= 0
    assert y.max() == 1


def test_tanh():
    x = ALL_FLOATS[np.isfinite(ALL_FLOATS)]
    x = x[np.abs(x) > 1e-36]  # below, subnormal steps on the way
    y = applied(TANH, x)
    assert relative_error(y, np.tanh(x.astype(np.float64))) < 3e-7
    np.testing.assert_array_equal(applied(TANH, -x), -y)


def test_relu():
    x = ALL_FLOATS[~np.isnan(ALL_FLOATS)]
    np.testing.assert_array_equal(applied(RELU, x), np.maximum(x, 0))


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 100])
def test_softmax(rng, size):
    x = (10 * rng.standard_normal(size)).astype(np.float32)
    exact = np.exp(x.astype(np.float64) - x.max())
    assert relative_error(applied(SOFTMAX, x), exact / exact.sum()) < 2e-6
    assert abs(applied(SOFTMAX, x).sum() - 1) < 1e-6
    assert np.isfinite(applied(SOFTMAX, x * np.float32(1e30))).all()


@pytest.mark.parametrize("kind", [TANH, SIGMOID, RELU, SOFTMAX])
def test_every_nan_stays_a_nan(kind):
    nans = ALL_FLOATS[np.isnan(ALL_FLOATS)][::101]
    for start in range(0, len(nans), 50):
        assert np.isnan(applied(kind, nans[start : start + 50])).all()
    one = np.zeros(20, np.float32)
    one[5] = np.nan
    assert np.isnan(applied(kind, one)).tolist() == (
        [True] * 20 if kind == SOFTMAX else [i == 5 for i in range(20)]
    )
