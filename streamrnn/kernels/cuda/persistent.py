"""Many steps of a few streams in one launch, with the weights in shared memory all the while.

A step of few streams reads every weight for few products, and a launch takes longer than those
products. So here each block keeps the weights of a few units of every layer in its shared memory
(Diamos et al., "Persistent RNNs", ICML 2016), and the blocks go through the chunk together: they
meet once for each layer and step, when its new h must be seen by all.

A thread has one sum of one stream: eight streams take about as long as one.

Sums run in the order of every other kernel: bias, x, h, one fused multiply-add each. The h of two
steps lie in two rows of scratch, so that nobody overwrites what another block still reads.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import activate, gru_output, lstm_cell, lstm_output
from streamrnn.kernels.cuda.compiler import device_function, kernel
from streamrnn.kernels.cuda.features import transform_input
from streamrnn.kernels.cuda.plan import GpuPlan
from streamrnn.kernels.gates import DENSE, GRU, SHAPES

__all__ = ["ChunkSize", "chunk_size", "make_chunk_kernel"]

_index = np.uint64
_MAX_ROWS = 8  # at most the threads of a block, which are a power of two
_NO_LANE = 1 << 40  # beyond the end of every loop
_UNITS_A_BLOCK = 4
_AHEAD = 8  # products whose factors are loaded before the first of them is added


@dataclass(frozen=True)
class ChunkSize:
    """How a model's chunks are launched.

    Attributes
    ----------
    num_blocks : int
        That share the units of every layer.
    max_rows : int
        Streams at once.
    vector_size, sums_size : int
        Floats of a stream's x and h of a layer, and of its sums.
    shared_bytes : int
        Of a block.
    """

    num_blocks: int
    max_rows: int
    vector_size: int
    sums_size: int
    shared_bytes: int


def chunk_size(plan: GpuPlan, max_blocks: int, max_shared_bytes: int) -> ChunkSize | None:
    """Find how many blocks it takes to hold a model's weights in shared memory.

    Parameters
    ----------
    plan : GpuPlan
        Of the model.
    max_blocks : int
        That can run at once, one a multiprocessor.
    max_shared_bytes : int
        That a block may have.

    Returns
    -------
    ChunkSize or None
        For as many streams as have room beside the weights; None if there is none for one.
    """
    layers = [*plan.layers] + ([plan.head] if plan.head else [])
    words = [plan.words[layer.words :][: p.LAYER_WORDS] for layer in layers]
    most_units = max(layer.num_units for layer in layers)
    num_blocks = min(max_blocks, -(-most_units // _UNITS_A_BLOCK))
    num_weights = vector_size = sums_size = 0
    for layer, row in zip(layers, words, strict=True):
        shape = SHAPES[layer.kind]
        num_own = -(-layer.num_units // num_blocks)
        num_x, num_h = int(row[p.NUM_X]), int(row[p.NUM_H])
        vector_size = max(vector_size, num_x + num_h)
        sums_size = max(sums_size, num_own * shape.num_accumulators)
        num_runs = shape.num_accumulators + len(shape.x_gates) * num_x + len(shape.h_gates) * num_h
        num_weights += num_own * num_runs
    memory_size = int(plan.words[plan.layers[0].words + p.STATE])  # what inputs must remember
    row_bytes = 4 * (memory_size + vector_size + sums_size)
    max_rows = min(_MAX_ROWS, (max_shared_bytes - 4 * num_weights) // row_bytes)
    if max_rows < 1:
        return None
    shared_bytes = 4 * num_weights + max_rows * row_bytes
    return ChunkSize(num_blocks, max_rows, vector_size, sums_size, shared_bytes)


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
    for run in range(tid // _UNITS_A_BLOCK, num_runs, threads // _UNITS_A_BLOCK):
        for unit in range(tid % _UNITS_A_BLOCK, num_own, _UNITS_A_BLOCK):
            weight = weights[_index(source + run * num_units + first + unit)]
            shared[_index(place + run * num_own + unit)] = weight


@device_function
def _add_products(total, shared, vector, num_k, weight, step):
    """Add the products with one vector to a sum, in the order of k."""
    values = cuda.local.array(_AHEAD, float32)
    factors = cuda.local.array(_AHEAD, float32)
    num_together = num_k // _AHEAD * _AHEAD
    for k in range(0, num_together, _AHEAD):
        for j in range(_AHEAD):
            values[j] = shared[_index(vector + k + j)]
            factors[j] = shared[_index(weight + (k + j) * step)]
        for j in range(_AHEAD):
            total = cuda.fma(values[j], factors[j], total)
    for k in range(num_together, num_k):
        w = shared[_index(weight + k * step)]
        total = cuda.fma(shared[_index(vector + k)], w, total)
    return total


@device_function
def _sum_up(shared, vector, sums, place, sizes, num_own, lane, num_lanes):
    """Compute a row's sums of the block's units from its staged x and h."""
    kind, num_x, num_h = sizes
    num_accumulators, num_gates = _num_accumulators(kind), _num_gates(kind)
    step = num_gates * num_own
    x_weights = place + num_accumulators * num_own
    h_weights = x_weights + num_x * step
    for i in range(lane, num_accumulators * num_own, num_lanes):
        accumulator, unit = (i & 3, i >> 2) if num_accumulators == 4 else (0, i)
        total = shared[_index(place + accumulator * num_own + unit)]  # the bias
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
    """Return the kernel that advances a few streams by many steps.

    Parameters
    ----------
    threads : int
        Of a block. Grid: the blocks of a `ChunkSize`, all running at once.

    Returns
    -------
    numba dispatcher
        Its arguments: ``plan``, ``weights``, ``slab``, ``slots`` as in `make_layer_kernel`;
        ``work`` likewise, of two rows a stream; ``x`` float32[:] and ``tokens`` int32[:], the
        wave's inputs, which are the same memory; ``y`` float32[:], for the outputs (a softmax is
        left to `make_softmax_kernel`); ``vector_size`` and ``sums_size`` of the `ChunkSize`;
        ``num_rows``, ``step`` and ``num_steps`` of the wave. Dynamic shared memory: its bytes.
    """

    @kernel(threads)
    def step_chunk(
        plan,
        weights,
        slab,
        work,
        slots,
        x,
        tokens,
        y,
        vector_size,
        sums_size,
        num_rows,
        step,
        num_steps,
    ):
        shared = cuda.shared.array(0, float32)
        grid = cuda.cg.this_grid()
        tid = int64(cuda.threadIdx.x)
        first_layer, num_layers = plan[p.LAYERS], plan[p.NUM_LAYERS]
        has_head, output_size = plan[p.HAS_HEAD], plan[p.OUTPUT_SIZE]
        num_inputs, work_size = plan[p.NUM_INPUTS], plan[p.WORK_SIZE]
        num_products = num_layers + has_head
        # Every row has some lanes of the block, a power of two: a division takes long here.
        num_lanes = int64(threads)
        while num_lanes * num_rows > threads:
            num_lanes >>= 1
        row, lane = tid // num_lanes, tid & (num_lanes - 1)
        stream = int64(0)
        if row < num_rows:
            stream = int64(slots[_index(row)]) * plan[p.ROW_SIZE]
        else:
            lane = int64(_NO_LANE)
        # Shared memory: of every row, what its inputs remember, x and h of a layer, its sums; then
        # the weights of all layers.
        memory_size = plan[first_layer + p.STATE]
        memory = row * memory_size
        vector = num_rows * memory_size + row * vector_size
        sums = num_rows * (memory_size + vector_size) + row * sums_size
        first_place = num_rows * (memory_size + vector_size + sums_size)
        work_rows = 2 * row * work_size

        for i in range(lane, memory_size, num_lanes):
            shared[_index(memory + i)] = slab[_index(stream + i)]
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
                for u in range(lane, own, num_lanes):
                    work[_index(work_rows + state + u)] = slab[_index(stream + state + u)]
        grid.sync()

        for t in range(num_steps):
            old = work_rows + (t & 1) * work_size
            new = work_rows + work_size - (t & 1) * work_size
            x_place = num_rows + (row * num_steps + t) * num_inputs
            y_place = (row * num_steps + t) * output_size
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
                    for k in range(lane, num_x, num_lanes):
                        shared[_index(vector + k)] = work[_index(source + k)]
                elif plan[p.HAS_TRANSFORMS]:
                    for k in range(lane, num_inputs, num_lanes):
                        source = x_place + k
                        transform_input(
                            plan, weights, k, x, tokens, source, shared, memory, shared, vector
                        )
                else:
                    for k in range(lane, num_x, num_lanes):
                        shared[_index(vector + k)] = x[_index(x_place + k)]
                for k in range(lane, num_h, num_lanes):
                    shared[_index(vector + num_x + k)] = work[_index(old + state + k)]
                cuda.syncthreads()
                sizes = (kind, num_x, num_h)
                _sum_up(shared, vector, sums, place, sizes, own, lane, num_lanes)
                place += _num_shared(plan, layer, own)
                cuda.syncthreads()

                for u in range(lane, own, num_lanes):
                    unit = first + u
                    if i == num_layers:
                        if unit < output_size:
                            value = shared[_index(sums + u)]
                            if plan[p.HEAD_ACTIVATION] != SOFTMAX:
                                value = activate(plan[p.HEAD_ACTIVATION], value)
                                value += weights[_index(plan[p.CENTERS] + unit)]
                                level = plan[plan[p.LEVELS] + unit]
                                if level >= 0:
                                    value += shared[_index(memory + level)]
                            y[_index(y_place + unit)] = value
                        continue
                    if kind == DENSE:
                        sum_0 = shared[_index(sums + u)]
                        new_h = activate(plan[layer + p.ACTIVATION], sum_0)
                    else:
                        sum_0 = shared[_index(sums + 4 * u)]
                        sum_1 = shared[_index(sums + 4 * u + 1)]
                        sum_2 = shared[_index(sums + 4 * u + 2)]
                        sum_3 = shared[_index(sums + 4 * u + 3)]
                        if kind == GRU:
                            h = float32(0)
                            if unit < num_h:
                                h = shared[_index(vector + num_x + unit)]
                            new_h = gru_output(sum_0, sum_1, sum_2, sum_3, h)
                        else:
                            c_place = _index(stream + state + num_units + unit)
                            new_c = lstm_cell(sum_0, sum_1, sum_2, slab[c_place])
                            slab[c_place] = new_c
                            new_h = lstm_output(sum_3, new_c)
                    work[_index(new + out + unit)] = new_h
                    if i + 1 == num_products and unit < output_size:
                        y[_index(y_place + unit)] = new_h
                if i < num_layers:
                    grid.sync()
                else:
                    cuda.syncthreads()  # the levels have been read: the next step may change them

        newest = work_rows + (num_steps & 1) * work_size
        for i in range(num_layers):
            layer = first_layer + i * p.LAYER_WORDS
            num_units = plan[layer + p.NUM_UNITS]
            state = plan[layer + p.STATE] + _first_own(num_units)
            for u in range(lane, _num_own(num_units), num_lanes):
                slab[_index(stream + state + u)] = work[_index(newest + state + u)]
        if cuda.blockIdx.x == 0:
            for i in range(lane, memory_size, num_lanes):
                slab[_index(stream + i)] = shared[_index(memory + i)]

    return step_chunk
