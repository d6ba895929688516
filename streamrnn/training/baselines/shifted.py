"""A baseline of means, moved to the quantile that is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamrnn.training.baselines.target import Baseline, Prediction, Target, known_numbers
from streamrnn.training.data.dataset import Dataset, Stream

__all__ = ["Shifted", "needs_shift"]

BLOCK_ROWS = 1_000_000


def needs_shift(target: Target) -> bool:
    """Tell whether a median or another quantile is judged, not a mean."""
    return target.metric in ("mae", "pinball")


@dataclass(frozen=True)
class Shifted:
    """What a baseline predicts, and the quantile of its errors in the fitted rows added to it."""

    base: Baseline
    shift: float  # in network units

    @classmethod
    def fit(cls, base: Baseline, dataset: Dataset) -> Shifted:
        """Measure the errors in all but the test part."""
        target, errors = base.target, [np.zeros(0)]
        for stream in dataset.streams:
            for start in range(0, stream.stops[1], BLOCK_ROWS):
                rows = slice(start, min(start + BLOCK_ROWS, stream.stops[1]))
                errors.append(target.truth(stream, rows) - base.predict(stream, rows).values)
        known = np.concatenate(errors)
        known = known[~np.isnan(known)]
        return cls(base, float(np.quantile(known, target.quantile)) if len(known) else 0.0)

    @property
    def name(self) -> str:
        """The baseline's name."""
        return self.base.name

    @property
    def noun(self) -> str:
        """What it is called in a sentence."""
        return self.base.noun

    @property
    def rank(self) -> int:
        """How simple it is."""
        return self.base.rank

    @property
    def target(self) -> Target:
        """The target that it predicts."""
        return self.base.target

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return self.base.label

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        return Prediction(self.base.predict(stream, rows).values + self.shift)

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return self.base.to_dict() | {"shift": self.shift}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], base: Baseline) -> Shifted:
        """Take it back, or raise `ModelFileError`."""
        return cls(base, float(known_numbers(plain, "shift", ())))
