"""The activations over their whole range, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.kernels.activations import (
    ACTIVATIONS,
    AT_LEAST,
    AT_MOST,
    ELU,
    LOG,
    LOG_SOFTMAX,
    PRELU,
    RELU,
    SIGMOID,
    SOFTMAX,
    TANH,
)
from streamrnn.kernels.cpu.activations import activate
from streamrnn.kernels.cpu.frames import passes
from streamrnn.reference.activations import ACTIVATIONS as EXACT

ALL_FLOATS = np.arange(0, 2**32, 977, dtype=np.uint64).astype(np.uint32).view(np.float32)


def applied(kind, x):
    y = np.zeros(len(x) + 16, np.float32)
    y[: len(x)] = x
    slopes = np.full(len(y), 0.25, np.float32)
    activate(kind, y.ctypes.data, len(x), slopes.ctypes.data)
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


@pytest.mark.parametrize("name", sorted(EXACT))
def test_every_activation_is_near_its_float64(name):
    """Relative to the function's own size near zero and far out: a few units of the last place."""
    x = ALL_FLOATS[np.isfinite(ALL_FLOATS)]
    x = x[(np.abs(x) > 1e-30) & (np.abs(x) < 80)]
    wide = x.astype(np.float64)
    if name in ("log", "sqrt"):
        x = np.abs(x)
        wide = x.astype(np.float64)
    if "softmax" in name:
        x = x[::9973]
        wide = x.astype(np.float64)
    expected = EXACT[name](wide)
    if name == "elu":  # of the slope in `applied`
        expected = np.where(wide > 0, wide, 0.25 * expected)
    error = np.abs(applied(ACTIVATIONS[name], x) - expected)
    assert np.max(error / (np.abs(expected) + np.minimum(1.0, np.abs(wide)) + 0.3)) < 1e-6


@pytest.mark.parametrize("name", ["selu", "gelu", "gelu_tanh", "silu", "softplus", "hard_swish"])
def test_what_grows_stays_itself_far_out(name):
    far = np.array([1e3, 1e6, 1e20], np.float32)
    exact, wide = EXACT[name], far.astype(np.float64)
    np.testing.assert_allclose(applied(ACTIVATIONS[name], far), exact(wide), rtol=1e-6)
    np.testing.assert_allclose(applied(ACTIVATIONS[name], -far), exact(-wide), atol=1e-6)


def test_logarithm_at_the_ends_of_its_range():
    x = np.array([0.0, 1e-42, 1.2e-38, 1.0, 3e38, np.inf, -1.0, -np.inf], np.float32)
    np.testing.assert_allclose(applied(LOG, x), EXACT["log"](x.astype(np.float64)), rtol=1e-6)
    np.testing.assert_allclose(applied(LOG, x)[[0, 3, 5]], [-87.33654, 0.0, np.inf], rtol=1e-6)


def test_bounds_are_of_each_element_and_exact():
    x = np.array([-3.0, 0.2, 0.25, 1e30, -np.inf], np.float32)
    np.testing.assert_array_equal(applied(AT_LEAST, x), np.maximum(x, np.float32(0.25)))
    np.testing.assert_array_equal(applied(AT_MOST, x), np.minimum(x, np.float32(0.25)))


@pytest.mark.parametrize(("kind", "below"), [(PRELU, [-0.25, -2.0]), (ELU, [-0.15803, -0.24992])])
def test_slopes_are_of_each_element(kind, below):
    y = applied(kind, np.array([-1.0, -8.0, 3.0], np.float32))
    np.testing.assert_allclose(y, [*below, 3.0], rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(set(ACTIVATIONS.values()) - {0}))
def test_every_nan_stays_a_nan(kind):
    nans = ALL_FLOATS[np.isnan(ALL_FLOATS)][::101]
    for start in range(0, len(nans), 50):
        assert np.isnan(applied(kind, nans[start : start + 50])).all()
    one = np.zeros(20, np.float32)
    one[5] = np.nan
    assert np.isnan(applied(kind, one)).tolist() == (
        [True] * 20 if kind in (SOFTMAX, LOG_SOFTMAX) else [i == 5 for i in range(20)]
    )


def test_the_larger_of_two_is_a_nan_where_there_is_one():
    x, y, out = (np.zeros(16, np.float32) for _ in range(3))
    x[:4], y[:4] = [1, np.nan, 3, np.nan], [2, 2, np.nan, np.nan]
    passes.larger(x.ctypes.data, y.ctypes.data, out.ctypes.data, 16)
    np.testing.assert_array_equal(out[:4], [2, np.nan, np.nan, np.nan])
