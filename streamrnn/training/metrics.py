"""Measures of predictions against targets, row by row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["METRICS", "SECOND", "of_mean", "row_losses"]

Doubles = NDArray[np.float64]

# Metric -> the measure that is shown beside it. The metric is what is compared.
SECOND = {
    "rmse": "mae",
    "mae": "rmse",
    "pinball": "coverage",
    "cross_entropy": "accuracy",
    "binary_cross_entropy": "accuracy",
}
METRICS = tuple(SECOND)


def row_losses(metric: str, values: Doubles, target: Doubles, quantile: float = 0.5) -> Doubles:
    """Return what each row adds to a metric's mean, [N], NaN where the target is missing.

    ``values`` are numbers, [N], and for cross-entropies the logarithms of the classes'
    probabilities, [N, K]; ``target`` is [N] of numbers, or of classes. The mean of what is returned
    goes through `of_mean`.
    """
    if metric.endswith("cross_entropy"):
        index = np.nan_to_num(target).astype(np.int64)
        chosen = np.take_along_axis(values, index[:, None], axis=1)[:, 0]
        return np.where(np.isnan(target), np.nan, -chosen)
    error = target - values
    if metric == "rmse":
        return np.asarray(error * error)
    if metric == "mae":
        return np.abs(error)
    if metric == "pinball":
        return np.maximum(quantile * error, (quantile - 1) * error)
    if metric == "coverage":  # share of the targets that are not above
        return np.where(np.isnan(error), np.nan, error <= 0)
    raise ValueError(f"unknown metric {metric!r}")


def of_mean(metric: str, mean: float) -> float:
    """Return a metric from the mean of its `row_losses`."""
    return math.sqrt(mean) if metric == "rmse" else mean
