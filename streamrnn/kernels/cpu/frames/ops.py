"""The operations that a model's layers are lowered to, on the frames of many streams.

A batch is one step of many streams, or many steps of one stream in their order: an operation with
a state goes through it row by row, so that it does not matter which. All frames of a step lie in
one row of the scratch (`Plan.values`); what is kept from step to step lies in the stream's row.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from streamrnn.kernels.cpu.activations import activate
from streamrnn.kernels.cpu.frames import passes
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, Op, Plan
from streamrnn.kernels.cpu.staged.passes import normalise
from streamrnn.kernels.cpu.tiling import run_product, set_weights
from streamrnn.kernels.gates import DENSE
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    copy_floats,
    fill_bytes,
    load_f32,
    load_i64,
    store_f32,
    store_i64,
)

__all__ = [
    "ACTIVATE",
    "COPY",
    "DEPTHWISE",
    "INPUT",
    "MAGNITUDE",
    "MAX_POOL",
    "MEAN_POOL",
    "MEMORY",
    "MULTIPLY",
    "NORM",
    "PRODUCT",
    "RECURRENT",
    "ROW",
    "SCALE",
    "SCRATCH",
    "SUM",
    "TAPS",
    "frame_at",
    "run_frame_op",
]

SCRATCH, ROW, INPUT = range(3)
(
    RECURRENT,
    PRODUCT,
    COPY,
    ACTIVATE,
    SCALE,
    NORM,
    SUM,
    MULTIPLY,
    MAGNITUDE,
    MAX_POOL,
    MEAN_POOL,
    DEPTHWISE,
    MEMORY,
    TAPS,
) = range(14)


@jit
def frame_at(plan: Plan, base: int, offset: int, i: int, rows: int, inputs: int):
    """Return the address of a frame of row i; ``rows`` and ``inputs`` are tables of addresses."""
    if base == SCRATCH:
        return plan.values + i * plan.value_stride + offset
    if base == ROW:
        return load_i64(rows + 8 * i) + offset
    return load_i64(inputs + 8 * i) + offset


@jit
def run_frame_op(plan: Plan, op: Op, rows: int, inputs: int, num_rows: int) -> None:
    """Compute one operation, other than a recurrent layer, for all rows of a batch."""
    code = op.code
    if code == PRODUCT:
        _multiply_windows(plan, op, rows, inputs, num_rows)
        return
    for i in range(num_rows):
        x = frame_at(plan, op.in_base, op.in_offset, i, rows, inputs)
        out = frame_at(plan, op.out_base, op.out_offset, i, rows, inputs)
        other = frame_at(plan, op.other_base, op.other_offset, i, rows, inputs)
        if code == COPY:
            for k in range(op.num_runs):
                run = op.runs + 24 * k
                source, target = x + load_i64(run), out + load_i64(run + 8)
                copy_bytes(target, source, load_i64(run + 16))
        elif code == MEMORY:
            _remember(op, x, other, out)
        elif code == TAPS:
            _take_taps(op, x, other, out)
        else:
            _run_places(op, x, other, out)


@jit
def _run_places(op: Op, x: int, other: int, out: int) -> None:
    """Compute what goes place by place."""
    code, size = op.code, op.size
    for p in range(op.length):
        target = out + p * op.out_pitch
        source, beside = x + p * op.in_pitch, other + p * op.other_pitch
        if code == ACTIVATE:
            copy_floats(target, source, 4 * size)
            activate(op.activation, target, size, op.slopes)
        elif code == SCALE:
            passes.scale(source, op.gain, op.bias, target, size)
        elif code == NORM:
            num_bytes = op.out_pitch
            normalise(source, size, num_bytes, op.mask, op.factor, op.gain, op.bias, target)
        elif code == SUM:
            passes.add_scaled(source, op.factor, beside, op.other_factor, target, size)
        elif code == MULTIPLY:
            passes.multiply(source, beside, target, size)
        elif code == MAGNITUDE:
            passes.magnitude(source, beside, target, size)
        elif code == DEPTHWISE:
            _multiply_channels(op, x + p * op.step, target)
        else:
            _pool(op, x + p * op.step, target)
        if op.pads:
            fill_bytes(target + 4 * size, op.out_pitch - 4 * size, 0)


@jit
def _pool(op: Op, x: int, target: int) -> None:
    """Take the largest or the mean of a window's places."""
    size = op.size
    copy_floats(target, x, op.out_pitch)
    for k in range(1, op.window):
        if op.code == MAX_POOL:
            passes.larger(target, x + k * op.in_pitch, target, size)
        else:
            passes.add(target, x + k * op.in_pitch, target, size)
    if op.code == MEAN_POOL:
        passes.scale_by(target, op.factor, target, size)


@jit
def _multiply_channels(op: Op, x: int, target: int) -> None:
    """Convolve every channel with a kernel of its own; the bias is added last."""
    size = op.size
    fill_bytes(target, op.out_pitch, 0)
    for k in range(op.window):
        passes.accumulate(x + k * op.in_pitch, op.gain + k * op.out_pitch, target, size)
    passes.add(target, op.bias, target, size)
    activate(op.activation, target, size, op.slopes)


@jit
def _multiply_windows(plan: Plan, op: Op, rows: int, inputs: int, num_rows: int) -> None:
    """Multiply every window of every row with a matrix: a dense layer, or a convolution.

    Windows overlap in memory, nothing is copied. Together go the same windows of all rows, or all
    windows of a row, whichever are more: the bits are the same.
    """
    product, pointers, length = plan.product, plan.x_pointers, op.length
    for i in range(num_rows):
        store_i64(pointers + 8 * i, frame_at(plan, op.in_base, op.in_offset, i, rows, inputs))
    set_weights(product, DENSE, op.weights, 0, op.weights.num_panels)
    product.num_x, product.num_h = op.num_x, 0
    out = plan.values + op.out_offset
    if length <= num_rows:
        product.x_pointers, product.h_pointers = pointers, pointers
        product.num_rows, product.out_bytes = num_rows, plan.value_stride
        for p in range(length):
            if p:
                for i in range(num_rows):
                    store_i64(pointers + 8 * i, load_i64(pointers + 8 * i) + op.in_pitch)
            product.out = out + p * op.out_pitch
            run_product(plan.cover, product)
    else:
        windows = plan.h_pointers
        product.x_pointers, product.h_pointers = windows, windows
        product.out_bytes = op.out_pitch
        for i in range(num_rows):
            x = load_i64(pointers + 8 * i)
            for first in range(0, length, MAX_BATCH_ROWS):
                num = min(MAX_BATCH_ROWS, length - first)
                for p in range(num):
                    store_i64(windows + 8 * p, x + (first + p) * op.in_pitch)
                product.num_rows = num
                product.out = out + i * plan.value_stride + first * op.out_pitch
                run_product(plan.cover, product)
    if not (op.bias or op.activation):
        return
    for i in range(num_rows):
        for p in range(length):
            target = out + i * plan.value_stride + p * op.out_pitch
            if op.bias:
                passes.add(target, op.bias, target, op.size)
            activate(op.activation, target, op.size, op.slopes)
            if op.pads:
                fill_bytes(target + 4 * op.size, op.out_pitch - 4 * op.size, 0)


@jit
def _remember(op: Op, x: int, kept: int, out: int) -> None:
    """Put the last places of the frame before in front of this one, and keep this one's."""
    kept_bytes = op.window * op.in_pitch
    frame_bytes = op.length * op.in_pitch
    copy_bytes(out, kept, kept_bytes)
    copy_bytes(out + kept_bytes, x, frame_bytes)
    copy_bytes(kept, x + frame_bytes - kept_bytes, kept_bytes)


@jit
def _take_taps(op: Op, x: int, kept: int, out: int) -> None:
    """Put the inputs of the taps one after the other, the oldest first, and keep this one.

    ``kept`` is one float, where the oldest lies, in 64 bytes; then the inputs of so many steps, in
    a ring.
    """
    num_bytes, num_taps, step = op.in_pitch, op.window, op.step
    num_kept = (num_taps - 1) * step
    copy_bytes(out + (num_taps - 1) * num_bytes, x, num_bytes)
    if num_kept == 0:
        return
    # A row may have come from outside: whatever the number is, it is used within the ring.
    position = load_f32(kept)
    first = np.int64(position) if 0 <= position < num_kept else 0
    ring = kept + 64
    for k in range(num_taps - 1):
        place = first + k * step
        if place >= num_kept:
            place -= num_kept
        copy_bytes(out + k * num_bytes, ring + place * num_bytes, num_bytes)
    copy_bytes(ring + first * num_bytes, x, num_bytes)
    first += 1
    if first == num_kept:
        first = 0
    store_f32(kept, np.float32(first))
