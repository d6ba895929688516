"""What a wave needs beside the product: features before it, the outputs and the commit after it."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64
from numba.cuda import libdevice

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import activate, exp
from streamrnn.kernels.cuda.compiler import SIMULATED, device_function, kernel
from streamrnn.kernels.row_layout import MISSING_MASK, NUMERIC, TOKEN

__all__ = [
    "features_rows",
    "make_features_kernel",
    "make_finish_kernel",
    "make_move_kernel",
    "make_softmax_kernel",
    "make_start_kernel",
    "softmax",
    "transform_input",
]

_index = np.uint64
_ZERO, _ONE, _NAN = np.float32(0.0), np.float32(1.0), np.float32(math.nan)


@device_function
def transform_input(plan, weights, which, x, tokens, place, memory, stream, out, features):
    """Turn one input of a stream into its features, and remember what must be.

    Parameters
    ----------
    plan, weights
        Of a `GpuPlan`.
    which : int64
        Index of the input.
    x, tokens : array of float32, array of int32
        The same memory.
    place : int64
        Of the input in it.
    memory, stream : array of float32, int64
        Where the stream's row begins.
    out, features : array of float32, int64
        Where the stream's features begin.
    """
    item = plan[p.INPUTS] + which * p.INPUT_WORDS
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


@device_function
def _add(a, b):
    """Add what was rounded: a product before a plain sum may be made one operation with it.

    That would be the compiler's choice, in one kernel and perhaps not in another.
    """
    if SIMULATED:
        return a + b
    return libdevice.fadd_rn(a, b)


@device_function
def softmax(source, place, y, out, size, shared, tid, num_threads):
    """Write exp(x - max x) over its sum; all threads of a block for one row.

    Each thread's part is summed in ascending order, then the threads' in ascending order: an
    order that depends on the model alone.

    Parameters
    ----------
    source, place : array of float32, int64
        Where x begins. It may be y itself.
    y, out : array of float32, int64
        Where the result goes.
    size : int64
        Elements.
    shared : array of float32, shape (num_threads,)
        Of the block.
    tid, num_threads : int64
        The thread, and how many they are.
    """
    largest = source[_index(place + min(tid, size - 1))]
    for j in range(tid, size, num_threads):
        value = source[_index(place + j)]
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
        value = exp(source[_index(place + j)] - largest)
        y[_index(out + j)] = value
        total = _add(total, value)
    shared[_index(tid)] = total
    cuda.syncthreads()
    total = _ZERO
    for j in range(num_threads):
        total += shared[_index(j)]
    for j in range(tid, size, num_threads):
        y[_index(out + j)] = y[_index(out + j)] / total


def features_rows(num_inputs: int, num_threads: int) -> int:
    """Return how many rows a block of `make_features_kernel` takes.

    Parameters
    ----------
    num_inputs : int
        Of a row.
    num_threads : int
        Of a block.

    Returns
    -------
    int
    """
    return max(1, num_threads // num_inputs)


def make_features_kernel(num_threads: int) -> Any:
    """Return the kernel that turns x into the first layer's input and remembers what must be.

    Parameters
    ----------
    num_threads : int
        Of a block, each for an input of a row. Grid: (1, the rows over `features_rows`).

    Returns
    -------
    numba dispatcher
        Its arguments: ``plan``, ``weights``, ``slab``, ``work`` and ``slots`` as in
        `make_layer_kernel`; ``x`` float32[:] and ``tokens`` int32[:], the wave's inputs, which
        are the same memory; ``num_rows``, ``step`` and ``num_steps`` of the wave.
    """

    @kernel(num_threads)
    def write_features(plan, weights, slab, work, slots, x, tokens, num_rows, step, num_steps):
        num_inputs = plan[p.NUM_INPUTS]
        block_rows = max(1, num_threads // num_inputs)
        first_row = int64(cuda.blockIdx.y) * block_rows
        for i in range(int64(cuda.threadIdx.x), block_rows * num_inputs, num_threads):
            row, which = first_row + i // num_inputs, i % num_inputs
            if row < num_rows:
                place = num_rows + (row * num_steps + step) * num_inputs + which
                stream = int64(slots[_index(row)]) * plan[p.ROW_SIZE]
                features = row * plan[p.WORK_SIZE] + plan[p.FEATURES]
                transform_input(
                    plan, weights, which, x, tokens, place, slab, stream, work, features
                )

    return write_features


def make_finish_kernel(num_threads: int) -> Any:
    """Return the kernel that writes the outputs and puts the new h of every layer into the rows.

    Parameters
    ----------
    num_threads : int
        Of a block. Grid: (1, rows).

    Returns
    -------
    numba dispatcher
        Its arguments: ``plan``, ``weights``, ``slab``, ``work`` and ``slots`` as in
        `make_layer_kernel`; ``y`` float32[:], the wave's outputs; ``num_rows``, ``step`` and
        ``num_steps`` of the wave.
    """

    @kernel(num_threads)
    def finish(plan, weights, slab, work, slots, y, num_rows, step, num_steps):
        shared = cuda.shared.array(num_threads, float32)
        row, tid = int64(cuda.blockIdx.y), int64(cuda.threadIdx.x)
        stream = int64(slots[_index(row)]) * plan[p.ROW_SIZE]
        scratch = row * plan[p.WORK_SIZE]
        size = plan[p.OUTPUT_SIZE]
        out = (row * num_steps + step) * size
        for i in range(plan[p.NUM_LAYERS]):
            layer = plan[p.LAYERS] + i * p.LAYER_WORDS
            state = plan[layer + p.STATE]
            for j in range(tid, plan[layer + p.STATE_SIZE], num_threads):
                slab[_index(stream + state + j)] = work[_index(scratch + state + j)]
        if not plan[p.HAS_HEAD]:
            for j in range(tid, size, num_threads):
                y[_index(out + j)] = work[_index(scratch + plan[p.LAST_H] + j)]
            return

        head = scratch + plan[p.HEAD]
        if plan[p.HEAD_ACTIVATION] != SOFTMAX:
            for j in range(tid, size, num_threads):
                value = activate(plan[p.HEAD_ACTIVATION], work[_index(head + j)])
                value += weights[_index(plan[p.CENTERS] + j)]
                level = plan[plan[p.LEVELS] + j]
                if level >= 0:
                    value += slab[_index(stream + level)]
                y[_index(out + j)] = value
            return

        softmax(work, head, y, out, size, shared, tid, num_threads)

    return finish


def make_start_kernel(num_threads: int) -> Any:
    """Return the kernel that puts rows into a given state.

    Parameters
    ----------
    num_threads : int
        Of a block. One block for each row.

    Returns
    -------
    numba dispatcher
        Its arguments: ``slab``; ``slots`` int32[:]; ``row`` float32[row_size].
    """

    @kernel(num_threads)
    def start_rows(slab, slots, row):
        stream = int64(slots[_index(cuda.blockIdx.x)]) * len(row)
        for j in range(int64(cuda.threadIdx.x), len(row), num_threads):
            slab[_index(stream + j)] = row[_index(j)]

    return start_rows


def make_move_kernel(num_threads: int) -> Any:
    """Return the kernel that takes rows out of the slab, or puts them there.

    Parameters
    ----------
    num_threads : int
        Of a block. One block for each row.

    Returns
    -------
    numba dispatcher
        Its arguments: ``slab``; ``slots`` int32[:]; ``rows`` float32[len(slots) * row_size];
        ``row_size``; ``inwards``, 1 to write the slab, 0 to read it.
    """

    @kernel(num_threads)
    def move_rows(slab, slots, rows, row_size, inwards):
        row = int64(cuda.blockIdx.x)
        stream = int64(slots[_index(row)]) * row_size
        for j in range(int64(cuda.threadIdx.x), row_size, num_threads):
            if inwards:
                slab[_index(stream + j)] = rows[_index(row * row_size + j)]
            else:
                rows[_index(row * row_size + j)] = slab[_index(stream + j)]

    return move_rows


def make_softmax_kernel(num_threads: int) -> Any:
    """Return the kernel that replaces each output of a wave by its softmax.

    Parameters
    ----------
    num_threads : int
        Of a block. Grid: any number of blocks in x.

    Returns
    -------
    numba dispatcher
        Its arguments: ``y`` float32[:]; ``size`` of an output; ``num_rows``, ``step`` and
        ``num_steps`` of the wave.
    """

    @kernel(num_threads)
    def softmax_rows(y, size, num_rows, step, num_steps):
        shared = cuda.shared.array(num_threads, float32)
        tid = int64(cuda.threadIdx.x)
        for row in range(int64(cuda.blockIdx.x), num_rows * num_steps, int64(cuda.gridDim.x)):
            softmax(y, row * size, y, row * size, size, shared, tid, num_threads)
            cuda.syncthreads()

    return softmax_rows
