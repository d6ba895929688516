"""How long a step of a model takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from streamrnn.model.model import Model
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.memory.rows import raw_inputs

__all__ = ["time_steps"]

NUM_STEPS, NUM_ROUNDS = 1024, 20


def time_steps(models: Mapping[str, tuple[Model, Dataset]]) -> dict[str, float]:
    """Return microseconds a step of one stream on one thread, without a message or a call.

    The models take turns, so that a busy machine slows all of them alike, and the fastest turn of
    each counts.
    """
    from streamrnn.engine.sequences import Sequences

    start, lengths = np.zeros(1, np.int64), np.array([NUM_STEPS])
    runs = {}
    for name, (model, dataset) in models.items():
        x, _ = raw_inputs(dataset)
        runs[name] = Sequences(model, np.resize(x, (NUM_STEPS, x.shape[1])))
    best_s = dict.fromkeys(runs, float("inf"))
    for _ in range(NUM_ROUNDS):
        for name, sequences in runs.items():
            states = sequences.new_states(1)
            began_s = time.perf_counter()
            sequences.run(start, lengths, states)
            best_s[name] = min(best_s[name], time.perf_counter() - began_s)
    return {name: 1e6 * seconds / NUM_STEPS for name, seconds in best_s.items()}
