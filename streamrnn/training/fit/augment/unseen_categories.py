"""Categories that the training part does not hold."""

from __future__ import annotations

import numpy as np

from streamrnn.model.graph import Read
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.network.network import Network

__all__ = ["silence_unseen"]


def silence_unseen(network: Network, dataset: Dataset) -> None:
    """Set to 0 what chance gave to categories that nothing is learned of.

    They add nothing then, now and after the training: no gradient ever reaches them.
    """
    spec, start = dataset.spec, 0
    readers = [k for k, reads in enumerate(spec.graph.reads) if Read(-1) in reads]
    for i, item in enumerate(spec.inputs):
        if item.kind != "numeric":
            is_seen = np.zeros(item.num_categories, bool)
            for stream in dataset.streams:
                is_seen[stream.x[: stream.stops[0], i].astype(np.int64)] = True
            unseen = np.flatnonzero(~is_seen)
            if item.embedding_size:
                network.parameters[f"embedding.{item.name}.weight"][unseen] = 0.0
            else:
                for k in readers if len(unseen) else ():
                    network.parameters[f"weight_ih_l{k}"][:, start + unseen] = 0.0
        start += item.num_features
