"""Rows that a model was trained with, found again in another file by what they hold.

A report keeps hashes of windows of rows, spread over every stream. Where another file holds such
windows, each at the same distance from where it was, it holds the rows between them too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.data.dataset import Dataset, Floats

__all__ = ["find_seen_rows", "seen_rows_to_dict"]

Hashes = NDArray[np.uint64]

LEAST_ROWS, MOST_ROWS = 4, 16  # of a window
MAX_WINDOWS = 512  # that are spread over long streams
MAX_STREAMS = 4096  # that have one at least
LEAST_SHARE = 0.9  # of a stream's windows: a few rows may have been mended since
_MIX = np.uint64(0x9E3779B97F4A7C15)


def seen_rows_to_dict(dataset: Dataset, part: int) -> dict[str, Any]:
    """Return what tells the rows that were learned from, as JSON types.

    They are each stream's up to the end of the part with this number; 2: every row.
    """
    seen = [stream for stream in dataset.streams if stream.stops[part] >= LEAST_ROWS]
    counts = np.array([stream.stops[part] for stream in seen] or [0])
    window = min(MOST_ROWS, max(LEAST_ROWS, int(np.quantile(counts, 0.1)) // 2))
    step = max(1, -(-int(counts.sum()) // MAX_WINDOWS))
    streams = []
    for stream in seen[:MAX_STREAMS]:
        hashes = _hash_windows(stream.x[: stream.stops[part]], window)[::step]
        streams.append([stream.stops[part], [f"{value:016x}" for value in hashes.tolist()]])
    return {"window": window, "step": step, "streams": streams}


def find_seen_rows(plain: Any, dataset: Dataset) -> dict[str, tuple[int, int]]:
    """Return from where to where a dataset's streams hold rows that were learned from.

    What a damaged report holds is as good as nothing.
    """
    try:
        window, step = int(plain["window"]), int(plain["step"])
        streams = [(int(n), [int(text, 16) for text in hashes]) for n, hashes in plain["streams"]]
        known = np.array([value for _, hashes in streams for value in hashes], np.uint64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}
    if not len(known) or not 1 <= window <= MOST_ROWS or not 1 <= step <= 2**40:
        return {}
    owner = np.repeat(np.arange(len(streams)), [len(hashes) for _, hashes in streams])
    place = np.concatenate([step * np.arange(len(hashes)) for _, hashes in streams])
    known, first = np.unique(known, return_index=True)
    owner, place = owner[first], place[first]
    found = {}
    for stream in dataset.streams:
        windows = _hash_windows(stream.x, window)
        at = np.minimum(np.searchsorted(known, windows), len(known) - 1)
        here = np.flatnonzero((known[at] == windows) & (windows != 0))
        if not len(here):
            continue
        pairs = np.column_stack([owner[at[here]], here - place[at[here]]])
        pairs, counts = np.unique(pairs, axis=0, return_counts=True)
        which, shift = pairs[int(np.argmax(counts))].tolist()
        inside = (owner == which) & (place + shift >= 0) & (place + shift < len(windows))
        if counts.max() >= LEAST_SHARE * np.count_nonzero(inside):
            start, stop = max(0, shift), min(len(stream.x), streams[which][0] + shift)
            if start < stop:
                found[stream.name] = (start, stop)
    return found


def _hash_windows(x: Floats, length: int) -> Hashes:
    """Hash every window of rows, [T - length + 1] or none.

    0 stands for one whose rows are all the same, which are found everywhere.
    """
    # One NaN, and one zero.
    bits = np.where(np.isnan(x), np.float32(np.nan), x + np.float32(0.0)).view(np.uint32)
    rows = np.zeros(len(x), np.uint64)
    for column in bits.astype(np.uint64).T:
        rows = (rows ^ column) * _MIX
        rows ^= rows >> np.uint64(29)
    num_windows = max(0, len(x) - length + 1)
    hashes, same = np.zeros(num_windows, np.uint64), np.ones(num_windows, bool)
    for k in range(length):
        hashes = (hashes + rows[k : k + num_windows]) * _MIX
        same &= rows[k : k + num_windows] == rows[:num_windows]
    hashes ^= hashes >> np.uint64(32)
    hashes[same] = 0
    return hashes
