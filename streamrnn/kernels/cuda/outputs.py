"""What follows the products of a batch: outputs and the commit; and moving rows of the slab."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import activate, exp
from streamrnn.kernels.cuda.compiler import device_function, kernel
from streamrnn.kernels.cuda.ptx import add

__all__ = [
    "make_finish_kernel",
    "make_move_kernel",
    "make_softmax_kernel",
    "make_start_kernel",
]

_index = np.uint64
_ZERO = np.float32(0.0)


@device_function
def _softmax(source, place, y, out, size, shared, tid, num_threads):
    """Write exp(x - max x) over its sum; all threads of a block for one row.

    x lies in ``source`` at ``place``, the result goes to ``y`` at ``out``, which may be the same.
    Each thread's part is summed in ascending order, then the threads' in ascending order: an order
    that depends on the model alone.
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
        total = add(total, value)
    shared[_index(tid)] = total
    cuda.syncthreads()
    total = _ZERO
    for j in range(num_threads):
        total += shared[_index(j)]
    for j in range(tid, size, num_threads):
        y[_index(out + j)] = y[_index(out + j)] / total


@device_function
def _commit(plan, slab, work, stream, scratch, tid, num_threads):
    """Copy the new h of every layer from scratch to the row of the stream."""
    for i in range(plan[p.NUM_LAYERS]):
        layer = plan[p.LAYERS] + i * p.LAYER_SIZE
        state = plan[layer + p.STATE]
        for j in range(tid, plan[layer + p.STATE_SIZE], num_threads):
            slab[_index(stream + state + j)] = work[_index(scratch + state + j)]


def make_finish_kernel(num_threads: int) -> Any:
    """Return the kernel that writes the outputs and puts the new h of every layer into the rows.

    Grid: rows. Arguments: ``plan``, ``weights``, ``slab``, ``work`` and ``slots`` as in
    `make_layer_kernel`; ``y`` float32[:], the batch's outputs; the numbers of the batch.
    """

    @kernel(num_threads)
    def finish(plan, weights, slab, work, slots, y, num_rows, step, num_steps):
        shared = cuda.shared.array(num_threads, float32)
        row, tid = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
        stream = int64(slots[_index(row)]) * plan[p.ROW_SIZE]
        scratch = row * plan[p.WORK_SIZE]
        size = plan[p.OUTPUT_SIZE]
        out = (row * num_steps + step) * size
        _commit(plan, slab, work, stream, scratch, tid, num_threads)
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

        _softmax(work, head, y, out, size, shared, tid, num_threads)

    return finish


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
            _softmax(y, row * size, y, row * size, size, shared, tid, num_threads)
            cuda.syncthreads()

    return softmax_rows


def make_start_kernel(num_threads: int) -> Any:
    """Return the kernel that puts rows into a given state.

    Grid: at least as many blocks as rows. Arguments: ``slab``; ``slots`` int32[:]; ``row``
    float32[row_size].
    """

    @kernel(num_threads)
    def start_rows(slab, slots, row):
        if cuda.blockIdx.x >= len(slots):
            return
        stream = int64(slots[_index(cuda.blockIdx.x)]) * len(row)
        for j in range(int64(cuda.threadIdx.x), len(row), num_threads):
            slab[_index(stream + j)] = row[_index(j)]

    return start_rows


def make_move_kernel(num_threads: int) -> Any:
    """Return the kernel that takes rows out of the slab, or puts them there.

    Grid: at least as many blocks as rows. Arguments: ``slab``; ``slots`` int32[:]; ``rows``
    float32[len(slots) * row_size]; ``row_size``; ``inwards``, 1 to write the slab, 0 to read it.
    """

    @kernel(num_threads)
    def move_rows(slab, slots, rows, row_size, inwards):
        row = int64(cuda.blockIdx.x)
        if row >= len(slots):
            return
        stream = int64(slots[_index(row)]) * row_size
        for j in range(int64(cuda.threadIdx.x), row_size, num_threads):
            if inwards:
                slab[_index(stream + j)] = rows[_index(row * row_size + j)]
            else:
                rows[_index(row * row_size + j)] = slab[_index(stream + j)]

    return move_rows
