"""The last known value, or class, again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.spec import InputSpec
from streamrnn.training.baselines.target import (
    Prediction,
    Target,
    class_values,
    first_known,
    held_values,
    known_numbers,
)
from streamrnn.training.data.dataset import Dataset, Stream

__all__ = ["ClassPersistence", "Persistence"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Persistence:
    """Numbers: the last value that is known."""

    name: ClassVar[str] = "persistence"
    noun: ClassVar[str] = "persistence"
    rank: ClassVar[int] = 1
    target: Target

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return "persistence (the last value again)"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> Persistence | None:
        """Return it if the target is among the inputs."""
        return None if target.num_classes or target.source is None else cls(target)

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        source = self.target.source
        assert source is not None  # fit and from_dict have seen to it
        known = held_values(self.target.spec.inputs[source], stream, source, rows.stop)
        return Prediction(self.target.to_network(stream, rows, known[rows]))

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> Persistence:
        """Take it back."""
        return cls(target)


@dataclass(frozen=True)
class ClassPersistence:
    """Classes: the last one that is known, with what the fitted rows say of how often it stays.

    A row of class i has class i again with probability ``stay[i]``; what is left goes to the
    others in the proportions ``leave`` of the classes that were changed to, and so does all where
    the last class is not known. Both are smoothed: ``stay`` by two rows of the mean over the
    classes, ``leave`` by one row for each class.
    """

    name: ClassVar[str] = "persistence"
    noun: ClassVar[str] = "persistence"
    rank: ClassVar[int] = 1
    target: Target
    stay: Doubles  # [K]
    leave: Doubles  # [K]

    @property
    def label(self) -> str:
        """What a reader is told that it is."""
        return "persistence (the last class again)"

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> ClassPersistence | None:
        """Fit to all but the test part, if the target is among the inputs."""
        num_classes = target.num_classes
        if not num_classes or target.source is None:
            return None
        stays, totals, arrivals = np.zeros((3, num_classes))
        for stream in dataset.streams:
            rows = slice(0, stream.stops[1])
            truth, last = target.truth(stream, rows), _last_class(target, stream, rows)
            known = ~np.isnan(truth) & (last >= 0)
            old, new = last[known], truth[known].astype(np.int64)
            totals += np.bincount(old, minlength=num_classes)
            stays += np.bincount(old[old == new], minlength=num_classes)
            arrivals += np.bincount(new[old != new], minlength=num_classes)
        mean = (stays.sum() + 1.0) / (totals.sum() + 2.0)
        leave = (arrivals + 1.0) / (arrivals.sum() + num_classes)
        return cls(target, (stays + 2.0 * mean) / (totals + 2.0), leave)

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        last = _last_class(self.target, stream, rows)
        is_known = last >= 0
        there, old = np.flatnonzero(is_known), last[is_known]
        log_p = np.tile(np.log(self.leave), (len(last), 1))
        log_p[there] += np.log((1.0 - self.stay) / (1.0 - self.leave))[old, None]
        log_p[there, old] = np.log(self.stay[old])
        return Prediction(log_p, np.where(is_known, last, self.leave.argmax()))

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""
        return {"stay": self.stay.tolist(), "leave": self.leave.tolist()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> ClassPersistence:
        """Take it back, or raise `ModelFileError`."""
        found = [known_numbers(plain, key, (target.num_classes,)) for key in ("stay", "leave")]
        # Outside of 0 to 1 there is no logarithm.
        stay, leave = (np.clip(values, 1e-12, 1.0 - 1e-12) for values in found)
        return cls(target, stay, leave)


def _last_class(target: Target, stream: Stream, rows: slice) -> NDArray[np.int64]:
    """Return the last known class of some rows; -1 for a name that is no class of the target."""
    source = target.source
    assert source is not None
    item = target.spec.inputs[source]
    known = held_values(item, stream, source, rows.stop)[rows]
    classes = _classes(target, item, known)
    classes[: max(0, first_known(stream, source) - rows.start)] = -1
    return classes


def _classes(target: Target, item: InputSpec, known: Doubles) -> NDArray[np.int64]:
    if item.kind == "numeric" and target.metric == "cross_entropy":  # classes written as numbers
        values = class_values(target)
        return np.searchsorted((values[1:] + values[:-1]) / 2, known + item.origin)
    if item.categories and target.metric == "cross_entropy":  # some of rare names may be one
        classes = {output.name: k for k, output in enumerate(target.spec.outputs)}
        return np.array([classes.get(name, -1) for name in item.categories])[known.astype(np.int64)]
    return np.clip(np.round(known), 0, target.num_classes - 1).astype(np.int64)
