"""A linear path from the last steps' features to the outputs, beside the network.

It is fitted by ridge regression before the training, and stays as it is; the network learns what it
leaves, in units of that. So a training begins where an autoregression ends. In the model it is a
causal convolution, whose outputs the head adds to its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import TrainingError
from streamrnn.training.baselines.seasonal import Seasonal
from streamrnn.training.baselines.target import targets_of
from streamrnn.training.config import MAX_LAGS
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.network.lags import network_of, with_lags
from streamrnn.training.network.losses import LOSSES
from streamrnn.training.network.network import Network

__all__ = ["LinearPath", "fit_path", "has_lags"]

Doubles = NDArray[np.float64]

# Lags that are tried, and those of a period.
TRIED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 25, 32, 48, 49, 60)
RIDGES = (1e-6, 1e-4, 1e-2)  # per row, of features of variance 1
MAX_COLUMNS, MAX_OUTPUTS = 768, 64
BLOCK_STEPS = 65_536  # that are predicted at once
MAX_ELEMENTS = 8_000_000  # of the rows that are fitted, evenly spread
_LEAST_SCALE, _CONSTANT_RIDGE = 1e-6, 1e-12


@dataclass(frozen=True)
class LinearPath:
    """Weights of a linear path, and the size of what it leaves."""

    columns: tuple[int, ...]  # features that it sees
    weight: Doubles  # [O, F, lags], the newest last; 0 for features that it does not see
    bias: Doubles  # [O]
    ridge: float
    scale: float  # root mean square of the residuals in the training part, network units

    @property
    def lags(self) -> int:
        """Steps, this one included."""
        return self.weight.shape[2]

    def predict(self, features: NDArray[np.floating]) -> Doubles:
        """Return the outputs, [T, O], for features [T, F] from a stream's first step."""
        z = np.tile(self.bias, (len(features), 1))
        weight = self.weight[:, list(self.columns)]
        for start in range(0, len(z), BLOCK_STEPS):
            stop = min(start + BLOCK_STEPS, len(z))
            low = max(0, start - self.lags + 1)
            x = features[low:stop, list(self.columns)].astype(np.float64)
            for back in range(min(self.lags, stop)):
                first = max(start, back)  # before it lies nothing
                seen = x[first - back - low : stop - back - low]
                z[first:stop] += seen @ weight[:, :, self.lags - 1 - back].T
        return z

    def again(self, dataset: Dataset) -> LinearPath:
        """Return a path of the same choices, fitted to another training part."""
        rows, truth = _rows(dataset, self.columns, self.lags, "train")
        solved = _solve(_sums(rows, truth), rows.shape[1], self.ridge)
        return _path(dataset, self.columns, solved, self.ridge, rows, truth)

    def residual(self, dataset: Dataset) -> Dataset:
        """Return the dataset with what the path leaves of the targets, in units of its size."""
        streams = []
        for stream in dataset.streams:
            z = self.predict(stream.chunk.features[:, 0])
            left = ((stream.target - z) / self.scale).astype(np.float32)
            streams.append(replace(stream, target=left))
        settings = replace(dataset.loss_settings, delta=dataset.loss_settings.delta / self.scale)
        return replace(dataset, streams=tuple(streams), loss_settings=settings)

    def unit(self, loss: str) -> float:
        """Return what a loss of residuals is multiplied by to be one of the targets."""
        return self.scale if loss in ("mae", "pinball") else self.scale**2

    def compose(self, network: Network) -> Network:
        """Return the network that makes both."""
        spec, parameters = with_lags(
            network.spec, network.parameters, self.weight, self.bias, self.scale
        )
        return network_of(spec, parameters)


def _sums(rows: Doubles, truth: Doubles) -> list[tuple[int, Doubles, Doubles]]:
    """Return what least squares needs of each output: rows that are known, their products."""
    known = [(rows[is_known], truth[is_known, o]) for o, is_known in enumerate(~np.isnan(truth.T))]
    return [(len(x), x.T @ x, x.T @ y) for x, y in known]


def _solve(sums: list[tuple[int, Doubles, Doubles]], width: int, ridge: float) -> Doubles:
    """Return the weights of the last columns, [O, width]; the constant's is not shrunk."""
    solved = []
    for num_rows, squares, products in sums:
        penalty = np.full(width, ridge * max(num_rows, 1))
        penalty[-1] = _CONSTANT_RIDGE * max(num_rows, 1)
        solved.append(
            np.linalg.solve(squares[-width:, -width:] + np.diag(penalty), products[-width:])
        )
    return np.stack(solved)


def has_lags(dataset: Dataset) -> bool:
    """Tell whether a linear path makes sense: of numbers, where no layer reads the head."""
    reads_head = any(text.startswith("head") for text in dataset.config.feedback)
    is_of_numbers = LOSSES[dataset.config.loss] == "identity"
    return is_of_numbers and not reads_head and bool(_choices_of_columns(dataset, 1))


def fit_path(dataset: Dataset, lags: int = 0) -> LinearPath:
    """Fit paths to the training part; return the one with the least squares in validation.

    Some see the past of the target alone, others all inputs. ``lags`` are as many as are tried, 0:
    several, up to a period.
    """
    tried = (lags,) if lags else _tried(dataset)
    choices = [_best(dataset, columns, tried) for columns in _choices_of_columns(dataset, tried[0])]
    if not choices or not has_lags(dataset):
        raise TrainingError(
            f"lags is {lags}, but there is no linear path to {dataset.loss}, to a head that a "
            f"layer reads, or from more than {MAX_COLUMNS} numbers; leave it out, or take fewer"
        )
    return min(choices, key=lambda choice: choice[0])[1]


def _tried(dataset: Dataset) -> tuple[int, ...]:
    longest = max(stream.stops[0] for stream in dataset.streams)
    most = max(1, min(MAX_LAGS, longest // 3))
    periods = {
        found.period
        for target in targets_of(dataset.config, dataset.spec)
        if (found := Seasonal.fit(dataset, target))
    }
    lags = {*TRIED, *(period + more for period in periods for more in (0, 1))}
    return tuple(sorted(k for k in lags if k <= most))


def _choices_of_columns(dataset: Dataset, lags: int) -> list[list[int]]:
    """Return which features a path may see: those of the targets' past, and all."""
    if dataset.streams[0].target.shape[1] > MAX_OUTPUTS:
        return []
    spec = dataset.spec
    predicted = {target.column for target in targets_of(dataset.config, spec)}
    own: list[int] = []
    known: list[int] = []
    start = 0
    for item in spec.inputs:
        columns = range(start, start + item.num_features)
        if not item.embedding_size:
            known += columns
            if item.name in predicted and item.kind == "numeric":
                own += columns
        start += item.num_features
    choices = [own] if own == known else [own, known]
    return [columns for columns in choices if 0 < lags * len(columns) <= MAX_COLUMNS]


def _best(
    dataset: Dataset, columns: Sequence[int], tried: tuple[int, ...]
) -> tuple[float, LinearPath]:
    """Return the least sum of squares in validation, and the path that has it."""
    tried = tuple(k for k in tried if k * len(columns) <= MAX_COLUMNS)
    rows, truth = _rows(dataset, columns, max(tried), "train")
    new_rows, new_truth = _rows(dataset, columns, max(tried), "validation")
    is_known, sums = ~np.isnan(new_truth), _sums(rows, truth)
    found = []
    for lags in tried:
        width = lags * len(columns) + 1
        for ridge in RIDGES:
            solved = _solve(sums, width, ridge)
            error = np.where(is_known, new_truth - new_rows[:, -width:] @ solved.T, 0.0)
            found.append((float(np.vdot(error, error)), lags, ridge, solved))
    total, _, ridge, solved = min(found, key=lambda each: each[:3])
    return total, _path(dataset, columns, solved, ridge, rows, truth)


def _rows(
    dataset: Dataset, columns: Sequence[int], lags: int, part: str
) -> tuple[Doubles, Doubles]:
    """Return rows [N, lags * columns + 1], the newest last and then a one, and targets [N, O].

    They are those that have a target; of too many, some that are evenly spread among these.
    """
    indices = []
    for stream in dataset.streams:
        start = stream.rows(part).start
        has_target = ~np.isnan(stream.target[stream.rows(part)]).all(axis=1)
        indices.append(start + np.flatnonzero(has_target))
    width = lags * len(columns) + 1
    step = max(1, -(-sum(map(len, indices)) * width // MAX_ELEMENTS))
    found, targets, first = [], [], 0
    for stream, known in zip(dataset.streams, indices, strict=True):
        index = known[first::step]
        first = (first - len(known)) % step
        if len(index):
            found.append(_windows(stream, columns, lags, index))
            targets.append(stream.target[index].astype(np.float64))
    if not found:
        return np.zeros((0, width)), np.zeros((0, dataset.streams[0].target.shape[1]))
    return np.concatenate(found), np.concatenate(targets)


def _windows(
    stream: Stream, columns: Sequence[int], lags: int, index: NDArray[np.int64]
) -> Doubles:
    low = max(0, int(index[0]) - lags + 1)
    x = stream.chunk.features[low : int(index[-1]) + 1, 0][:, list(columns)].astype(np.float64)
    padded = np.concatenate([np.zeros((lags - 1 - (int(index[0]) - low), len(columns))), x])
    steps = (index - int(index[0]))[:, None] + np.arange(lags)
    rows = padded[steps].reshape(len(index), -1)
    return np.concatenate([rows, np.ones((len(index), 1))], axis=1)


def _path(
    dataset: Dataset,
    columns: Sequence[int],
    solved: Doubles,
    ridge: float,
    rows: Doubles,
    truth: Doubles,
) -> LinearPath:
    width = solved.shape[1]
    solved[:, ~np.any(rows[:, -width:], axis=0)] = 0.0  # categories that no row has
    left = truth - rows[:, -width:] @ solved.T
    left += (shift := np.array([_shift(dataset, o, left[:, o]) for o in range(len(solved))]))
    lags = (width - 1) // len(columns)
    weight = np.zeros((len(solved), dataset.spec.num_features, lags))
    weight[:, list(columns)] = solved[:, :-1].reshape(len(solved), lags, -1).transpose(0, 2, 1)
    scale = max(_LEAST_SCALE, float(np.sqrt(np.nanmean(left**2))))
    return LinearPath(tuple(columns), weight, solved[:, -1] - shift, ridge, scale)


def _shift(dataset: Dataset, output: int, left: Doubles) -> float:
    """Return what is to be added to residuals, so that the loss is least at 0."""
    level = {"mae": 0.5, "huber": 0.5}.get(dataset.loss)
    if dataset.loss == "pinball":
        level = dataset.loss_settings.quantiles[output % len(dataset.loss_settings.quantiles)]
    known = left[~np.isnan(left)]
    return -float(np.quantile(known, level)) if level is not None and len(known) else 0.0
