"""Least squares over blocks of rows, by QR: no squaring of the condition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["LeastSquares"]

Doubles = NDArray[np.float64]

LEAST_ROWS = 4096  # that are worth a decomposition
RANK = 1e-12  # share of the largest singular value below which one is rounding


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

    def solve(self, ridges: Sequence[float] = (0.0,)) -> Doubles:
        """Return the weights, [F, ridges], those of the least norm where several fit equally.

        A ridge times the sum of their squares is added, but for the last one, a constant's. One
        decomposition serves all ridges.
        """
        self._reduce()
        num_features = self._triangle.shape[1] - 1
        if not self.num_rows:
            return np.zeros((num_features, len(ridges)))
        # The constant first: below its row are the other columns and the target without their mean.
        order = [num_features - 1, *range(num_features - 1), num_features]
        triangle = np.asarray(np.linalg.qr(self._triangle[:, order], mode="r"))
        (size, *means, mean), rest = triangle[0].tolist(), triangle[1:]
        u, s, vt = np.linalg.svd(rest[:, 1:-1], full_matrices=False)
        known = s > RANK * s.max(initial=0.0)
        s = np.where(known, s, 1.0)[:, None]
        factors = np.where(known[:, None], s / (s * s + np.asarray(ridges)), 0.0)
        weights = vt.T @ (factors * (u.T @ rest[:, -1])[:, None])
        return np.vstack([weights, (mean - np.array(means) @ weights) / size])
