"""Regression on the inputs of one row: linear for numbers, logistic for classes.

The inputs are levels, standardised; the changes that the network may see are of two rows. The
strength of the L2 penalty is the one with the least error on the validation part; with it, the
training and the validation part are fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.spec import InputSpec, ModelSpec
from streamrnn.training.baselines.least_squares import LeastSquares
from streamrnn.training.baselines.logistic import Budget, fit_logistic, log_softmax
from streamrnn.training.baselines.target import (
    Prediction,
    Target,
    blocks_of,
    known_numbers,
    targets_of,
)
from streamrnn.training.data.dataset import Dataset, Stream, current_level

__all__ = ["LinearRegression", "LogisticRegression"]

Doubles = NDArray[np.float64]
Block = tuple[Doubles, Doubles]

MAX_FEATURES = 1000
# Weights that the file of a model is burdened with: of one target, and of all together.
MAX_WEIGHTS, MAX_WEIGHTS_OF_ALL = 16_384, 65_536
RIDGES = (0.0, *(10.0**k for k in range(-1, 6)))
PENALTIES = tuple(10.0**k for k in range(4, -4, -1))  # each starts where the stronger one ended
# Of so many rows times features or classes, evenly spread, is it fitted: a matter of seconds.
MAX_LINEAR_ELEMENTS, MAX_LOGISTIC_ELEMENTS = 20_000_000, 2_000_000


@dataclass(frozen=True)
class LinearRegression:
    """Ridge regression on the inputs of one row."""

    name: ClassVar[str] = "linear"
    noun: ClassVar[str] = "linear regression"
    rank: ClassVar[int] = 3
    target: Target
    weights: Doubles  # [F + 1], the constant last

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return "linear regression on one row"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> LinearRegression | None:
        """Choose the penalty and fit, if the target is a number."""
        num_features = _num_features(dataset.spec)
        if target.num_classes or not _is_small(dataset, num_features, 1):
            return None
        at_most = MAX_LINEAR_ELEMENTS // num_features
        center, scale = _standard(dataset, target)
        fitted = LeastSquares(num_features + 1)
        for rows, truth in _blocks(dataset, target, "train", center, scale, at_most):
            fitted.add(rows, truth)
        tried = fitted.solve(RIDGES)
        errors = np.zeros(len(RIDGES))
        for rows, truth in _blocks(dataset, target, "validation", center, scale, at_most):
            errors += np.sum((rows @ tried - truth[:, None]) ** 2, axis=0)
            fitted.add(rows, truth)
        weights = fitted.solve([RIDGES[int(errors.argmin())]])
        return cls(target, _of_levels(weights, center, scale)[:, 0])

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        return Prediction(_product(self.target.spec, stream, rows, self.weights[:, None])[:, 0])

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {"weights": self.weights.tolist()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> LinearRegression:
        """Take it back, or raise `ModelFileError`."""
        return cls(target, known_numbers(plain, "weights", (_num_features(target.spec) + 1,)))


@dataclass(frozen=True)
class LogisticRegression:
    """Multinomial logistic regression on the inputs of one row."""

    name: ClassVar[str] = "logistic"
    noun: ClassVar[str] = "logistic regression"
    rank: ClassVar[int] = 3
    target: Target
    weights: Doubles  # [F + 1, K], the constants last

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return "logistic regression on one row"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> LogisticRegression | None:
        """Choose the penalty and fit, if the target has classes."""
        num_features, num_classes = _num_features(dataset.spec), target.num_classes
        if not num_classes or not _is_small(dataset, num_features, num_classes):
            return None
        at_most = MAX_LOGISTIC_ELEMENTS // max(num_features, num_classes)
        center, scale = _standard(dataset, target)
        parts = []
        for part in ("train", "validation"):
            blocks = list(_blocks(dataset, target, part, center, scale, at_most))
            rows = np.concatenate([block[0] for block in blocks])
            parts.append((rows, np.concatenate([block[1] for block in blocks]).astype(np.int64)))
        (rows, truth), (new_rows, new_truth) = parts
        weights = np.zeros((num_features + 1, num_classes))
        best, chosen, start = np.inf, PENALTIES[0], weights
        budget = Budget(rows, num_classes)
        for l2 in PENALTIES:
            if not budget.left:
                break
            weights = fit_logistic(rows, truth, l2, weights, budget)
            log_p = log_softmax(new_rows @ weights)
            error = -float(log_p[np.arange(len(new_truth)), new_truth].sum())
            if error < best:
                best, chosen, start = error, l2, weights
        rows, truth = np.concatenate([rows, new_rows]), np.concatenate([truth, new_truth])
        weights = fit_logistic(rows, truth, chosen, start, Budget(rows, num_classes))
        return cls(target, _of_levels(weights, center, scale))

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        log_p = log_softmax(_product(self.target.spec, stream, rows, self.weights))
        return Prediction(log_p, log_p.argmax(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {"weights": self.weights.tolist()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> LogisticRegression:
        """Take it back, or raise `ModelFileError`."""
        shape = (_num_features(target.spec) + 1, target.num_classes)
        return cls(target, known_numbers(plain, "weights", shape))


def _width(item: InputSpec) -> int:
    return 1 + (item.missing == "mask") if item.kind == "numeric" else item.num_categories


def _num_features(spec: ModelSpec) -> int:
    return sum(_width(item) for item in spec.inputs)


def _is_small(dataset: Dataset, num_features: int, num_classes: int) -> bool:
    num_weights = (num_features + 1) * num_classes
    num_targets = len(targets_of(dataset.config, dataset.spec))
    allowed = min(MAX_WEIGHTS, MAX_WEIGHTS_OF_ALL // num_targets)
    return num_features <= MAX_FEATURES and num_weights <= allowed


def _features(spec: ModelSpec, stream: Stream, index: NDArray[np.int64]) -> Doubles:
    """Return levels and categories of some rows, [N, F]."""
    features = np.zeros((len(index), _num_features(spec)))
    start = 0
    for i, item in enumerate(spec.inputs):
        if item.kind != "numeric":
            codes = stream.x[index, i].astype(np.int64)
            features[np.arange(len(index)), start + codes] = 1.0
        else:
            features[:, start] = _levels(item, stream, i, index)
            if item.missing == "mask":
                features[:, start + 1] = np.isnan(stream.x[index, i])
        start += _width(item)
    return features


def _levels(item: InputSpec, stream: Stream, i: int, index: NDArray[np.int64]) -> NDArray[Any]:
    if item.missing == "error" or not len(index):
        return stream.x[index, i]
    # What stands for a gap lies before it.
    return np.asarray(current_level(item, stream.x[: index[-1] + 1, i])[index])


def _product(spec: ModelSpec, stream: Stream, rows: slice, weights: Doubles) -> Doubles:
    """Return features times weights, [N, K], without the features: they may be a thousand."""
    index = np.arange(rows.start, rows.stop)
    z = np.tile(weights[-1], (len(index), 1))
    start = 0
    for i, item in enumerate(spec.inputs):
        if item.kind != "numeric":
            z += weights[start + stream.x[index, i].astype(np.int64)]
        else:
            z += np.outer(_levels(item, stream, i, index), weights[start])
            if item.missing == "mask":
                z += np.outer(np.isnan(stream.x[index, i]), weights[start + 1])
        start += _width(item)
    return z


def _standard(dataset: Dataset, target: Target) -> tuple[Doubles, Doubles]:
    """Return centre and scale of the features in the training part; 0 and 1 of categories."""
    spec = dataset.spec
    is_level = np.concatenate(
        [np.arange(_width(item)) < (item.kind == "numeric") for item in spec.inputs]
    )
    count, total, squares = 0, np.zeros(len(is_level)), np.zeros(len(is_level))
    shift = None
    at_most = MAX_LINEAR_ELEMENTS // len(is_level)
    for stream, index, _ in blocks_of(dataset, target, ("train",), len(is_level), at_most):
        rows = _features(spec, stream, index)
        if len(rows):
            shift = rows[0] if shift is None else shift  # so that squares do not cancel
            count += len(rows)
            total += (rows - shift).sum(axis=0)
            squares += ((rows - shift) ** 2).sum(axis=0)
    mean = total / max(count, 1)
    scale = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0.0))
    center = mean + (0.0 if shift is None else shift)
    scale[scale <= 1e-9 * np.abs(center)] = 1.0
    scale[scale == 0.0] = 1.0
    return np.where(is_level, center, 0.0), np.where(is_level, scale, 1.0)


def _blocks(
    dataset: Dataset, target: Target, part: str, center: Doubles, scale: Doubles, at_most: int
) -> Iterator[Block]:
    """Yield standardised features and ones, [N, F + 1], and targets, [N]."""
    for stream, index, truth in blocks_of(dataset, target, (part,), len(center), at_most):
        rows = (_features(dataset.spec, stream, index) - center) / scale
        yield np.column_stack([rows, np.ones(len(rows))]), truth


def _of_levels(weights: Doubles, center: Doubles, scale: Doubles) -> Doubles:
    """Turn the weights of standardised features, [F + 1, K], into those of levels."""
    levels = weights[:-1] / scale[:, None]
    return np.vstack([levels, weights[-1] - center @ levels])
