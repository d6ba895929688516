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

from streamrnn.kernels.cpu import plan as p
from streamrnn.kernels.cpu.staged import pack as s
from streamrnn.kernels.cpu.staged.passes import add_gated, blend, enter_cell, leave_cell, normalise
from streamrnn.kernels.cpu.tiles import DENSE, VECTOR_BYTES
from streamrnn.kernels.cpu.tiling import run_tiles
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_f32, load_i64, store_i64

__all__ = ["run_staged_layer", "step_staged_layer"]

# Blocks of a row's scratch, beside the sums of the gates in the first ones.
_GRU_N = 2
_SHOWN, _OUT, _LSTM_O = 1, 2, 3  # the first two of an LSTM whose i, f and g are spent


@jit
def step_staged_layer(plan, words, x_pointers, h_pointers, num_rows):
    """Compute one layer's new h (and c, in place) for all rows, then put h into the rows.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of a `Program` that no other thread uses now.
    words : int64
        Where the layer's words begin in it.
    x_pointers, h_pointers : int64
        Addresses of int64[num_rows]: where each row's x and h lie.
    num_rows : int64
        1 to `MAX_BATCH_ROWS`.
    """
    _multiply_x(plan, words, x_pointers, num_rows)
    _finish(plan, words, plan[p.SUMS], h_pointers, plan[p.HIDDEN], num_rows)


@jit
def run_staged_layer(plan, words, row, x_pointers, num_steps):
    """Run one layer through steps of one stream, and write its h of each to SEQUENCE.

    Parameters
    ----------
    plan, words, x_pointers
        As in `step_staged_layer`, for steps instead of rows.
    row : int64
        Address of the stream's row.
    num_steps : int64
        1 to `MAX_BATCH_ROWS`.
    """
    _multiply_x(plan, words, x_pointers, num_steps)
    store_i64(plan[p.H_POINTERS], row + plan[words + p.H_OFFSET])
    for t in range(num_steps):
        sums = plan[p.SUMS] + t * plan[p.SUMS_STRIDE]
        new_h = plan[p.SEQUENCE] + t * plan[p.HIDDEN_STRIDE]
        _finish(plan, words, sums, plan[p.H_POINTERS], new_h, 1)


@jit
def _word(plan, words, index):
    """Read a word of a layer's table."""
    return load_i64(plan[words + p.STAGES] + 8 * index)


@jit
def _multiply(plan, words, product, gates, with_h, start, pointers, target, row_bytes, num_rows):
    """Compute some gates' sums of one product with one vector a row.

    ``gates`` are the first and the number of them, each NUM_PANELS panels (of a projection one
    gate stands for all). The sums begin at ``start``, in rows and blocks like the target's, or with
    0 at the biases. ``with_h`` chooses the second half of a product that has two.
    """
    base = s.PRODUCTS + product * s.PRODUCT_WORDS
    panel_bytes = _word(plan, words, base + s.PANEL_BYTES)
    num_panels, num_elements = plan[words + p.NUM_PANELS], plan[words + p.NUM_X]
    if product == s.PROJECTION:
        num_panels = _word(plan, words, base + s.NUM_PANELS)
        num_elements = plan[words + p.HIDDEN_SIZE]
    elif product == s.H_ALONE or with_h:
        num_elements = _word(plan, words, s.OUTPUT_SIZE)
    first = _word(plan, words, base + s.WEIGHTS) + gates[0] * num_panels * panel_bytes
    first_weight = first + _word(plan, words, base + s.FIRST_WEIGHT + with_h)
    starts = (start, row_bytes, VECTOR_BYTES) if start else (first, 0, panel_bytes)
    is_partial = product == s.JOINT and not with_h
    run_tiles(
        plan[p.COVER],
        DENSE,
        gates[1] * num_panels,
        num_rows,
        (first_weight, panel_bytes),
        starts,
        (pointers, num_elements, pointers, 0),
        (target, row_bytes, 0, 0, is_partial, first + VECTOR_BYTES),
    )


@jit
def _multiply_x(plan, words, x_pointers, num_rows):
    """Put the biases and the products with x into the blocks of all gates."""
    num_joint, num_apart = _word(plan, words, s.NUM_JOINT), _word(plan, words, s.NUM_APART)
    sums, stride = plan[p.SUMS], plan[p.SUMS_STRIDE]
    if num_joint:
        _multiply(plan, words, s.JOINT, (0, num_joint), 0, 0, x_pointers, sums, stride, num_rows)
    if num_apart:
        target = sums + num_joint * plan[words + p.NUM_PANELS] * VECTOR_BYTES
        _multiply(
            plan, words, s.X_ALONE, (0, num_apart), 0, 0, x_pointers, target, stride, num_rows
        )


@jit
def _multiply_h(plan, words, sums, h_pointers, num_joint, num_rows):
    """Add the products of the first gates with h to their sums, and put the others' beside."""
    stride = plan[p.SUMS_STRIDE]
    if num_joint:
        gates = (0, num_joint)
        _multiply(plan, words, s.JOINT, gates, 1, sums, h_pointers, sums, stride, num_rows)
    gates = (0, _word(plan, words, s.NUM_APART))
    if gates[1]:
        target = sums + _word(plan, words, s.OF_H) * plan[words + p.NUM_PANELS] * VECTOR_BYTES
        _multiply(plan, words, s.H_ALONE, gates, 0, 0, h_pointers, target, stride, num_rows)


@jit
def _finish(plan, words, sums, h_pointers, out, num_rows):
    """Go from the products with x to the new h, in ``out`` and in the rows."""
    if _word(plan, words, s.IS_LSTM):
        _finish_lstm(plan, words, sums, h_pointers, out, num_rows)
    else:
        _finish_gru(plan, words, sums, h_pointers, out, num_rows)
    h_bytes = _word(plan, words, s.H_BYTES)
    for i in range(num_rows):
        copy_bytes(load_i64(h_pointers + 8 * i), out + i * plan[p.HIDDEN_STRIDE], h_bytes)


@jit
def _finish_lstm(plan, words, sums, h_pointers, out, num_rows):
    block, stride = plan[words + p.NUM_PANELS] * VECTOR_BYTES, plan[p.HIDDEN_STRIDE]
    is_hard, has_norm = _word(plan, words, s.GATES_ARE_HARD), _word(plan, words, s.HAS_NORM)
    has_projection = _word(plan, words, s.PRODUCTS + s.PROJECTION * s.PRODUCT_WORDS + s.WEIGHTS)
    _multiply_h(plan, words, sums, h_pointers, _word(plan, words, s.NUM_JOINT), num_rows)
    for i in range(num_rows):
        row = sums + i * plan[p.SUMS_STRIDE]
        cell = load_i64(h_pointers + 8 * i) + _word(plan, words, s.H_BYTES)
        shown = cell
        if has_norm:
            _normalise_gates(plan, words, row, _word(plan, words, s.NUM_APART), block)
        enter_cell(is_hard, row, _word(plan, words, s.PEEPHOLES), cell, block)
        if has_norm:
            shown = row + _SHOWN * block
            _normalise_cell(plan, words, cell, shown, block)
        new_h = row + _OUT * block if has_projection else out + i * stride
        leave_cell(is_hard, row + _LSTM_O * block, shown, new_h, block)
        store_i64(plan[p.STAGED_POINTERS] + 8 * i, new_h)
    if has_projection:
        pointers = plan[p.STAGED_POINTERS]
        _multiply(plan, words, s.PROJECTION, (0, 1), 0, 0, pointers, out, stride, num_rows)


@jit
def _finish_gru(plan, words, sums, h_pointers, out, num_rows):
    block, stride = plan[words + p.NUM_PANELS] * VECTOR_BYTES, plan[p.SUMS_STRIDE]
    is_hard, has_norm = _word(plan, words, s.GATES_ARE_HARD), _word(plan, words, s.HAS_NORM)
    reset_after, pointers = _word(plan, words, s.RESET_AFTER), plan[p.STAGED_POINTERS]
    num_joint = min(_GRU_N, _word(plan, words, s.NUM_JOINT))
    _multiply_h(plan, words, sums, h_pointers, num_joint, num_rows)
    for i in range(num_rows):
        row, h = sums + i * stride, load_i64(h_pointers + 8 * i)
        n = row + _GRU_N * block
        n_of_h = row + (_word(plan, words, s.OF_H) + _GRU_N * has_norm) * block
        if has_norm:
            _normalise_gates(plan, words, row, _GRU_N, block)
            _normalise_n(plan, words, n, n_of_h, block)
        if reset_after:
            add_gated(is_hard, row, n_of_h, n, n, block)
        else:
            add_gated(is_hard, row, h, _word(plan, words, s.ZEROS), n_of_h, block)
            store_i64(pointers + 8 * i, n_of_h)
    if not reset_after:
        n, gates = sums + _GRU_N * block, (_GRU_N, 1)
        _multiply(plan, words, s.JOINT, gates, 1, n, pointers, n, stride, num_rows)
    for i in range(num_rows):
        row, h = sums + i * stride, load_i64(h_pointers + 8 * i)
        new_h = out + i * plan[p.HIDDEN_STRIDE]
        blend(is_hard, row + block, row + _GRU_N * block, h, new_h, block)


@jit
def _normalise_gates(plan, words, row, num_gates, block):
    """Normalise a row's first gates together, each product by itself, and add both up."""
    size, num_bytes = num_gates * plan[words + p.HIDDEN_SIZE], num_gates * block
    mask, epsilon = _word(plan, words, s.MASK), load_f32(_word(plan, words, s.EPSILON))
    gain, shift = _word(plan, words, s.X_GAIN), _word(plan, words, s.X_SHIFT)
    normalise(row, size, num_bytes, mask, epsilon, gain, shift, row)
    of_h, gain = row + _word(plan, words, s.OF_H) * block, _word(plan, words, s.H_GAIN)
    normalise(of_h, size, num_bytes, mask, epsilon, gain, row, row)


@jit
def _normalise_n(plan, words, n, n_of_h, block):
    """Normalise both halves of a GRU's candidate, each with a shift of its own."""
    size, offset = plan[words + p.HIDDEN_SIZE], _GRU_N * block
    mask, epsilon = _word(plan, words, s.MASK), load_f32(_word(plan, words, s.EPSILON))
    gain, shift = _word(plan, words, s.X_GAIN) + offset, _word(plan, words, s.X_SHIFT) + offset
    normalise(n, size, block, mask, epsilon, gain, shift, n)
    gain, shift = _word(plan, words, s.H_GAIN) + offset, _word(plan, words, s.H_SHIFT)
    normalise(n_of_h, size, block, mask, epsilon, gain, shift, n_of_h)


@jit
def _normalise_cell(plan, words, cell, shown, block):
    """Normalise the new c, as the output sees it."""
    size = plan[words + p.HIDDEN_SIZE]
    mask, epsilon = _word(plan, words, s.MASK), load_f32(_word(plan, words, s.EPSILON))
    gain, shift = _word(plan, words, s.CELL_GAIN), _word(plan, words, s.CELL_SHIFT)
    normalise(cell, size, block, mask, epsilon, gain, shift, shown)
