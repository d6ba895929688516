"""One time step of many streams on the CPU: features, layers, outputs.

All of it works on a plan (`streamrnn.kernels.cpu.plan`) and on addresses. Its callers, the Engine
and the server's shard loop, vouch for them: rows and outputs are writable and distinct, x has
passed `check_input`.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from streamrnn.kernels.cpu import plan as p
from streamrnn.kernels.cpu.activations import activate
from streamrnn.kernels.cpu.features import check_input, write_features
from streamrnn.kernels.cpu.staged.step import run_staged_layer, step_staged_layer
from streamrnn.kernels.cpu.tiles import DENSE, SHAPES, VECTOR_BYTES
from streamrnn.kernels.cpu.tiling import run_tiles
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

# Bytes of one panel's accumulators: of its biases, and of the sums that a partial tile leaves.
_SUMS_BYTES = np.array([SHAPES[kind].num_accumulators * VECTOR_BYTES for kind in sorted(SHAPES)])


@jit
def step_rows(plan, rows, xs, ys, num_rows):
    """Advance streams by one time step each, and write their outputs.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of a `Program` that no other thread uses now.
    rows : ndarray of int64, shape (>= num_rows,)
        Addresses of the streams' rows, 64-byte aligned, all different.
    xs : ndarray of int64, shape (>= num_rows,)
        Addresses of the inputs, float32[num_inputs] (uint32 for tokens), checked.
    ys : ndarray of int64, shape (>= num_rows,)
        Addresses of the outputs, float32[output_size].
    num_rows : int64
        1 to `MAX_BATCH_ROWS`.
    """
    x_pointers = plan[p.X_POINTERS]
    h_pointers = plan[p.H_POINTERS]
    if plan[p.INPUTS_ARE_FEATURES]:
        x_pointers = xs.ctypes.data
    else:
        for i in range(num_rows):
            features = plan[p.FEATURES] + i * plan[p.FEATURE_STRIDE]
            write_features(plan, rows[i], xs[i], features)
            store_i64(x_pointers + 8 * i, features)
    for layer in range(plan[p.NUM_LAYERS]):
        words = p.FIRST_LAYER + layer * p.LAYER_WORDS
        for i in range(num_rows):
            store_i64(h_pointers + 8 * i, rows[i] + plan[words + p.H_OFFSET])
        _step_layer(plan, words, x_pointers, h_pointers, num_rows)
        # This layer's h is the next one's x.
        x_pointers = plan[p.X_POINTERS]
        for i in range(num_rows):
            store_i64(x_pointers + 8 * i, rows[i] + plan[words + p.H_OFFSET])
    _write_outputs(plan, x_pointers, rows.ctypes.data, ys.ctypes.data, num_rows)


@jit
def step_chunk(plan, row, x, y, num_steps):
    """Advance one stream by many time steps: the same bits as step by step, but faster.

    Each layer runs through a run of steps before the next one starts, and its product with x is
    done for all of them at once. The sums wait as float32 until the product with h goes on, just
    as they would have stayed in a register.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of a `Program` that no other thread uses now.
    row : int64
        Address of the stream's row, 64-byte aligned.
    x : int64
        Address of the inputs, float32[num_steps, num_inputs] (uint32 for tokens), checked.
    y : int64
        Address of the outputs, float32[num_steps, output_size].
    num_steps : int64
        T.
    """
    for first in range(0, num_steps, p.MAX_BATCH_ROWS):
        num = min(p.MAX_BATCH_ROWS, num_steps - first)
        _step_run(
            plan,
            row,
            x + 4 * first * plan[p.NUM_INPUTS],
            y + 4 * first * plan[p.OUTPUT_SIZE],
            num,
        )


@jit
def _step_run(plan, row, x, y, num_steps):
    """Advance one stream by at most `MAX_BATCH_ROWS` steps."""
    x_pointers, level_pointers, y_pointers = plan[p.X_POINTERS], plan[p.ROWS], plan[p.YS]
    for t in range(num_steps):
        features = x + 4 * t * plan[p.NUM_INPUTS]
        if not plan[p.INPUTS_ARE_FEATURES]:
            features = plan[p.FEATURES] + t * plan[p.FEATURE_STRIDE]
            write_features(plan, row, x + 4 * t * plan[p.NUM_INPUTS], features)
        store_i64(x_pointers + 8 * t, features)
        levels = plan[p.LEVELS] + t * plan[p.LEVEL_STRIDE]
        copy_bytes(levels, row, plan[p.LEVEL_STRIDE])
        store_i64(level_pointers + 8 * t, levels)
        store_i64(y_pointers + 8 * t, y + 4 * t * plan[p.OUTPUT_SIZE])
    for layer in range(plan[p.NUM_LAYERS]):
        words = p.FIRST_LAYER + layer * p.LAYER_WORDS
        _run_layer(plan, words, row, x_pointers, num_steps)
        for t in range(num_steps):
            store_i64(x_pointers + 8 * t, plan[p.SEQUENCE] + t * plan[p.HIDDEN_STRIDE])
    _write_outputs(plan, x_pointers, level_pointers, y_pointers, num_steps)


@jit
def output_of_row(plan, row, y):
    """Write a stream's last output once more, from its state alone.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of a `Program` that no other thread uses now.
    row : int64
        Address of the stream's row.
    y : int64
        Address of the output, float32[output_size].
    """
    store_i64(plan[p.X_POINTERS], row + plan[p.LAST_H])
    store_i64(plan[p.ROWS], row)
    store_i64(plan[p.YS], y)
    _write_outputs(plan, plan[p.X_POINTERS], plan[p.ROWS], plan[p.YS], 1)


@jit
def _step_layer(plan, words, x_pointers, h_pointers, num_rows):
    """Compute one layer's new h (and c, in place) for all rows, then put h into the rows."""
    if plan[words + p.STAGES]:
        step_staged_layer(plan, words, x_pointers, h_pointers, num_rows)
        return
    weights, num_panels = plan[words + p.WEIGHTS], plan[words + p.NUM_PANELS]
    kind, panel_bytes = plan[words + p.KIND], plan[words + p.PANEL_BYTES]
    run_tiles(
        plan[p.COVER],
        kind,
        num_panels,
        num_rows,
        (weights + plan[words + p.FIRST_WEIGHT], panel_bytes),
        (weights, 0, panel_bytes),
        (x_pointers, plan[words + p.NUM_X], h_pointers, plan[words + p.HIDDEN_SIZE]),
        (
            plan[p.HIDDEN],
            plan[p.HIDDEN_STRIDE],
            0,
            num_panels * VECTOR_BYTES,
            0,
            weights + _SUMS_BYTES[kind],
        ),
    )
    for i in range(num_rows):
        new_h = plan[p.HIDDEN] + i * plan[p.HIDDEN_STRIDE]
        if plan[words + p.ACTIVATION]:
            activate(plan[words + p.ACTIVATION], new_h, plan[words + p.HIDDEN_SIZE])
        copy_floats(load_i64(h_pointers + 8 * i), new_h, num_panels * VECTOR_BYTES)


@jit
def _run_layer(plan, words, row, x_pointers, num_steps):
    """Run one layer through steps of one stream, and write its h of each to SEQUENCE."""
    if plan[words + p.STAGES]:
        run_staged_layer(plan, words, row, x_pointers, num_steps)
        return
    kind, num_panels = plan[words + p.KIND], plan[words + p.NUM_PANELS]
    weights, h_pointers = plan[words + p.WEIGHTS], plan[p.H_POINTERS]
    panel_bytes = plan[words + p.PANEL_BYTES]
    sums, sums_stride = plan[p.SUMS], plan[p.SUMS_STRIDE]
    run_tiles(
        plan[p.COVER],
        kind,
        num_panels,
        num_steps,
        (weights + plan[words + p.FIRST_WEIGHT], panel_bytes),
        (weights, 0, panel_bytes),
        (x_pointers, plan[words + p.NUM_X], x_pointers, 0),
        (sums, sums_stride, 0, 0, 1, 0),
    )
    h = row + plan[words + p.H_OFFSET]
    store_i64(h_pointers, h)
    for t in range(num_steps):
        new_h = plan[p.SEQUENCE] + t * plan[p.HIDDEN_STRIDE]
        run_tiles(
            plan[p.COVER],
            kind,
            num_panels,
            1,
            (weights + plan[words + p.FIRST_H_WEIGHT], panel_bytes),
            (sums + t * sums_stride, 0, _SUMS_BYTES[kind]),
            (h_pointers, 0, h_pointers, plan[words + p.HIDDEN_SIZE]),
            (new_h, 0, 0, num_panels * VECTOR_BYTES, 0, weights + _SUMS_BYTES[kind]),
        )
        if plan[words + p.ACTIVATION]:
            activate(plan[words + p.ACTIVATION], new_h, plan[words + p.HIDDEN_SIZE])
        copy_floats(h, new_h, num_panels * VECTOR_BYTES)


@jit
def _write_outputs(plan, h_pointers, level_pointers, y_pointers, num_rows):
    """Write y from the last h: as it is, or through the head."""
    output_size = plan[p.OUTPUT_SIZE]
    weights = plan[p.HEAD_WEIGHTS]
    if not weights:
        for i in range(num_rows):
            y, h = load_i64(y_pointers + 8 * i), load_i64(h_pointers + 8 * i)
            copy_floats(y, h, 4 * output_size)
        return
    panel_bytes = plan[p.HEAD_PANEL_BYTES]
    run_tiles(
        plan[p.COVER],
        DENSE,
        plan[p.HEAD_PANELS],
        num_rows,
        (weights + plan[p.HEAD_FIRST_WEIGHT], panel_bytes),
        (weights, 0, panel_bytes),
        (h_pointers, plan[p.LAST_SIZE], h_pointers, 0),
        (plan[p.HIDDEN], plan[p.HIDDEN_STRIDE], 0, 0, 0, weights + VECTOR_BYTES),
    )
    for i in range(num_rows):
        out = plan[p.HIDDEN] + i * plan[p.HIDDEN_STRIDE]
        activate(plan[p.HEAD_ACTIVATION], out, output_size)
        if not plan[p.OUTPUTS_ARE_PLAIN]:
            for j in range(output_size):
                y = load_f32(out + 4 * j) + load_f32(plan[p.OUTPUT_CENTERS] + 4 * j)
                level = load_i64(plan[p.OUTPUT_LEVELS] + 8 * j)
                if level >= 0:
                    y += load_f32(load_i64(level_pointers + 8 * i) + level)
                store_f32(out + 4 * j, y)
        copy_floats(load_i64(y_pointers + 8 * i), out, 4 * output_size)
