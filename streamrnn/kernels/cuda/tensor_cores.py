"""One layer of a batch on tensor cores: `streamrnn.kernels.cuda.tiles` with inputs rounded.

Both factors of every product are rounded to TF32 (11 bits) or bfloat16 (8 bits); sums, states and
activations are float32 as ever. Each sum takes its k in the same order whatever the tile, the batch
and the number of steps, so within one precision bits depend on none of them.

All gates of a unit stand in the same thread: the columns of a warp's product are 8 units of one
gate, then the same units of the next. The loops look like those of `tiles`, and share only the cell
with them: sums in registers can only be named by constants, of which the two have different ones,
and a shared function for rows or weights made the wide tiles spill.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64

from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import activate, step_unit
from streamrnn.kernels.cuda.compiler import device_function, kernel
from streamrnn.kernels.cuda.plan import DEPTH, Cell
from streamrnn.kernels.cuda.ptx import (
    NUM_PACKED,
    mma_bfloat16,
    mma_tf32,
    word_bfloat16,
    word_tf32,
)
from streamrnn.kernels.gates import GRU, LSTM, SHAPES

__all__ = ["TensorShape", "make_tensor_kernel"]

_index = np.uint64
_ZERO = np.float32(0.0)
_PAD = 8  # words between the runs of shared x: the lanes of a warp read 32 banks
_WARP, _ROWS, _COLUMNS, _WORDS = 32, 16, 8, 8  # of one product


@dataclass(frozen=True)
class TensorShape:
    """How a block divides its work.

    Attributes
    ----------
    warps_x, warps_y : int
        Warps along the units and along the streams.
    num_products_y : int
        Products of a warp along the streams, 16 streams each.
    num_products_x : int
        Products of a warp along the sums, 8 units of one gate each; a multiple of the gates.
    """

    warps_x: int
    warps_y: int
    num_products_y: int
    num_products_x: int

    @property
    def num_threads(self) -> int:
        """Threads of a block."""
        return _WARP * self.warps_x * self.warps_y

    @property
    def block_rows(self) -> int:
        """Streams of a block."""
        return _ROWS * self.warps_y * self.num_products_y

    def block_units(self, kind: int) -> int:
        """Return the units of a block of a kind of tile."""
        groups = self.num_products_x // SHAPES[kind].num_accumulators
        return _COLUMNS * self.warps_x * groups


def _run_of_units(block_units: int, num_gates: int) -> int:
    """Return the words from one gate's units to the next's that spread a warp over the banks."""
    run = block_units
    while num_gates * run % 32 not in (8, 24):
        run += 1
    return run


@functools.cache
def _make_multiply(shape: TensorShape, kind: int, gates: tuple[int, ...], precision: str) -> Any:
    """Return the device function that adds the product with x, or with h, to the accumulators."""
    num_accumulators = SHAPES[kind].num_accumulators
    threads, num_gates = shape.num_threads, len(gates)
    warps_x, products_y = shape.warps_x, shape.num_products_y
    groups = shape.num_products_x // num_accumulators
    row_sums = 2 * shape.num_products_x
    block_units = shape.block_units(kind)
    x_run = shape.block_rows + _PAD
    unit_run = _run_of_units(block_units, num_gates)
    w_run = num_gates * unit_run
    x_loads = shape.block_rows * DEPTH // threads
    w_loads = num_gates * block_units * DEPTH // threads
    runs_together = threads // block_units  # of one gate's units that the block loads at once
    skipped = 1 if gates == (0, 1, 3) else 0  # accumulators, before the third gate
    packed = NUM_PACKED[precision]
    make_word = word_tf32 if precision == "tf32" else word_bfloat16
    mma = mma_tf32 if precision == "tf32" else mma_bfloat16
    num_a = 4 * products_y

    @device_function
    def multiply(sums, shared_x, shared_w, x, starts, num_k, weights, first_weight, places):
        num_units, first_unit, tid = places
        lane, warp = tid % _WARP, tid // _WARP
        g, t = lane // 4, lane % 4
        first_row = warp // warps_x * products_y * _ROWS + g
        own_unit = warp % warps_x * groups * _COLUMNS + g
        next_x = cuda.local.array(x_loads, int32)
        next_w = cuda.local.array(w_loads, float32)
        a = cuda.local.array(num_a, int32)
        my_k, my_row = tid % DEPTH, tid // DEPTH
        my_unit = first_unit + tid % block_units
        my_run = tid // block_units
        w_start = first_weight + my_run * num_units + my_unit
        w_place = my_run * unit_run + tid % block_units
        num_words = (num_k + packed - 1) // packed
        num_tiles = (num_words + DEPTH - 1) // DEPTH
        # As in `tiles`: one half of shared memory is multiplied while the other is filled.
        for tile in range(num_tiles + 1):
            if tile < num_tiles:
                k = (tile * DEPTH + my_k) * packed
                for i in range(x_loads):
                    first = x[_index(starts[i] + k)] if starts[i] >= 0 and k < num_k else _ZERO
                    second = _ZERO
                    if packed == 2 and starts[i] >= 0 and k + 1 < num_k:
                        second = x[_index(starts[i] + k + 1)]
                    next_x[i] = make_word(first, second)
                w_tile = w_start + tile * DEPTH * num_gates * num_units
                for i in range(w_loads):
                    weight = _index(w_tile + i * runs_together * num_units)
                    next_w[i] = weights[weight] if my_unit < num_units else _ZERO
            if tile > 0:
                half = (tile - 1) & 1
                for step in range(DEPTH // _WORDS):
                    k = half * DEPTH + step * _WORDS + t
                    for m in range(products_y):
                        place = k * x_run + first_row + m * _ROWS
                        a[4 * m] = shared_x[_index(place)]
                        a[4 * m + 1] = shared_x[_index(place + 8)]
                        a[4 * m + 2] = shared_x[_index(place + 4 * x_run)]
                        a[4 * m + 3] = shared_x[_index(place + 4 * x_run + 8)]
                    for group in range(groups):
                        for gate in range(num_gates):
                            place = k * w_run + gate * unit_run + own_unit + group * _COLUMNS
                            b = (shared_w[_index(place)], shared_w[_index(place + 4 * w_run)])
                            accumulator = gate + skipped * (gate // 2)
                            for m in range(products_y):
                                s = 2 * m * row_sums + 2 * (group * num_accumulators + accumulator)
                                old = (
                                    sums[s],
                                    sums[s + 1],
                                    sums[s + row_sums],
                                    sums[s + row_sums + 1],
                                )
                                left = (a[4 * m], a[4 * m + 1], a[4 * m + 2], a[4 * m + 3])
                                new = mma(old, left, b)
                                sums[s] = new[0]
                                sums[s + 1] = new[1]
                                sums[s + row_sums] = new[2]
                                sums[s + row_sums + 1] = new[3]
            if tile < num_tiles:
                half = tile & 1
                for i in range(x_loads):
                    row = my_row + i * (threads // DEPTH)
                    shared_x[_index((half * DEPTH + my_k) * x_run + row)] = next_x[i]
                for i in range(w_loads):
                    place = half * DEPTH * w_run + w_place + i * runs_together * unit_run
                    shared_w[_index(place)] = next_w[i].view(np.int32)
            cuda.syncthreads()

    return multiply


def make_tensor_kernel(cell: Cell, shape: TensorShape, precision: str) -> Any:
    """Return the kernel that steps one layer of all rows of a batch.

    Parameters
    ----------
    cell : Cell
        What it computes; a plain one.
    shape : TensorShape
        How its blocks divide the work. Grid: (rows, units) over the block's.
    precision : str
        ``"tf32"`` or ``"bfloat16"``.

    Returns
    -------
    numba dispatcher
        Its arguments: as of `streamrnn.kernels.cuda.tiles.make_layer_kernel`, with the weights of
        a `GpuPlan` in this precision.
    """
    kind, activation, tile = cell.kind, cell.activation, SHAPES[cell.kind]
    num_accumulators = tile.num_accumulators
    threads, warps_x = shape.num_threads, shape.warps_x
    products_y, groups = shape.num_products_y, shape.num_products_x // num_accumulators
    row_sums = 2 * shape.num_products_x
    num_rows_of_thread = 2 * products_y
    num_sums = num_rows_of_thread * row_sums
    block_rows, block_units = shape.block_rows, shape.block_units(kind)
    x_size = 2 * DEPTH * (block_rows + _PAD)
    w_run = len(tile.x_gates) * _run_of_units(block_units, len(tile.x_gates))
    w_size = max(2 * DEPTH * w_run, row_sums * threads)
    num_starts = block_rows * DEPTH // threads
    row_step = threads // DEPTH
    has_gates = kind in (GRU, LSTM)
    multiply_x = _make_multiply(shape, kind, tuple(tile.x_gates), precision)
    multiply_h = _make_multiply(shape, kind, tuple(tile.h_gates), precision)

    @kernel(threads)
    def step_layer(layer, weights, slab, work, x, slots, x_start, x_stride, num_rows):
        shared_x = cuda.shared.array(x_size, int32)
        shared_w = cuda.shared.array(w_size, int32)
        sums = cuda.local.array(num_sums, float32)
        starts = cuda.local.array(num_starts, int64)
        tid = int64(cuda.threadIdx.x)
        lane, warp = tid % _WARP, tid // _WARP
        first_unit = int64(cuda.blockIdx.y) * block_units
        own_unit = first_unit + warp % warps_x * groups * _COLUMNS + 2 * (lane % 4)
        first_row = int64(cuda.blockIdx.x) * block_rows
        own_row = first_row + warp // warps_x * products_y * _ROWS + lane // 4
        num_units = layer[p.NUM_UNITS]
        state = layer[p.STATE]
        row_size = layer[p.LAYER_ROW_SIZE]

        for group in range(groups):
            for a in range(num_accumulators):
                for e in range(2):
                    unit = own_unit + group * _COLUMNS + e
                    bias = _ZERO
                    if unit < num_units:
                        bias = weights[_index(layer[p.BIAS] + unit * num_accumulators + a)]
                    for r in range(num_rows_of_thread):
                        sums[r * row_sums + 2 * (group * num_accumulators + a) + e] = bias

        places = (num_units, first_unit, tid)
        for i in range(num_starts):
            row = first_row + tid // DEPTH + i * row_step
            starts[i] = x_start + row * x_stride if row < num_rows else -1
        num_x, first_weight = layer[p.NUM_X], layer[p.X_WEIGHTS]
        multiply_x(sums, shared_x, shared_w, x, starts, num_x, weights, first_weight, places)
        for i in range(num_starts):
            row = first_row + tid // DEPTH + i * row_step
            starts[i] = int64(slots[_index(row)]) * row_size + state if row < num_rows else -1
        num_h, first_weight = layer[p.NUM_H], layer[p.H_WEIGHTS]
        multiply_h(sums, shared_x, shared_w, slab, starts, num_h, weights, first_weight, places)

        # As in `tiles`: each row takes the first sums through shared memory, the rest move up.
        for r in range(num_rows_of_thread):
            for i in range(row_sums):
                shared_w[_index(i * threads + tid)] = sums[i].view(np.int32)
            for i in range(num_sums - row_sums):
                sums[i] = sums[i + row_sums]
            row = own_row + r * 8
            if row >= num_rows:
                continue
            old = int64(slots[_index(row)]) * row_size + state
            new = row * layer[p.LAYER_WORK_SIZE] + layer[p.OUT]
            for u in range(2 * groups):
                unit = own_unit + u // 2 * _COLUMNS + u % 2
                if unit >= num_units:
                    continue
                place = (u // 2 * num_accumulators * 2 + u % 2) * threads + tid
                sum_0 = shared_w[_index(place)].view(np.float32)
                if not has_gates:
                    work[_index(new + unit)] = activate(activation, sum_0)
                    continue
                sum_1 = shared_w[_index(place + 2 * threads)].view(np.float32)
                sum_2 = shared_w[_index(place + 4 * threads)].view(np.float32)
                sum_3 = shared_w[_index(place + 6 * threads)].view(np.float32)
                h, unit_sums = slab[_index(old + unit)], (sum_0, sum_1, sum_2, sum_3)
                new_h = step_unit(kind, unit_sums, h, slab, old + num_units + unit)
                work[_index(new + unit)] = new_h

    return step_layer
