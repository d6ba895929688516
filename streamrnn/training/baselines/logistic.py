"""Multinomial logistic regression with an L2 penalty, by Newton's method.

Each Newton step is solved by conjugate gradients, so that no Hessian is stored (Nocedal and Wright,
"Numerical Optimization", 2006, algorithm 7.1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Budget", "fit_logistic", "log_softmax"]

Doubles = NDArray[np.float64]

MAX_STEPS = 50
MAX_INNER_STEPS = 100
TOLERANCE = 1e-6  # of the gradient, per row
MAX_PRODUCTS = 3e10  # multiplications that a budget allows: a matter of seconds
LEAST_BUDGET = 100
FREE = 1e-9  # penalty of the constants: adding one to those of all classes changes nothing


class Budget:
    """Passes over the rows that some fits may still take together; the best so far is kept."""

    def __init__(self, rows: Doubles, num_classes: int) -> None:
        self.left = max(LEAST_BUDGET, int(MAX_PRODUCTS / max(1, 2 * rows.size * num_classes)))

    def take(self) -> bool:
        """Take one pass, if one is left."""
        self.left = max(0, self.left - 1)
        return self.left > 0


def log_softmax(z: Doubles) -> Doubles:
    """Return the logarithms of the probabilities of the classes, [N, K]."""
    shifted = z - z.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def fit_logistic(
    rows: Doubles,
    classes: NDArray[np.int64],
    l2: float,
    weights: Doubles,
    budget: Budget | None = None,
) -> Doubles:
    """Minimise the summed cross-entropy plus ``l2 / 2`` times the sum of squares of the weights.

    ``rows`` are [N, F + 1], the last column ones, whose weights are free of the penalty.
    ``weights``, [F + 1, K], are where to start from; those that were found are returned.
    """
    budget = budget or Budget(rows, weights.shape[1])
    decay = np.full((rows.shape[1], 1), l2)
    decay[-1] = FREE
    hot = np.zeros((len(rows), weights.shape[1]))
    hot[np.arange(len(rows)), classes] = 1.0
    value, p = _objective(rows, hot, decay, weights)
    for _ in range(MAX_STEPS):
        gradient = rows.T @ (p - hot) + decay * weights
        norm = float(np.linalg.norm(gradient))
        if norm <= TOLERANCE * len(rows) or not budget.left:
            break
        step = _newton_step(rows, p, decay, gradient, norm, budget)
        slope = float(np.vdot(gradient, step))
        size = 1.0
        while size > 1e-10 and (budget.take() or size == 1.0):
            tried = weights + size * step
            new_value, new_p = _objective(rows, hot, decay, tried)
            if new_value <= value + 1e-4 * size * slope:
                break
            size *= 0.5
        else:
            break  # no progress that float64 can show, or no budget
        weights, value, p = tried, new_value, new_p
    return weights


def _objective(
    rows: Doubles, hot: Doubles, decay: Doubles, weights: Doubles
) -> tuple[float, Doubles]:
    log_p = log_softmax(rows @ weights)
    value = 0.5 * np.sum(decay * weights * weights) - np.vdot(hot, log_p)
    return float(value), np.exp(log_p)


def _newton_step(
    rows: Doubles, p: Doubles, decay: Doubles, gradient: Doubles, norm: float, budget: Budget
) -> Doubles:
    """Solve Hessian times step = -gradient, nearly."""
    step = np.zeros_like(gradient)
    residual, direction = -gradient, -gradient
    square = float(np.vdot(residual, residual))
    enough = (min(0.1, np.sqrt(norm / len(rows))) * norm) ** 2
    for _ in range(MAX_INNER_STEPS):
        z = rows @ direction
        curved = rows.T @ (p * (z - np.sum(p * z, axis=1, keepdims=True))) + decay * direction
        curvature = float(np.vdot(direction, curved))
        if curvature <= 0.0:  # rounding alone: the objective is convex
            break
        length = square / curvature
        step += length * direction
        residual = residual - length * curved
        new_square = float(np.vdot(residual, residual))
        if new_square <= enough or not budget.take():
            break
        direction = residual + new_square / square * direction
        square = new_square
    return step
