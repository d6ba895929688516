"""Targets of a dataset as baselines see them, and what every baseline can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.model.checks import shown
from streamrnn.model.spec import InputSpec, ModelSpec
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import Dataset, Stream, current_level
from streamrnn.training.data.forecasts import forecasts_of

__all__ = [
    "Baseline", "Prediction", "Target", "blocks_of", "class_values", "first_known",
    "held_values", "known_numbers", "known_whole", "targets_of",
]  # fmt: skip

Doubles = NDArray[np.float64]

BLOCK_ELEMENTS = 1_000_000


@dataclass(frozen=True)
class Target:
    """One target: what is predicted, how far ahead, and what judges it."""

    name: str  # as in a report
    column: str  # of the table
    horizon: int  # rows ahead
    metric: str  # one of METRICS
    output: int  # its column in `Stream.target`
    num_classes: int  # 0 for numbers, 2 for yes and no
    spec: ModelSpec
    quantile: float = 0.5  # which one, where the metric is pinball

    @property
    def source(self) -> int | None:
        """Which input holds the target's past; None if the network does not see it."""
        if self.horizon == 0:
            return None
        names = [item.name for item in self.spec.inputs]
        return names.index(self.column) if self.column in names else None

    @property
    def scale(self) -> float:
        """Units of the user in one unit of the network."""
        return 1.0 if self.num_classes else self.spec.outputs[self.output].scale

    def truth(self, stream: Stream, rows: slice) -> Doubles:
        """Return the targets of some rows in network units or as classes, NaN where missing."""
        return stream.target[rows, self.output].astype(np.float64)

    def to_network(self, stream: Stream, rows: slice, values: Doubles) -> Doubles:
        """Convert predicted numbers from the user's units to the network's."""
        item = self.spec.outputs[self.output]
        return (values - stream.level[rows, self.output] - item.center) / item.scale


class Prediction(NamedTuple):
    """What is predicted of N rows."""

    values: Doubles  # [N] in network units, or [N, K], the logarithms of the probabilities
    classes: NDArray[np.int64] | None = None  # [N], the class chosen; None for numbers


class Baseline(Protocol):
    """A simple predictor of one target.

    It uses what the network may use: the inputs of a row and of those before it.
    """

    name: ClassVar[str]  # in the report's dictionaries
    noun: ClassVar[str]  # in a sentence
    rank: ClassVar[int]  # the simpler of two has the smaller one

    @property
    def target(self) -> Target:
        """The target that it predicts."""

    @property
    def label(self) -> str:
        """What a reader is told that it is."""

    @classmethod
    def fit(cls, dataset: Dataset, target: Target) -> Baseline | None:
        """Fit to all but the test part, or return None where it makes no sense."""

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""

    def to_dict(self) -> dict[str, Any]:
        """Return what was fitted as plain JSON types."""

    @classmethod
    def from_dict(cls, plain: dict[str, Any], target: Target) -> Baseline:
        """Take it back, or raise `ModelFileError`."""


def targets_of(config: TrainingConfig, spec: ModelSpec) -> tuple[Target, ...]:
    """List the targets of a training."""
    found = forecasts_of(config)
    metric = {"mse": "rmse", "huber": "mae"}.get(config.loss, config.loss)
    if metric == "cross_entropy":
        [(_, column, horizon, _)] = found
        return (Target(column, column, horizon, metric, 0, spec.output_size, spec),)
    num_classes = 2 if metric == "binary_cross_entropy" else 0
    return tuple(
        Target(spec.outputs[o].name, column, horizon, metric, o, num_classes, spec, quantile or 0.5)
        for o, (_, column, horizon, quantile) in enumerate(found)
    )


def first_known(stream: Stream, source: int | None) -> int:
    """Return a stream's first row that has a value of an input; all rows if none has."""
    assert source is not None  # what asks needs the target's past
    known = ~np.isnan(stream.x[:, source])
    return int(np.argmax(known)) if known.any() else len(known)


def held_values(item: InputSpec, stream: Stream, column: int, stop: int) -> Doubles:
    """Return an input's values up to a row, a missing one replaced by the last that is known."""
    values = stream.x[:stop, column]
    if item.kind != "numeric":
        return values.astype(np.float64)
    known = values if item.has_memory else _held(values, item.fill)
    return np.asarray(current_level(item, known), np.float64)


def _held(values: NDArray[Any], fill: float) -> NDArray[Any]:
    last = np.where(np.isnan(values), -1, np.arange(len(values)))
    np.maximum.accumulate(last, out=last)
    return np.where(last < 0, fill, values[last])


def blocks_of(
    dataset: Dataset, target: Target, parts: tuple[str, ...], width: int, at_most: int = 0
) -> Iterator[tuple[Stream, NDArray[np.int64], Doubles]]:
    """Yield stream, rows whose target is known, and their targets, in blocks.

    A block has about `BLOCK_ELEMENTS` elements if a row has ``width``. Of more than ``at_most``
    of them (0: all) so many are taken, evenly spread.
    """
    found = []
    for part in parts:
        for stream in dataset.streams:
            own = stream.rows(part)
            is_known = ~np.isnan(stream.target[own, target.output])
            found.append((stream, own.start + np.flatnonzero(is_known)))
    num_rows = sum(len(known) for _, known in found)
    step = max(1, -(-num_rows // at_most)) if at_most else 1
    first = 0  # counted over all streams, so that short ones are thinned too
    for stream, known in found:
        index = known[first::step]
        first = (first - len(known)) % step
        truth = stream.target[index, target.output].astype(np.float64)
        length = max(1, BLOCK_ELEMENTS // width)
        for start in range(0, len(index), length):
            yield stream, index[start : start + length], truth[start : start + length]


def class_values(target: Target) -> Doubles:
    """Return the classes of a column of numbers, [K], sorted, or raise `ModelFileError`."""
    try:
        return np.sort(np.array([float(item.name) for item in target.spec.outputs]))
    except ValueError:
        raise ModelFileError(
            f"the model predicts classes of {target.column!r}, which it also sees as a number, but "
            "its classes are no numbers"
        ) from None


def known_numbers(plain: dict[str, Any], key: str, shape: tuple[int, ...]) -> Doubles:
    """Return an array of finite numbers of a model file, or raise `ModelFileError`."""
    try:
        values = np.asarray(plain[key], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        values = np.array(np.nan)
    if values.shape != shape or not np.isfinite(values).all():
        raise ModelFileError(
            f"a baseline in the model's report is damaged: {key!r} must hold finite numbers of the "
            f"shape {list(shape)}; train the model again"
        )
    return values


def known_whole(plain: dict[str, Any], key: str, least: int, most: int) -> int:
    """Return a whole number of a model file, or raise `ModelFileError`."""
    value = plain.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ModelFileError(
            f"a baseline in the model's report is damaged: {key!r} is {shown(value)}, not a whole "
            f"number from {least} to {most}; train the model again"
        )
    return value
