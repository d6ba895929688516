"""One layer of a batch on tensor cores: `streamrnn.kernels.cuda.tiles` with inputs rounded.

Both factors of every product are rounded to TF32 (11 bits) or bfloat16 (8 bits); sums, states and
activations are float32 as ever. Each sum takes its k in the same order whatever the tile, the batch
and the number of steps, so within one precision bits depend on none of them.

A warp multiplies 16 rows with 8 units of one gate at a time. All gates of a unit stand in the same
thread: a warp's columns are 8 units of each gate, then the next 8 units of each. So lie the
weights, 16 words of k a stage, [k/16][unit/8][gate][8 units][16 words]: 64 bytes a unit and stage.

Shared memory is a ring of stages, as in `tiles`: copies of 16 bytes past the registers fill all but
the one that is multiplied. Weights come rounded and packed. x and h come as they are, 16 k of TF32
or 32 of bfloat16, and are rounded when a warp has them in registers, where each word serves all of
its columns:

        x or h [row][k]                       weights [unit][word]
         16 rows ┌──────────┐ ldmatrix, or     8 units ┌──────────┐ ldmatrix: two
        of a warp│ 8 words  │ pairs of floats; of a gate│ 8 words  │ products at once
                 └──────────┘ rounded                  └──────────┘
                       └────────────── mma: 16 x 8 sums ──────┘

Of the four pieces of 16 bytes that a row of 64 has, the one at c lies at ``c ^ row // 2 % 4`` (of
the eight of bfloat16's rows, at ``c ^ 2 * (row % 4)``): rows that are read at once come from banks
of their own, and the next 8 words are an exclusive or away.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64

from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import make_write_unit, place_of_h, place_of_row, place_of_x
from streamrnn.kernels.cuda.compiler import device_function, kernel, unrolled
from streamrnn.kernels.cuda.plan import DEPTH
from streamrnn.kernels.cuda.products import BLEND, Cell
from streamrnn.kernels.cuda.ptx import (
    ADDRESS,
    NUM_PACKED,
    commit_copies,
    copy_16_bytes,
    global_address,
    i32,
    load_matrices,
    load_two,
    load_two_matrices,
    make_shared_memory,
    mma_bfloat16,
    mma_tf32,
    thread_index,
    wait_for_copies,
    word_bfloat16,
    word_tf32,
)
from streamrnn.kernels.gates import SHAPES

__all__ = ["TensorShape", "make_tensor_kernel"]

_index = np.uint64
_ZERO = np.float32(0.0)
_WARP, _ROWS, _UNITS = 32, 16, 8  # of one product
_UNIT_BYTES, _PRODUCT_BYTES = 4 * DEPTH, 4 * DEPTH * _UNITS  # of a stage's weights
_PIECE, _PIECES = 16, 32  # bytes of a copy, and copies of a product's weights


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
    num_stages : int
        Of shared memory, 2 to 4.
    min_blocks : int
        Blocks that a multiprocessor shall hold at once.
    """

    warps_x: int
    warps_y: int
    num_products_y: int
    num_products_x: int
    num_stages: int = 2
    min_blocks: int = 1

    @property
    def num_threads(self) -> int:
        """Threads of a block."""
        return _WARP * self.warps_x * self.warps_y

    @property
    def block_rows(self) -> int:
        """Streams of a block."""
        return _ROWS * self.warps_y * self.num_products_y

    def groups(self, kind: int) -> int:
        """Return how many times 8 units a warp has."""
        return self.num_products_x // SHAPES[kind].num_accumulators

    def block_units(self, kind: int) -> int:
        """Return the units of a block of a kind of tile."""
        return _UNITS * self.warps_x * self.groups(kind)


def _make_load_rows(precision: str) -> Any:
    """Return the device function that loads 16 rows and 8 words of k for a product, and rounds."""
    if precision == "tf32":

        @device_function
        def load_tf32(step, m, a, x_place):
            w0, w1, w2, w3 = load_matrices(i32(x_place ^ 32 * step), m * _ROWS * _UNIT_BYTES)
            a[4 * m] = word_tf32(w0.view(np.float32), _ZERO)
            a[4 * m + 1] = word_tf32(w1.view(np.float32), _ZERO)
            a[4 * m + 2] = word_tf32(w2.view(np.float32), _ZERO)
            a[4 * m + 3] = word_tf32(w3.view(np.float32), _ZERO)

        return load_tf32

    @device_function
    def load_bfloat16(step, m, a, x_place):
        row_bytes = 2 * _UNIT_BYTES
        near, far = i32(x_place ^ 64 * step), i32(x_place ^ (64 * step + 32))
        first, second = load_two(near, m * _ROWS * row_bytes)
        a[4 * m] = word_bfloat16(first, second)
        first, second = load_two(near, (m * _ROWS + 8) * row_bytes)
        a[4 * m + 1] = word_bfloat16(first, second)
        first, second = load_two(far, m * _ROWS * row_bytes)
        a[4 * m + 2] = word_bfloat16(first, second)
        first, second = load_two(far, (m * _ROWS + 8) * row_bytes)
        a[4 * m + 3] = word_bfloat16(first, second)

    return load_bfloat16


@functools.cache
def _make_multiply_stage(
    shape: TensorShape, kind: int, gates: tuple[int, ...], precision: str
) -> Any:
    """Return the device function that adds the products of one stage to the sums.

    ``gates`` says which of a unit's sums the matrix has.
    """
    num_gates, num_accumulators = len(gates), SHAPES[kind].num_accumulators
    num_products = shape.groups(kind) * num_gates  # of the warp along the units
    products_y, row_sums = shape.num_products_y, 2 * shape.num_products_x
    mma = mma_tf32 if precision == "tf32" else mma_bfloat16
    load_rows = _make_load_rows(precision)

    @device_function
    def add_product(m, sums, a, product, b0, b1):
        accumulator = product // num_gates * num_accumulators + gates[product % num_gates]
        s = 2 * m * row_sums + 2 * accumulator
        old = (sums[s], sums[s + 1], sums[s + row_sums], sums[s + row_sums + 1])
        new = mma(old, (a[4 * m], a[4 * m + 1], a[4 * m + 2], a[4 * m + 3]), (b0, b1))
        sums[s], sums[s + 1], sums[s + row_sums], sums[s + row_sums + 1] = new

    add_products = unrolled(products_y, add_product)

    @device_function
    def multiply_two(pair, sums, a, w_place):
        b0, b1, b2, b3 = load_matrices(w_place, 2 * _PRODUCT_BYTES * pair)
        add_products(sums, a, 2 * pair, b0, b1)
        add_products(sums, a, 2 * pair + 1, b2, b3)

    multiply_twos = unrolled(num_products // 2, multiply_two)

    @device_function
    def multiply_all(sums, a, w_place):
        multiply_twos(sums, a, w_place)
        if num_products % 2:
            b0, b1 = load_two_matrices(w_place, _PRODUCT_BYTES * (num_products - 1))
            add_products(sums, a, num_products - 1, b0, b1)

    @device_function
    def load_row(m, step, a, x_place):
        load_rows(step, m, a, x_place)

    load_all = unrolled(products_y, load_row)

    @device_function
    def multiply_words(step, sums, a, x_place, w_place):
        load_all(step, a, x_place)
        multiply_all(sums, a, i32(w_place ^ 32 * step))

    return unrolled(2, multiply_words)


@functools.cache
def _make_multiply(shape: TensorShape, kind: int, gates: tuple[int, ...], precision: str) -> Any:
    """Return the device function that adds the product with x, or with h, to the sums."""
    threads, num_stages = shape.num_threads, shape.num_stages
    products_y, warps_x = shape.num_products_y, shape.warps_x
    depth = DEPTH * NUM_PACKED[precision]
    x_bytes, stage_bytes = _stage_bytes(shape, precision)
    num_x_copies, num_w_copies = _num_copies(shape, kind, len(gates), precision)
    row_pieces = depth // 4
    x_pieces = shape.block_rows * row_pieces
    w_pieces = shape.block_units(kind) // _UNITS * len(gates) * _PIECES
    step = _PIECE * threads  # bytes between a thread's copies, whose places in rows are the same
    warp_bytes = shape.groups(kind) * len(gates) * _PRODUCT_BYTES
    is_tf32, num_a = precision == "tf32", 4 * products_y
    wait = wait_for_copies[num_stages - 2]
    multiply_stage = _make_multiply_stage(shape, kind, gates, precision)

    @device_function
    def fill(stage, targets, from_x, num_bytes, from_w, w_step):
        """Begin to copy a stage."""
        x_target, w_target = targets
        tid = i32(cuda.threadIdx.x)
        for i in range(num_x_copies):
            if (i + 1) * threads <= x_pieces or i * threads + tid < x_pieces:
                copy_16_bytes(i32(x_target + stage), i * step, from_x[i], num_bytes)
                from_x[i] += 4 * depth
        for i in range(num_w_copies):
            if (i + 1) * threads <= w_pieces or i * threads + tid < w_pieces:
                copy_16_bytes(i32(w_target + stage), i * step, from_w[i], i32(_PIECE))
                from_w[i] += w_step
        commit_copies()

    @device_function
    def multiply(sums, shared, from_x, num_k, from_w, w_step):
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid % _WARP, tid // _WARP
        row, piece = tid // row_pieces, tid % row_pieces
        piece = piece ^ (row // 2 % 4 if is_tf32 else 2 * (row % 4))
        x_target = i32(shared + (row * row_pieces + piece) * _PIECE)
        unit, piece = tid // 4 % _UNITS, tid % 4 ^ tid // 8 % 4
        w_target = i32(shared + x_bytes + tid // _PIECES * _PRODUCT_BYTES)
        w_target = i32(w_target + unit * _UNIT_BYTES + piece * _PIECE)
        targets = (x_target, w_target)

        first_row = warp // warps_x * products_y * _ROWS
        if is_tf32:  # the row and the piece whose address a lane gives
            own_row, own_piece = lane % 16, lane // 16 ^ lane % 16 // 2 % 4
        else:
            own_row, own_piece = lane // 4, lane % 4 // 2 ^ 2 * (lane // 4 % 4)
        x_place = i32(shared + ((first_row + own_row) * 4 * depth + own_piece * _PIECE))
        if not is_tf32:
            x_place = i32(x_place + lane % 2 * 8)
        own_unit = lane // 16 * _UNITS + lane % 8
        own_piece = lane // 8 % 2 ^ lane % 8 // 2 % 4
        w_place = i32(shared + (x_bytes + warp % warps_x * warp_bytes))
        w_place = i32(w_place + (own_unit * _UNIT_BYTES + own_piece * _PIECE))

        a = cuda.local.array(num_a, int32)
        left = i32((num_k + depth - 1) // depth)  # stages to be multiplied
        # The last has half the k of bfloat16 if the row, which is padded to 16, ends there.
        last_bytes = i32(_PIECE)
        if not is_tf32 and tid % row_pieces * 4 >= (num_k - 1) // DEPTH % 2 * DEPTH + DEPTH:
            last_bytes = i32(0)
        for s in range(num_stages - 1):
            if s < left:
                num_bytes = last_bytes if s == left - 1 else i32(_PIECE)
                fill(i32(s * stage_bytes), targets, from_x, num_bytes, from_w, w_step)
            else:
                commit_copies()
        stage, free = i32(0), i32((num_stages - 1) * stage_bytes)
        while left > 0:
            wait()
            cuda.syncthreads()
            if left >= num_stages:
                num_bytes = last_bytes if left == num_stages else i32(_PIECE)
                fill(free, targets, from_x, num_bytes, from_w, w_step)
            elif num_stages > 2:
                commit_copies()  # of nothing: as many groups, whatever there is to copy
            multiply_stage(sums, a, i32(x_place + stage), i32(w_place + stage))
            left = i32(left - 1)
            if num_stages == 2:
                free, stage = stage, i32(stage_bytes - stage)
            else:
                free = stage
                stage = i32(stage + stage_bytes) if stage < free_end else i32(0)
        cuda.syncthreads()

    free_end = (num_stages - 1) * stage_bytes
    return multiply


def _stage_bytes(shape: TensorShape, precision: str) -> tuple[int, int]:
    """Return the bytes of x or h of a stage, and of the whole stage, of any kind of tile."""
    x_bytes = 4 * DEPTH * NUM_PACKED[precision] * shape.block_rows
    return x_bytes, x_bytes + shape.warps_x * shape.num_products_x * _PRODUCT_BYTES


def _num_copies(shape: TensorShape, kind: int, num_gates: int, precision: str) -> tuple[int, int]:
    """Return the copies of a thread and stage: of x or h, and of the weights."""
    x_pieces = shape.block_rows * DEPTH * NUM_PACKED[precision] // 4
    w_pieces = shape.block_units(kind) // _UNITS * num_gates * _PIECES
    return -(-x_pieces // shape.num_threads), -(-w_pieces // shape.num_threads)


def make_tensor_kernel(cell: Cell, shape: TensorShape, precision: str) -> Any:
    """Return the kernel that steps one layer of all rows of a batch.

    Parameters
    ----------
    cell : Cell
        What it computes.
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
    kind, h_is_scratch = cell.kind, cell.end == BLEND
    num_accumulators, groups = SHAPES[kind].num_accumulators, shape.groups(kind)
    threads, warps_x, products_y = shape.num_threads, shape.warps_x, shape.num_products_y
    block_rows, block_units = shape.block_rows, shape.block_units(kind)
    row_sums = 2 * shape.num_products_x
    num_rows_of_thread = 2 * products_y
    num_sums = num_rows_of_thread * row_sums
    x_gates, h_gates = cell.gates
    num_gates = len(x_gates)
    gate_pieces = num_gates * _PIECES
    num_x_copies, num_w_copies = _num_copies(shape, kind, num_gates, precision)
    row_pieces = DEPTH * NUM_PACKED[precision] // 4
    shared_bytes = shape.num_stages * _stage_bytes(shape, precision)[1]
    shared_memory = make_shared_memory(shared_bytes // 4)
    multiply_x = _make_multiply(shape, kind, tuple(x_gates), precision)
    multiply_h = _make_multiply(shape, kind, tuple(h_gates), precision)
    write_unit = make_write_unit(cell)

    @device_function
    def own_place(tid):
        """Return the first row and unit of a thread."""
        lane, warp = tid % _WARP, tid // _WARP
        row = i32(cuda.blockIdx.x) * block_rows + warp // warps_x * products_y * _ROWS + lane // 4
        unit = i32(cuda.blockIdx.y) * block_units + warp % warps_x * groups * _UNITS
        return i32(row), i32(unit + 2 * (lane % 4))

    @device_function
    def row_of_copy(tid, i, num_rows):
        row = i32(cuda.blockIdx.x) * block_rows + (tid + i * threads) // row_pieces
        return min(i32(row), i32(num_rows - 1))

    @device_function
    def begin_weights(from_w, layer, weights, first, tid):
        """Note where a thread's copies of a matrix begin; return the bytes from stage to stage."""
        num_eights = i32(layer[_index(p.NUM_UNITS)] // _UNITS)
        for i in range(num_w_copies):
            which = tid + i * threads
            eight = i32(i32(cuda.blockIdx.y) * (block_units // _UNITS) + which // gate_pieces)
            eight = min(eight, i32(num_eights - 1))
            place = (eight * gate_pieces + which % gate_pieces) * 4
            from_w[i] = global_address(weights, first + place)
        return i32(num_eights * gate_pieces * _PIECE)

    @device_function
    def write_row(r, sums, arrays, slots, numbers, first_row, first_unit):
        y_start, y_stride, step, num_rows = numbers
        row = i32(first_row + 8 * r)
        if row >= num_rows:
            return
        layer, _, _, _, _ = arrays
        size = layer[_index(p.SIZE)]
        place = place_of_row(layer, slots, row, step, y_start, y_stride)
        for group in range(groups):
            for e in range(2):
                unit = i32(first_unit + group * _UNITS + e)
                s = r * row_sums + 2 * group * num_accumulators + e
                if unit < size:
                    if num_accumulators == 1:
                        write_unit(arrays, place, unit, sums[s], _ZERO, _ZERO, _ZERO)
                    else:
                        s1, s2, s3 = sums[s + 2], sums[s + 4], sums[s + 6]
                        write_unit(arrays, place, unit, sums[s], s1, s2, s3)

    write_rows = unrolled(num_rows_of_thread, write_row)

    @kernel(threads, shape.min_blocks)
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
        from_x = cuda.local.array(num_x_copies, ADDRESS)
        from_w = cuda.local.array(num_w_copies, ADDRESS)
        tid = i32(cuda.threadIdx.x)
        _, unit = own_place(tid)
        num_units = layer[_index(p.NUM_UNITS)]
        for group in range(groups):
            for e in range(2):
                own = min(int64(unit + group * _UNITS + e), num_units - 1)
                bias = layer[_index(p.BIAS)] + own * num_accumulators
                for c in range(num_accumulators):
                    for r in range(num_rows_of_thread):
                        s = r * row_sums + 2 * (group * num_accumulators + c) + e
                        sums[s] = weights[_index(bias + c)]

        for i in range(num_x_copies):
            row = row_of_copy(tid, i, num_rows)
            place = place_of_x(layer, slots, row, step, x_start, x_stride)
            from_x[i] = global_address(x, place + tid % row_pieces * 4)
        w_step = begin_weights(from_w, layer, weights, layer[_index(p.X_WEIGHTS)], tid)
        multiply_x(sums, shared, from_x, layer[_index(p.NUM_X)], from_w, w_step)

        tid = thread_index()
        for i in range(num_x_copies):
            row = row_of_copy(tid, i, num_rows)
            k = tid % row_pieces * 4
            if h_is_scratch:
                place = row * layer[_index(p.LAYER_WORK_SIZE)] + layer[_index(p.SCRATCH)]
                from_x[i] = global_address(work, place + k)
            else:
                from_x[i] = global_address(slab, place_of_h(layer, slots, row, step) + k)
        w_step = begin_weights(from_w, layer, weights, layer[_index(p.H_WEIGHTS)], tid)
        multiply_h(sums, shared, from_x, layer[_index(p.NUM_H)], from_w, w_step)

        row, unit = own_place(thread_index())
        numbers = (y_start, y_stride, step, num_rows)
        write_rows(sums, (layer, weights, slab, work, y), slots, numbers, row, unit)

    return step_layer
