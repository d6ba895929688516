"""Batches of rows from several streams."""

from __future__ import annotations

import numpy as np

from streamrnn.training.data.dataset import Stream
from streamrnn.training.network.layers import Array
from streamrnn.training.network.network import Chunk

__all__ = ["stack_rows"]


def stack_rows(
    streams: tuple[Stream, ...], rows: list[tuple[int, int, int]]
) -> tuple[Chunk, Array]:
    """Put rows of several streams side by side, padded at their ends.

    ``rows`` holds stream, start and stop of each row of the batch. Returns a chunk [T, B, ...],
    zeros in the padding, and targets [T, B, O], NaN in the padding.
    """
    first = streams[0]
    num_steps = max(stop - start for _, start, stop in rows)
    features = np.zeros((num_steps, len(rows), first.chunk.features.shape[2]), np.float32)
    codes = {name: np.zeros((num_steps, len(rows)), np.int64) for name in first.chunk.codes}
    target = np.full((num_steps, len(rows), first.target.shape[1]), np.nan, np.float32)
    for b, (k, start, stop) in enumerate(rows):
        stream, length = streams[k], stop - start
        features[:length, b] = stream.chunk.features[start:stop, 0]
        target[:length, b] = stream.target[start:stop]
        for name, code in codes.items():
            code[:length, b] = stream.chunk.codes[name][start:stop, 0]
    return Chunk(features, codes), target
