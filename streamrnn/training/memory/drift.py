"""Inputs of today beside those of the training: what lies where, and how much lies beyond.

A model's report keeps quantiles of each input, of what the network sees: of a differenced input the
changes. Whether one short piece of a stream is drawn like the training's cannot be told, for its
rows resemble each other; but hardly anything may lie beyond all of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.io_spec import InputSpec
from streamrnn.model.spec import ModelSpec
from streamrnn.training.data.dataset import Dataset

__all__ = ["LEVELS", "input_ranges", "measure_drift"]

Doubles = NDArray[np.float64]

LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
MAX_INPUTS, MAX_CATEGORIES = 1024, 1024  # of more nothing is kept
NUM_TOLD = 16


def input_ranges(dataset: Dataset, part: int) -> list[dict[str, Any] | None] | None:
    """Return where each input lay up to the end of the part with this number, as JSON types.

    Numbers have ``quantiles`` at `LEVELS` and the share that was ``missing``, categories (and
    tokens) their ``shares``. None for what is too large, or never known.
    """
    spec = dataset.spec
    if len(spec.inputs) > MAX_INPUTS:
        return None
    streams = [stream.x[: stream.stops[part]] for stream in dataset.streams]
    return [_range_of(item, [x[:, i] for x in streams]) for i, item in enumerate(spec.inputs)]


def _range_of(item: InputSpec, columns: list[NDArray[Any]]) -> dict[str, Any] | None:
    if item.kind != "numeric":
        if item.num_categories > MAX_CATEGORIES:
            return None
        codes = np.concatenate(columns).astype(np.int64)
        counts = np.bincount(codes, minlength=item.num_categories)
        return {"shares": (counts / max(1, len(codes))).tolist()}
    seen = np.concatenate([_seen(item, column) for column in columns])
    if not len(seen):
        return None
    missing = float(np.isnan(np.concatenate(columns)).mean())
    return {"quantiles": np.quantile(seen, LEVELS).tolist(), "missing": missing}


def _seen(item: InputSpec, column: NDArray[Any]) -> Doubles:
    """Return the known values of one stream's input, or of a differenced one the changes."""
    known = column[~np.isnan(column)].astype(np.float64)
    return np.diff(known) if item.difference else known


def measure_drift(spec: ModelSpec, x: NDArray[Any]) -> dict[str, Any] | None:
    """Compare steps of one stream as they are sent, [T, num_inputs], with those of the training.

    Returns JSON types: ``beyond``, the share of values beyond all of the training (of categories,
    those that never came there), of all inputs; and for the inputs with most of them, ``inputs``:
    ``name``, ``beyond``; of numbers ``tails`` (the share outside of the training's 1 % to 99 %),
    ``median_at`` (where the median stands among the training's values, 0 to 1), ``missing`` and
    ``trained_missing``. None for a model whose report has no such quantiles.
    """
    ranges = _checked(spec)
    if ranges is None:
        return None
    told, num_beyond, num_values = [], 0, 0
    for i, (item, known) in enumerate(zip(spec.inputs, ranges, strict=True)):
        if known is None:
            continue
        found, beyond, number = _compare(item, known, x[:, i])
        num_beyond, num_values = num_beyond + beyond, num_values + number
        told.append({"name": item.name} | found)
    told.sort(key=lambda each: -each["beyond"])
    share = num_beyond / num_values if num_values else 0.0
    return {"beyond": share, "inputs": told[:NUM_TOLD]}


def _compare(
    item: InputSpec, known: Mapping[str, Any], column: NDArray[Any]
) -> tuple[dict[str, Any], int, int]:
    """Return what is told of one input, how many values lie beyond, and how many there are."""
    if item.kind != "numeric":
        absent = np.array(known["shares"]) == 0
        num = int(absent[column.astype(np.int64)].sum())
        return {"beyond": num / max(1, len(column))}, num, len(column)
    seen, quantiles = _seen(item, column), np.array(known["quantiles"])
    missing = {"missing": float(np.isnan(column).mean()), "trained_missing": known["missing"]}
    if not len(seen):
        return {"beyond": 0.0, "tails": 0.0, "median_at": None} | missing, 0, 0
    num = int(((seen < quantiles[0]) | (seen > quantiles[-1])).sum())
    tails = float(((seen < quantiles[1]) | (seen > quantiles[-2])).mean())
    at = _level_of(float(np.median(seen)), quantiles)
    found = {"beyond": num / len(seen), "tails": tails, "median_at": at}
    return found | missing, num, len(seen)


def _level_of(value: float, quantiles: Doubles) -> float:
    """Return where a value stands among quantiles, 0 to 1; in the middle of equal ones."""
    low, high = (
        np.searchsorted(quantiles, value, "left"),
        np.searchsorted(quantiles, value, "right"),
    )
    if low < high:
        return float((LEVELS[low] + LEVELS[high - 1]) / 2)
    return float(np.interp(value, quantiles, LEVELS))


def _checked(spec: ModelSpec) -> list[dict[str, Any] | None] | None:
    """Return the report's ranges of inputs; what is damaged is as good as none."""
    ranges = spec.training.get("inputs")
    if not isinstance(ranges, list) or len(ranges) != len(spec.inputs):
        return None
    if any(item.shape for item in spec.inputs):
        return None
    is_right = map(_is_right, spec.inputs, ranges)
    found = [known if right else None for known, right in zip(ranges, is_right, strict=True)]
    return found if any(found) else None


def _is_right(item: InputSpec, known: Any) -> bool:
    if not isinstance(known, dict):
        return False
    name, size = ("quantiles", len(LEVELS))
    if item.kind != "numeric":
        name, size = ("shares", item.num_categories)
    values = known.get(name)
    if not isinstance(values, list) or len(values) != size:
        return False
    if name == "quantiles":
        values = [*values, known.get("missing")]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return False
    return name == "shares" or values[:-1] == sorted(values[:-1])
