"""Operators on constants alone: what exporters write for shapes and conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.onnx.moves import MAX_ELEMENTS
from streamrnn.importers.onnx.values import NotFollowed

__all__ = ["FOLDED", "fold_constants"]

_OPERATORS: dict[str, Callable[..., Any]] = {
    "And": np.logical_and,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Range": np.arange,
    "Size": np.size,
    "Where": np.where,
}
FOLDED = tuple(_OPERATORS)
_NUM_INPUTS = {"Neg": 1, "Not": 1, "Range": 3, "Size": 1, "Where": 3}


def fold_constants(op: str, inputs: Sequence[Any]) -> NDArray[Any]:
    """Apply an operator to constants.

    Raises `NotFollowed` if it would make too many elements, `ValueError` if they do not fit.
    """
    if len(inputs) != _NUM_INPUTS.get(op, 2):
        raise NotFollowed(f"it has {len(inputs)} inputs")
    if op == "Range":
        first, end, step = (np.asarray(value).reshape(()).item() for value in inputs)
        if not step or abs((end - first) / step) > MAX_ELEMENTS:
            raise NotFollowed("it makes too many elements")
        return np.arange(first, end, step)
    if op != "Size" and np.prod(np.broadcast_shapes(*(v.shape for v in inputs))) > MAX_ELEMENTS:
        raise NotFollowed("it makes too many elements")
    return np.asarray(_OPERATORS[op](*inputs))
