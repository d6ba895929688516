"""Losses of outputs in the user's units, and what a constant would lose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.data.dataset import Dataset
from streamrnn.training.memory.rows import Rows
from streamrnn.training.network.losses import LOSSES, loss_and_gradient

__all__ = ["TargetsOf"]

Doubles = NDArray[np.float64]

_LEAST_P = 1e-30


class TargetsOf:
    """Targets of some rows: losses of outputs, [N, O], and their gradients."""

    def __init__(self, dataset: Dataset, rows: Rows) -> None:
        self._dataset, self._loss = dataset, dataset.loss
        pairs = list(zip(rows.streams.tolist(), rows.rows.tolist(), strict=True))
        self._target = np.array([dataset.streams[k].target[t] for k, t in pairs], np.float64)
        outputs = dataset.spec.outputs
        self._shift = np.array([item.center + item.origin for item in outputs])
        self._scale = np.array([item.scale for item in outputs])
        level = np.array([dataset.streams[k].level[t] for k, t in pairs], np.float64)
        self._level = 0.0 if self._loss == "cross_entropy" else level
        self._present = ~np.isnan(self._target)

    def __call__(self, y: Doubles) -> float:
        """Return the mean loss of outputs in the user's units."""
        return self._mean(self.in_network_units(y))

    def in_network_units(self, y: Doubles) -> Doubles:
        """Take the transforms of the outputs back: what the head's activation gave."""
        found: Doubles = (y - self._level - self._shift) / self._scale
        return found

    def gradient(self, y: Doubles) -> Doubles:
        """Return the gradient of each row's loss by the pre-activations of y, [N, O]."""
        activation = LOSSES[self._loss]
        z = y
        if activation == "softmax":  # the same but for what the softmax takes off again
            z = np.log(np.maximum(y, _LEAST_P))
        elif activation == "sigmoid":
            p = np.clip(y, _LEAST_P, 1.0 - 1e-16)
            z = np.log(p) - np.log1p(-p)
        settings = self._dataset.loss_settings
        _, mean = loss_and_gradient(self._loss, activation, z[None], self._target[None], settings)
        return np.asarray(mean[0] * np.count_nonzero(self._present), np.float64)

    def _mean(self, y: Doubles) -> float:
        present, target = self._present, np.where(self._present, self._target, 0.0)
        settings = self._dataset.loss_settings
        if self._loss == "cross_entropy":
            p = np.take_along_axis(y, target.astype(np.int64), axis=1)
            return float(-np.log(np.maximum(p, _LEAST_P))[present].mean())
        if self._loss == "binary_cross_entropy":
            p = np.where(target > 0.5, y, 1.0 - y)
            return float(-np.log(np.maximum(p, _LEAST_P))[present].mean())
        error = target - y
        if self._loss == "pinball":
            above = np.array(settings.quantiles)
            terms = np.where(error > 0, above, above - 1.0) * error
        elif self._loss == "mae":
            terms = np.abs(error)
        elif self._loss == "huber":
            bounded = np.clip(error, -settings.delta, settings.delta)
            terms = bounded * (error - 0.5 * bounded)
        else:
            terms = error**2
        return float(terms[present].mean())

    def of_constant(self) -> float:
        """Return the loss of the constant that suits these targets best."""
        target = self._target
        if self._loss == "cross_entropy":
            num_classes = self._dataset.spec.output_size
            counts = np.bincount(target[self._present].astype(np.int64), minlength=num_classes)
            best = counts / counts.sum()
        elif self._loss == "pinball":
            levels = self._dataset.loss_settings.quantiles
            best = np.array([np.nanquantile(target[:, o], q) for o, q in enumerate(levels)])
        elif self._loss in ("mae", "huber"):
            best = np.nanmedian(target, axis=0)
        else:
            best = np.nanmean(target, axis=0)
        return max(self._mean(np.broadcast_to(best, (len(target), len(best)))), 1e-30)
