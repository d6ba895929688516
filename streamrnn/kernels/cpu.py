"""One time step of many streams on the CPU: features, layers, outputs.

All of it works on a plan (`streamrnn.kernels.plan`) and on addresses. Its callers, the Engine and
the server's shard loop, vouch for them: rows and outputs are writable and distinct, x has passed
`check_input`.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from streamrnn.kernels import plan as p
from streamrnn.kernels.activations import IDENTITY, activate
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    fill_bytes,
    load_f32,
    load_i64,
    load_u32,
    store_f32,
    store_i64,
)
from streamrnn.kernels.tiles import DENSE, MAX_PANELS, MAX_ROWS, SHAPES, VECTOR_BYTES, tile

__all__ = ["check_input", "output_of_row", "step_rows"]

_BIAS_VECTORS = np.array([SHAPES[kind].num_accumulators for kind in sorted(SHAPES)])
_GATES = np.array([len(SHAPES[kind].x_gates) for kind in sorted(SHAPES)])
_MAX_FINITE = float(np.finfo(np.float32).max)


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
        1 to `MAX_WAVE`.
    """
    x_pointers = plan[p.X_POINTERS]
    h_pointers = plan[p.H_POINTERS]
    if plan[p.INPUTS_ARE_FEATURES]:
        x_pointers = xs.ctypes.data
    else:
        for i in range(num_rows):
            features = plan[p.FEATURES] + i * plan[p.FEATURE_STRIDE]
            _write_features(plan, rows[i], xs[i], features)
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
    _write_outputs(plan, rows, ys, num_rows)


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
    rows = np.empty(1, dtype=np.int64)
    ys = np.empty(1, dtype=np.int64)
    rows[0] = row
    ys[0] = y
    store_i64(plan[p.X_POINTERS], row + plan[p.LAST_H])
    _write_outputs(plan, rows, ys, 1)


@jit
def check_input(plan, x, num_steps):
    """Find the first element of an input that the model does not take.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of the stream's model.
    x : int64
        Address of num_steps * num_inputs elements.
    num_steps : int64
        T.

    Returns
    -------
    int64
        -1 if all may pass, else ``step * num_inputs + input`` of the first that may not: an
        infinity, a NaN where the model has no meaning for it, an index that is no category.
    """
    num_inputs = plan[p.NUM_INPUTS]
    if plan[p.INPUTS_ARE_FEATURES]:
        for i in range(num_steps * num_inputs):
            if not abs(load_f32(x + 4 * i)) <= _MAX_FINITE:
                return i
        return -1
    for i in range(num_steps * num_inputs):
        item = plan[p.INPUT_TABLE] + 8 * p.INPUT_WORDS * (i % num_inputs)
        kind = load_i64(item + 8 * p.INPUT_KIND)
        if kind == p.TOKEN:
            if load_u32(x + 4 * i) >= load_i64(item + 8 * p.NUM_CATEGORIES):
                return i
            continue
        value = load_f32(x + 4 * i)
        if kind == p.CATEGORICAL:
            num_categories = load_i64(item + 8 * p.NUM_CATEGORIES)
            if not (0 <= value < num_categories and value == math.floor(value)):
                return i
        elif math.isnan(value):
            if load_i64(item + 8 * p.MISSING) == p.MISSING_ERROR:
                return i
        elif math.isinf(value):
            return i
    return -1


@jit
def _write_features(plan, row, x, features):
    """Turn one stream's x into the first layer's input, and remember what must be."""
    for i in range(plan[p.NUM_INPUTS]):
        item = plan[p.INPUT_TABLE] + 8 * p.INPUT_WORDS * i
        target = features + 4 * load_i64(item + 8 * p.FEATURE)
        kind = load_i64(item + 8 * p.INPUT_KIND)
        if kind == p.NUMERIC:
            values = plan[p.INPUT_VALUES] + 8 * i
            _write_numeric(item, load_f32(values), load_f32(values + 4), row, x + 4 * i, target)
            continue
        index = load_u32(x + 4 * i) if kind == p.TOKEN else np.int64(load_f32(x + 4 * i))
        table = load_i64(item + 8 * p.EMBEDDING)
        if table:
            num_bytes = 4 * load_i64(item + 8 * p.EMBEDDING_SIZE)
            copy_bytes(target, table + index * num_bytes, num_bytes)
        else:
            fill_bytes(target, 4 * load_i64(item + 8 * p.NUM_CATEGORIES), 0)
            store_f32(target + 4 * index, np.float32(1.0))


@jit
def _write_numeric(item, center, fill, row, x, target):
    """Difference, centre, and the meaning of a missing value. See `InputSpec`."""
    missing = load_i64(item + 8 * p.MISSING)
    is_difference = load_i64(item + 8 * p.IS_DIFFERENCE)
    memory_offset = load_i64(item + 8 * p.MEMORY)
    value = load_f32(x)
    is_missing = math.isnan(value)
    before = np.float32(math.nan)
    if memory_offset >= 0:
        before = load_f32(row + memory_offset)
    if is_missing:
        value = fill
        if memory_offset >= 0 and not math.isnan(before):
            value = before
    feature = value
    if is_difference:
        feature = np.float32(0.0) if math.isnan(before) else value - before
    store_f32(target, feature - center)
    if missing == p.MISSING_MASK:
        store_f32(target + 4, np.float32(1.0) if is_missing else np.float32(0.0))
    if memory_offset >= 0:
        store_f32(row + memory_offset, value)


@jit
def _step_layer(plan, words, x_pointers, h_pointers, num_rows):
    """Compute one layer's new h (and c, in place) for all rows, then put h into the rows."""
    kind = plan[words + p.KIND]
    hidden_size = plan[words + p.HIDDEN_SIZE]
    num_panels = plan[words + p.NUM_PANELS]
    _run_tiles(
        kind,
        plan[words + p.WEIGHTS],
        num_panels,
        x_pointers,
        plan[words + p.NUM_X],
        h_pointers,
        hidden_size,
        plan[p.HIDDEN],
        plan[p.HIDDEN_STRIDE],
        num_rows,
    )
    activation = plan[words + p.ACTIVATION]
    for i in range(num_rows):
        new_h = plan[p.HIDDEN] + i * plan[p.HIDDEN_STRIDE]
        if activation != IDENTITY:
            activate(activation, new_h, hidden_size)
        copy_bytes(load_i64(h_pointers + 8 * i), new_h, num_panels * VECTOR_BYTES)


@jit
def _run_tiles(
    kind, weights, num_panels, x_pointers, num_x, h_pointers, num_h, out, out_stride, num_rows
):
    """Cover all panels and rows with tiles. A panel stays in the cache for all its rows."""
    cell_offset = num_panels * VECTOR_BYTES
    vectors = _BIAS_VECTORS[kind] + _GATES[kind] * (num_x + num_h)
    panel_bytes = vectors * VECTOR_BYTES
    first = 0
    while first < num_rows:
        tile_rows = min(MAX_ROWS, num_rows - first)
        last = first + (num_rows - first) // tile_rows * tile_rows
        together = MAX_PANELS[kind, tile_rows]
        panel = 0
        while panel < num_panels:
            while panel + together > num_panels:
                together //= 2
            for row in range(first, last, tile_rows):
                tile(
                    kind,
                    tile_rows,
                    together,
                    weights + panel * panel_bytes,
                    x_pointers + 8 * row,
                    num_x,
                    h_pointers + 8 * row,
                    num_h,
                    panel * VECTOR_BYTES,
                    cell_offset,
                    out + row * out_stride,
                    out_stride,
                )
            panel += together
        first = last


@jit
def _write_outputs(plan, rows, ys, num_rows):
    """Write y from the last h: as it is, or through the head."""
    output_size = plan[p.OUTPUT_SIZE]
    weights = plan[p.HEAD_WEIGHTS]
    if not weights:
        for i in range(num_rows):
            copy_bytes(ys[i], rows[i] + plan[p.LAST_H], 4 * output_size)
        return
    x_pointers = plan[p.X_POINTERS]
    _run_tiles(
        DENSE,
        weights,
        plan[p.HEAD_PANELS],
        x_pointers,
        plan[p.LAST_SIZE],
        x_pointers,
        0,
        plan[p.HIDDEN],
        plan[p.HIDDEN_STRIDE],
        num_rows,
    )
    for i in range(num_rows):
        out = plan[p.HIDDEN] + i * plan[p.HIDDEN_STRIDE]
        activate(plan[p.HEAD_ACTIVATION], out, output_size)
        if not plan[p.OUTPUTS_ARE_PLAIN]:
            for j in range(output_size):
                y = load_f32(out + 4 * j) + load_f32(plan[p.OUTPUT_CENTERS] + 4 * j)
                level = load_i64(plan[p.OUTPUT_LEVELS] + 8 * j)
                if level >= 0:
                    y += load_f32(rows[i] + level)
                store_f32(out + 4 * j, y)
        copy_bytes(ys[i], out, 4 * output_size)
