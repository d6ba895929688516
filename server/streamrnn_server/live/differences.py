"""How far the outputs of two models are apart: sums over steps, and what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.layers.frame import ActivationSpec
from streamrnn.model.spec import ModelSpec

__all__ = ["MAX_TOLD", "Differences"]

MAX_TOLD = 64  # outputs, of a model that has more those that differ most
_HALF = 0.5  # of what a sigmoid gives: yes or no
_CLASSES = ("softmax", "log_softmax")

Doubles = NDArray[np.float64]


class Differences:
    """The outputs of one model beside those of another one, for the same inputs.

    Steps at which an output of either is not finite are counted and left out.

    Parameters
    ----------
    old, new : ModelSpec
        With as many outputs.
    """

    def __init__(self, old: ModelSpec, new: ModelSpec) -> None:
        self.num_steps = 0
        self._old, self._new = old, new
        self._size = size = old.output_size
        self._from: Doubles | None = None  # sums of squares are of what is beyond it
        self._away, self._error, self._y, self._y2 = np.zeros((4, size))
        self._most = np.zeros(size)
        self._offsets = _origins(new) - _origins(old)
        self._not_finite = {"old": 0, "new": 0}
        channels = {_num_classes(old), _num_classes(new)}
        self._num_classes = channels.pop() if len(channels) == 1 else 0
        self._num_places = self._num_same = 0
        are_shares = _is_sigmoid(old) and _is_sigmoid(new)
        self._on_same_side = np.zeros(size) if are_shares else None

    def add(self, old: NDArray[np.float32], new: NDArray[np.float32]) -> None:
        """Add some steps: two arrays of float32, shape (T, output_size)."""
        is_finite = [np.isfinite(each).all(axis=1) for each in (old, new)]
        for name, finite in zip(self._not_finite, is_finite, strict=True):
            self._not_finite[name] += int(np.count_nonzero(~finite))
        both = is_finite[0] & is_finite[1]
        if not both.any():
            return
        y, other = old[both].astype(np.float64), new[both].astype(np.float64)
        if self._from is None:
            self._from = y[0].copy()
        error, beyond = other - y + self._offsets, y - self._from
        away = np.abs(error)
        self.num_steps += len(y)
        self._away += away.sum(axis=0)
        self._error += error.sum(axis=0)
        self._y += beyond.sum(axis=0)
        self._y2 += (beyond**2).sum(axis=0)
        self._most = np.maximum(self._most, away.max(axis=0))
        if self._num_classes:
            chosen = [each.reshape(-1, self._num_classes).argmax(axis=1) for each in (y, other)]
            self._num_places += len(chosen[0])
            self._num_same += int(np.count_nonzero(chosen[0] == chosen[1]))
        if self._on_same_side is not None:
            self._on_same_side += np.count_nonzero((y > _HALF) == (other > _HALF), axis=0)

    def facts(self) -> dict[str, Any]:
        """Return what came of it, as JSON types.

        Returns
        -------
        dict
            ``num_steps``; ``num_not_finite``, of ``old`` and ``new``; ``same_class``, the share of
            steps at which both find the same class the most likely, None where outputs are no
            classes; ``num_outputs``, and ``outputs``, those that differ most where there are more
            than `MAX_TOLD`. Of each: ``name``, ``unit``, ``mean`` and ``max`` of the magnitude of
            the difference, ``shift`` (the mean of new less old), ``spread`` (the standard deviation
            of the old output), ``mean_by_spread`` and ``max_by_spread`` (None where it does not
            change), and ``same_side``, the share on the same side of 0.5, behind a sigmoid. An
            output that is an array is told by the mean, and the largest, of its elements.
        """
        outputs = self._outputs() if self.num_steps else []
        if len(outputs) > MAX_TOLD:
            order = sorted(range(len(outputs)), key=lambda k: _rank(outputs[k]), reverse=True)
            outputs = [outputs[k] for k in order[:MAX_TOLD]]
        return {
            "num_steps": self.num_steps,
            "num_not_finite": dict(self._not_finite),
            "same_class": self._num_same / self._num_places if self._num_places else None,
            "num_outputs": len(self._old.outputs),
            "outputs": outputs,
        }

    def _outputs(self) -> list[dict[str, Any]]:
        starts = np.cumsum([0, *(item.size for item in self._old.outputs)])[:-1]
        sizes = np.diff([*starts, self._size])
        mean = self._y / self.num_steps
        variance = np.maximum(self._y2 / self.num_steps - mean**2, 0.0)

        def over(values: Doubles) -> list[float]:
            averages: list[float] = (np.add.reduceat(values, starts) / sizes).tolist()
            return averages

        columns: dict[str, list[Any]] = {
            "mean": over(self._away / self.num_steps),
            "max": np.maximum.reduceat(self._most, starts).tolist(),
            "shift": over(self._error / self.num_steps),
            "spread": np.sqrt(over(variance)).tolist(),
        }
        if self._on_same_side is not None:
            columns["same_side"] = over(self._on_same_side / self.num_steps)
        told = []
        for k, item in enumerate(self._old.outputs):
            facts = {name: values[k] for name, values in columns.items()}
            for name in ("mean", "max"):
                spread = facts["spread"]
                facts[f"{name}_by_spread"] = facts[name] / spread if spread > 0 else None
            told.append({"name": item.name, "unit": item.unit, **facts})
        return told


def _rank(output: dict[str, Any]) -> tuple[float, float]:
    """Return by what outputs are put in order; one that changes only now is far off."""
    share = output["mean_by_spread"]
    if share is None:
        share = np.inf if output["mean"] > 0 else 0.0
    return share, output["mean"]


def _origins(spec: ModelSpec) -> Doubles:
    return np.array([item.origin for item in spec.outputs for _ in range(item.size)])


def _num_classes(spec: ModelSpec) -> int:
    """Return of how many classes the outputs are likelihoods, at each place; 0: of none."""
    last = spec.layers[-1] if spec.layers else None
    if spec.head is not None:
        number = spec.output_size if spec.head.activation == "softmax" else 0
    elif isinstance(last, ActivationSpec) and last.activation in _CLASSES:
        number = spec.graph.shapes[-1][1]
    else:
        number = 0
    return number if number > 1 else 0


def _is_sigmoid(spec: ModelSpec) -> bool:
    return spec.head is not None and spec.head.activation == "sigmoid"
