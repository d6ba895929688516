"""One layer of a batch: a product tiled through shared memory, its gates fused with the cell.

A block computes some units of some streams. All gates of a unit stand in the same thread, so the
cell's element-wise part reads its sums from registers. Every output has one accumulator: it
starts at the bias, takes the products with x in the order of k, then those with h, each by one
fused multiply-add. That is the order of every tile, and of the CPU's: the bits of an output depend
neither on the tile nor on the batch.

The new c replaces the old one in the stream's row, since nobody else reads it. The new h goes to
scratch, since other blocks still read the old one; `streamrnn.kernels.cuda.outputs` commits it.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import activate, step_unit
from streamrnn.kernels.cuda.compiler import SIMULATED, device_function, kernel
from streamrnn.kernels.cuda.plan import DEPTH
from streamrnn.kernels.gates import GRU, LSTM, SHAPES

__all__ = ["TileShape", "make_layer_kernel"]

# An index of this type is taken as it is; a signed one would be tested for being below 0, and the
# loads of neighbours would not be seen to be neighbours.
_index = np.uint64
_ALIGNMENT_BYTES = 16  # four floats in one load
_PAD = 4  # floats between the runs of shared x: keeps their alignment, spreads them over the banks
_ZERO = np.float32(0.0)


@dataclass(frozen=True)
class TileShape:
    """How a block divides its work.

    Attributes
    ----------
    threads_x, threads_y : int
        Threads along the units and along the streams. Their product is a multiple of `DEPTH` and
        of a block's units.
    num_rows : int
        Streams of a thread.
    num_sums : int
        Accumulators of a thread and stream: all those of ``num_sums // num_accumulators`` units.
    min_blocks : int
        Blocks that a multiprocessor shall hold at once, where the gates leave room for it.
    """

    threads_x: int
    threads_y: int
    num_rows: int
    num_sums: int
    min_blocks: int = 1

    @property
    def num_threads(self) -> int:
        """Threads of a block."""
        return self.threads_x * self.threads_y

    @property
    def block_rows(self) -> int:
        """Streams of a block."""
        return self.threads_y * self.num_rows

    def block_units(self, kind: int) -> int:
        """Return the units of a block of a kind of tile."""
        return self.threads_x * (self.num_sums // SHAPES[kind].num_accumulators)


def _make_multiply(shape: TileShape, num_accumulators: int, gates: tuple[int, ...]) -> Any:
    """Return the device function that adds the product with x, or with h, to the accumulators."""
    threads, threads_x = shape.num_threads, shape.threads_x
    rows, units = shape.num_rows, shape.num_sums // num_accumulators
    num_gates = len(gates)
    first, second, third, fourth = (*gates, 0, 0, 0)[:4]
    block_units = threads_x * units
    run = shape.block_rows + _PAD  # of shared x, one for each k
    x_loads = shape.block_rows * DEPTH // threads
    w_run = num_gates * block_units
    w_loads = w_run * DEPTH // threads
    gate_rows = threads // block_units  # runs of one gate's units that the block loads at once
    num_weights = num_gates * units

    @device_function
    def multiply(sums, shared_x, shared_w, x, starts, num_k, weights, first_weight, places):
        num_units, first_unit, tid = places
        tx, ty = tid % threads_x, tid // threads_x
        next_x = cuda.local.array(x_loads, float32)
        next_w = cuda.local.array(w_loads, float32)
        own_x = cuda.local.array(rows, float32)
        own_w = cuda.local.array(num_weights, float32)
        my_k, my_row = tid % DEPTH, tid // DEPTH
        my_unit = first_unit + tid % block_units
        w_start = first_weight + tid // block_units * num_units + my_unit
        num_tiles = (num_k + DEPTH - 1) // DEPTH
        # While one tile is multiplied, the next is on its way from memory to registers, and then
        # goes into the other half of shared memory: one barrier a tile.
        for tile in range(num_tiles + 1):
            if tile < num_tiles:
                k = tile * DEPTH + my_k
                for i in range(x_loads):
                    inside = starts[i] >= 0 and k < num_k
                    next_x[i] = x[_index(starts[i] + k)] if inside else _ZERO
                w_tile = w_start + tile * DEPTH * num_gates * num_units
                for i in range(w_loads):
                    weight = _index(w_tile + i * gate_rows * num_units)
                    next_w[i] = weights[weight] if my_unit < num_units else _ZERO
            if tile > 0:
                half = (tile - 1) & 1
                for k in range(DEPTH):
                    x_place = (half * DEPTH + k) * run + ty * rows
                    w_place = (half * DEPTH + k) * w_run + tx * units
                    for r in range(rows):
                        own_x[r] = shared_x[_index(x_place + r)]
                    for g in range(num_gates):
                        for u in range(units):
                            own_w[g * units + u] = shared_w[_index(w_place + g * block_units + u)]
                    for r in range(rows):
                        for u in range(units):
                            s = (r * units + u) * num_accumulators
                            w = own_w[u]
                            sums[s + first] = cuda.fma(own_x[r], w, sums[s + first])
                            if num_gates > 1:
                                w = own_w[units + u]
                                sums[s + second] = cuda.fma(own_x[r], w, sums[s + second])
                            if num_gates > 2:
                                w = own_w[2 * units + u]
                                sums[s + third] = cuda.fma(own_x[r], w, sums[s + third])
                            if num_gates > 3:
                                w = own_w[3 * units + u]
                                sums[s + fourth] = cuda.fma(own_x[r], w, sums[s + fourth])
            if tile < num_tiles:
                half = tile & 1
                for i in range(x_loads):
                    row = my_row + i * (threads // DEPTH)
                    shared_x[_index((half * DEPTH + my_k) * run + row)] = next_x[i]
                for i in range(w_loads):
                    shared_w[_index(half * DEPTH * w_run + tid + i * threads)] = next_w[i]
            cuda.syncthreads()

    return multiply


def make_layer_kernel(kind: int, shape: TileShape) -> Any:
    """Return the kernel that steps one layer of all rows of a batch.

    Parameters
    ----------
    kind : int
        Of the tile: `DENSE`, `GRU` or `LSTM`.
    shape : TileShape
        How its blocks divide the work. Grid: (rows, units) over the block's.

    Returns
    -------
    numba dispatcher
        Its arguments: ``plan`` int64[:] and ``weights`` float32[:] of a `GpuPlan`; ``slab``,
        float32[num_slots * row_size]; ``work``, float32[max_rows * work_size]; ``x``, float32[:];
        ``slots``, int32[:], each row's place in the slab; ``layer``, where its words begin;
        ``x_start`` and ``x_stride``, where each row's input lies in x; ``num_rows``.
    """
    tile = SHAPES[kind]
    num_accumulators = tile.num_accumulators
    threads, threads_x = shape.num_threads, shape.threads_x
    rows, units = shape.num_rows, shape.num_sums // num_accumulators
    row_sums = units * num_accumulators
    num_sums = rows * row_sums
    block_rows, block_units = shape.block_rows, shape.block_units(kind)
    x_size = 2 * DEPTH * (block_rows + _PAD)
    w_size = max(2 * DEPTH * len(tile.x_gates) * block_units, row_sums * threads)
    num_starts = block_rows * DEPTH // threads
    row_step = threads // DEPTH
    has_gates = kind in (GRU, LSTM)
    multiply_x = _make_multiply(shape, num_accumulators, tile.x_gates)
    multiply_h = _make_multiply(shape, num_accumulators, tile.h_gates)

    # A dense tile has more weights a thread and would spill registers.
    @kernel(threads, shape.min_blocks if has_gates else 1)
    def step_layer(plan, weights, slab, work, x, slots, layer, x_start, x_stride, num_rows):
        if SIMULATED:
            shared_x = cuda.shared.array(x_size, float32)
            shared_w = cuda.shared.array(w_size, float32)
        else:
            shared_x = cuda.shared.array(x_size, float32, _ALIGNMENT_BYTES)
            shared_w = cuda.shared.array(w_size, float32, _ALIGNMENT_BYTES)
        sums = cuda.local.array(num_sums, float32)
        starts = cuda.local.array(num_starts, int64)
        tid = int64(cuda.threadIdx.x)
        tx, ty = tid % threads_x, tid // threads_x
        first_unit = int64(cuda.blockIdx.y) * block_units + tx * units
        first_row = int64(cuda.blockIdx.x) * block_rows
        num_units = plan[layer + p.NUM_UNITS]
        state = plan[layer + p.STATE]
        row_size = plan[p.ROW_SIZE]

        for u in range(units):
            unit = first_unit + u
            for a in range(num_accumulators):
                bias = _ZERO
                if unit < num_units:
                    bias = weights[_index(plan[layer + p.BIAS] + a * num_units + unit)]
                for r in range(rows):
                    sums[(r * units + u) * num_accumulators + a] = bias

        places = (num_units, first_unit - tx * units, tid)
        for i in range(num_starts):
            row = first_row + tid // DEPTH + i * row_step
            starts[i] = x_start + row * x_stride if row < num_rows else -1
        num_x, first_weight = plan[layer + p.NUM_X], plan[layer + p.X_WEIGHTS]
        multiply_x(sums, shared_x, shared_w, x, starts, num_x, weights, first_weight, places)
        for i in range(num_starts):
            row = first_row + tid // DEPTH + i * row_step
            starts[i] = int64(slots[_index(row)]) * row_size + state if row < num_rows else -1
        num_h, first_weight = plan[layer + p.NUM_H], plan[layer + p.H_WEIGHTS]
        multiply_h(sums, shared_x, shared_w, slab, starts, num_h, weights, first_weight, places)

        # The sums are in registers, which only a constant can name. So each row takes the first
        # ones, through the thread's own places in shared memory, and the rest move up.
        activation = plan[layer + p.ACTIVATION]
        for r in range(rows):
            for i in range(row_sums):
                shared_w[_index(i * threads + tid)] = sums[i]
            for i in range(num_sums - row_sums):
                sums[i] = sums[i + row_sums]
            row = first_row + ty * rows + r
            if row >= num_rows:
                continue
            old = int64(slots[_index(row)]) * row_size + state
            new = row * plan[p.WORK_SIZE] + plan[layer + p.OUT]
            for u in range(units):
                unit = first_unit + u
                if unit >= num_units:
                    continue
                place = u * num_accumulators * threads + tid
                sum_0 = shared_w[_index(place)]
                if not has_gates:
                    work[_index(new + unit)] = activate(activation, sum_0)
                    continue
                sum_1 = shared_w[_index(place + threads)]
                sum_2 = shared_w[_index(place + 2 * threads)]
                sum_3 = shared_w[_index(place + 3 * threads)]
                h, unit_sums = slab[_index(old + unit)], (sum_0, sum_1, sum_2, sum_3)
                new_h = step_unit(kind, unit_sums, h, slab, old + num_units + unit)
                work[_index(new + unit)] = new_h

    return step_layer
