"""Many steps of a few streams in one launch, with the weights kept in shared memory.

A step of few streams reads every weight for few products, and a launch takes longer than those
products. So here each block keeps the weights of a few units of every layer in its shared memory
(Diamos et al., "Persistent RNNs", ICML 2016), and the blocks take the steps together: they
meet once for each layer and step, when its new h must be seen by all.

A thread has one sum of one stream: eight streams take about as long as one.

Sums run in the order of every other kernel: bias, x, h, one fused multiply-add each. The h of two
steps lie in two rows of scratch, so that no block overwrites what another still reads.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import activate, step_unit
from streamrnn.kernels.cuda.compiler import device_function, kernel
from streamrnn.kernels.cuda.features import transform_input
from streamrnn.kernels.cuda.plan import GpuPlan
from streamrnn.kernels.gates import DENSE, GRU, SHAPES

__all__ = ["PersistentShape", "make_persistent_kernel", "persistent_shape"]

_index = np.uint64
_MAX_ROWS = 8  # at most the threads of a block, which are a power of two
_NO_LANE = 1 << 40  # beyond the end of every loop
_UNITS_A_BLOCK = 4
_COLUMNS_AT_ONCE = 4
_AHEAD = 8  # products whose factors are loaded before the first of them is added


@dataclass(frozen=True)
class PersistentShape:
    """How a model's many steps are launched."""

    num_blocks: int  # that share the units of every layer
    max_rows: int  # streams at once
    vector_size: int  # floats of a stream's x and h of a layer
    sums_size: int  # and of its sums
    shared_bytes: int  # of a block


def persistent_shape(
    plan: GpuPlan, max_blocks: int, max_shared_bytes: int
) -> PersistentShape | None:
    """Find how many blocks hold a model's weights in shared memory, and for how many streams.

    ``max_blocks`` run at once, one a multiprocessor. None: there is no room for one stream, or a
    cell is not PyTorch's.
    """
    if not plan.is_plain:
        return None
    layers = [*plan.layers] + ([plan.head] if plan.head else [])
    most_units = max(layer.size for layer in layers)
    num_blocks = min(max_blocks, -(-most_units // _UNITS_A_BLOCK))
    num_weights = vector_size = sums_size = 0
    for layer in layers:
        shape = SHAPES[layer.cell.kind]
        num_own = -(-layer.size // num_blocks)
        num_x, num_h = layer.num_x, layer.num_h
        vector_size = max(vector_size, num_x + num_h)
        sums_size = max(sums_size, num_own * shape.num_accumulators)
        num_weights += num_own * shape.num_accumulators * (1 + num_x + num_h)
    memory_size = plan.layers[0].state  # what inputs must remember
    row_bytes = 4 * (memory_size + vector_size + sums_size)
    max_rows = min(_MAX_ROWS, (max_shared_bytes - 4 * num_weights) // row_bytes)
    if max_rows < 1:
        return None
    shared_bytes = 4 * num_weights + max_rows * row_bytes
    return PersistentShape(num_blocks, max_rows, vector_size, sums_size, shared_bytes)


@device_function
def _num_accumulators(kind):
    return 1 if kind == DENSE else 4


class _Arrays(NamedTuple):
    """What every block reads and writes; ``shared`` is its own.

    Shared memory holds, of every row, what its inputs remember, x and h of a layer, and its sums;
    then the weights of all layers.
    """

    plan: Any
    weights: Any
    slab: Any
    work: Any
    shared: Any


class _Row(NamedTuple):
    """The row of a thread: its place in each array, and the thread's part of its elements."""

    number: Any
    lane: Any  # the first element of the thread, which takes every num_lanes-th
    num_lanes: Any
    stream: Any  # in the slab
    work: Any  # the first of its two rows of scratch
    memory: Any  # in shared memory: what its inputs remember,
    vector: Any  # x and h of a layer,
    sums: Any  # and its sums


class _Layer(NamedTuple):
    """One layer, and the units of it that are the block's."""

    fields: Any  # place in the plan
    kind: Any
    num_x: Any
    num_h: Any
    num_units: Any
    first: Any
    num_own: Any  # the same number for all blocks but the last


@device_function
def _layer_of_block(plan, i):
    """Return layer i of the plan; the head follows the last."""
    fields = plan[p.LAYERS] + i * p.LAYER_SIZE
    size, num_units = plan[fields + p.SIZE], plan[fields + p.NUM_UNITS]
    num_blocks = int64(cuda.gridDim.x)
    each = (size + num_blocks - 1) // num_blocks
    first = int64(cuda.blockIdx.x) * each
    num_own = max(0, min(each, size - first))
    kind, num_x, num_h = plan[fields + p.KIND], plan[fields + p.NUM_X], plan[fields + p.NUM_H]
    return _Layer(fields, kind, num_x, num_h, num_units, first, num_own)


@device_function
def _num_shared(layer):
    """Return the floats that a block keeps of a layer."""
    return layer.num_own * _num_accumulators(layer.kind) * (1 + layer.num_x + layer.num_h)


@device_function
def _row_of_thread(plan, slots, sizes, num_rows, threads):
    """Divide the block's threads among the rows."""
    vector_size, sums_size = sizes
    memory_size = plan[plan[p.LAYERS] + p.STATE]
    tid = int64(cuda.threadIdx.x)
    # Every row has some lanes of the block, a power of two: a division takes long here.
    num_lanes = int64(threads)
    while num_lanes * num_rows > threads:
        num_lanes >>= 1
    number, lane = tid // num_lanes, tid & (num_lanes - 1)
    stream = int64(0)
    if number < num_rows:
        stream = int64(slots[_index(number)]) * plan[p.ROW_SIZE]
    else:
        lane = int64(_NO_LANE)
    work = 2 * number * plan[p.WORK_SIZE]
    memory = number * memory_size
    vector = num_rows * memory_size + number * vector_size
    sums = num_rows * (memory_size + vector_size) + number * sums_size
    return _Row(number, lane, num_lanes, stream, work, memory, vector, sums)


@device_function
def _load_runs(arrays, layer, source, num_runs, place, threads):
    """Copy the block's columns out of runs of all columns; return the place behind them."""
    tid, width = int64(cuda.threadIdx.x), _num_accumulators(layer.kind)
    num_own, size = layer.num_own * width, layer.num_units * width
    source += layer.first * width
    for run in range(tid // _COLUMNS_AT_ONCE, num_runs, threads // _COLUMNS_AT_ONCE):
        for column in range(tid % _COLUMNS_AT_ONCE, num_own, _COLUMNS_AT_ONCE):
            weight = arrays.weights[_index(source + run * size + column)]
            arrays.shared[_index(place + run * num_own + column)] = weight
    return place + num_runs * num_own


@device_function
def _load_model(arrays, row, place, threads):
    """Copy the block's weights to shared memory, and the rows' h to scratch."""
    plan, num_layers = arrays.plan, arrays.plan[p.NUM_LAYERS]
    for i in range(num_layers + plan[p.HAS_HEAD]):
        layer = _layer_of_block(plan, i)
        bias, x_weights = plan[layer.fields + p.BIAS], plan[layer.fields + p.X_WEIGHTS]
        h_weights = plan[layer.fields + p.H_WEIGHTS]
        place = _load_runs(arrays, layer, bias, 1, place, threads)
        place = _load_runs(arrays, layer, x_weights, layer.num_x, place, threads)
        place = _load_runs(arrays, layer, h_weights, layer.num_h, place, threads)
        if i < num_layers:
            state = plan[layer.fields + p.STATE] + layer.first
            for u in range(row.lane, layer.num_own, row.num_lanes):
                h = arrays.slab[_index(row.stream + state + u)]
                arrays.work[_index(row.work + state + u)] = h


@device_function
def _stage_x(arrays, row, x, tokens, place, num_x):
    """Write the first layer's x of a row. Every block transforms the inputs for itself."""
    plan, shared = arrays.plan, arrays.shared
    if plan[p.HAS_TRANSFORMS]:
        weights, memory, vector = arrays.weights, row.memory, row.vector
        for k in range(row.lane, plan[p.NUM_INPUTS], row.num_lanes):
            transform_input(plan, weights, k, x, tokens, place + k, shared, memory, shared, vector)
    else:
        for k in range(row.lane, num_x, row.num_lanes):
            shared[_index(row.vector + k)] = x[_index(place + k)]


@device_function
def _stage_work(arrays, row, place, target, size):
    """Copy a layer's h of a row from scratch."""
    for k in range(row.lane, size, row.num_lanes):
        arrays.shared[_index(target + k)] = arrays.work[_index(place + k)]


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
def _sum_up(shared, row, layer, place):
    """Compute a row's sums of the block's units from its staged x and h."""
    kind, num_own = layer.kind, layer.num_own
    step = _num_accumulators(kind) * num_own
    x_weights = place + step
    h_weights = x_weights + layer.num_x * step
    h = row.vector + layer.num_x
    for i in range(row.lane, step, row.num_lanes):
        total = shared[_index(place + i)]  # the bias
        if kind != GRU or i & 3 != 3:
            weight = x_weights + i
            total = _add_products(total, shared, row.vector, layer.num_x, weight, step)
        if kind != GRU or i & 3 != 2:
            weight = h_weights + i
            total = _add_products(total, shared, h, layer.num_h, weight, step)
        shared[_index(row.sums + i)] = total


@device_function
def _write_head(arrays, row, layer, y, y_place):
    """Write the block's units of a row's output. A softmax is left to a launch of its own."""
    plan, shared = arrays.plan, arrays.shared
    for u in range(row.lane, layer.num_own, row.num_lanes):
        unit = layer.first + u
        value = shared[_index(row.sums + u)]
        if plan[p.HEAD_ACTIVATION] != SOFTMAX:
            value = activate(plan[p.HEAD_ACTIVATION], value)
            value += arrays.weights[_index(plan[p.CENTERS] + unit)]
            level = plan[plan[p.LEVELS] + unit]
            if level >= 0:
                value += shared[_index(row.memory + level)]
        y[_index(y_place + unit)] = value


@device_function
def _new_h(arrays, row, layer, u):
    """Return the new h of the block's unit u, and replace an LSTM's c."""
    plan, shared = arrays.plan, arrays.shared
    unit = layer.first + u
    if layer.kind == DENSE:
        return activate(plan[layer.fields + p.ACTIVATION], shared[_index(row.sums + u)])
    sum_0 = shared[_index(row.sums + 4 * u)]
    sum_1 = shared[_index(row.sums + 4 * u + 1)]
    sum_2 = shared[_index(row.sums + 4 * u + 2)]
    sum_3 = shared[_index(row.sums + 4 * u + 3)]
    h = shared[_index(row.vector + layer.num_x + unit)]
    c_place = row.stream + plan[layer.fields + p.STATE] + layer.num_units + unit
    return step_unit(layer.kind, (sum_0, sum_1, sum_2, sum_3), h, arrays.slab, c_place)


@device_function
def _write_h(arrays, row, layer, new, y, y_place, is_output):
    """Write the new h of the block's units to scratch, and to the outputs if there is no head."""
    out = arrays.plan[layer.fields + p.OUT] + layer.first
    for u in range(row.lane, layer.num_own, row.num_lanes):
        new_h = _new_h(arrays, row, layer, u)
        arrays.work[_index(new + out + u)] = new_h
        if is_output:
            y[_index(y_place + layer.first + u)] = new_h


@device_function
def _commit(arrays, row, newest, memory_size):
    """Copy the newest h, and what inputs remember, to the rows of the slab."""
    plan = arrays.plan
    for i in range(plan[p.NUM_LAYERS]):
        layer = _layer_of_block(plan, i)
        state = plan[layer.fields + p.STATE] + layer.first
        for u in range(row.lane, layer.num_own, row.num_lanes):
            arrays.slab[_index(row.stream + state + u)] = arrays.work[_index(newest + state + u)]
    if cuda.blockIdx.x == 0:
        for i in range(row.lane, memory_size, row.num_lanes):
            arrays.slab[_index(row.stream + i)] = arrays.shared[_index(row.memory + i)]


def make_persistent_kernel(threads: int) -> Any:
    """Return the kernel that advances a few streams by many steps.

    Grid: the blocks of a `PersistentShape`, all running at once; dynamic shared memory: its bytes.
    Arguments: ``plan``, ``weights``, ``slab``, ``slots`` as in `make_layer_kernel`; ``work``
    likewise, of two rows a stream; ``x`` float32[:] and ``tokens`` int32[:], the batch's inputs,
    which are the same memory; ``y`` float32[:], for the outputs (a softmax is left to
    `make_softmax_kernel`); sizes of the `PersistentShape`; the
    batch's numbers of rows and of steps; ``x_start`` and ``x_stride``, where each row's inputs lie.
    """

    @kernel(threads)
    def step_persistent(
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
        num_steps,
        x_start,
        x_stride,
    ):
        arrays = _Arrays(plan, weights, slab, work, cuda.shared.array(0, float32))
        row = _row_of_thread(plan, slots, (vector_size, sums_size), num_rows, threads)
        num_layers, work_size = plan[p.NUM_LAYERS], plan[p.WORK_SIZE]
        num_products = num_layers + plan[p.HAS_HEAD]
        memory_size = plan[plan[p.LAYERS] + p.STATE]
        first_place = num_rows * (memory_size + vector_size + sums_size)
        grid = cuda.cg.this_grid()

        for i in range(row.lane, memory_size, row.num_lanes):
            arrays.shared[_index(row.memory + i)] = slab[_index(row.stream + i)]
        _load_model(arrays, row, first_place, threads)
        grid.sync()

        for t in range(num_steps):
            old = row.work + (t & 1) * work_size
            new = row.work + work_size - (t & 1) * work_size
            x_place = x_start + row.number * x_stride + t * plan[p.NUM_INPUTS]
            y_place = (row.number * num_steps + t) * plan[p.OUTPUT_SIZE]
            place = first_place
            for i in range(num_products):
                layer = _layer_of_block(plan, i)
                if i == 0:
                    _stage_x(arrays, row, x, tokens, x_place, layer.num_x)
                else:
                    below = new + plan[layer.fields - p.LAYER_SIZE + p.OUT]
                    _stage_work(arrays, row, below, row.vector, layer.num_x)
                h = old + plan[layer.fields + p.STATE]
                _stage_work(arrays, row, h, row.vector + layer.num_x, layer.num_h)
                cuda.syncthreads()
                _sum_up(arrays.shared, row, layer, place)
                place += _num_shared(layer)
                cuda.syncthreads()
                if i < num_layers:
                    _write_h(arrays, row, layer, new, y, y_place, i + 1 == num_products)
                    grid.sync()
                else:
                    _write_head(arrays, row, layer, y, y_place)
                    cuda.syncthreads()  # the levels have been read: the next step may change them

        _commit(arrays, row, row.work + (num_steps & 1) * work_size, memory_size)

    return step_persistent
