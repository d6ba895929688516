"""Linear autoregression: least squares on the last values of the target's own column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.training.baselines.least_squares import LeastSquares
from streamrnn.training.baselines.target import (
    Prediction,
    Target,
    blocks_of,
    first_known,
    known_numbers,
    known_whole,
)
from streamrnn.training.data.dataset import Dataset, Stream

__all__ = ["MAX_LAGS", "Autoregression"]

Doubles = NDArray[np.float64]

MAX_LAGS = 60
# Rows, evenly spread: in each of the two parts that the lags are chosen with, and of both to fit.
ROWS_TO_CHOOSE, ROWS_TO_FIT = 20_000, 500_000


@dataclass(frozen=True)
class Autoregression:
    """The last values, after the network's own transforms, and a constant.

    The number of lags is the one with the least error on the validation part; with it, the training
    and the validation part are fitted. A row without a full history is not fitted; where one is
    predicted, what lies before the first row whose value is known counts as the mean.
    """

    name: ClassVar[str] = "autoregression"
    noun: ClassVar[str] = "autoregression"
    rank: ClassVar[int] = 4
    target: Target
    weights: Doubles  # [lags + 1], the oldest value's first, the constant last

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        lags = len(self.weights) - 1
        return f"autoregression, {counted(lags, 'lag')}"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> Autoregression | None:
        """Choose the lags and fit, if the target is a number among the inputs."""
        if target.num_classes or target.source is None:
            return None
        longest = max(stream.stops[0] for stream in dataset.streams)
        most = max(1, min(MAX_LAGS, longest // 3))
        lags = _choose_lags(dataset, target, most)
        fitted = LeastSquares(lags + 1)
        for rows, truth, before in _rows(
            dataset, target, lags, ("train", "validation"), ROWS_TO_FIT
        ):
            fitted.add(rows[before >= lags - 1], truth[before >= lags - 1])
        return cls(target, fitted.solve()[:, 0]) if fitted.num_rows else None

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        series = _series(self.target, stream, rows.stop)
        lags = len(self.weights) - 1
        padded = np.concatenate([np.zeros(lags - 1), series])[rows.start :]
        z = np.correlate(padded, self.weights[:-1]) + self.weights[-1]
        return Prediction(z if len(padded) >= lags else np.zeros(0))

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {"lags": len(self.weights) - 1, "weights": self.weights.tolist()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> Autoregression:
        """Take it back, or raise `ModelFileError`."""
        lags = known_whole(plain, "lags", 1, MAX_LAGS)
        return cls(target, known_numbers(plain, "weights", (lags + 1,)))


def _series(target: Target, stream: Stream, stop: int) -> Doubles:
    source = target.source
    assert source is not None  # fit and from_dict have seen to it
    feature = sum(item.num_features for item in target.spec.inputs[:source])
    series = stream.chunk.features[:stop, 0, feature].astype(np.float64)
    series[: first_known(stream, source)] = 0.0
    return series


def _rows(
    dataset: Dataset, target: Target, lags: int, parts: tuple[str, ...], at_most: int = 0
) -> Iterator[tuple[Doubles, Doubles, NDArray[np.int64]]]:
    """Yield blocks of rows, their targets, [N], and of each the number of known rows before it.

    Known are those from the first value on. A row holds the last values, the newest last, and a
    one: [N, lags + 1].
    """
    for stream, index, truth in blocks_of(dataset, target, parts, lags + 1, at_most):
        if len(index):
            first = int(index[0]) - lags + 1
            series = _series(target, stream, int(index[-1]) + 1)[max(0, first) :]
            padded = np.concatenate([np.zeros(max(0, -first)), series])
            windows = padded[index[:, None] - int(index[0]) + np.arange(lags)]
            before = index - first_known(stream, target.source)
            yield np.column_stack([windows, np.ones(len(index))]), truth, before


def _choose_lags(dataset: Dataset, target: Target, most: int) -> int:
    """Return the number of lags that, fitted to the training part, is best in validation."""
    parts = []
    for part in ("train", "validation"):
        blocks = list(_rows(dataset, target, most, (part,), ROWS_TO_CHOOSE))
        parts.append([np.concatenate(arrays) for arrays in zip(*blocks, strict=True)])
    if not all(parts):
        return 1
    (rows, truth, before), (new_rows, new_truth, _) = parts
    errors = {}
    for lags in range(1, most + 1):
        own = before >= lags - 1
        if np.count_nonzero(own) >= 2 * (lags + 1):
            fitted = LeastSquares(lags + 1)
            fitted.add(rows[own, -lags - 1 :], truth[own])
            error = new_truth - new_rows[:, -lags - 1 :] @ fitted.solve()[:, 0]
            errors[lags] = float(error @ error)
    return min(errors, key=lambda lags: (errors[lags], lags), default=1)
