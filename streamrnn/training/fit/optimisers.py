"""The optimiser, the clipping of gradients and the learning-rate schedule.

Sources: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1;
Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019; Pascanu, Mikolov and
Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, section 3.2 (clipping
by the global norm); Loshchilov and Hutter, "SGDR", ICLR 2017 (cosine, here without restarts).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamrnn.errors import TrainingError
from streamrnn.gradients.scratch import Array

__all__ = ["Adam", "clip_by_global_norm", "cosine_rate"]


class Adam:
    """Adam with bias correction and decoupled weight decay, on one flat vector."""

    def __init__(
        self,
        size: int,
        dtype: np.dtype[Any],
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.num_updates = 0
        self.mean = np.zeros(size, dtype)
        self.square = np.zeros(size, dtype)

    def update(
        self, parameters: Array, gradient: Array, rate: float, decay: Array | float = 0.0
    ) -> None:
        """Change the parameters, [size], in place by one step.

        ``rate`` is this step's learning rate; ``decay`` the weight decay of each parameter, times
        the rate.
        """
        from streamrnn.gradients.update import update_by_adam  # loads Numba

        self.num_updates += 1
        corrections = 1.0 - self.beta1**self.num_updates, 1.0 - self.beta2**self.num_updates
        settings = (
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            math.sqrt(corrections[1]),
            self.epsilon,
            rate / corrections[0],
        )
        of = parameters.dtype.type
        lost = (rate * np.atleast_1d(decay)).astype(of)
        if lost.size != parameters.size:
            lost = np.full(parameters.size if lost[0] else 0, lost[0])
        update_by_adam(parameters, gradient, self.mean, self.square, lost, tuple(map(of, settings)))


def clip_by_global_norm(gradient: Array, max_norm: float) -> tuple[float, bool]:
    """Shorten the gradient of all parameters to `max_norm`, in place.

    Returns its norm before, and whether it was shortened. Raises `TrainingError` if it holds NaN or
    Inf.
    """
    from streamrnn.gradients.update import sum_of_squares  # loads Numba

    norm = math.sqrt(sum_of_squares(gradient))
    if not math.isfinite(norm):
        raise TrainingError(
            "the gradient is not finite: training diverged. Lower learning_rate (to a third) or "
            "clip_norm; with rnn_relu also consider rnn_tanh, gru or lstm, whose activations are "
            "bounded"
        )
    if norm <= max_norm:
        return norm, False
    gradient *= max_norm / norm
    return norm, True


def cosine_rate(rate: float, progress: float, warmup: float = 0.02, floor: float = 0.01) -> float:
    """Learning rate after a share of the training: linear warm-up, then half a cosine.

    ``rate`` is the peak, ``progress`` runs from 0 to 1, ``warmup`` is the share of the training
    over which the rate rises, ``floor`` the share of the peak that is left at the end.
    """
    if progress < warmup:
        return rate * max(progress / warmup, 0.01)
    turn = math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))
    return rate * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(turn)))
