"""Gradient boosting on the last rows, by scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.baselines.target import Prediction, Target, blocks_of
from streamrnn.training.data.dataset import Dataset, Stream

__all__ = ["Boosting", "fit_boosting", "lagged"]

Doubles = NDArray[np.float64]

NUM_LAGS = (4, 24, 60, 168)  # the one that is best in validation
MAX_COLUMNS = 600
SETTINGS = {"learning_rate": 0.1, "max_iter": 300, "random_state": 0}
PATIENCE = 15  # trees without a better validation error


@dataclass
class Boosting:
    """What was learned, as a baseline of one target."""

    name: ClassVar[str] = "boosting"
    noun: ClassVar[str] = "gradient boosting"
    rank: ClassVar[int] = 8
    target: Target
    trees: Any
    num_lags: int
    num_rows: int

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return f"gradient boosting, {self.num_lags} lags"

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        x = lagged(stream, np.arange(rows.start, rows.stop), self.num_lags)
        num_classes = self.target.num_classes
        if not len(x):
            return Prediction(np.zeros((0, num_classes) if num_classes else 0))
        if not num_classes:
            return Prediction(self.trees.predict(x))
        # A class of no training row has the probability of one row.
        p = np.full((len(x), num_classes), 1.0 / (self.num_rows + num_classes))
        known = self.trees.classes_.astype(np.intp)
        p[:, known] = np.maximum(p[:, known], self.trees.predict_proba(x))
        p /= p.sum(axis=1, keepdims=True)
        return Prediction(np.log(p), p.argmax(axis=1))


def lagged(stream: Stream, rows: NDArray[np.int64], num_lags: int) -> Doubles:
    """Return what the network sees of each row and of those before it, NaN before the first.

    [N, num_lags * F], the row itself first.
    """
    columns = [stream.chunk.features[:, 0], *(code for code in stream.chunk.codes.values())]
    seen = np.concatenate([np.asarray(column, np.float64) for column in columns], axis=1)
    padded = np.concatenate([np.full((num_lags - 1, seen.shape[1]), np.nan), seen])
    index = rows[:, None] + (num_lags - 1) - np.arange(num_lags)
    return padded[index].reshape(len(rows), -1)


def fit_boosting(dataset: Dataset, target: Target) -> tuple[Boosting, Boosting]:
    """Choose lags and trees by the validation part.

    Returns what has seen the training part alone, and what was fitted to both parts.
    """
    stream = dataset.streams[0]
    width = stream.chunk.features.shape[2] + len(stream.chunk.codes)
    tried = [lags for lags in NUM_LAGS if lags * width <= MAX_COLUMNS] or [1]
    scores = {lags: _stopped(dataset, target, lags) for lags in tried}
    lags = max(scores, key=lambda lags: scores[lags][0])
    _, num_trees = scores[lags]
    of_training = _fit(dataset, target, lags, num_trees, ("train",))
    return of_training, _fit(dataset, target, lags, num_trees, ("train", "validation"))


def _stopped(dataset: Dataset, target: Target, lags: int) -> tuple[float, int]:
    """Return the best score in validation, and after how many trees."""
    x, y = _rows(dataset, target, ("train",), lags)
    new_x, new_y = _rows(dataset, target, ("validation",), lags)
    known = np.isin(new_y, y) if target.num_classes else np.ones(len(new_y), bool)
    trees = _trees(target, early_stopping=True, n_iter_no_change=PATIENCE)
    trees.fit(x, y, X_val=new_x[known], y_val=new_y[known])
    score = trees.validation_score_[1:]  # the first one is of no tree
    return float(score.max()), int(score.argmax()) + 1


def _fit(
    dataset: Dataset, target: Target, lags: int, num_trees: int, parts: tuple[str, ...]
) -> Boosting:
    x, y = _rows(dataset, target, parts, lags)
    trees = _trees(target, early_stopping=False, max_iter=num_trees).fit(x, y)
    return Boosting(target, trees, lags, len(y))


def _rows(
    dataset: Dataset, target: Target, parts: tuple[str, ...], lags: int
) -> tuple[Doubles, Doubles]:
    """Return the rows of some parts that have a target, and their targets."""
    found = [
        (lagged(stream, index, lags), truth)
        for stream, index, truth in blocks_of(dataset, target, parts, lags)
    ]
    x, y = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return x, y


def _trees(target: Target, **settings: Any) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if target.num_classes else HistGradientBoostingRegressor
    return kind(**(SETTINGS | settings))
