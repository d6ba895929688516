"""Rows that a model is asked about, with the history before them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.data.dataset import Dataset

__all__ = ["Rows", "choose_rows", "raw_inputs", "windows_before"]

Index = NDArray[np.int64]


class Rows(NamedTuple):
    """Rows with a target, and how many rows each has before it at least."""

    streams: Index
    rows: Index  # within the stream
    history: int


def choose_rows(dataset: Dataset, part: str, most_rows: int, most_history: int) -> Rows:
    """Choose rows of a part that have a target, evenly spread.

    At least half of all such rows have the history that comes with them, `most_history` at most.
    """
    streams, rows = [], []
    for k, stream in enumerate(dataset.streams):
        own = stream.rows(part)
        known = np.flatnonzero(~np.isnan(stream.target[own]).all(axis=1)) + own.start
        streams.append(np.full(len(known), k))
        rows.append(known)
    all_streams, all_rows = np.concatenate(streams), np.concatenate(rows)
    if not len(all_rows):
        return Rows(all_streams, all_rows, 0)
    history = min(most_history, int(np.quantile(all_rows, 0.5, method="lower")))
    fitting = np.flatnonzero(all_rows >= history)
    chosen = fitting[np.unique(np.linspace(0, len(fitting) - 1, most_rows).astype(int))]
    return Rows(all_streams[chosen], all_rows[chosen], history)


def windows_before(dataset: Dataset, rows: Rows) -> NDArray[np.generic]:
    """Return the inputs of rows with their history, the row last, [N, history + 1, I]."""
    x, firsts = raw_inputs(dataset)
    return x[(firsts[rows.streams] + rows.rows)[:, None] + np.arange(-rows.history, 1)]


def raw_inputs(dataset: Dataset) -> tuple[NDArray[np.generic], Index]:
    """Return the inputs of all streams as they are sent, [N, I], and each stream's first row."""
    origins = np.array([item.origin for item in dataset.spec.input_elements])
    lengths = np.array([len(stream.x) for stream in dataset.streams], np.int64)
    x = np.concatenate([stream.x for stream in dataset.streams])
    if dataset.spec.is_token:
        return x.astype(np.uint32), np.cumsum(lengths) - lengths
    return (x + origins if origins.any() else x), np.cumsum(lengths) - lengths
