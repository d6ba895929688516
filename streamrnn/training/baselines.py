"""Baselines: persistence, and a linear autoregression on the same transforms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.evaluate import score

__all__ = ["MAX_LAGS", "baseline_errors"]

Doubles = NDArray[np.float64]
MAX_LAGS = 60
BLOCK_ROWS = 65_536


def baseline_errors(dataset: Dataset) -> dict[str, dict[str, dict[str, float]]]:
    """Measure simple predictors on the test part: by baseline, what `score` returns.

    - ``persistence``: the target's last known value, if the target is also an input.
    - ``autoregression``: least squares on the last `MAX_LAGS` values of the target's own column
      after the same transforms as the network's, and a constant. It is given the training and the
      validation part to fit, for it needs no validation. Numbers only.
    - ``constant``: the mean, or the frequency of each class, in the training part.

    Missing values are treated as the network treats them (held, for example); missing targets are
    not counted. Targets for which a baseline does not exist are left out.
    """
    target = np.concatenate([s.target[s.rows("test")] for s in dataset.streams])
    if dataset.loss == "mse":
        return _of_numbers(dataset, target)
    training = np.concatenate([s.target[s.rows("train")] for s in dataset.streams])
    if dataset.loss == "binary_cross_entropy":
        share = np.clip(np.nanmean(training, axis=0), 1e-6, 1 - 1e-6)
        constant = np.log(share / (1 - share))
    else:
        counts = np.bincount(
            training[~np.isnan(training)].astype(np.int64), minlength=dataset.spec.output_size
        )
        constant = np.log((counts + 1.0) / (counts.sum() + len(counts)))
    z = np.broadcast_to(constant, (len(target), len(constant)))
    return {"constant": score(dataset, z, target)}


def _of_numbers(
    dataset: Dataset, target: NDArray[np.float32]
) -> dict[str, dict[str, dict[str, float]]]:
    shape = (len(target), dataset.spec.output_size)
    found: dict[str, dict[str, dict[str, float]]] = {}
    guesses = {name: np.full(shape, np.nan) for name in ("persistence", "autoregression")}
    exists = set()
    for o, output in enumerate(dataset.spec.outputs):
        column = next(
            (k for k, i in enumerate(dataset.spec.inputs) if i.name == dataset.config.predict[o]),
            None,
        )
        if column is None or dataset.config.horizon == 0:
            continue
        exists.add(output.name)
        level = np.concatenate([_level(s, column, o)[s.rows("test")] for s in dataset.streams])
        guesses["persistence"][:, o] = (level - output.center) / output.scale
        guesses["autoregression"][:, o] = _autoregression(dataset, column, o)
    if exists:
        for name, z in guesses.items():
            errors = score(dataset, np.nan_to_num(z), target)
            found[name] = {key: value for key, value in errors.items() if key in exists}
    if len(exists) < shape[1]:
        errors = score(dataset, np.zeros(shape), target)  # 0 is the training mean
        found["constant"] = {key: value for key, value in errors.items() if key not in exists}
    return found


def _level(stream: Stream, column: int, output: int) -> Doubles:
    """Return what persistence predicts of an output before its level is added, [T]."""
    values = stream.x[:, column].astype(np.float64)
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return np.nan_to_num(values[last]) - stream.level[:, output]


def _lagged(
    dataset: Dataset, column: int, output: int, lags: int, parts: tuple[str, ...]
) -> Iterator[tuple[Doubles, NDArray[np.float32]]]:
    """Yield blocks of lagged features and a constant, [N, lags + 1], and targets, [N]."""
    feature = sum(item.num_features for item in dataset.spec.inputs[:column])
    for stream in dataset.streams:
        series = stream.chunk.features[:, 0, feature].astype(np.float64)
        padded = np.concatenate([np.zeros(lags - 1), series])
        windows = np.lib.stride_tricks.sliding_window_view(padded, lags)
        for part in parts:
            rows = stream.rows(part)
            # Rows without a full history are not fitted, but they are predicted.
            first = rows.start if part == "test" else max(rows.start, lags - 1)
            for start in range(first, rows.stop, BLOCK_ROWS):
                block = slice(start, min(start + BLOCK_ROWS, rows.stop))
                ones = np.ones((block.stop - block.start, 1))
                yield np.hstack([windows[block], ones]), stream.target[block, output]


def _autoregression(dataset: Dataset, column: int, output: int) -> Doubles:
    """Fit by least squares on all but the test part, and predict the test part."""
    fitted = ("train", "validation")
    longest = max(stream.stops[1] for stream in dataset.streams)
    lags = max(1, min(MAX_LAGS, longest // 3))
    gram, moment = np.zeros((lags + 1, lags + 1)), np.zeros(lags + 1)
    for rows, target in _lagged(dataset, column, output, lags, fitted):
        present = ~np.isnan(target)
        rows = rows[present]
        gram += rows.T @ rows
        moment += rows.T @ target[present]
    weights = np.linalg.lstsq(gram, moment, rcond=1e-12)[0]
    blocks = [rows @ weights for rows, _ in _lagged(dataset, column, output, lags, ("test",))]
    return np.concatenate(blocks)
