"""Least squares with a constant and a ridge, against values that were computed otherwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.training.baselines.least_squares import LeastSquares

RIDGES = (0.0, 0.1, 10.0, 1e4)


def solved(rows, target, ridges=RIDGES, pieces=3):
    fitted = LeastSquares(rows.shape[1] + 1)
    for some, own in zip(np.array_split(rows, pieces), np.array_split(target, pieces), strict=True):
        fitted.add(np.column_stack([some, np.ones(len(some))]), own)
    return fitted.solve(ridges)


def centred(rows, target, ridge):
    """Solve the normal equations of centred columns; the constant bears no penalty."""
    x, y = rows - rows.mean(axis=0), target - target.mean()
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
    return [*weights, target.mean() - rows.mean(axis=0) @ weights]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 200), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_the_weights_are_those_of_the_normal_equations(num_features, more, seed, pieces):
    rng = np.random.default_rng(seed)
    rows = rng.normal(3.0, 2.0, (num_features + 3 + more, num_features))
    target = rng.normal(size=len(rows)) + rows.sum(axis=1) - 7
    found = solved(rows, target, pieces=pieces)
    for k, ridge in enumerate(RIDGES):
        expected = centred(rows, target, ridge)
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ridge", RIDGES)
def test_the_weights_are_those_of_scikit_learn(ridge):
    """Columns that depend on each other too: names one-hot, a column twice, one of zeros."""
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    plain = rng.normal(2.0, 1.0, (300, 5))
    rows = np.column_stack([plain, plain[:, 0], np.zeros(300), np.eye(4)[rng.integers(0, 4, 300)]])
    target = rows @ rng.normal(size=rows.shape[1]) + rng.normal(size=300)
    model = linear.Ridge(ridge, solver="svd") if ridge else linear.LinearRegression()
    model.fit(rows, target)
    found = solved(rows, target, (ridge,))[:, 0]
    np.testing.assert_allclose(found, [*model.coef_, model.intercept_], rtol=1e-8, atol=1e-8)


def test_fewer_rows_than_weights_have_the_least_norm():
    rng = np.random.default_rng(1)
    rows, target = rng.normal(size=(4, 9)), rng.normal(size=4)
    weights = solved(rows, target, (0.0,), 1)[:, 0]
    x = rows - rows.mean(axis=0)
    np.testing.assert_allclose(weights[:-1], np.linalg.pinv(x) @ (target - target.mean()))
    np.testing.assert_allclose(rows @ weights[:-1] + weights[-1], target)


def test_one_row_and_no_row():
    assert solved(np.array([[2.0, 3.0]]), np.array([5.0]), (0.0, 1.0), 1).tolist() == [
        [0, 0], [0, 0], [5, 5],
    ]  # fmt: skip
    assert not LeastSquares(3).solve().any()
