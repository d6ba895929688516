"""Kernels that take whole rows: inputs, outputs' softmax, records into streams' rows and back.

Inputs: what they become before the first product, and what is remembered of them.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import exp
from streamrnn.kernels.cuda.compiler import device_function, kernel
from streamrnn.kernels.cuda.ptx import add
from streamrnn.kernels.row_layout import MISSING_MASK, NUMERIC, TOKEN

__all__ = ["features_rows", "make_features_kernel", "make_move_kernel", "make_softmax_kernel"]
__all__ += ["transform_input"]

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
                stream = (int64(slots[_index(row)]) >> 1) * plan[p.ROW_SIZE]
                features = row * plan[p.WORK_SIZE] + plan[p.FEATURES]
                transform_input(
                    plan, weights, which, x, tokens, place, slab, stream, work, features
                )

    return write_features


@device_function
def _softmax(y, first, size, shared, tid, num_threads):
    """Replace numbers x by exp(x - max x) over its sum; all threads of a block for one row.

    Each thread's part is summed in ascending order, then the threads' in ascending order: an order
    that depends on the model alone.
    """
    largest = y[_index(first + min(tid, size - 1))]
    for j in range(tid, size, num_threads):
        value = y[_index(first + j)]
        if not value <= largest:  # NaN too
            largest = value
    shared[_index(tid)] = largest
    cuda.syncthreads()
    for j in range(num_threads):
        value = shared[_index(j)]
        if not value <= largest:
            largest = value
    cuda.syncthreads()
    total = _ZERO
    for j in range(tid, size, num_threads):
        value = exp(y[_index(first + j)] - largest)
        y[_index(first + j)] = value
        total = add(total, value)
    shared[_index(tid)] = total
    cuda.syncthreads()
    total = _ZERO
    for j in range(num_threads):
        total += shared[_index(j)]
    for j in range(tid, size, num_threads):
        y[_index(first + j)] = y[_index(first + j)] / total


def make_softmax_kernel(num_threads: int) -> Any:
    """Return the kernel that replaces each output of a batch by its softmax.

    Grid: any number of blocks in x. Arguments: ``y`` float32[:]; ``size`` of an output; the
    batch's numbers of rows and of steps.
    """

    @kernel(num_threads)
    def softmax_rows(y, size, num_rows, num_steps):
        shared = cuda.shared.array(num_threads, float32)
        tid = int64(cuda.threadIdx.x)
        for row in range(int64(cuda.blockIdx.x), num_rows * num_steps, int64(cuda.gridDim.x)):
            _softmax(y, row * size, size, shared, tid, num_threads)
            cuda.syncthreads()

    return softmax_rows


def make_move_kernel(num_threads: int) -> Any:
    """Return the kernel that makes rows of the slab of records, or records of rows.

    Grid: at least as many blocks as rows. Arguments: ``plan``; ``slab``; ``slots`` int32[:], codes;
    ``records`` float32[:], of which each begins ``stride`` behind the one before: 0 puts the same
    record into all rows; ``inwards``, 1 to write the slab, 0 to read it.
    """

    @kernel(num_threads)
    def move_rows(plan, slab, slots, records, stride, inwards):
        row, tid = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
        if row >= len(slots):
            return
        code, record = int64(slots[_index(row)]), row * stride
        stream = (code >> 1) * plan[p.ROW_SIZE]
        for j in range(tid, plan[p.RECORD_SIZE], num_threads):
            if inwards:
                slab[_index(stream + j)] = records[_index(record + j)]
            else:
                records[_index(record + j)] = slab[_index(stream + j)]
        cuda.syncthreads()  # of an h that is in the other half, the wrong one has been written
        for i in range(plan[p.NUM_PRODUCTS]):
            layer = plan[p.PRODUCTS] + i * p.LAYER_SIZE
            state, other = plan[layer + p.STATE], plan[layer + p.OTHER]
            for j in range(tid, plan[layer + p.STATE_SIZE], num_threads):
                if inwards:
                    slab[_index(stream + state + other + j)] = records[_index(record + state + j)]
                elif code & 1:
                    records[_index(record + state + j)] = slab[_index(stream + state + other + j)]

    return move_rows
