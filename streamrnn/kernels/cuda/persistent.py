"""Many steps of a few streams in one launch, with the weights kept in shared memory.

A step of few streams reads every weight for few products, and a launch takes longer than those
products. So here each block keeps the weights of a few units of every layer in its shared memory
(Diamos et al., "Persistent RNNs", ICML 2016), and the blocks take the steps together:

         x(t) ─▶ product ─┐      h(t-1) of all units, from all blocks
                          ▼                  │ wait
                        sums ◀── product ◀───┘
                          │ cell
                          ▼
                        h(t) of the block's units ─▶ publish ─▶ all blocks

What blocks tell each other goes through words of 64 bits in the GPU's memory: an h, and the number
of its step. A word is written and read as one, so nobody waits for anything but the words that he
reads: there is no barrier of all blocks. Steps use two places in turn. A block writes h(t + 2) over
h(t) when it has had h(t + 1) of all blocks, each of which had read h(t) before; so, too, the rows
of the slab may be overwritten at the end. Numbers go on from launch to launch.

A thread has one sum of one stream: eight streams take about as long as one. Sums run in the order
of every other kernel: bias, x, h, one fused multiply-add each. Sizes and places of a model are
constants of its kernel. Shared memory holds, of every row, what its inputs remember, x and h of a
layer, and its sums; then the weights of all layers, as [k/4][column][4 k], padded as in the plan.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, int64

from streamrnn.kernels.activations import SOFTMAX
from streamrnn.kernels.cuda import plan as p
from streamrnn.kernels.cuda.activations import (
    activate,
    gru_output,
    half_of,
    lstm_cell,
    lstm_output,
)
from streamrnn.kernels.cuda.compiler import chained, device_function, kernel
from streamrnn.kernels.cuda.plan import GpuLayer, GpuPlan
from streamrnn.kernels.cuda.ptx import i32, load_four, multiply, peek, publish, shared_address
from streamrnn.kernels.cuda.rows import transform_input
from streamrnn.kernels.gates import DENSE, GRU, LSTM, SHAPES

__all__ = ["PersistentShape", "exchange_size", "make_persistent_kernel", "persistent_shape"]

_index = np.uint64
_ZERO = np.float32(0.0)
_MAX_ROWS, _MAX_THREADS = 8, 1024
_UNITS_A_BLOCK = 4
_GROUP = 8  # k that a loop takes at once: vectors and weights are padded to it
_TAG_MASK = (1 << 31) - 1


def _padded(size: int) -> int:
    return -(-size // _GROUP) * _GROUP


@dataclass(frozen=True)
class PersistentShape:
    """How a model's many steps are launched: all that its kernel is compiled for."""

    num_blocks: int  # that share the units of every layer
    max_rows: int  # streams at once
    threads: int
    memory_size: int  # of a row: what its inputs remember
    has_transforms: bool
    head_activation: int
    layers: tuple[GpuLayer, ...]  # the head last
    has_head: bool

    def own(self, layer: GpuLayer) -> int:
        """Return a block's units of a layer; the last blocks have fewer."""
        return -(-layer.size // self.num_blocks)

    def columns(self, layer: GpuLayer) -> int:
        """Return a block's sums of a layer and row."""
        return self.own(layer) * SHAPES[layer.cell.kind].num_accumulators

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Floats of a row's x, h and sums; x and h with what is loaded ahead of need."""
        num_x = max(_padded(layer.num_x) for layer in self.layers) + 4
        num_h = max(_padded(layer.num_h) for layer in self.layers) + 4
        return num_x, num_h, max(self.columns(layer) for layer in self.layers)

    @property
    def first_weight(self) -> int:
        """Floats of shared memory before the weights: a multiple of 4."""
        return -(-self.max_rows * (self.memory_size + sum(self.sizes)) // 4) * 4

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block, with what is loaded ahead of need."""
        num_k = [_padded(layer.num_x) + _padded(layer.num_h) for layer in self.layers]
        columns = [self.columns(layer) for layer in self.layers]
        weights = sum(k * size for k, size in zip(num_k, columns, strict=True))
        return 4 * (self.first_weight + weights + 4 * max(columns))


def persistent_shape(
    plan: GpuPlan, max_blocks: int, max_shared_bytes: int, min_threads: int
) -> PersistentShape | None:
    """Find how many blocks hold a model's weights in shared memory, and for how many streams.

    ``max_blocks`` run at once, one a multiprocessor. None: there is no room for one stream, or a
    cell is not PyTorch's.
    """
    if not plan.is_plain:
        return None
    most_units = max(layer.size for layer in plan.layers)
    num_blocks = min(max_blocks, -(-most_units // _UNITS_A_BLOCK))
    num_blocks = -(-most_units // -(-most_units // num_blocks))  # each has a unit of the largest
    for max_rows in range(_MAX_ROWS, 0, -1):
        shape = PersistentShape(
            num_blocks,
            max_rows,
            threads=0,
            memory_size=plan.layers[0].state,
            has_transforms=plan.has_transforms,
            head_activation=plan.head_activation,
            layers=(*plan.layers, *([plan.head] if plan.head else [])),
            has_head=plan.head is not None,
        )
        threads = max(min_threads, -(-max_rows * shape.sizes[2] // 32) * 32)
        if threads <= _MAX_THREADS and shape.shared_bytes <= max_shared_bytes:
            return PersistentShape(**(vars(shape) | {"threads": threads}))
    return None


def _exchange_places(shape: PersistentShape) -> list[int]:
    """Return where each layer's words begin: [2, max_rows, size]; behind a word for the number."""
    places, end = [], 1
    for layer in shape.layers:
        places.append(end)
        end += 2 * shape.max_rows * layer.size
    return [*places, end]


def exchange_size(shape: PersistentShape) -> int:
    """Return the words of 64 bits that the blocks need, 0 at first."""
    return _exchange_places(shape)[-1]


@device_function
def _add_products(total, vector, weight, num_groups, w_step):
    """Add the products with one vector to a sum, in the order of k, `_GROUP` at a time.

    Each four of both are loaded while those before them are multiplied.
    """
    v0, v1, v2, v3 = load_four(vector, 0)
    w0, w1, w2, w3 = load_four(weight, 0)
    left = i32(num_groups)
    while left > 0:
        a0, a1, a2, a3 = load_four(vector, 16)
        b0, b1, b2, b3 = load_four(weight, w_step)
        total = cuda.fma(v0, w0, total)
        total = cuda.fma(v1, w1, total)
        total = cuda.fma(v2, w2, total)
        total = cuda.fma(v3, w3, total)
        vector = i32(vector + 32)
        weight = i32(weight + 2 * w_step)
        v0, v1, v2, v3 = load_four(vector, 0)
        w0, w1, w2, w3 = load_four(weight, 0)
        total = cuda.fma(a0, b0, total)
        total = cuda.fma(a1, b1, total)
        total = cuda.fma(a2, b2, total)
        total = cuda.fma(a3, b3, total)
        left = i32(left - 1)
    return total


@device_function
def _await(exchange, first, size, tag, shared, target, stride, num_rows, threads):
    """Wait for ``size`` words of each row, and write their numbers to its vector in shared memory.

    Four at once: a look at the GPU's memory takes long, and four take as long as one.
    """
    count = num_rows * size
    last = count - 1
    for i in range(int64(cuda.threadIdx.x), count, 4 * threads):
        i1, i2, i3 = min(i + threads, last), min(i + 2 * threads, last), min(i + 3 * threads, last)
        is_there = False
        while not is_there:
            t0, h0 = peek(exchange, first + i)
            t1, h1 = peek(exchange, first + i1)
            t2, h2 = peek(exchange, first + i2)
            t3, h3 = peek(exchange, first + i3)
            is_there = t0 == tag and t1 == tag and t2 == tag and t3 == tag
        shared[_index(target + i // size * stride + i % size)] = h0
        shared[_index(target + i1 // size * stride + i1 % size)] = h1
        shared[_index(target + i2 // size * stride + i2 % size)] = h2
        shared[_index(target + i3 // size * stride + i3 % size)] = h3


@device_function
def _clear(shared, target, stride, begin, end, num_rows, threads):
    """Write 0 behind the vector of each row: there may be what another layer has left."""
    for i in range(int64(cuda.threadIdx.x), num_rows * (end - begin), threads):
        row, k = i // (end - begin), begin + i % (end - begin)
        shared[_index(target + row * stride + k)] = _ZERO


def _make_load(shape: PersistentShape, layer: GpuLayer, place: int) -> Any:
    """Return the device function that copies a block's weights of a layer to shared memory."""
    width, threads = SHAPES[layer.cell.kind].num_accumulators, shape.threads
    own, columns, size = shape.own(layer), shape.columns(layer), layer.size
    num_columns = layer.num_units * width
    padded_x, padded_h = _padded(layer.num_x), _padded(layer.num_h)
    x_weights, h_weights = layer.x_weights, layer.h_weights

    @device_function
    def load(weights, shared):
        first = int64(cuda.blockIdx.x) * own
        num_own = max(0, min(own, size - first)) * width
        for i in range(int64(cuda.threadIdx.x), (padded_x + padded_h) * columns, threads):
            k, column = i // columns, i % columns
            source = x_weights + k * num_columns
            if k >= padded_x:
                source = h_weights + (k - padded_x) * num_columns
            weight = _ZERO
            if column < num_own:
                weight = weights[_index(source + first * width + column)]
            shared[_index(place + (k // 4 * columns + column) * 4 + k % 4)] = weight

    return load


def _make_step(shape: PersistentShape, index: int, place: int) -> Any:
    """Return the device function that takes a step of one layer, or of the head, of all rows."""
    layer, threads = shape.layers[index], shape.threads
    kind, activation = layer.cell.kind, layer.cell.activation
    width = SHAPES[kind].num_accumulators
    own, columns, size = shape.own(layer), shape.columns(layer), layer.size
    num_x, memory_size = layer.num_x, shape.memory_size
    x_stride, h_stride, sums_stride = shape.sizes
    x_first = shape.max_rows * memory_size
    h_first = x_first + shape.max_rows * x_stride
    sums_first = h_first + shape.max_rows * h_stride
    x_end, h_end = _padded(num_x), _padded(layer.num_h)
    x_groups, h_groups = x_end // _GROUP, h_end // _GROUP
    h_place = place + x_end * columns
    w_step = 16 * columns
    words = _exchange_places(shape)[index]
    below_words = _exchange_places(shape)[index - 1]
    row_words = shape.max_rows * size
    below_row_words = shape.max_rows * num_x
    bias, state, other = layer.bias, layer.state, layer.other
    is_head = shape.has_head and index == len(shape.layers) - 1
    is_output = index == len(shape.layers) - 1 and not is_head
    has_transforms, head_activation = shape.has_transforms, shape.head_activation
    is_first, is_gru, is_lstm = index == 0, kind == GRU, kind == LSTM
    is_scaled, scales = layer.cell.is_scaled, layer.scales

    @device_function
    def stage_x(arrays, shared, tag, t, numbers):
        """Write the layer's x: inputs, which every block transforms for itself, or an h."""
        plan, weights, _, exchange, _, x, tokens, _ = arrays
        num_rows, _, first, stride, _ = numbers
        if not is_first:
            source = below_words + (t & 1) * below_row_words
            _await(exchange, source, num_x, tag, shared, x_first, x_stride, num_rows, threads)
        elif has_transforms:
            num_inputs = plan[p.NUM_INPUTS]
            for i in range(int64(cuda.threadIdx.x), num_rows * num_inputs, threads):
                row, k = i // num_inputs, i % num_inputs
                at, memory = first + row * stride + t * num_inputs + k, row * memory_size
                out = x_first + row * x_stride
                transform_input(plan, weights, k, x, tokens, at, shared, memory, shared, out)
        else:
            for i in range(int64(cuda.threadIdx.x), num_rows * num_x, threads):
                row, k = i // num_x, i % num_x
                value = x[_index(first + row * stride + t * num_x + k)]
                shared[_index(x_first + row * x_stride + k)] = value

    @device_function
    def stage_h(arrays, shared, tag, t, num_rows, first_step):
        """Write the layer's h: that of the rows before the first step, then that of all blocks."""
        plan, _, slab, exchange, slots, _, _, _ = arrays
        if t > 0:
            source = words + ((t + 1) & 1) * row_words
            before = i32((tag - 1) & _TAG_MASK)
            _await(exchange, source, size, before, shared, h_first, h_stride, num_rows, threads)
        else:
            for i in range(int64(cuda.threadIdx.x), num_rows * size, threads):
                row, k = i // size, i % size
                code = int64(slots[_index(row)])
                first = (code >> 1) * plan[p.ROW_SIZE] + state + half_of(code, first_step) * other
                shared[_index(h_first + row * h_stride + k)] = slab[_index(first + k)]

    @device_function
    def write_output(arrays, shared, t, num_steps, row, unit, value):
        plan, weights, _, _, _, _, _, y = arrays
        if head_activation != SOFTMAX:  # which is left to a launch of its own
            value = activate(head_activation, value)
            value += weights[_index(plan[p.CENTERS] + unit)]
            level = plan[plan[p.LEVELS] + unit]
            if level >= 0:
                known = shared[_index(row * memory_size + level)]
                value += weights[_index(plan[p.FILLS] + unit)] if math.isnan(known) else known
        y[_index((row * num_steps + t) * size + unit)] = value

    @device_function
    def step(arrays, shared, cells, newest, tag, t, numbers):
        _, weights, _, exchange, _, _, _, y = arrays
        num_rows, num_steps, _, _, first_step = numbers
        base, tid = shared_address(shared), int64(cuda.threadIdx.x)
        row, column = tid // columns, tid % columns
        unit = int64(cuda.blockIdx.x) * own + column // width
        has_sum = row < num_rows and unit < size
        stage_x(arrays, shared, tag, t, numbers)
        if x_end > num_x:
            _clear(shared, x_first, x_stride, num_x, x_end, num_rows, threads)
        cuda.syncthreads()
        total = _ZERO
        if has_sum:
            total = weights[_index(bias + unit * width + column % width)]
        if has_sum and not (is_gru and column & 3 == 3):
            vector = i32(base + 4 * (x_first + row * x_stride))
            weight = i32(base + 4 * (place + column * 4))
            total = _add_products(total, vector, weight, x_groups, w_step)
        if is_head:
            if has_sum:
                if is_scaled:
                    total = multiply(total, weights[_index(scales + unit)])
                write_output(arrays, shared, t, num_steps, row, unit, total)
            cuda.syncthreads()  # the levels have been read: the next step may change them
            return
        stage_h(arrays, shared, tag, t, num_rows, first_step)
        if h_end > size:
            _clear(shared, h_first, h_stride, size, h_end, num_rows, threads)
        cuda.syncthreads()
        if has_sum and not (is_gru and column & 3 == 2):
            vector = i32(base + 4 * (h_first + row * h_stride))
            weight = i32(base + 4 * (h_place + column * 4))
            total = _add_products(total, vector, weight, h_groups, w_step)
        sums = sums_first + row * sums_stride + column
        if has_sum:
            if is_scaled:
                total = multiply(total, weights[_index(scales + unit * width + column % width)])
            shared[_index(sums)] = total
        cuda.syncthreads()
        if not has_sum or column % width != 0:
            return
        if kind == DENSE:
            h = activate(activation, total)
        else:
            s1, s2 = shared[_index(sums + 1)], shared[_index(sums + 2)]
            s3 = shared[_index(sums + 3)]
            if is_lstm:
                cells[index] = lstm_cell(total, s1, s2, cells[index])
                h = lstm_output(s3, cells[index])
            else:
                h = gru_output(total, s1, s2, s3, shared[_index(h_first + row * h_stride + unit)])
        newest[index] = h
        publish(exchange, words + (t & 1) * row_words + row * size + unit, tag, h)
        if is_output:
            y[_index((row * num_steps + t) * size + unit)] = h

    return step


def _make_keep(shape: PersistentShape, index: int) -> Any:
    """Return the device function that brings a thread's c, or puts h and c back at step ``end``."""
    layer = shape.layers[index]
    own, columns, size = shape.own(layer), shape.columns(layer), layer.size
    width, is_lstm = SHAPES[layer.cell.kind].num_accumulators, layer.cell.kind == LSTM
    state, other, cell = layer.state, layer.other, layer.state + layer.num_units

    @device_function
    def keep(plan, slab, slots, cells, newest, num_rows, end):
        row, column = int64(cuda.threadIdx.x) // columns, int64(cuda.threadIdx.x) % columns
        unit = int64(cuda.blockIdx.x) * own + column // width
        if row >= num_rows or unit >= size or column % width != 0:
            return
        code = int64(slots[_index(row)])
        stream = (code >> 1) * plan[p.ROW_SIZE]
        if end >= 0:
            slab[_index(stream + state + half_of(code, end) * other + unit)] = newest[index]
            if is_lstm:
                slab[_index(stream + cell + unit)] = cells[index]
        elif is_lstm:
            cells[index] = slab[_index(stream + cell + unit)]

    return keep


@functools.cache
def make_persistent_kernel(shape: PersistentShape) -> Any:
    """Return the kernel that advances a few streams by two or more steps.

    Grid: the blocks of the shape, all running at once; dynamic shared memory: its bytes.
    Arguments: ``plan``, ``weights``, ``slab``, ``slots`` as in `make_layer_kernel`; ``exchange``
    int64[`exchange_size`], of nobody else; ``x`` float32[:] and ``tokens`` int32[:], the batch's
    inputs, which are the same memory; ``y`` float32[:], for the outputs (a softmax is left to
    `make_softmax_kernel`); the batch's numbers of rows and of steps; ``x_start`` and ``x_stride``,
    where each row's inputs lie; ``step``, the first of the batch.
    """
    places, place = [], shape.first_weight
    for layer in shape.layers:
        places.append(place)
        place += (_padded(layer.num_x) + _padded(layer.num_h)) * shape.columns(layer)
    num_products, num_layers = len(shape.layers), len(shape.layers) - shape.has_head
    load_all = chained([_make_load(shape, shape.layers[i], places[i]) for i in range(num_products)])
    step_all = chained([_make_step(shape, i, places[i]) for i in range(num_products)])
    keep_all = chained([_make_keep(shape, i) for i in range(num_layers)])
    threads, memory_size = shape.threads, shape.memory_size
    first_weight = shape.first_weight

    @kernel(threads)
    def step_persistent(
        plan,
        weights,
        slab,
        exchange,
        slots,
        x,
        tokens,
        y,
        num_rows,
        num_steps,
        x_start,
        x_stride,
        step,
    ):
        shared = cuda.shared.array(0, float32)
        cells = cuda.local.array(num_products, float32)
        newest = cuda.local.array(num_products, float32)
        arrays = (plan, weights, slab, exchange, slots, x, tokens, y)
        numbers = (num_rows, num_steps, x_start, x_stride, step)
        tid = int64(cuda.threadIdx.x)
        number = exchange[0]  # of the launches' steps so far
        for i in range(tid, first_weight, threads):
            shared[_index(i)] = _ZERO
        cuda.syncthreads()
        for i in range(tid, num_rows * memory_size, threads):
            row, k = i // memory_size, i % memory_size
            stream = (int64(slots[_index(row)]) >> 1) * plan[p.ROW_SIZE]
            shared[_index(i)] = slab[_index(stream + k)]
        load_all(weights, shared)
        keep_all(plan, slab, slots, cells, newest, num_rows, -1)
        cuda.syncthreads()
        for t in range(num_steps):
            tag = i32((number + t + 1) & _TAG_MASK)
            step_all(arrays, shared, cells, newest, tag, t, numbers)
        keep_all(plan, slab, slots, cells, newest, num_rows, step + num_steps)
        if cuda.blockIdx.x == 0:
            for i in range(tid, num_rows * memory_size, threads):
                row, k = i // memory_size, i % memory_size
                stream = (int64(slots[_index(row)]) >> 1) * plan[p.ROW_SIZE]
                slab[_index(stream + k)] = shared[_index(i)]
            if tid == 0:
                exchange[0] = number + num_steps

    return step_persistent
