"""The staged path: cells that need a whole row before they can go on.

The reset before the product, a projection and layer normalisation need all of a row at once; hard
sigmoids and peepholes stand here too, where a pass of their own costs little and the fused tiles
stay as they are. The order of sums is that of the tiles: bias, x with k ascending, h with k
ascending, each by one fused multiply-add.

First comes the product with x, for all rows of a batch or all steps of a chunk; then, for the rows
of a batch or for one step, all the rest. So a chunk has the bits of its steps.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from streamrnn.kernels.activations import TANH
from streamrnn.kernels.cpu.activations import activate
from streamrnn.kernels.cpu.plan import Layer, Plan, Stages, Weights, stages_at
from streamrnn.kernels.cpu.staged.passes import add_gated, blend, enter_cell, leave_cell, normalise
from streamrnn.kernels.cpu.tiles import VECTOR_BYTES
from streamrnn.kernels.cpu.tiling import continue_sums, run_product, set_weights
from streamrnn.kernels.gates import DENSE
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, fill_bytes, load_i64, store_i64

__all__ = ["run_staged_layer", "step_staged_layer"]

# Blocks of a row's scratch, beside the sums of the gates in the first ones.
_GRU_N = 2
_SHOWN, _OUT, _LSTM_G, _LSTM_O = 1, 2, 2, 3  # the first two of an LSTM whose i, f, g are spent

_WHOLE, _X_HALF, _H_HALF = range(3)  # of a product; the half with h goes on from that with x


@jit
def step_staged_layer(
    plan: Plan, layer: Layer, x_pointers: int, h_pointers: int, out: int, num_rows: int
) -> None:
    """Compute one layer's new h (and c, in place) for all rows, then put h into the rows."""
    stages = stages_at(layer.stages)
    _multiply_x(plan, layer, stages, x_pointers, num_rows)
    _finish(plan, layer, stages, plan.sums, h_pointers, out, num_rows)


@jit
def run_staged_layer(
    plan: Plan, layer: Layer, row: int, x_pointers: int, out: int, num_steps: int
) -> None:
    """Run one layer through steps of one stream, and write its h of each to the scratch."""
    stages = stages_at(layer.stages)
    _multiply_x(plan, layer, stages, x_pointers, num_steps)
    store_i64(plan.h_pointers, row + layer.h_offset)
    one = np.int64(1)  # not a literal, for which numba would compile `_finish` once more
    for t in range(num_steps):
        sums = plan.sums + t * plan.sums_stride
        new_h = out + t * plan.value_stride
        _finish(plan, layer, stages, sums, plan.h_pointers, new_h, one)


@jit
def _multiply(plan: Plan, weights: Weights, half, panels, inputs, target, num_rows: int) -> None:
    """Compute some panels of one product with one vector a row.

    ``panels`` are the first and the number of them, ``inputs`` the vectors' pointers and elements,
    ``target`` the first row's sums and the bytes between rows.
    """
    product = plan.product
    set_weights(product, DENSE, weights, panels[0], panels[1])
    product.out, product.out_bytes = target
    if half == _H_HALF:
        continue_sums(product, weights, target[0], target[1])
    product.is_partial = half == _X_HALF
    product.num_rows = num_rows
    product.x_pointers, product.num_x = inputs
    product.h_pointers, product.num_h = inputs[0], 0
    run_product(plan.cover, product)


@jit
def _multiply_x(plan: Plan, layer: Layer, stages: Stages, x_pointers: int, num_rows: int) -> None:
    """Put the biases and the products with x into the blocks of all gates."""
    num_joint = stages.num_joint * layer.num_panels
    num_apart = stages.num_apart * layer.num_panels
    sums, stride, inputs = plan.sums, plan.sums_stride, (x_pointers, layer.num_x)
    if num_joint:
        target = (sums, stride)
        _multiply(plan, stages.joint, _X_HALF, (0, num_joint), inputs, target, num_rows)
    if num_apart:
        target = (sums + num_joint * VECTOR_BYTES, stride)
        _multiply(plan, stages.x_alone, _WHOLE, (0, num_apart), inputs, target, num_rows)


@jit
def _multiply_h(
    plan: Plan,
    layer: Layer,
    stages: Stages,
    sums: int,
    h_pointers: int,
    num_joint: int,
    num_rows: int,
) -> None:
    """Add the products of the first gates with h to their sums, and put the others' beside."""
    num_panels, stride, inputs = (
        layer.num_panels,
        plan.sums_stride,
        (h_pointers, stages.output_size),
    )
    if num_joint:
        panels, target = (0, num_joint * num_panels), (sums, stride)
        _multiply(plan, stages.joint, _H_HALF, panels, inputs, target, num_rows)
    if stages.num_apart:
        panels = (0, stages.num_apart * num_panels)
        target = (sums + stages.h_block * num_panels * VECTOR_BYTES, stride)
        _multiply(plan, stages.h_alone, _WHOLE, panels, inputs, target, num_rows)


@jit
def _finish(
    plan: Plan,
    layer: Layer,
    stages: Stages,
    sums: int,
    h_pointers: int,
    out: int,
    num_rows: int,
) -> None:
    """Go from the products with x to the new h, in ``out`` and in the rows."""
    if stages.is_lstm:
        _finish_lstm(plan, layer, stages, sums, h_pointers, out, num_rows)
    else:
        _finish_gru(plan, layer, stages, sums, h_pointers, out, num_rows)
    h_bytes = stages.h_bytes
    for i in range(num_rows):
        copy_bytes(load_i64(h_pointers + 8 * i), out + i * plan.value_stride, h_bytes)


@jit
def _finish_lstm(
    plan: Plan,
    layer: Layer,
    stages: Stages,
    sums: int,
    h_pointers: int,
    out: int,
    num_rows: int,
) -> None:
    block, stride = layer.num_panels * VECTOR_BYTES, plan.value_stride
    is_hard, has_norm = stages.gates_are_hard, stages.has_norm
    has_projection = stages.projection.panels
    _multiply_h(plan, layer, stages, sums, h_pointers, stages.num_joint, num_rows)
    for i in range(num_rows):
        row = sums + i * plan.sums_stride
        cell = load_i64(h_pointers + 8 * i) + stages.h_bytes
        shown = cell
        if has_norm:
            _normalise_gates(layer, stages, row, stages.num_apart, block)
        if stages.candidate != TANH:
            _activate_block(stages, stages.candidate, row + _LSTM_G * block, layer, block)
        enter_cell(is_hard, stages.candidate == TANH, row, stages.peepholes, cell, block)
        if has_norm:
            shown = row + _SHOWN * block
            _normalise_cell(layer, stages, cell, shown, block)
        new_h = row + _OUT * block if has_projection else out + i * stride
        if stages.shown != TANH:
            copy_bytes(row + _SHOWN * block, cell, block)
            shown = row + _SHOWN * block
            _activate_block(stages, stages.shown, shown, layer, block)
        is_tanh = stages.shown == TANH
        leave_cell(is_hard, is_tanh, row + _LSTM_O * block, shown, new_h, block)
        store_i64(plan.staged_pointers + 8 * i, new_h)
    if has_projection:
        panels = (0, stages.projection.num_panels)
        inputs, target = (plan.staged_pointers, layer.hidden_size), (out, stride)
        _multiply(plan, stages.projection, _WHOLE, panels, inputs, target, num_rows)


@jit
def _finish_gru(
    plan: Plan,
    layer: Layer,
    stages: Stages,
    sums: int,
    h_pointers: int,
    out: int,
    num_rows: int,
) -> None:
    block, stride = layer.num_panels * VECTOR_BYTES, plan.sums_stride
    is_hard, has_norm = stages.gates_are_hard, stages.has_norm
    reset_after, pointers = stages.reset_after, plan.staged_pointers
    num_joint = min(_GRU_N, stages.num_joint)
    _multiply_h(plan, layer, stages, sums, h_pointers, num_joint, num_rows)
    for i in range(num_rows):
        row, h = sums + i * stride, load_i64(h_pointers + 8 * i)
        n = row + _GRU_N * block
        n_of_h = row + (stages.h_block + _GRU_N * has_norm) * block
        if has_norm:
            _normalise_gates(layer, stages, row, _GRU_N, block)
            _normalise_n(layer, stages, n, n_of_h, block)
        if reset_after:
            add_gated(is_hard, row, n_of_h, n, n, block)
        else:
            add_gated(is_hard, row, h, stages.zeros, n_of_h, block)
            store_i64(pointers + 8 * i, n_of_h)
    if not reset_after:
        panels = (_GRU_N * layer.num_panels, layer.num_panels)
        inputs, target = (pointers, stages.output_size), (sums + _GRU_N * block, stride)
        _multiply(plan, stages.joint, _H_HALF, panels, inputs, target, num_rows)
    for i in range(num_rows):
        row, h = sums + i * stride, load_i64(h_pointers + 8 * i)
        new_h = out + i * plan.value_stride
        n, is_tanh = row + _GRU_N * block, stages.candidate == TANH
        if not is_tanh:
            _activate_block(stages, stages.candidate, n, layer, block)
        blend(is_hard, is_tanh, row + block, n, h, new_h, block)


@jit
def _activate_block(stages: Stages, kind: int, values: int, layer: Layer, block: int) -> None:
    """Apply an activation to a block; its padding stays zero."""
    activate(kind, values, block // 4, stages.ones)
    fill_bytes(values + 4 * layer.hidden_size, block - 4 * layer.hidden_size, 0)


@jit
def _normalise_gates(layer: Layer, stages: Stages, row: int, num_gates: int, block: int) -> None:
    """Normalise a row's first gates together, each product by itself, and add both up."""
    size, num_bytes = num_gates * layer.hidden_size, num_gates * block
    mask, epsilon = stages.mask, stages.epsilon
    normalise(row, size, num_bytes, mask, epsilon, stages.x_gain, stages.x_shift, row)
    of_h = row + stages.h_block * block
    normalise(of_h, size, num_bytes, mask, epsilon, stages.h_gain, row, row)


@jit
def _normalise_n(layer: Layer, stages: Stages, n: int, n_of_h: int, block: int) -> None:
    """Normalise both halves of a GRU's candidate, each with a shift of its own."""
    size, offset = layer.hidden_size, _GRU_N * block
    mask, epsilon = stages.mask, stages.epsilon
    gain, shift = stages.x_gain + offset, stages.x_shift + offset
    normalise(n, size, block, mask, epsilon, gain, shift, n)
    gain, shift = stages.h_gain + offset, stages.h_shift
    normalise(n_of_h, size, block, mask, epsilon, gain, shift, n_of_h)


@jit
def _normalise_cell(layer: Layer, stages: Stages, cell: int, shown: int, block: int) -> None:
    """Normalise the new c, as the output sees it."""
    size, mask, epsilon = layer.hidden_size, stages.mask, stages.epsilon
    normalise(cell, size, block, mask, epsilon, stages.cell_gain, stages.cell_shift, shown)
