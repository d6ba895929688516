"""One time step of many streams on the CPU: features, layers, outputs.

All of it works on a plan (`streamrnn.kernels.cpu.plan`) and on addresses. Its callers, the Engine
and the server's shard loop, vouch for them: rows and outputs are writable and distinct, x has
passed `check_input`, and no other thread uses the plan now. A row is 64-byte aligned; x is
float32[num_inputs] (uint32 for tokens), y float32[output_size].
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np

from streamrnn.kernels.cpu.activations import activate
from streamrnn.kernels.cpu.features import check_input, write_features
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, Layer, Plan, layer_at
from streamrnn.kernels.cpu.staged.step import run_staged_layer, step_staged_layer
from streamrnn.kernels.cpu.tiles import VECTOR_BYTES
from streamrnn.kernels.cpu.tiling import continue_sums, run_product, set_weights
from streamrnn.kernels.gates import DENSE
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    copy_floats,
    load_f32,
    load_i64,
    store_f32,
    store_i64,
)

__all__ = ["check_input", "output_of_row", "step_chunk", "step_rows"]

_LAYER_BYTES = Layer.dtype.itemsize


@jit
def step_rows(plan: Plan, rows, xs, ys, num_rows: int) -> None:
    """Advance up to `MAX_BATCH_ROWS` streams by one time step each, and write their outputs.

    ``rows``, ``xs`` and ``ys`` are arrays of addresses, the rows all different.
    """
    x_pointers: Any = plan.x_pointers
    h_pointers = plan.h_pointers
    if plan.inputs_are_features:
        x_pointers = np.int64(xs.ctypes.data)
    else:
        for i in range(num_rows):
            features = plan.features + i * plan.feature_stride
            write_features(plan, rows[i], xs[i], features)
            store_i64(x_pointers + 8 * i, features)
    for k in range(plan.num_layers):
        layer = layer_at(plan.layers + k * _LAYER_BYTES)
        for i in range(num_rows):
            store_i64(h_pointers + 8 * i, rows[i] + layer.h_offset)
        _step_layer(plan, layer, x_pointers, h_pointers, num_rows)
        # This layer's h is the next one's x.
        x_pointers = plan.x_pointers
        for i in range(num_rows):
            store_i64(x_pointers + 8 * i, rows[i] + layer.h_offset)
    # Addresses of arrays are uint64, and that with an int64 would make a float64.
    rows_address, ys_address = np.int64(rows.ctypes.data), np.int64(ys.ctypes.data)
    _write_outputs(plan, x_pointers, rows_address, ys_address, num_rows)


@jit
def step_chunk(plan: Plan, row: int, x: int, y: int, num_steps: int) -> None:
    """Advance one stream by many time steps: the same bits as step by step, but faster.

    Each layer runs through a run of steps before the next one starts, and its product with x is
    done for all of them at once. The sums wait as float32 until the product with h goes on, just
    as they would have stayed in a register. x and y lie one step after the other.
    """
    for first in range(0, num_steps, MAX_BATCH_ROWS):
        num = min(MAX_BATCH_ROWS, num_steps - first)
        _step_run(
            plan,
            row,
            x + 4 * first * plan.num_inputs,
            y + 4 * first * plan.output_size,
            num,
        )


@jit
def _step_run(plan: Plan, row: int, x: int, y: int, num_steps: int) -> None:
    """Advance one stream by at most `MAX_BATCH_ROWS` steps."""
    x_pointers, level_pointers, y_pointers = (
        plan.x_pointers,
        plan.level_pointers,
        plan.y_pointers,
    )
    for t in range(num_steps):
        features = x + 4 * t * plan.num_inputs
        if not plan.inputs_are_features:
            features = plan.features + t * plan.feature_stride
            write_features(plan, row, x + 4 * t * plan.num_inputs, features)
        store_i64(x_pointers + 8 * t, features)
        levels = plan.levels + t * plan.level_stride
        copy_bytes(levels, row, plan.level_stride)
        store_i64(level_pointers + 8 * t, levels)
        store_i64(y_pointers + 8 * t, y + 4 * t * plan.output_size)
    for k in range(plan.num_layers):
        layer = layer_at(plan.layers + k * _LAYER_BYTES)
        _run_layer(plan, layer, row, x_pointers, num_steps)
        for t in range(num_steps):
            store_i64(x_pointers + 8 * t, plan.sequence + t * plan.hidden_stride)
    _write_outputs(plan, x_pointers, level_pointers, y_pointers, num_steps)


@jit
def output_of_row(plan: Plan, row: int, y: int) -> None:
    """Write a stream's last output once more, from its state alone."""
    store_i64(plan.x_pointers, row + plan.last_h)
    store_i64(plan.level_pointers, row)
    store_i64(plan.y_pointers, y)
    _write_outputs(plan, plan.x_pointers, plan.level_pointers, plan.y_pointers, 1)


@jit
def _step_layer(plan: Plan, layer: Layer, x_pointers: int, h_pointers: int, num_rows: int) -> None:
    """Compute one layer's new h (and c, in place) for all rows, then put h into the rows."""
    if layer.stages:
        step_staged_layer(plan, layer, x_pointers, h_pointers, num_rows)
        return
    num_panels, product = layer.num_panels, plan.product
    set_weights(product, layer.kind, layer.weights, 0, num_panels)
    product.num_rows = num_rows
    product.x_pointers, product.num_x = x_pointers, layer.num_x
    product.h_pointers, product.num_h = h_pointers, layer.hidden_size
    product.out, product.out_bytes = plan.hidden, plan.hidden_stride
    product.cell_offset = num_panels * VECTOR_BYTES
    run_product(plan.cover, product)
    for i in range(num_rows):
        new_h = plan.hidden + i * plan.hidden_stride
        if layer.activation:
            activate(layer.activation, new_h, layer.hidden_size)
        copy_floats(load_i64(h_pointers + 8 * i), new_h, num_panels * VECTOR_BYTES)


@jit
def _run_layer(plan: Plan, layer: Layer, row: int, x_pointers: int, num_steps: int) -> None:
    """Run one layer through steps of one stream, and write its h of each to `Plan.sequence`."""
    if layer.stages:
        run_staged_layer(plan, layer, row, x_pointers, num_steps)
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
        new_h = plan.sequence + t * plan.hidden_stride
        product.start, product.out = sums + t * sums_stride, new_h
        run_product(plan.cover, product)
        if layer.activation:
            activate(layer.activation, new_h, layer.hidden_size)
        copy_floats(h, new_h, num_panels * VECTOR_BYTES)


@jit
def _write_outputs(
    plan: Plan, h_pointers: int, level_pointers: int, y_pointers: int, num_rows: int
) -> None:
    """Write y from the last h: as it is, or through the head."""
    output_size = plan.output_size
    if not plan.head.panels:
        for i in range(num_rows):
            y, h = load_i64(y_pointers + 8 * i), load_i64(h_pointers + 8 * i)
            copy_floats(y, h, 4 * output_size)
        return
    product = plan.product
    set_weights(product, DENSE, plan.head, 0, plan.head.num_panels)
    product.num_rows = num_rows
    product.x_pointers, product.num_x = h_pointers, plan.last_size
    product.h_pointers, product.num_h = h_pointers, 0
    product.out, product.out_bytes = plan.hidden, plan.hidden_stride
    run_product(plan.cover, product)
    for i in range(num_rows):
        out = plan.hidden + i * plan.hidden_stride
        activate(plan.head_activation, out, output_size)
        if not plan.outputs_are_plain:
            for j in range(output_size):
                y = load_f32(out + 4 * j) + load_f32(plan.output_centers + 4 * j)
                level = load_i64(plan.output_levels + 8 * j)
                if level >= 0:
                    y += load_f32(load_i64(level_pointers + 8 * i) + level)
                store_f32(out + 4 * j, y)
        copy_floats(load_i64(y_pointers + 8 * i), out, 4 * output_size)
