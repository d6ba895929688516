"""Kernels that take whole rows: inputs, layer normalisation, softmax, records into rows and back.

Inputs: what they become before the first product, and what is remembered of them.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import (
    exp,
    make_blend,
    make_gate,
    place_of_row,
    put_of,
    tanh,
)
from streamrnn.kernels.cuda.compiler import device_function, kernel
from streamrnn.kernels.cuda.products import Cell
from streamrnn.kernels.cuda.ptx import add, multiply
from streamrnn.kernels.gates import LSTM
from streamrnn.kernels.row_layout import MISSING_MASK, NUMERIC, TOKEN

__all__ = ["features_rows", "make_features_kernel", "make_move_kernel", "make_norm_kernel"]
__all__ += ["make_softmax_kernel", "transform_input"]

_index = np.uint64
_LANES, _MAX_LANES = 16, 64  # of a sum over a row, and of all sums at once
_NUM_SHARED = 2 * _MAX_LANES
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
    is_none = is_missing and plan[item + p.STARTS_KNOWN] and math.isnan(before)
    if remembered >= 0 and not is_none:
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


@device_function
def _lane_sum(values, first, num_blocks, size, block, lane, factor, is_square):
    """Return a lane's part of a sum over blocks: of v times a factor, or of (v + factor)^2."""
    total = _ZERO
    for g in range(num_blocks):
        for u in range(lane, block, _LANES):
            value = values[_index(first + g * block + u)]
            if is_square:
                deviation = cuda.fma(_ONE if u < size else _ZERO, factor, value)
                total = cuda.fma(deviation, deviation, total)
            else:
                total = cuda.fma(value, factor, total)
    return total


@device_function
def _add_far(shared, first, i):
    return add(shared[_index(first + i)], shared[_index(first + i + _LANES // 2)])


@device_function
def _total(shared, first):
    """Add up 16 lanes as the CPU does: i and i + 8, then i and i + 4, and so on."""
    s0 = add(_add_far(shared, first, 0), _add_far(shared, first, 4))
    s1 = add(_add_far(shared, first, 1), _add_far(shared, first, 5))
    s2 = add(_add_far(shared, first, 2), _add_far(shared, first, 6))
    s3 = add(_add_far(shared, first, 3), _add_far(shared, first, 7))
    return add(add(s0, s2), add(s1, s3))


@device_function
def _statistics(shared, group, num_values, epsilon):
    """Return minus the mean, and 1 over the deviation, of what a group of lanes has summed up."""
    share = _ONE / np.float32(num_values)
    variance = multiply(_total(shared, _MAX_LANES + group * _LANES), share)
    return -_total(shared, group * _LANES), _ONE / np.float32(math.sqrt(add(variance, epsilon)))


@device_function
def _normal(value, statistics, gain, addend):
    minus_mean, scale = statistics
    return cuda.fma(multiply(add(value, minus_mean), scale), gain, addend)


def make_norm_kernel(cell: Cell, num_threads: int) -> Any:
    """Return the kernel that goes from a layer's sums with x and with h to its new h.

    It normalises each over a row, adds both up, and ends in the cell. Sums over a row go by 16
    lanes as the CPU's do, a thread each. Grid: rows. Arguments: those of `make_layer_kernel`.
    """
    is_lstm = cell.kind == LSTM
    # All gates of an LSTM are normalised together; of a GRU r and z, and n by itself.
    num_gates, num_groups, together = (4, 2, 4) if is_lstm else (3, 4, 2)
    gate, blend, put = make_gate(cell.is_hard), make_blend(cell.is_hard), put_of(cell)

    @device_function
    def sum_lanes(shared, work, sums, size, block, is_square):
        """Leave each lane's part of a group's sum in shared memory, that of squares behind."""
        for i in range(int64(cuda.threadIdx.x), num_groups * _LANES, num_threads):
            group, lane = i // _LANES, i % _LANES
            first = sums + group % 2 * num_gates * block
            num_blocks = together
            if group > 1:
                first += together * block
                num_blocks = 1
            factor = _ONE / np.float32(num_blocks * size)
            if is_square:
                factor = -_total(shared, i - lane)
            total = _lane_sum(work, first, num_blocks, size, block, lane, factor, is_square)
            shared[_index(i + is_square * _MAX_LANES)] = total
        cuda.syncthreads()

    @device_function
    def of_both(weights, work, sums, norms, block, at, of_x, of_h):
        """Return a gate's sum; ``at`` is its place in blocks of all gates."""
        of_gates = num_gates * block
        addend = weights[_index(norms + 2 * of_gates + at)]
        addend = _normal(work[_index(sums + at)], of_x, weights[_index(norms + at)], addend)
        gain = weights[_index(norms + of_gates + at)]
        return _normal(work[_index(sums + of_gates + at)], of_h, gain, addend)

    @device_function
    def finish_lstm(arrays, place, shared, sums, size, block, epsilon):
        layer, weights, slab, work, _ = arrays
        stream, _, _, _, _ = place
        tid, norms = int64(cuda.threadIdx.x), layer[_index(p.NORMS)]
        cell_state = stream + layer[_index(p.CELL)]
        of_x = _statistics(shared, 0, num_gates * size, epsilon)
        of_h = _statistics(shared, 1, num_gates * size, epsilon)
        for u in range(tid, size, num_threads):
            s0 = of_both(weights, work, sums, norms, block, u, of_x, of_h)
            s1 = of_both(weights, work, sums, norms, block, block + u, of_x, of_h)
            s2 = of_both(weights, work, sums, norms, block, 2 * block + u, of_x, of_h)
            s3 = of_both(weights, work, sums, norms, block, 3 * block + u, of_x, of_h)
            c = slab[_index(cell_state + u)]
            # The CPU's cell has peepholes, which are 0 here.
            enter, keep = gate(cuda.fma(_ZERO, c, s0)), gate(cuda.fma(_ZERO, c, s1))
            new_c = cuda.fma(keep, c, enter * tanh(s2))
            slab[_index(cell_state + u)] = new_c
            work[_index(sums + 3 * block + u)] = cuda.fma(_ZERO, new_c, s3)
        cuda.syncthreads()
        share = _ONE / np.float32(size)
        for i in range(tid, _LANES, num_threads):
            shared[_index(i)] = _lane_sum(slab, cell_state, 1, size, block, i, share, 0)
        cuda.syncthreads()
        minus_mean = -_total(shared, 0)
        for i in range(tid, _LANES, num_threads):
            total = _lane_sum(slab, cell_state, 1, size, block, i, minus_mean, 1)
            shared[_index(_MAX_LANES + i)] = total
        cuda.syncthreads()
        of_c = _statistics(shared, 0, size, epsilon)
        gains = norms + (3 * num_gates + 1) * block
        for u in range(tid, size, num_threads):
            gain, shift = weights[_index(gains + u)], weights[_index(gains + block + u)]
            shown = _normal(slab[_index(cell_state + u)], of_c, gain, shift)
            put(arrays, place, u, gate(work[_index(sums + 3 * block + u)]) * tanh(shown))

    @device_function
    def finish_gru(arrays, place, shared, sums, size, block, epsilon):
        layer, weights, slab, work, _ = arrays
        _, old, _, _, _ = place
        norms, of_gates = layer[_index(p.NORMS)], num_gates * block
        of_x = _statistics(shared, 0, 2 * size, epsilon)
        of_h = _statistics(shared, 1, 2 * size, epsilon)
        x_n, h_n = _statistics(shared, 2, size, epsilon), _statistics(shared, 3, size, epsilon)
        for u in range(int64(cuda.threadIdx.x), size, num_threads):
            reset = of_both(weights, work, sums, norms, block, u, of_x, of_h)
            update = of_both(weights, work, sums, norms, block, block + u, of_x, of_h)
            n = 2 * block + u
            gain, shift = weights[_index(norms + n)], weights[_index(norms + 2 * of_gates + n)]
            from_x = _normal(work[_index(sums + n)], x_n, gain, shift)
            gain = weights[_index(norms + of_gates + n)]
            shift = weights[_index(norms + 3 * of_gates + u)]
            from_h = _normal(work[_index(sums + of_gates + n)], h_n, gain, shift)
            candidate = cuda.fma(gate(reset), from_h, from_x)
            put(arrays, place, u, blend(update, candidate, slab[_index(old + u)]))

    finish = finish_lstm if is_lstm else finish_gru

    @kernel(num_threads)
    def normalise(
        layer,
        weights,
        slab,
        work,
        x,
        slots,
        y,
        x_start,
        x_stride,
        y_start,
        y_stride,
        step,
        num_rows,
    ):
        shared = cuda.shared.array(_NUM_SHARED, float32)
        place = place_of_row(layer, slots, int64(cuda.blockIdx.x), step, y_start, y_stride)
        _, _, _, scratch, _ = place
        size, block = layer[_index(p.SIZE)], layer[_index(p.NUM_UNITS)]
        sums = scratch + layer[_index(p.SCRATCH)]
        epsilon = weights[_index(layer[_index(p.NORMS)] + (3 * num_gates + 3) * block)]
        sum_lanes(shared, work, sums, size, block, 0)
        sum_lanes(shared, work, sums, size, block, 1)
        finish((layer, weights, slab, work, y), place, shared, sums, size, block, epsilon)

    return normalise


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
