"""The learning rate of an update.

Sources: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2 (the rate rises at first);
Loshchilov and Hutter, "SGDR", ICLR 2017 (cosine, here without restarts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamrnn.training.config import TrainingConfig

__all__ = ["cosine", "learning_rate", "plateau"]

FLOOR = 0.01  # share of the peak that is left at the end, and that the first update has at least
PLATEAU_FACTOR = 0.5


def learning_rate(config: TrainingConfig, progress: float, losses: Sequence[float]) -> float:
    """Return the rate after a share of the training.

    ``progress`` runs from 0 to 1; ``losses`` are those of the evaluations so far.
    """
    if progress < config.warmup:
        return config.learning_rate * max(progress / config.warmup, FLOOR)
    if config.schedule == "cosine":
        return config.learning_rate * cosine((progress - config.warmup) / (1.0 - config.warmup))
    if config.schedule == "plateau":
        return config.learning_rate * plateau(losses, config.plateau_patience)
    return config.learning_rate


def cosine(progress: float) -> float:
    """Return the share of the peak along half a cosine, down to `FLOOR`."""
    turn = math.pi * min(1.0, progress)
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(turn))


def plateau(losses: Sequence[float], patience: int) -> float:
    """Return the share that is left after cuts by half, one every `patience` losses no better.

    It falls no lower than `FLOOR`.
    """
    share, best, since = 1.0, math.inf, 0
    for loss in losses:
        since = 0 if loss < best else since + 1
        best = min(best, loss)
        if since >= patience:
            share, since = share * PLATEAU_FACTOR, 0
    return max(share, FLOOR)
