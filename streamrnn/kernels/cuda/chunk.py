"""Many steps of one stream in one launch, with the weights in shared memory all the while.

One step of one stream reads every weight for a single product, and a launch takes longer than that
product. So here each block keeps the weights of a few units of every layer in its shared memory
(Diamos et al., "Persistent RNNs", ICML 2016), and the blocks go through the chunk together: they
meet once for each layer and step, when its new h must be seen by all.

Sums run in the order of every other kernel: bias, x, h, one fused multiply-add each. The h of two
steps lie in two rows of scratch, so that nobody overwrites what another block still reads.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import activate, gru_output, lstm_cell, lstm_output
from streamrnn.kernels.cuda.plan import GpuPlan
from streamrnn.kernels.cuda.rows import transform_input
from streamrnn.kernels.cuda.support import device_function, kernel
from streamrnn.kernels.tiles import DENSE, GRU, SHAPES

__all__ = ["ChunkSize", "chunk_size", "make_chunk_kernel"]

_index = np.uint64
# Every GPU gives a block 48 KiB without being asked for more, of which one may be the system's.
_MAX_SHARED_BYTES = 47 << 10
_UNITS_A_BLOCK = 4

ChunkSize = tuple[int, int, int, int]
"""Blocks, floats of the staged vectors and of the sums, bytes of shared memory."""


def chunk_size(plan: GpuPlan, max_blocks: int) -> ChunkSize | None:
    """Find how many blocks it takes to hold a model's weights in shared memory.

    Parameters
    ----------
    plan : GpuPlan
        Of the model.
    max_blocks : int
        That can run at once.

    Returns
    -------
    ChunkSize or None
        None if they do not fit.
    """
    layers = [*plan.layers] + ([plan.head] if plan.head else [])
    words = [plan.words[layer.words :][: p.LAYER_WORDS] for layer in layers]
    most_units = max(layer.num_units for layer in layers)
    num_blocks = min(max_blocks, -(-most_units // _UNITS_A_BLOCK))
    num_floats = int(plan.words[plan.layers[0].words + p.STATE])  # what inputs must remember
    vector_size = sums_size = 0
    for layer, row in zip(layers, words, strict=True):
        shape = SHAPES[layer.kind]
        num_own = -(-layer.num_units // num_blocks)
        num_x, num_h = int(row[p.NUM_X]), int(row[p.NUM_H])
        vector_size = max(vector_size, num_x + num_h)
        sums_size = max(sums_size, num_own * shape.num_accumulators)
        num_runs = shape.num_accumulators + len(shape.x_gates) * num_x + len(shape.h_gates) * num_h
        num_floats += num_own * num_runs
    num_bytes = 4 * (num_floats + vector_size + sums_size)
    return (
        (num_blocks, vector_size, sums_size, num_bytes) if num_bytes <= _MAX_SHARED_BYTES else None
    )


@device_function
def _num_accumulators(kind):
    return 1 if kind == DENSE else 4


@device_function
def _num_gates(kind):
    """Return the gates of a packed matrix, of x or of h."""
    if kind == DENSE:
        return 1
    return 3 if kind == GRU else 4


@device_function
def _x_gate(kind, accumulator):
    """Return which gate of x an accumulator adds, or -1."""
    return -1 if kind == GRU and accumulator == 3 else accumulator


@device_function
def _h_gate(kind, accumulator):
    """Return which gate of h an accumulator adds, or -1."""
    if kind == GRU and accumulator >= 2:
        return -1 if accumulator == 2 else 2
    return accumulator


@device_function
def _num_own(num_units):
    """Return how many units of a layer are this block's: the same number for all but the last."""
    each = (num_units + int64(cuda.gridDim.x) - 1) // int64(cuda.gridDim.x)
    return max(0, min(each, num_units - int64(cuda.blockIdx.x) * each))


@device_function
def _first_own(num_units):
    each = (num_units + int64(cuda.gridDim.x) - 1) // int64(cuda.gridDim.x)
    return int64(cuda.blockIdx.x) * each


@device_function
def _num_shared(plan, layer, num_own):
    """Return the floats that a block keeps of a layer."""
    kind = plan[layer + p.KIND]
    num_k = plan[layer + p.NUM_X] + plan[layer + p.NUM_H]
    return num_own * (_num_accumulators(kind) + _num_gates(kind) * num_k)


@device_function
def _load_runs(shared, place, weights, source, num_runs, num_units, first, num_own, tid, threads):
    """Copy the block's units out of runs of all units."""
    for i in range(tid, num_runs * num_own, threads):
        run, unit = i // num_own, i % num_own
        shared[_index(place + i)] = weights[_index(source + run * num_units + first + unit)]


@device_function
def _add_products(total, shared, vector, num_k, weight, step):
    """Add the products with one vector to a sum, in the order of k."""
    for k in range(num_k):
        w = shared[_index(weight + k * step)]
        total = cuda.fma(shared[_index(vector + k)], w, total)
    return total


@device_function
def _sum_up(shared, vector, sums, place, kind, num_x, num_h, num_own, tid, threads):
    """Compute the sums of the block's units from the staged x and h."""
    num_accumulators, num_gates = _num_accumulators(kind), _num_gates(kind)
    step = num_gates * num_own
    x_weights = place + num_accumulators * num_own
    h_weights = x_weights + num_x * step
    for i in range(tid, num_accumulators * num_own, threads):
        accumulator, unit = i // num_own, i % num_own
        total = shared[_index(place + i)]  # the bias
        gate = _x_gate(kind, accumulator)
        if gate >= 0:
            weight = x_weights + gate * num_own + unit
            total = _add_products(total, shared, vector, num_x, weight, step)
        gate = _h_gate(kind, accumulator)
        if gate >= 0:
            weight = h_weights + gate * num_own + unit
            total = _add_products(total, shared, vector + num_x, num_h, weight, step)
        shared[_index(sums + i)] = total


def make_chunk_kernel(threads: int) -> Any:
    """Return the kernel that advances one stream by many steps.

    Parameters
    ----------
    threads : int
        Of a block. Grid: the blocks of a `ChunkSize`, all running at once.

    Returns
    -------
    numba dispatcher
        Its arguments: ``plan``, ``weights``, ``slab``, ``work``, ``slots`` as in
        `make_layer_kernel`, of which the first slot counts; ``x`` float32[:] and ``tokens``
        int32[:], the same memory, and ``x_start``, where the inputs begin; ``y`` float32[:], for
        the outputs (a softmax is left to `make_softmax_kernel`); ``num_steps``; ``vector_size``
        and ``sums_size`` of the `ChunkSize`. Dynamic shared memory: its bytes.
    """

    @kernel(threads)
    def step_chunk(
        plan, weights, slab, work, slots, x, tokens, x_start, y, num_steps, vector_size, sums_size
    ):
        shared = cuda.shared.array(0, float32)
        grid = cuda.cg.this_grid()
        tid = int64(cuda.threadIdx.x)
        first_layer, num_layers = plan[p.LAYERS], plan[p.NUM_LAYERS]
        has_head, output_size = plan[p.HAS_HEAD], plan[p.OUTPUT_SIZE]
        num_inputs, work_size = plan[p.NUM_INPUTS], plan[p.WORK_SIZE]
        num_products = num_layers + has_head
        stream = int64(slots[0]) * plan[p.ROW_SIZE]
        # Shared memory: what inputs remember, x and h of a layer, its sums, weights of all layers.
        memory_size = plan[first_layer + p.STATE]
        vector = memory_size
        sums = vector + vector_size
        first_place = sums + sums_size

        for i in range(tid, memory_size, threads):
            shared[_index(i)] = slab[_index(stream + i)]
        place = first_place
        for i in range(num_products):
            layer = first_layer + i * p.LAYER_WORDS
            kind, num_units = plan[layer + p.KIND], plan[layer + p.NUM_UNITS]
            own, first = _num_own(num_units), _first_own(num_units)
            runs = _num_accumulators(kind)
            source = plan[layer + p.BIAS]
            _load_runs(shared, place, weights, source, runs, num_units, first, own, tid, threads)
            place += runs * own
            runs = _num_gates(kind) * plan[layer + p.NUM_X]
            source = plan[layer + p.X_WEIGHTS]
            _load_runs(shared, place, weights, source, runs, num_units, first, own, tid, threads)
            place += runs * own
            runs = _num_gates(kind) * plan[layer + p.NUM_H]
            source = plan[layer + p.H_WEIGHTS]
            _load_runs(shared, place, weights, source, runs, num_units, first, own, tid, threads)
            place += runs * own
            if i < num_layers:
                state = plan[layer + p.STATE] + first
                for u in range(tid, own, threads):
                    work[_index(state + u)] = slab[_index(stream + state + u)]
        grid.sync()

        for t in range(num_steps):
            old = (t & 1) * work_size
            new = work_size - old
            place = first_place
            for i in range(num_products):
                layer = first_layer + i * p.LAYER_WORDS
                kind, num_units = plan[layer + p.KIND], plan[layer + p.NUM_UNITS]
                num_x, num_h = plan[layer + p.NUM_X], plan[layer + p.NUM_H]
                state, out = plan[layer + p.STATE], plan[layer + p.OUT]
                own, first = _num_own(num_units), _first_own(num_units)

                # Every block transforms the inputs for itself, and remembers them for itself.
                if i > 0:
                    source = new + plan[layer - p.LAYER_WORDS + p.OUT]
                    for k in range(tid, num_x, threads):
                        shared[_index(vector + k)] = work[_index(source + k)]
                elif plan[p.HAS_TRANSFORMS]:
                    for k in range(tid, num_inputs, threads):
                        source = x_start + t * num_inputs + k
                        transform_input(
                            plan, weights, k, x, tokens, source, shared, 0, shared, vector
                        )
                else:
                    for k in range(tid, num_x, threads):
                        shared[_index(vector + k)] = x[_index(x_start + t * num_inputs + k)]
                for k in range(tid, num_h, threads):
                    shared[_index(vector + num_x + k)] = work[_index(old + state + k)]
                cuda.syncthreads()
                _sum_up(shared, vector, sums, place, kind, num_x, num_h, own, tid, threads)
                place += _num_shared(plan, layer, own)
                cuda.syncthreads()

                for u in range(tid, own, threads):
                    unit = first + u
                    sum_0 = shared[_index(sums + u)]
                    if i == num_layers:
                        if unit < output_size:
                            value = sum_0
                            if plan[p.HEAD_ACTIVATION] != SOFTMAX:
                                value = activate(plan[p.HEAD_ACTIVATION], sum_0)
                                value += weights[_index(plan[p.CENTERS] + unit)]
                                level = plan[plan[p.LEVELS] + unit]
                                if level >= 0:
                                    value += shared[_index(level)]
                            y[_index(t * output_size + unit)] = value
                        continue
                    if kind == DENSE:
                        new_h = activate(plan[layer + p.ACTIVATION], sum_0)
                    else:
                        sum_1 = shared[_index(sums + own + u)]
                        sum_2 = shared[_index(sums + 2 * own + u)]
                        sum_3 = shared[_index(sums + 3 * own + u)]
                        if kind == GRU:
                            h = (
                                shared[_index(vector + num_x + unit)]
                                if unit < num_h
                                else float32(0)
                            )
                            new_h = gru_output(sum_0, sum_1, sum_2, sum_3, h)
                        else:
                            c_place = _index(stream + state + num_units + unit)
                            new_c = lstm_cell(sum_0, sum_1, sum_2, slab[c_place])
                            slab[c_place] = new_c
                            new_h = lstm_output(sum_3, new_c)
                    work[_index(new + out + unit)] = new_h
                    if i + 1 == num_products and unit < output_size:
                        y[_index(t * output_size + unit)] = new_h
                if i < num_layers:
                    grid.sync()
                else:
                    cuda.syncthreads()  # the levels have been read: the next step may change them

        newest = (num_steps & 1) * work_size
        for i in range(num_layers):
            layer = first_layer + i * p.LAYER_WORDS
            num_units = plan[layer + p.NUM_UNITS]
            state = plan[layer + p.STATE] + _first_own(num_units)
            for u in range(tid, _num_own(num_units), threads):
                slab[_index(stream + state + u)] = work[_index(newest + state + u)]
        if cuda.blockIdx.x == 0:
            for i in range(tid, memory_size, threads):
                slab[_index(stream + i)] = shared[_index(i)]

    return step_chunk
