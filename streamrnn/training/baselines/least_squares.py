"""Least squares over blocks of rows, by QR: no squaring of the condition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LeastSquares"]

Doubles = NDArray[np.float64]

LEAST_ROWS = 4096  # that are worth a decomposition


class LeastSquares:
    """What least squares needs of rows, [N, F], and targets, [N]: a triangle of F + 1 columns."""

    def __init__(self, num_features: int) -> None:
        self.num_rows = 0
        self._triangle = np.zeros((0, num_features + 1))
        self._waiting: list[Doubles] = []
        self._num_waiting = 0

    def add(self, rows: Doubles, target: Doubles) -> None:
        """Take more rows and their targets."""
        self._waiting.append(np.column_stack([rows, target]))
        self._num_waiting += len(rows)
        self.num_rows += len(rows)
        if self._num_waiting >= LEAST_ROWS:
            self._reduce()

    def _reduce(self) -> None:
        stacked = np.vstack([self._triangle, *self._waiting])
        self._triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
        self._waiting, self._num_waiting = [], 0

    def solve(self, ridge: float = 0.0) -> Doubles:
        """Return the weights, [F], those of the least norm where several fit equally.

        ``ridge`` times the sum of their squares is added, but for the last one, a constant's.
        """
        self._reduce()
        rows, target = self._triangle[:, :-1], self._triangle[:, -1]
        if ridge:
            num_features = rows.shape[1]
            penalty = np.sqrt(ridge) * np.eye(num_features)[: num_features - 1]
            rows = np.vstack([rows, penalty])
            target = np.concatenate([target, np.zeros(len(penalty))])
        return np.asarray(np.linalg.lstsq(rows, target, rcond=1e-12)[0])
