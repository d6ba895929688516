"""One layer of a batch: a product tiled through shared memory, its gates fused with the cell.

A column is one sum of a unit: a GRU's or an LSTM's unit has four, side by side, a dense one has
one. A block computes some columns of some streams, and goes along k, through x and then through h,
`DEPTH` elements at a time:

        weights [k][column]                  a warp's lanes, each with four rows (or one) and
             ┌───────────────┐               four columns, of which every 8 x 4 x warps_x columns
        16 k │               │               and every 4 x 4 x warps_y rows come again
             └───────────────┘
     16 k     columns of a block                 c 0-3   c 4-7        c 28-31
    ┌────┐   ┌───────────────┐                ┌───────┬───────┬─ ─ ─┬────────┐
    │    │   │               │        row 0-3 │ lane 0│ lane 2│     │ lane 14│
  x │    │   │     sums      │ rows   row 4-7 │      1│      3│     │      15│
  or│    │   │               │       row 8-11 │     16│     18│     │      30│
  h │    │   │               │      row 12-15 │     17│     19│     │      31│
    └────┘   └───────────────┘                └───────┴───────┴─ ─ ─┴────────┘

The wide tile: 128 rows and 128 columns by 8 warps, 64 sums a thread, of twice 4 rows and twice 4
columns. For each k it loads twice 4 of x or h, twice 4 weights, and multiplies: 1,024 multiply-adds
of 1,093 instructions. Lanes lie so that the eight that a load serves at once read two groups of
rows, or four groups of columns: 8 different banks of 16 bytes at most.

Registers lie in two banks, each of which gives one a cycle, so two new ones a multiply-add are all
there may be: row by row, for the x of a row is read once for all columns then (`.reuse`), and a sum
lies in the other bank than its column's weight. That is why x and h lie in shared memory by k, like
the weights, whatever way they come: four neighbours are four registers of both banks.

Shared memory is a ring of stages, each of 16 k of x or h and of the weights. All but one are
filled, by copies past the registers, while that one is multiplied: 16 bytes of the weights, and 4
of x or h, 8 k of 4 rows a warp, which go to 32 different banks. Rows and columns beyond the end are
those of the last: what comes of them nobody writes.

Every output has one accumulator: it starts at the bias, takes the products with x in the order of
k, then those with h, each by one fused multiply-add. That is the order of every tile, and of the
CPU's: the bits of an output depend neither on the tile nor on the batch.

The new c replaces the old one in the stream's row, since nobody else reads it. The new h goes to
its other half there, since other blocks still read the old one; the last product writes y too.

Sums are registers, which only constants can name: where a loop would not be unrolled, a chain of
functions is (`unrolled`). For two blocks a multiprocessor 128 registers are all there are, of which
sums and factors take 80, so what is needed after the loops is computed anew (`thread_index`).
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32

from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import make_write_unit, place_of_h, place_of_row, place_of_x
from streamrnn.kernels.cuda.compiler import device_function, kernel, unrolled
from streamrnn.kernels.cuda.plan import DEPTH
from streamrnn.kernels.cuda.products import BLEND, Cell
from streamrnn.kernels.cuda.ptx import (
    ADDRESS,
    commit_copies,
    copy_4_bytes,
    copy_16_bytes,
    global_address,
    i32,
    load_four,
    load_one,
    make_shared_memory,
    thread_index,
    wait_for_copies,
)
from streamrnn.kernels.gates import DENSE, SHAPES

__all__ = ["TileShape", "make_layer_kernel"]

# An index of this type is taken as it is; a signed one would be tested for being below 0.
_index = np.uint64
_LANES, _LANE_ROWS, _LANE_COLUMNS = 32, 4, 32
_COPY = 4  # floats of the weights
_COPIED_K = 8  # of a row of x or h, that neighbouring threads copy
_ZERO = np.float32(0.0)


@dataclass(frozen=True)
class TileShape:
    """How a block divides its work.

    Attributes
    ----------
    warps_x, warps_y : int
        Warps along the columns and along the rows.
    num_rows : int
        Rows of a thread: one, or a multiple of four, in groups of four like the columns.
    num_groups : int
        Groups of four columns of a thread.
    num_stages : int
        Of shared memory, 2 to 4.
    min_blocks : int
        Blocks that a multiprocessor shall hold at once.
    """

    warps_x: int
    warps_y: int
    num_rows: int
    num_groups: int
    num_stages: int
    min_blocks: int = 1

    @property
    def num_threads(self) -> int:
        """Threads of a block."""
        return _LANES * self.warps_x * self.warps_y

    @property
    def block_rows(self) -> int:
        """Streams of a block."""
        return _LANE_ROWS * self.warps_y * self.num_rows

    @property
    def block_columns(self) -> int:
        """Columns of a block."""
        return _LANE_COLUMNS * self.warps_x * self.num_groups

    @property
    def row_width(self) -> int:
        """Rows of a group: neighbours, which one load takes."""
        return min(self.num_rows, 4)

    @property
    def row_step(self) -> int:
        """Rows from a thread's group to its next one."""
        return _LANE_ROWS * self.warps_y * self.row_width

    @property
    def x_stride(self) -> int:
        """Floats of shared memory from one k of x or h to the next: eight k lie in all banks."""
        return self.block_rows + 4

    @property
    def stage_bytes(self) -> tuple[int, int]:
        """Bytes of x or h of a stage, and of the whole stage."""
        x_bytes = 4 * DEPTH * self.x_stride
        return x_bytes, x_bytes + 4 * DEPTH * self.block_columns

    def block_units(self, kind: int) -> int:
        """Return the units of a block of a kind of tile."""
        return self.block_columns // SHAPES[kind].num_accumulators


def _make_multiply_stage(shape: TileShape, gates: tuple[int, ...]) -> Any:
    """Return the device function that adds the products of one stage to the sums.

    ``gates`` says which of four neighbouring columns the matrix has.
    """
    rows, groups, row_width = shape.num_rows, shape.num_groups, shape.row_width
    load_rows = {1: load_one, 4: load_four}[row_width]
    x_step, w_step = 4 * shape.x_stride, 4 * shape.block_columns  # bytes from one k to the next
    row_step, group_step = 4 * shape.row_step, 4 * _LANE_COLUMNS * shape.warps_x
    columns = tuple(4 * g + gate for g in range(groups) for gate in gates)
    num_columns = 4 * groups

    @device_function
    def multiply_one(which, sums, r, x, weights):
        column = columns[which]
        s = num_columns * r + column
        sums[s] = cuda.fma(x, weights[column], sums[s])

    multiply_columns = unrolled(len(columns), multiply_one)

    @device_function
    def multiply_row(r, sums, own_x, weights):
        multiply_columns(sums, r, own_x[r], weights)

    multiply_rows = unrolled(rows, multiply_row)

    @device_function
    def load_group(g, own_x, place):
        x = load_rows(place, g * row_step)
        for i in range(row_width):
            own_x[row_width * g + i] = x[i]

    load_groups = unrolled(rows // row_width, load_group)

    @device_function
    def multiply_k(k, sums, x_place, w_place):
        own_x, weights = cuda.local.array(rows, float32), cuda.local.array(num_columns, float32)
        load_groups(own_x, i32(x_place + k * x_step))
        for g in range(groups):
            w = load_four(w_place, k * w_step + g * group_step)
            weights[4 * g], weights[4 * g + 1], weights[4 * g + 2], weights[4 * g + 3] = w
        multiply_rows(sums, own_x, weights)

    return unrolled(DEPTH, multiply_k)


@functools.cache
def _make_multiply(shape: TileShape, gates: tuple[int, ...]) -> Any:
    """Return the device function that adds the product with x, or with h, to the sums."""
    threads, num_stages, stage_bytes = shape.num_threads, shape.num_stages, shape.stage_bytes[1]
    num_x_threads, num_x_rows, num_w_copies = _copies_of(shape)
    row_step = 4 * (threads // _COPIED_K)  # bytes between the rows of a thread's copies
    k_step = 4 * _COPIED_K * shape.x_stride
    wait = wait_for_copies[num_stages - 2]
    multiply_stage = _make_multiply_stage(shape, gates)

    @device_function
    def fill(stage, places, from_x, from_w, w_step):
        """Begin to copy a stage; return where the next one's weights come from."""
        if threads <= num_x_threads or cuda.threadIdx.x < num_x_threads:
            target = i32(places[0] + stage)
            for i in range(num_x_rows):
                for j in range(DEPTH // _COPIED_K):
                    source = from_x[i] + 4 * _COPIED_K * j
                    copy_4_bytes(target, i * row_step + j * k_step, source, i32(4))
                from_x[i] += 4 * DEPTH
        target = i32(places[1] + stage)
        for i in range(num_w_copies):
            copy_16_bytes(target, 16 * threads * i, from_w, i32(16))
            from_w += w_step
        commit_copies()
        return from_w

    @device_function
    def multiply(sums, places, from_x, num_k, from_w, w_step):
        _, _, x_place, w_place = places
        left = i32((num_k + DEPTH - 1) // DEPTH)  # stages to be multiplied
        for s in range(num_stages - 1):
            if s < left:
                from_w = fill(i32(s * stage_bytes), places, from_x, from_w, w_step)
            else:
                commit_copies()
        stage, free = i32(0), i32((num_stages - 1) * stage_bytes)
        while left > 0:
            wait()
            cuda.syncthreads()
            if left >= num_stages:
                from_w = fill(free, places, from_x, from_w, w_step)
            elif num_stages > 2:
                commit_copies()  # of nothing: as many groups, whatever there is to copy
            multiply_stage(sums, i32(x_place + stage), i32(w_place + stage))
            left = i32(left - 1)
            free = stage
            if num_stages == 2:
                stage = i32(stage_bytes - stage)
            else:
                stage = i32(stage + stage_bytes) if stage < free_end else i32(0)
        cuda.syncthreads()

    free_end = (num_stages - 1) * stage_bytes
    return multiply


def _copies_of(shape: TileShape) -> tuple[int, int, int]:
    """Return the threads that copy x or h; the rows of each; each thread's copies of weights."""
    num_x_threads = min(shape.num_threads, _COPIED_K * shape.block_rows)
    num_x_rows = _COPIED_K * shape.block_rows // num_x_threads
    return num_x_threads, num_x_rows, DEPTH * shape.block_columns // (shape.num_threads * _COPY)


def make_layer_kernel(cell: Cell, shape: TileShape) -> Any:
    """Return the kernel that steps one layer of all rows of a batch.

    Parameters
    ----------
    cell : Cell
        What it computes.
    shape : TileShape
        How its blocks divide the work. Grid: (rows, units) over the block's.

    Returns
    -------
    numba dispatcher
        Its arguments: ``layer`` int64[:], a `GpuPlan`'s words from those of the layer on, and
        ``weights`` float32[:] of the plan; ``slab``, float32[num_slots * row_size]; ``work``,
        float32[max_rows * work_size]; ``x``, float32[:]; ``slots``, int32[:], each row's code;
        ``y``, float32[:]; ``x_start`` and ``x_stride``, where each row's input lies in x (or in
        the row of its stream there), multiples of 4, padded with numbers to a multiple of `DEPTH`;
        ``y_start`` and ``y_stride``, where its output lies in y; ``step``, of the batch's;
        ``num_rows``.
    """
    num_sums_of_unit = SHAPES[cell.kind].num_accumulators
    rows, groups = shape.num_rows, shape.num_groups
    warps_x, block_rows, block_columns = shape.warps_x, shape.block_rows, shape.block_columns
    row_width, row_step = shape.row_width, shape.row_step
    group_step = _LANE_COLUMNS * shape.warps_x
    num_sums, shared_size = 4 * rows * groups, shape.num_stages * shape.stage_bytes[1] // 4
    _, num_x_rows, _ = _copies_of(shape)
    copied_rows = shape.num_threads // _COPIED_K  # that the block copies at once
    x_bytes, x_stride = shape.stage_bytes[0], shape.x_stride
    w_lanes = block_columns // _COPY  # threads that copy one k
    w_rows = shape.num_threads // w_lanes  # k that the block copies at once
    shared_memory = make_shared_memory(shared_size)
    is_dense, h_is_scratch = cell.kind == DENSE, cell.end == BLEND
    x_gates, h_gates = ((0, 1, 2, 3),) * 2 if is_dense else cell.gates
    multiply_x, multiply_h = _make_multiply(shape, x_gates), _make_multiply(shape, h_gates)
    write_unit = make_write_unit(cell)

    @device_function
    def own_place(tid):
        """Return the first row and column of a thread, within the block."""
        lane, warp = tid % _LANES, tid // _LANES
        row = (warp // warps_x * _LANE_ROWS + lane // 16 * 2 + lane % 2) * row_width
        column = warp % warps_x * _LANE_COLUMNS + lane // 2 % 8 * 4
        return i32(row), i32(column)

    @device_function
    def places_of(shared, tid):
        """Return where a thread copies x and weights to; where its rows and columns begin."""
        row, column = own_place(tid)
        weights = i32(shared + x_bytes)
        x_target = i32(shared + 4 * (tid % _COPIED_K * x_stride + tid // _COPIED_K))
        return x_target, i32(weights + 16 * tid), i32(shared + 4 * row), i32(weights + 4 * column)

    @device_function
    def first_weight(layer, tid):
        """Return where a thread's copies of a matrix begin."""
        num_columns = i32(layer[_index(p.NUM_UNITS)] * num_sums_of_unit)
        column = i32(i32(cuda.blockIdx.y) * block_columns + tid % w_lanes * _COPY)
        return i32(tid // w_lanes * num_columns + min(column, i32(num_columns - _COPY)))

    @device_function
    def row_of_copy(tid, i, num_rows):
        row = i32(i32(cuda.blockIdx.x) * block_rows + tid // _COPIED_K + i * copied_rows)
        return min(row, i32(num_rows - 1))

    @device_function
    def write_row(r, sums, arrays, slots, numbers, first_row, first_column):
        y_start, y_stride, step, num_rows = numbers
        row = i32(first_row + r // row_width * row_step + r % row_width)
        if row >= num_rows:
            return
        layer, _, _, _, _ = arrays
        size = layer[_index(p.SIZE)]
        place = place_of_row(layer, slots, row, step, y_start, y_stride)
        for g in range(groups):
            column = i32(first_column + g * group_step)
            s = 4 * (r * groups + g)
            s0, s1, s2, s3 = sums[s], sums[s + 1], sums[s + 2], sums[s + 3]
            if not is_dense:
                if column // 4 < size:
                    write_unit(arrays, place, column // 4, s0, s1, s2, s3)
                continue
            if column < size:
                write_unit(arrays, place, column, s0, _ZERO, _ZERO, _ZERO)
            if column + 1 < size:
                write_unit(arrays, place, column + 1, s1, _ZERO, _ZERO, _ZERO)
            if column + 2 < size:
                write_unit(arrays, place, column + 2, s2, _ZERO, _ZERO, _ZERO)
            if column + 3 < size:
                write_unit(arrays, place, column + 3, s3, _ZERO, _ZERO, _ZERO)

    write_rows = unrolled(rows, write_row)

    @kernel(shape.num_threads, shape.min_blocks)
    def step_layer(
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
        shared = shared_memory()
        sums = cuda.local.array(num_sums, float32)
        from_x = cuda.local.array(num_x_rows, ADDRESS)
        tid = i32(cuda.threadIdx.x)
        row, column = own_place(tid)
        num_columns = i32(layer[_index(p.NUM_UNITS)] * num_sums_of_unit)
        for g in range(groups):
            first = i32(i32(cuda.blockIdx.y) * block_columns + column + g * group_step)
            bias = layer[_index(p.BIAS)] + min(first, i32(num_columns - 4))
            for c in range(4):
                for r in range(rows):
                    sums[4 * (r * groups + g) + c] = weights[_index(bias + c)]

        places = places_of(shared, tid)
        w_step = i32(4 * w_rows * num_columns)
        for i in range(num_x_rows):
            row = row_of_copy(tid, i, num_rows)
            place = place_of_x(layer, slots, row, step, x_start, x_stride)
            from_x[i] = global_address(x, place + tid % _COPIED_K)
        from_w = global_address(weights, layer[_index(p.X_WEIGHTS)] + first_weight(layer, tid))
        multiply_x(sums, places, from_x, layer[_index(p.NUM_X)], from_w, w_step)

        tid = thread_index()
        places = places_of(shared, tid)
        for i in range(num_x_rows):
            row, k = row_of_copy(tid, i, num_rows), tid % _COPIED_K
            if h_is_scratch:
                place = row * layer[_index(p.LAYER_WORK_SIZE)] + layer[_index(p.SCRATCH)]
                from_x[i] = global_address(work, place + k)
            else:
                from_x[i] = global_address(slab, place_of_h(layer, slots, row, step) + k)
        from_w = global_address(weights, layer[_index(p.H_WEIGHTS)] + first_weight(layer, tid))
        multiply_h(sums, places, from_x, layer[_index(p.NUM_H)], from_w, w_step)

        row, column = own_place(thread_index())
        row = i32(row + i32(cuda.blockIdx.x) * block_rows)
        column = i32(column + i32(cuda.blockIdx.y) * block_columns)
        numbers = (y_start, y_stride, step, num_rows)
        write_rows(sums, (layer, weights, slab, work, y), slots, numbers, row, column)

    return step_layer
