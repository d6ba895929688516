"""The same for every row: a mean, or the frequency of every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.baselines.target import Prediction, Target, known_numbers
from streamrnn.training.data.dataset import Dataset, Stream

__all__ = ["Constant"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Constant:
    """The best constant of the fitted rows."""

    name: ClassVar[str] = "constant"
    noun: ClassVar[str] = "constant"
    rank: ClassVar[int] = 0
    target: Target
    values: Doubles  # [1] in the user's units, or [K], the logarithms of the probabilities

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        if self.target.num_classes and self.target.spec.is_token:
            return "unigram, always the same (add one)"
        if self.target.num_classes:
            return "always the frequencies of the classes"
        what = {"mae": "median", "pinball": "quantile"}.get(self.target.metric, "mean")
        return f"always the {what}"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> Constant:
        """Fit to all but the test part."""
        item = dataset.spec.outputs[target.output]
        found = []
        for stream in dataset.streams:
            rows = slice(0, stream.stops[1])
            values = target.truth(stream, rows)
            if not target.num_classes:
                values = values * item.scale + item.center + stream.level[rows, target.output]
            found.append(values[~np.isnan(values)])
        known = np.concatenate(found)
        if target.num_classes:
            counts = np.bincount(known.astype(np.int64), minlength=target.num_classes)
            shares = (counts + 1.0) / (counts.sum() + len(counts))
            return cls(target, np.log(shares))
        if target.metric == "rmse":
            return cls(target, np.array([known.mean()]))
        level = target.quantile if target.metric == "pinball" else 0.5
        return cls(target, np.array([np.quantile(known, level)]))

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        num_rows = rows.stop - rows.start
        if not self.target.num_classes:
            everywhere = np.broadcast_to(self.values, num_rows)
            return Prediction(self.target.to_network(stream, rows, everywhere))
        everywhere = np.broadcast_to(self.values, (num_rows, len(self.values)))
        return Prediction(everywhere, np.full(num_rows, self.values.argmax()))

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {"values": self.values.tolist()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> Constant:
        """Take it back, or raise `ModelFileError`."""
        return cls(target, known_numbers(plain, "values", (target.num_classes or 1,)))
