"""From x to the first layer's input: checks, transforms, missing values. See `InputSpec`."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from streamrnn.kernels.cpu.plan import Plan, input_at
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    fill_bytes,
    load_f32,
    load_u32,
    store_f32,
)
from streamrnn.kernels.row_layout import (
    CATEGORICAL,
    MISSING_ERROR,
    MISSING_MASK,
    NUMERIC,
    TOKEN,
    Input,
)

__all__ = ["check_input", "is_masked", "write_features"]

_EXPONENT = 0x7F800000  # of a float32; all of its bits are set in a NaN and in an infinity
_NOT_SIGN = 0x7FFFFFFF
_BLOCK = 256
_ZERO, _ONE, _NAN = np.float32(0.0), np.float32(1.0), np.float32(math.nan)
_INPUT_BYTES = Input.dtype.itemsize


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
def check_input(plan: Plan, x: int, num_steps: int) -> int:
    """Find the first element of inputs x[num_steps, num_inputs] that the model does not take.

    Returns
    -------
    int64
        -1 if all may pass, else ``step * num_inputs + input`` of the first that may not: an
        infinity, a NaN where the model has no meaning for it, an index that is no category.
    """
    num_inputs = plan.num_inputs
    if plan.inputs_are_features:
        return _first_not_finite(x, num_steps * num_inputs)
    for i in range(num_steps * num_inputs):
        item = input_at(plan.inputs + _INPUT_BYTES * (i % num_inputs))
        kind = item.kind
        if kind == TOKEN:
            if load_u32(x + 4 * i) >= item.num_categories:
                return i
            continue
        value = load_f32(x + 4 * i)
        if kind == CATEGORICAL:
            if not (0 <= value < item.num_categories and value == math.floor(value)):
                return i
        elif math.isnan(value):
            if item.missing == MISSING_ERROR:
                return i
        elif math.isinf(value):
            return i
    return -1


@jit
def is_masked(plan: Plan, x: int) -> bool:
    """Return whether all of one step's inputs are the value that says: no step."""
    if input_at(plan.inputs).kind == TOKEN:
        return np.int64(load_u32(x)) == plan.mask_value
    # By bits: a comparison would take a subnormal number as 0. Both zeros are one value.
    i, mask = 0, plan.mask_value
    while i < plan.num_inputs:
        bits = np.int64(load_u32(x + 4 * i))
        if bits != mask and not (mask & _NOT_SIGN == 0 and bits & _NOT_SIGN == 0):
            return False
        i += 1
    return True


@jit
def write_features(plan: Plan, row: int, x: int, features: int) -> None:
    """Turn one stream's checked x into the first layer's input, and remember what must be."""
    for i in range(plan.num_inputs):
        item = input_at(plan.inputs + _INPUT_BYTES * i)
        target = features + 4 * item.feature
        if item.kind == NUMERIC:
            _write_numeric(item, row, x + 4 * i, target)
            continue
        index = load_u32(x + 4 * i) if item.kind == TOKEN else np.int64(load_f32(x + 4 * i))
        if item.embedding:
            num_bytes = 4 * item.embedding_size
            copy_bytes(target, item.embedding + index * num_bytes, num_bytes)
        else:
            fill_bytes(target, 4 * item.num_categories, 0)
            store_f32(target + 4 * index, _ONE)


@jit
def _write_numeric(item: Input, row: int, x: int, target: int) -> None:
    """Difference, centre, and the meaning of a missing value. See `InputSpec`."""
    memory_offset = item.memory
    value = load_f32(x)
    is_missing = math.isnan(value)
    before = _NAN
    if memory_offset >= 0:
        before = load_f32(row + memory_offset)
    if is_missing:
        value = item.fill
        if memory_offset >= 0 and not math.isnan(before):
            value = before
    feature = value
    if item.is_difference:
        feature = _ZERO if math.isnan(before) else value - before
    store_f32(target, feature - item.center)
    if item.missing == MISSING_MASK:
        store_f32(target + 4, _ONE if is_missing else _ZERO)
    if memory_offset >= 0 and not (is_missing and item.starts_known and math.isnan(before)):
        store_f32(row + memory_offset, value)
