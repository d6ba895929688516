"""Operators on constants alone: what exporters write for shapes, conditions and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.onnx.moves import MAX_ELEMENTS
from streamrnn.importers.onnx.values import NotFollowed, Signal, Symbols, Value

__all__ = ["FOLDED", "filled", "fold_constants", "shape_of"]

_MAX_PRODUCTS = 1 << 31  # of a matrix product of constants
_OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "And": np.logical_and,
    "Equal": np.equal,
    "Exp": np.exp,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "Max": np.maximum,
    "Min": np.minimum,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": np.power,
    "Range": np.arange,
    "Reciprocal": np.reciprocal,
    "Size": np.size,
    "Sqrt": np.sqrt,
    "Where": np.where,
}
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL2": lambda x, **how: np.sqrt(np.square(x).sum(**how)),
    "ReduceMax": np.max,
    "ReduceMean": np.mean,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceSumSquare": lambda x, **how: np.square(x).sum(**how),
}
FOLDED = (*_OPERATORS, *_REDUCTIONS, "Gemm", "MatMul")
_UNARY = ("Abs", "Exp", "Log", "Neg", "Not", "Reciprocal", "Size", "Sqrt")
_NUM_INPUTS = dict.fromkeys(_UNARY, 1) | {"Range": 3, "Where": 3}


def fold_constants(op: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """Apply an operator to constants.

    Raises `NotFollowed` if it would make too many elements, `ValueError` if they do not fit.
    """
    if op in _REDUCTIONS:
        return _reduced(op, inputs, attributes)
    if op == "Gemm":
        return _gemm(inputs, attributes)
    if len(inputs) != _NUM_INPUTS.get(op, 2):
        raise NotFollowed(f"it has {len(inputs)} inputs")
    if op == "MatMul":
        return _product(*inputs)
    if op == "Range":
        first, end, step = (np.asarray(value).reshape(()).item() for value in inputs)
        if not step or abs((end - first) / step) > MAX_ELEMENTS:
            raise NotFollowed("it makes too many elements")
        return np.arange(first, end, step)
    if op != "Size" and np.prod(np.broadcast_shapes(*(v.shape for v in inputs))) > MAX_ELEMENTS:
        raise NotFollowed("it makes too many elements")
    with np.errstate(all="ignore"):  # the model refuses what is not finite, by name
        made = np.asarray(_OPERATORS[op](*inputs))
        return made.astype(inputs[0].dtype) if op == "Pow" else made


def _product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if max(a.ndim, b.ndim) > 2 or min(a.ndim, b.ndim) < 1 or a.size * b.shape[-1] > _MAX_PRODUCTS:
        raise NotFollowed("it multiplies large constants")
    return np.asarray(a @ b)


def _gemm(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    if len(inputs) < 2:
        raise NotFollowed(f"it has {len(inputs)} inputs")
    a = inputs[0].T if attributes.get("transA", 0) else inputs[0]
    b = inputs[1].T if attributes.get("transB", 0) else inputs[1]
    made = float(attributes.get("alpha", 1.0)) * _product(a, b)
    added = inputs[2] if len(inputs) > 2 else None
    return made if added is None else made + float(attributes.get("beta", 1.0)) * added


def _reduced(op: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """Reduce along axes: an attribute once, and an input since opset 13 or 18."""
    x = inputs[0]
    given = attributes.get("axes", inputs[1] if len(inputs) > 1 else None)
    axes = tuple(int(axis) for axis in np.asarray([] if given is None else given).reshape(-1))
    if not axes and attributes.get("noop_with_empty_axes", 0):
        return np.asarray(x)
    keeps = bool(attributes.get("keepdims", 1))
    with np.errstate(all="ignore"):
        made = _REDUCTIONS[op](x, axis=axes or None, keepdims=keeps)
    return np.asarray(made).astype(x.dtype)  # whole numbers are rounded towards zero


def shape_of(value: Value | None, attributes: Mapping[str, Any]) -> Value:
    """Return the shape of what is known, or a part of it."""
    if isinstance(value, Symbols):
        shape: tuple[int, ...] = value.ids.shape
    elif isinstance(value, Signal | np.ndarray):
        shape = value.shape
    else:
        raise NotFollowed("its input is not known")
    part = slice(attributes.get("start"), attributes.get("end"))
    return np.array(shape[part], np.int64)


def filled(value: Value | None, attributes: Mapping[str, Any]) -> Value:
    """Make a constant of a shape."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim > 1:
        raise NotFollowed("its shape is no constant")
    shape = tuple(int(size) for size in np.atleast_1d(value))
    if len(shape) > 8 or min(shape, default=0) < 0 or np.prod(shape, dtype=float) > MAX_ELEMENTS:
        raise NotFollowed(f"it makes the shape {list(shape)}")
    fill = attributes.get("value", np.zeros(1, np.float32))
    return np.broadcast_to(np.asarray(fill).reshape(-1)[:1], shape)
