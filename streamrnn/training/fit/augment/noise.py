"""Noise on what a network sees in training.

Source: Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation
7(1), 1995.
"""

from __future__ import annotations

import numpy as np

from streamrnn.training.data.dataset import Dataset
from streamrnn.training.network.network import Chunk

__all__ = ["add_noise"]


def add_noise(chunk: Chunk, dataset: Dataset, update: int) -> None:
    """Add noise to the inputs that are numbers, in place.

    What is drawn depends on the seed and on the number of updates so far, on nothing else: a
    training that goes on draws the same.
    """
    noise = dataset.config.noise
    columns, start = [], 0
    for item in dataset.spec.inputs:
        if item.kind == "numeric":  # a mask that says what is missing is next to it, and stays
            columns.append(start)
        start += item.num_features
    if not noise or not columns:
        return
    rng = np.random.default_rng((dataset.config.seed, update))
    shape = (*chunk.features.shape[:2], len(columns))
    drawn = rng.standard_normal(shape, chunk.features.dtype)
    chunk.features[..., columns] += np.float32(noise) * drawn
