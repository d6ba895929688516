"""Texts: the next token by how often it followed the present one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.training.baselines.target import Prediction, Target
from streamrnn.training.data.dataset import Dataset, Stream

__all__ = ["MAX_PAIRS", "Bigram"]

Integers = NDArray[np.int64]

MAX_PAIRS = 100_000  # they are kept in the model's file


@dataclass(frozen=True)
class Bigram:
    """Token b follows a with probability (n(a, b) + 1) / (n(a) + V): add-one smoothing.

    Of more than `MAX_PAIRS` different pairs the most frequent count, the others as not seen.
    """

    name: ClassVar[str] = "bigram"
    noun: ClassVar[str] = "bigram"
    rank: ClassVar[int] = 2
    target: Target
    pairs: Integers  # [P], a V + b, rising
    counts: Integers  # [P]

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return "bigram, by the token before (add one)"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> Bigram:
        """Count the pairs of all but the test part."""
        [stream] = dataset.streams
        tokens = stream.x[: stream.stops[1] + 1, 0].astype(np.int64)
        pairs, counts = np.unique(tokens[:-1] * target.num_classes + tokens[1:], return_counts=True)
        kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_PAIRS])
        return cls(target, pairs[kept], counts[kept])

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        num_tokens = self.target.num_classes
        first = self.pairs // num_tokens
        totals = np.bincount(first, self.counts, minlength=num_tokens)
        starts = np.searchsorted(first, np.arange(num_tokens + 1))
        tokens = stream.x[rows, 0].astype(np.int64)
        values = np.repeat(-np.log(totals[tokens] + num_tokens)[:, None], num_tokens, axis=1)
        # Every row's pairs, one after the other.
        sizes = np.diff(starts)[tokens]
        row = np.repeat(np.arange(len(tokens)), sizes)
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        pair = starts[tokens][row] + place
        values[row, self.pairs[pair] % num_tokens] += np.log(self.counts[pair] + 1.0)
        return Prediction(values, values.argmax(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {"pairs": self.pairs.tolist(), "counts": self.counts.tolist()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> Bigram:
        """Take it back, or raise `ModelFileError`."""
        try:
            found = [np.array(plain[key]) for key in ("pairs", "counts")]
        except (KeyError, ValueError):
            found = [np.zeros(0), np.zeros(0)]
        pairs, counts = found
        is_whole = all(values.dtype.kind == "i" and values.ndim == 1 for values in found)
        if not is_whole or len(pairs) != len(counts) or not 0 < len(pairs) <= MAX_PAIRS:
            raise _damaged()
        if (np.diff(pairs) <= 0).any() or pairs[0] < 0 or pairs[-1] >= target.num_classes**2:
            raise _damaged()
        if counts.min() < 1 or counts.max() > 2**40:
            raise _damaged()
        return cls(target, pairs.astype(np.int64), counts.astype(np.int64))


def _damaged() -> ModelFileError:
    return ModelFileError(
        "a baseline in the model's report is damaged: 'pairs' and 'counts' of the bigram are no "
        "pairs of tokens; train the model again"
    )
