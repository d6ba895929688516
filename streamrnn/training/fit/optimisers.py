"""The optimisers, and the clipping of gradients.

Sources: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1;
Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019; Pascanu, Mikolov and
Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, section 3.2 (clipping
by the global norm); Polyak, "Some methods of speeding up the convergence of iteration methods",
1964 (momentum).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from streamrnn.errors import TrainingError
from streamrnn.gradients.scratch import Array

__all__ = ["Adam", "Optimiser", "Sgd", "clip_by_global_norm", "make_optimiser"]


class Optimiser(Protocol):
    """What changes the weights, on one flat vector.

    ``moments`` are its state by name, each [size]; with ``num_updates`` they are all of it.
    """

    num_updates: int

    @property
    def moments(self) -> dict[str, Array]:
        """Return the state by name."""

    def update(
        self, parameters: Array, gradient: Array, rate: float, decay: Array | float = 0.0
    ) -> None:
        """Change the parameters, [size], in place by one step.

        ``rate`` is this step's learning rate; ``decay`` the weight decay of each parameter, times
        the rate.
        """


class Adam:
    """Adam with bias correction and decoupled weight decay (AdamW)."""

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

    @property
    def moments(self) -> dict[str, Array]:
        """Return the state by name."""
        return {"adam.mean": self.mean, "adam.square": self.square}

    def update(
        self, parameters: Array, gradient: Array, rate: float, decay: Array | float = 0.0
    ) -> None:
        """Implement `Optimiser.update`."""
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
        lost = _lost(parameters, rate, decay)
        given = np.array(settings, parameters.dtype)
        update_by_adam(parameters, gradient, self.mean, self.square, lost, given)


def _lost(parameters: Array, rate: float, decay: Array | float) -> Array:
    """Return what share of itself each parameter loses; nothing if none does."""
    of = parameters.dtype.type
    if isinstance(decay, np.ndarray):
        return of(rate) * decay
    return np.full_like(parameters, rate * decay) if decay else parameters[:0]


class Sgd:
    """Gradient descent with momentum and decoupled weight decay.

    ``v' = momentum v + gradient`` and ``w' = (1 - rate decay) w - rate v'``, as PyTorch's SGD.
    """

    def __init__(self, size: int, dtype: np.dtype[Any], momentum: float) -> None:
        self.momentum = momentum
        self.num_updates = 0
        self.velocity = np.zeros(size, dtype)

    @property
    def moments(self) -> dict[str, Array]:
        """Return the state by name."""
        return {"sgd.velocity": self.velocity}

    def update(
        self, parameters: Array, gradient: Array, rate: float, decay: Array | float = 0.0
    ) -> None:
        """Implement `Optimiser.update`."""
        from streamrnn.gradients.update import update_by_momentum  # loads Numba

        self.num_updates += 1
        of, lost = parameters.dtype.type, _lost(parameters, rate, decay)
        update_by_momentum(parameters, gradient, self.velocity, lost, of(self.momentum), of(rate))


def make_optimiser(name: str, momentum: float, size: int, dtype: np.dtype[Any]) -> Optimiser:
    """Build ``adamw`` or ``sgd``."""
    return Sgd(size, dtype, momentum) if name == "sgd" else Adam(size, dtype)


def clip_by_global_norm(gradient: Array, max_norm: float) -> tuple[float, bool]:
    """Shorten the gradient of all parameters to `max_norm`, in place.

    Returns its norm before, and whether it was shortened. Raises `TrainingError` if it holds NaN or
    Inf.
    """
    from streamrnn.gradients.update import clip  # loads Numba

    norm: float = clip(gradient, max_norm)
    if not math.isfinite(norm):
        raise TrainingError(
            "the gradient is not finite: training diverged. Lower learning_rate (to a third) or "
            "clip_norm; with rnn_relu also consider rnn_tanh, gru or lstm, whose activations are "
            "bounded"
        )
    return norm, norm > max_norm
