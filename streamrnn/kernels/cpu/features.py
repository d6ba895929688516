"""From x to the first layer's input: checks, transforms, missing values. See `InputSpec`."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from streamrnn.kernels.cpu import plan as p
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    fill_bytes,
    load_f32,
    load_i64,
    load_u32,
    store_f32,
)

__all__ = ["check_input", "write_features"]

_EXPONENT = 0x7F800000  # of a float32; all of its bits are set in a NaN and in an infinity
_BLOCK = 256


@jit
def _first_not_finite(x, size):
    """Return the index of the first float32 that is NaN or infinite; -1 if none is.

    Blocks without a way out in their middle are what the compiler makes vectors of.
    """
    for first in range(0, size, _BLOCK):
        end = min(first + _BLOCK, size)
        num_bad = 0
        for i in range(first, end):
            num_bad += (load_u32(x + 4 * i) & _EXPONENT) == _EXPONENT
        if num_bad:
            for i in range(first, end):
                if (load_u32(x + 4 * i) & _EXPONENT) == _EXPONENT:
                    return i
    return -1


@jit
def check_input(plan, x, num_steps):
    """Find the first element of an input that the model does not take.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of the stream's model.
    x : int64
        Address of num_steps * num_inputs elements.
    num_steps : int64
        T.

    Returns
    -------
    int64
        -1 if all may pass, else ``step * num_inputs + input`` of the first that may not: an
        infinity, a NaN where the model has no meaning for it, an index that is no category.
    """
    num_inputs = plan[p.NUM_INPUTS]
    if plan[p.INPUTS_ARE_FEATURES]:
        return _first_not_finite(x, num_steps * num_inputs)
    for i in range(num_steps * num_inputs):
        item = plan[p.INPUT_TABLE] + 8 * p.INPUT_WORDS * (i % num_inputs)
        kind = load_i64(item + 8 * p.INPUT_KIND)
        if kind == p.TOKEN:
            if load_u32(x + 4 * i) >= load_i64(item + 8 * p.NUM_CATEGORIES):
                return i
            continue
        value = load_f32(x + 4 * i)
        if kind == p.CATEGORICAL:
            num_categories = load_i64(item + 8 * p.NUM_CATEGORIES)
            if not (0 <= value < num_categories and value == math.floor(value)):
                return i
        elif math.isnan(value):
            if load_i64(item + 8 * p.MISSING) == p.MISSING_ERROR:
                return i
        elif math.isinf(value):
            return i
    return -1


@jit
def write_features(plan, row, x, features):
    """Turn one stream's x into the first layer's input, and remember what must be.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of the stream's model.
    row : int64
        Address of the stream's row, whose remembered values are read and replaced.
    x : int64
        Address of num_inputs elements that `check_input` has let pass.
    features : int64
        Address of float32[num_features].
    """
    for i in range(plan[p.NUM_INPUTS]):
        item = plan[p.INPUT_TABLE] + 8 * p.INPUT_WORDS * i
        target = features + 4 * load_i64(item + 8 * p.FEATURE)
        kind = load_i64(item + 8 * p.INPUT_KIND)
        if kind == p.NUMERIC:
            values = plan[p.INPUT_VALUES] + 8 * i
            _write_numeric(item, load_f32(values), load_f32(values + 4), row, x + 4 * i, target)
            continue
        index = load_u32(x + 4 * i) if kind == p.TOKEN else np.int64(load_f32(x + 4 * i))
        table = load_i64(item + 8 * p.EMBEDDING)
        if table:
            num_bytes = 4 * load_i64(item + 8 * p.EMBEDDING_SIZE)
            copy_bytes(target, table + index * num_bytes, num_bytes)
        else:
            fill_bytes(target, 4 * load_i64(item + 8 * p.NUM_CATEGORIES), 0)
            store_f32(target + 4 * index, np.float32(1.0))


@jit
def _write_numeric(item, center, fill, row, x, target):
    """Difference, centre, and the meaning of a missing value. See `InputSpec`."""
    missing = load_i64(item + 8 * p.MISSING)
    is_difference = load_i64(item + 8 * p.IS_DIFFERENCE)
    memory_offset = load_i64(item + 8 * p.MEMORY)
    value = load_f32(x)
    is_missing = math.isnan(value)
    before = np.float32(math.nan)
    if memory_offset >= 0:
        before = load_f32(row + memory_offset)
    if is_missing:
        value = fill
        if memory_offset >= 0 and not math.isnan(before):
            value = before
    feature = value
    if is_difference:
        feature = np.float32(0.0) if math.isnan(before) else value - before
    store_f32(target, feature - center)
    if missing == p.MISSING_MASK:
        store_f32(target + 4, np.float32(1.0) if is_missing else np.float32(0.0))
    if memory_offset >= 0:
        store_f32(row + memory_offset, value)
