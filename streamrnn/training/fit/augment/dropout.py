"""Dropout in training, of inputs and of what layers give to others.

Sources: Srivastava et al., "Dropout", JMLR 15, 2014 (inverted: what is kept is larger by as much);
Zaremba, Sutskever and Vinyals, "Recurrent neural network regularization", 2014 (a layer's own
states, and what is fed back, are never dropped).
"""

from __future__ import annotations

import numpy as np

from streamrnn.training.config import TrainingConfig
from streamrnn.training.network.network import Chunk, Mask, Network

__all__ = ["add_dropout"]

_STREAM = 1  # of random numbers, apart from the noise's


def add_dropout(chunk: Chunk, network: Network, config: TrainingConfig, update: int) -> None:
    """Draw what a chunk's layers do not see of their inputs.

    As with noise it depends on the seed and on the number of updates so far alone.
    """
    rng = np.random.default_rng((config.seed, update, _STREAM))
    sizes = {-1: network.spec.num_features}
    sizes |= {k: network.nodes[k].output_size for k in range(len(network.spec.layers))}
    for k, size in sizes.items():
        share = config.input_dropout if k < 0 else config.dropout
        if share:
            drawn = rng.random((*chunk.features.shape[:2], size), np.float32)
            chunk.masks[k] = Mask(drawn >= share, 1.0 / (1.0 - share))
