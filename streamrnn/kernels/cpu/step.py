"""One time step of many streams on the CPU: features, operations, outputs.

All of it works on a plan (`streamrnn.kernels.cpu.plan`) and on addresses. Its callers, the Engine
and the server's shard loop, vouch for them: rows and outputs are writable and distinct, x has
passed `check_input`, and no other thread uses the plan now. A row is 64-byte aligned; x is
float32[num_inputs] (uint32 for tokens), y float32[output_size].
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from streamrnn.kernels.cpu.activations import activate
from streamrnn.kernels.cpu.features import check_input, is_masked, write_features
from streamrnn.kernels.cpu.frames.ops import INPUT, RECURRENT, frame_at, run_frame_op
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, Layer, Op, Plan, layer_at, op_at
from streamrnn.kernels.cpu.staged.step import run_staged_layer, step_staged_layer
from streamrnn.kernels.cpu.tiles import VECTOR_BYTES
from streamrnn.kernels.cpu.tiling import continue_sums, run_product, set_weights
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

__all__ = ["check_input", "output_of_row", "step_chunk", "step_rows"]

_OP_BYTES = Op.dtype.itemsize
# How a batch is computed: one step of many streams; many steps of one; the output once more, from
# the states alone.
_STEP, _RUN, _HELD = range(3)
_TABLE_BYTES = 8 * MAX_BATCH_ROWS


@jit
def step_rows(plan: Plan, rows, xs, ys, num_rows: int) -> None:
    """Advance up to `MAX_BATCH_ROWS` streams by one time step each, and write their outputs.

    ``rows``, ``xs`` and ``ys`` are arrays of addresses, the rows all different.
    """
    # Addresses of arrays are uint64, and that with an int64 would make a float64.
    rows_at, xs_at, ys_at = (
        np.int64(rows.ctypes.data),
        np.int64(xs.ctypes.data),
        np.int64(ys.ctypes.data),
    )
    num_held = 0
    if plan.has_mask:
        rows_at, xs_at, ys_at, num_held = _part_masked(plan, rows_at, xs_at, ys_at, num_rows)
    num_stepped = num_rows - num_held
    for first in range(0, num_stepped, plan.block_rows):
        num, at = min(plan.block_rows, num_stepped - first), 8 * first
        _step_block(plan, rows_at + at, xs_at + at, ys_at + at, num)
    for i in range(num_stepped, num_rows):
        output_of_row(plan, load_i64(rows_at + 8 * i), load_i64(ys_at + 8 * i))


@jit
def step_chunk(plan: Plan, row: int, x: int, y: int, num_steps: int) -> None:
    """Advance one stream by many time steps: the same bits as step by step, but faster.

    Each layer runs through a run of steps before the next one starts, and its product with x is
    done for all of them at once. The sums wait as float32 until the product with h goes on, just
    as they would have stayed in a register. x and y lie one step after the other.
    """
    x_bytes, y_bytes = 4 * plan.num_inputs, 4 * plan.output_size
    first = 0
    while first < num_steps:
        x_at, y_at = x + first * x_bytes, y + first * y_bytes
        if plan.has_mask and is_masked(plan, x_at):
            output_of_row(plan, row, y_at)
            first += 1
            continue
        num, most = 1, min(plan.block_rows, num_steps - first)
        if plan.steps_alone:
            most = 1
        while num < most and not (plan.has_mask and is_masked(plan, x_at + num * x_bytes)):
            num += 1
        _step_run(plan, row, x_at, y_at, num)
        first += num


@jit
def output_of_row(plan: Plan, row: int, y: int) -> None:
    """Write a stream's last output once more, from its row alone."""
    if plan.last_y >= 0:
        copy_floats(y, row + plan.last_y, 4 * plan.output_size)
        return
    store_i64(plan.row_pointers, row)
    store_i64(plan.y_pointers, y)
    one = np.int64(1)  # a literal would let numba compile all operations once more, for it alone
    _run_ops(plan, plan.row_pointers, plan.row_pointers, one, _HELD)
    _write_outputs(plan, plan.row_pointers, plan.y_pointers, one)


@jit
def _part_masked(plan: Plan, rows: int, xs: int, ys: int, num_rows: int):
    """Sort streams into those that take a step and, after them, those that are masked."""
    tables = plan.masked
    new_rows, new_xs, new_ys = tables, tables + _TABLE_BYTES, tables + 2 * _TABLE_BYTES
    num_stepped, end = 0, num_rows
    for i in range(num_rows):
        if is_masked(plan, load_i64(xs + 8 * i)):
            end -= 1
            place = end
        else:
            place = num_stepped
            num_stepped += 1
        store_i64(new_rows + 8 * place, load_i64(rows + 8 * i))
        store_i64(new_xs + 8 * place, load_i64(xs + 8 * i))
        store_i64(new_ys + 8 * place, load_i64(ys + 8 * i))
    return new_rows, new_xs, new_ys, num_rows - num_stepped


@jit
def _step_block(plan: Plan, rows: int, xs: int, ys: int, num_rows: int) -> None:
    """Advance some streams by one step each; ``rows``, ``xs`` and ``ys`` are tables."""
    inputs = xs
    if not plan.inputs_are_features:
        inputs = plan.input_pointers
        for i in range(num_rows):
            features = plan.features + i * plan.feature_stride
            write_features(plan, load_i64(rows + 8 * i), load_i64(xs + 8 * i), features)
            store_i64(inputs + 8 * i, features)
    _run_ops(plan, rows, inputs, num_rows, _STEP)
    _write_outputs(plan, rows, ys, num_rows)
    if plan.last_y >= 0:
        for i in range(num_rows):
            y = load_i64(ys + 8 * i)
            copy_floats(load_i64(rows + 8 * i) + plan.last_y, y, 4 * plan.output_size)


@jit
def _step_run(plan: Plan, row: int, x: int, y: int, num_steps: int) -> None:
    """Advance one stream by at most ``block_rows`` steps."""
    rows, inputs = plan.row_pointers, plan.input_pointers
    level_pointers, y_pointers = plan.level_pointers, plan.y_pointers
    for t in range(num_steps):
        features = x + 4 * t * plan.num_inputs
        if not plan.inputs_are_features:
            features = plan.features + t * plan.feature_stride
            write_features(plan, row, x + 4 * t * plan.num_inputs, features)
        store_i64(inputs + 8 * t, features)
        store_i64(rows + 8 * t, row)
        levels = plan.levels + t * plan.level_stride
        copy_bytes(levels, row, plan.level_stride)
        store_i64(level_pointers + 8 * t, levels)
        store_i64(y_pointers + 8 * t, y + 4 * t * plan.output_size)
    _run_ops(plan, rows, inputs, num_steps, _RUN)
    _write_outputs(plan, level_pointers, y_pointers, num_steps)
    if plan.last_y >= 0:
        last = y + 4 * (num_steps - 1) * plan.output_size
        copy_floats(row + plan.last_y, last, 4 * plan.output_size)


@jit
def _run_ops(plan: Plan, rows: int, inputs: int, num_rows: int, way: int) -> None:
    """Compute all operations of a step, or those that follow from the states."""
    for k in range(plan.num_ops):
        op = op_at(plan.ops + k * _OP_BYTES)
        if way == _HELD and not op.is_held:
            continue
        if op.code != RECURRENT:
            run_frame_op(plan, op, rows, inputs, num_rows)
            continue
        layer, out = layer_at(op.layer), plan.values + op.out_offset
        if way == _HELD:
            copy_floats(out, load_i64(rows) + layer.h_offset, 4 * op.size)
            continue
        x_pointers = inputs
        if op.in_base != INPUT:
            x_pointers = plan.x_pointers
            for i in range(num_rows):
                x = frame_at(plan, op.in_base, op.in_offset, i, rows, inputs)
                store_i64(x_pointers + 8 * i, x)
        if way == _RUN:
            _run_layer(plan, layer, load_i64(rows), x_pointers, out, num_rows)
        else:
            h_pointers = plan.h_pointers
            for i in range(num_rows):
                store_i64(h_pointers + 8 * i, load_i64(rows + 8 * i) + layer.h_offset)
            _step_layer(plan, layer, x_pointers, h_pointers, out, num_rows)
        if op.pads:  # Inf times a weight of zero is a NaN, which whole places would carry on
            for i in range(num_rows):
                end = out + i * plan.value_stride + 4 * op.size
                fill_bytes(end, op.out_pitch - 4 * op.size, 0)


@jit
def _step_layer(
    plan: Plan, layer: Layer, x_pointers: int, h_pointers: int, out: int, num_rows: int
) -> None:
    """Compute one layer's new h (and c, in place) for all rows, then put h into the rows.

    ``out`` is the address of the first row's new h in the scratch.
    """
    if layer.stages:
        step_staged_layer(plan, layer, x_pointers, h_pointers, out, num_rows)
        return
    num_panels, product = layer.num_panels, plan.product
    set_weights(product, layer.kind, layer.weights, 0, num_panels)
    product.num_rows = num_rows
    product.x_pointers, product.num_x = x_pointers, layer.num_x
    product.h_pointers, product.num_h = h_pointers, layer.hidden_size
    product.out, product.out_bytes = out, plan.value_stride
    product.cell_offset = num_panels * VECTOR_BYTES
    run_product(plan.cover, product)
    for i in range(num_rows):
        new_h = out + i * plan.value_stride
        if layer.activation:
            activate(layer.activation, new_h, layer.hidden_size, 0)
        copy_floats(load_i64(h_pointers + 8 * i), new_h, num_panels * VECTOR_BYTES)


@jit
def _run_layer(
    plan: Plan, layer: Layer, row: int, x_pointers: int, out: int, num_steps: int
) -> None:
    """Run one layer through steps of one stream, and write its h of each to the scratch."""
    if layer.stages:
        run_staged_layer(plan, layer, row, x_pointers, out, num_steps)
        return
    num_panels, product, h_pointers = layer.num_panels, plan.product, plan.h_pointers
    sums, sums_stride = plan.sums, plan.sums_stride
    set_weights(product, layer.kind, layer.weights, 0, num_panels)
    product.num_rows = num_steps
    product.x_pointers, product.num_x = x_pointers, layer.num_x
    product.h_pointers, product.num_h = x_pointers, 0
    product.out, product.out_bytes, product.is_partial = sums, sums_stride, 1
    run_product(plan.cover, product)

    h = row + layer.h_offset
    store_i64(h_pointers, h)
    continue_sums(product, layer.weights, sums, 0)
    product.num_rows = 1
    product.x_pointers, product.num_x = h_pointers, 0
    product.h_pointers, product.num_h = h_pointers, layer.hidden_size
    product.cell_offset, product.is_partial = num_panels * VECTOR_BYTES, 0
    for t in range(num_steps):
        new_h = out + t * plan.value_stride
        product.start, product.out = sums + t * sums_stride, new_h
        run_product(plan.cover, product)
        if layer.activation:
            activate(layer.activation, new_h, layer.hidden_size, 0)
        copy_floats(h, new_h, num_panels * VECTOR_BYTES)


@jit
def _write_outputs(plan: Plan, level_pointers: int, y_pointers: int, num_rows: int) -> None:
    """Write y from the last frame, in the user's units."""
    output_size, channels = plan.output_size, plan.output_channels
    for i in range(num_rows):
        out = plan.values + i * plan.value_stride + plan.output_offset
        y = load_i64(y_pointers + 8 * i)
        if not plan.outputs_are_plain:
            for j in range(output_size):
                value = load_f32(out + 4 * j) + load_f32(plan.output_centers + 4 * j)
                offset = load_i64(plan.output_levels + 8 * j)
                if offset >= 0:
                    level = load_f32(load_i64(level_pointers + 8 * i) + offset)
                    if math.isnan(level):
                        level = load_f32(plan.output_fills + 4 * j)
                    value += level
                store_f32(out + 4 * j, value)
        for first in range(0, output_size, channels):
            copy_floats(y + 4 * first, out, 4 * channels)
            out += plan.output_pitch
