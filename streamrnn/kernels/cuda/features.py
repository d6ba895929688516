"""The inputs of a batch: what they become before the first product, and what is remembered."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, int64

from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.compiler import device_function, kernel
from streamrnn.kernels.row_layout import MISSING_MASK, NUMERIC, TOKEN

__all__ = ["features_rows", "make_features_kernel", "transform_input"]

_index = np.uint64
_ZERO, _ONE, _NAN = np.float32(0.0), np.float32(1.0), np.float32(math.nan)


@device_function
def transform_input(plan, weights, which, x, tokens, place, memory, stream, out, features):
    """Turn one input of a stream into its features, and remember what must be.

    ``x`` and ``tokens`` are the same memory, the input is at ``place``; ``stream`` is where the
    stream's row begins in ``memory``, ``features`` where its features begin in ``out``.
    """
    item = plan[p.INPUTS] + which * p.INPUT_SIZE
    target = features + plan[item + p.FEATURE]
    kind = plan[item + p.INPUT_KIND]
    if kind != NUMERIC:
        category = int64(tokens[_index(place)]) if kind == TOKEN else int64(x[_index(place)])
        table = plan[item + p.EMBEDDING]
        if table >= 0:
            size = plan[item + p.EMBEDDING_SIZE]
            for e in range(size):
                out[_index(target + e)] = weights[_index(table + category * size + e)]
        else:
            for c in range(plan[item + p.NUM_CATEGORIES]):
                out[_index(target + c)] = _ONE if c == category else _ZERO
        return

    value = x[_index(place)]
    is_missing = math.isnan(value)
    remembered = plan[item + p.MEMORY]
    before = _NAN
    if remembered >= 0:
        before = memory[_index(stream + remembered)]
    if is_missing:
        value = weights[_index(plan[p.VALUES] + 2 * which + 1)]
        if remembered >= 0 and not math.isnan(before):
            value = before
    feature = value
    if plan[item + p.IS_DIFFERENCE]:
        feature = _ZERO if math.isnan(before) else value - before
    out[_index(target)] = feature - weights[_index(plan[p.VALUES] + 2 * which)]
    if plan[item + p.MISSING] == MISSING_MASK:
        out[_index(target + 1)] = _ONE if is_missing else _ZERO
    if remembered >= 0:
        memory[_index(stream + remembered)] = value


def features_rows(num_inputs: int, num_threads: int) -> int:
    """Return how many rows a block of `make_features_kernel` takes."""
    return max(1, num_threads // num_inputs)


def make_features_kernel(num_threads: int) -> Any:
    """Return the kernel that turns x into the first layer's input and remembers what must be.

    A thread takes an input of a row. Grid: the rows over `features_rows`. Arguments: ``plan``,
    ``weights``, ``slab``, ``work`` and ``slots`` as in `make_layer_kernel`; ``x`` float32[:] and
    ``tokens`` int32[:], the batch's inputs, which are the same memory; ``x_start`` and
    ``x_stride``, where each row's begin; ``num_rows``.
    """

    @kernel(num_threads)
    def write_features(plan, weights, slab, work, slots, x, tokens, x_start, x_stride, num_rows):
        num_inputs = plan[p.NUM_INPUTS]
        block_rows = max(1, num_threads // num_inputs)
        first_row = int64(cuda.blockIdx.x) * block_rows
        for i in range(int64(cuda.threadIdx.x), block_rows * num_inputs, num_threads):
            row, which = first_row + i // num_inputs, i % num_inputs
            if row < num_rows:
                place = x_start + row * x_stride + which
                stream = int64(slots[_index(row)]) * plan[p.ROW_SIZE]
                features = row * plan[p.WORK_SIZE] + plan[p.FEATURES]
                transform_input(
                    plan, weights, which, x, tokens, place, slab, stream, work, features
                )

    return write_features
