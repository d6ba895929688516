"""Transforms before the first layer and after the head, in float64.

The memory of a stream is one value for every input, NaN where nothing has been seen yet (or
where the input needs no memory). All functions work on B streams at once and change none of
their arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import InputError
from streamrnn.model.spec import InputSpec, ModelSpec

__all__ = ["check_inputs", "encode_inputs", "transform_outputs"]

Array = NDArray[np.float64]


def check_inputs(spec: ModelSpec, x: NDArray[Any]) -> Array:
    """Check one step of B streams, [B, num_inputs], and return it as float64.

    Floats are rounded to float32 when their origin is off; a token model takes whole numbers.
    Raises `InputError` if the shape is another one, a value is infinite, missing where it may not
    be, or no category.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != spec.num_inputs:
        raise InputError(f"x has shape {list(x.shape)}; expected [B, {spec.num_inputs}]")
    if spec.is_token:
        if x.dtype.kind not in "iu":
            raise InputError(f"x is {x.dtype}; a token model takes whole numbers (uint32)")
        values = x.astype(np.float64)
    else:
        origins = [item.origin for item in spec.input_elements]
        values = (x - np.array(origins)).astype(np.float32).astype(np.float64)
    for i, item in enumerate(spec.input_elements):
        _check_column(item, values[:, i])
    return values


def _check_column(item: InputSpec, v: Array) -> None:
    if item.kind == "numeric":
        bad = np.isinf(v)
        wanted = "a finite number"
        if item.missing == "error":
            bad |= np.isnan(v)
        else:
            wanted += f", or NaN where it is missing (missing={item.missing!r})"
    else:
        # `not (...)`, so that NaN is refused too
        bad = ~((v >= 0) & (v < item.num_categories) & (v == np.floor(v)))
        wanted = f"a whole number from 0 to {item.num_categories - 1}"
    if bad.any():
        b = int(np.argmax(bad))
        raise InputError(f"input {item.name!r} of stream {b} is {v[b]:g}; expected {wanted}")


def encode_inputs(
    spec: ModelSpec, parameters: Mapping[str, NDArray[Any]], memory: Array, x: Array
) -> tuple[Array, Array, Array]:
    """Turn raw inputs into the features of the first layer.

    With m the input's memory and v its current value:

    - x present: v = x. Missing (NaN): ``hold`` v = m, ``mean`` v = fill, ``mask`` v = m for a
      differenced input and fill otherwise; fill also stands for an m that is not there yet.
    - feature = (v - center) / scale, or (v - m - center) / scale for a differenced input, where
      v - m is 0 as long as there is no m. Afterwards m = v; but with ``starts_known`` there is no
      m until an x is present.
    - ``mask`` appends a feature: 1 where the value is missing, else 0.
    - A category is one-hot, or its row of the embedding.

    Takes ``memory`` and ``x`` [B, num_inputs]; returns the features [B, F], the new memory and v,
    both [B, num_inputs].
    """
    columns: list[Array] = []
    new_memory = memory.copy()
    values = x.copy()
    for i, item in enumerate(spec.input_elements):
        if item.kind != "numeric":
            columns.append(_encode_category(item, parameters, x[:, i]))
            continue
        m = memory[:, i]
        missing = np.isnan(x[:, i])
        known = np.where(np.isnan(m), item.fill, m) if item.has_memory else item.fill
        v = np.where(missing, known, x[:, i])
        change = np.where(np.isnan(m), 0.0, v - m) if item.difference else v
        columns.append(((change - item.center) / item.scale)[:, None])
        if item.missing == "mask":
            columns.append(missing.astype(np.float64)[:, None])
        values[:, i] = v
        if item.has_memory:
            is_none = item.starts_known & missing & np.isnan(m)
            new_memory[:, i] = np.where(is_none, np.nan, v)
    return np.concatenate(columns, axis=1), new_memory, values


def _encode_category(item: InputSpec, parameters: Mapping[str, NDArray[Any]], x: Array) -> Array:
    index = x.astype(np.int64)
    if item.embedding_size:
        return parameters[f"embedding.{item.name}.weight"][index].astype(np.float64)
    return np.eye(item.num_categories)[index]


def transform_outputs(spec: ModelSpec, y: Array, values: Array) -> Array:
    """Turn the head's outputs, [B, O], into the user's units.

    ``y * scale + center + origin``, and for the inverse of a difference plus the input's current
    level, from ``values`` [B, num_inputs] as `encode_inputs` returned them.
    """
    outputs = [item for item in spec.outputs for _ in range(item.size)]
    y = y * [item.scale for item in outputs] + [item.center for item in outputs]
    names = [item.name for item in spec.input_elements]
    for o, item in enumerate(outputs):
        if item.difference_of is not None:
            y[:, o] += values[:, names.index(item.difference_of)]
        y[:, o] += item.origin
    return y
