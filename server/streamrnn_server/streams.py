"""What a request does to its stream when its turn has come.

All rules are looked at before anything is changed, so that a refused request leaves no trace.
Every function here is called with the request at the head of its stream's queue, and leaves taking
it out of there to its caller.
"""

from __future__ import annotations

from typing import Any

from streamrnn.kernels.cpu import check_input, output_of_row
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    store_f32,
    store_i32,
    store_i64,
    store_u8,
)
from streamrnn.state import slab as h
from streamrnn_client.protocol import DEFAULT_WINDOW, MAX_WINDOW, ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count
from streamrnn_server.ring import (
    RESET_DIGEST,
    digest_of,
    drop_ring,
    remember,
    remembered,
)
from streamrnn_server.rows import note_written
from streamrnn_server.slots import model_of, row_of
from streamrnn_server.spilling import take_block, take_ring

__all__ = [
    "close_stream",
    "note_durable",
    "open_stream",
    "prepare_step",
    "reset_stream",
    "set_error",
    "take_number",
]

(_UNKNOWN, _WRONG_MODEL, _WRONG_LENGTH, _BAD_VALUE, _GAP, _STALE, _CONFLICT) = (
    int(ErrorCode.UNKNOWN),
    int(ErrorCode.WRONG_MODEL),
    int(ErrorCode.WRONG_LENGTH),
    int(ErrorCode.BAD_VALUE),
    int(ErrorCode.GAP),
    int(ErrorCode.STALE),
    int(ErrorCode.CONFLICT),
)
(_MIXED, _WINDOW, _BUSY, _TOO_LARGE, _EXISTS) = (
    int(ErrorCode.MIXED_NUMBERING),
    int(ErrorCode.WINDOW),
    int(ErrorCode.BUSY),
    int(ErrorCode.TOO_LARGE),
    int(ErrorCode.EXISTS),
)
_REPLY_SLACK_BYTES = 4096
_MAX_WINDOW_LOG2 = MAX_WINDOW.bit_length() - 1


@jit
def set_error(request: int, code: int, detail_0: int = 0, detail_1: int = 0) -> None:
    """Note a request's error; its caller ends it.

    Parameters
    ----------
    request : int
        Address of the record.
    code : int
        Number of the `ErrorCode`.
    detail_0, detail_1 : int
        Numbers for the error's words.
    """
    store_i64(request + r.CODE, code)
    store_i64(request + r.DETAIL, detail_0)
    store_i64(request + r.DETAIL + 8, detail_1)


@jit
def open_stream(shard: int, model: int, slot: int, header: int, request: int) -> bool:
    """Open a stream, or find that it is open.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.
    header : int
        Address of its header.
    request : int
        Address of the record.

    Returns
    -------
    bool
        Whether it is a new one.
    """
    has, asked_for = load_u16(header + h.MODEL), load_i64(request + r.MODEL)
    flags = load_u8(header + h.FLAGS)
    if flags & h.IS_OPEN == 0:
        if has != asked_for:
            # Closed and opened anew under another model without waiting for the answer: the slot
            # is free as soon as its queue is empty.
            set_error(request, _BUSY)
            return False
        window_log2 = _window_log2(load_i64(request + r.WINDOW))
        window_log2 = max(window_log2, load_i64(shard + w.MIN_WINDOW_LOG2))
        store_u8(header + h.WINDOW_LOG2, window_log2)
        store_i64(header + h.RING, 0)
        store_i64(header + h.LAST_SEQ, 0)
        store_i64(header + h.DURABLE_SEQ, 0)
        store_i32(header + h.GENERATION, load_i32(header + h.GENERATION) + 1)
        store_u8(header + h.FLAGS, h.IS_OPEN | (flags & h.IS_READY))
        _clear_row(shard, model, slot)
        store_i64(model + w.NUM_OPEN, load_i64(model + w.NUM_OPEN) + 1)
        count(shard, w.NUM_OPENED, 1)
    elif has != asked_for:
        set_error(request, _WRONG_MODEL, has, asked_for)
        return False
    store_i64(request + r.LAST_SEQ, load_i64(header + h.LAST_SEQ))
    store_i64(request + r.WINDOW, 1 << load_u8(header + h.WINDOW_LOG2))
    return flags & h.IS_OPEN == 0


@jit
def _window_log2(asked: int) -> int:
    if asked == 0:
        asked = DEFAULT_WINDOW
    window_log2 = 0
    while window_log2 < _MAX_WINDOW_LOG2 and asked >> (window_log2 + 1) > 0:
        window_log2 += 1
    return window_log2


@jit
def _clear_row(shard: int, model: int, slot: int) -> None:
    copy_bytes(row_of(model, slot), load_i64(model + w.INITIAL_ROW), load_i64(model + w.ROW_BYTES))
    note_written(shard, slot)


@jit
def close_stream(shard: int, model: int, header: int) -> bool:
    """Close a stream. The slot stays until nothing waits for it.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    header : int
        Address of the slot's header.

    Returns
    -------
    bool
        Whether it was open.
    """
    flags = load_u8(header + h.FLAGS)
    if flags & h.IS_OPEN == 0:
        return False
    drop_ring(load_i64(shard + w.ARENA), header)
    store_u8(header + h.FLAGS, flags & h.IS_READY)
    store_i64(model + w.NUM_OPEN, load_i64(model + w.NUM_OPEN) - 1)
    return True


@jit
def _check_number(shard: int, header: int, request: int, y_bytes: int) -> bool:
    """Look at what both a step and a reset must fulfil; fix the stream's numbering."""
    flags = load_u8(header + h.FLAGS)
    if flags & h.IS_OPEN == 0:
        set_error(request, _UNKNOWN)
        return False
    first = load_i64(request + r.FIRST_SEQ)
    if flags & (h.IS_UNNUMBERED if first > 0 else h.IS_NUMBERED):
        set_error(request, _MIXED)
        return False
    if first == 0:
        return True
    last = load_i64(header + h.LAST_SEQ)
    window = 1 << load_u8(header + h.WINDOW_LOG2)
    if first > last + 1:
        set_error(request, _GAP, last + 1, first)
    elif first <= last - window:
        set_error(request, _STALE, first, last - window + 1)
    elif not take_ring(shard, header, y_bytes):
        set_error(request, _BUSY)
    else:
        return True
    return False


@jit
def reset_stream(shard: int, model: int, slot: int, header: int, request: int) -> bool:
    """Set a stream's state back to that of a new one.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.
    header : int
        Address of its header.
    request : int
        Address of the record.

    Returns
    -------
    bool
        Whether the state has changed.
    """
    if not take_number(shard, model, header, request, RESET_DIGEST):
        return False
    _clear_row(shard, model, slot)
    count(shard, w.NUM_RESETS, 1)
    return True


@jit
def take_number(shard: int, model: int, header: int, request: int, digest: int) -> bool:
    """Give a change of state that is no step its number.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    header : int
        Address of the slot's header.
    request : int
        Address of the record.
    digest : int
        What stands for the change in place of an input's digest.

    Returns
    -------
    bool
        False if it is refused, or was done before.
    """
    y_bytes = load_i64(model + w.Y_BYTES)
    if not _check_number(shard, header, request, y_bytes):
        return False
    seq = load_i64(request + r.FIRST_SEQ)
    store_i64(request + r.LAST_SEQ, seq)
    flags = load_u8(header + h.FLAGS)
    if 0 < seq <= load_i64(header + h.LAST_SEQ):
        if remembered(header, seq, digest, y_bytes) == 0:
            set_error(request, _CONFLICT, seq)
        else:
            count(shard, w.NUM_DUPLICATES, 1)
        return False
    if seq > 0:
        flags |= h.IS_NUMBERED
        store_i64(header + h.LAST_SEQ, seq)
        remember(header, seq, digest, 0, 0)
    store_u8(header + h.FLAGS, flags & ~h.IS_FROZEN)
    return True


@jit
def note_durable(header: int, request: int) -> None:
    """Note for the answer which step is on disk.

    Parameters
    ----------
    header : int
        Address of the header of the request's stream.
    request : int
        Address of the record.
    """
    store_i64(request + r.DURABLE_SEQ, load_i64(header + h.DURABLE_SEQ))


@jit
def prepare_step(shard: int, plan: Any, model: int, slot: int, header: int, request: int) -> None:
    """Look at all that a step, or a chunk of steps, must fulfil; answer what was done before.

    Afterwards the request has an error, or NUM_STEPS is known and PROGRESS tells how many of its
    first steps were duplicates, whose outputs are in place already.

    Parameters
    ----------
    shard : int
        Address of the shard.
    plan : ndarray of int64
        The model's plan.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.
    header : int
        Address of its header.
    request : int
        Address of the record.
    """
    y_bytes = load_i64(model + w.Y_BYTES)
    parent = load_i64(request + r.PARENT)
    if parent != 0 and load_u8(header + h.FLAGS) & h.IS_OPEN:
        has, expected = load_u16(header + h.MODEL), load_i64(parent + r.MODEL)
        if expected < 0:
            expected = -1 - expected
            like = model_of(shard, expected)
            if load_i64(model + w.STEP_BYTES) == load_i64(like + w.STEP_BYTES):
                expected = has
                store_i64(parent + r.MODEL, has)
        if has != expected:
            set_error(request, _WRONG_MODEL, has, expected)
            return
    if not _check_number(shard, header, request, y_bytes) or not _check_x(
        shard, plan, model, header, request
    ):
        return
    num_steps = load_i64(request + r.NUM_STEPS)
    first = load_i64(request + r.FIRST_SEQ)
    num_old = 0
    if first > 0:
        num_old = min(num_steps, load_i64(header + h.LAST_SEQ) - first + 1)
    if not _are_the_same(model, header, request, first, num_old):
        return
    if parent != 0:
        place = load_i64(request + r.ITEM) * y_bytes
        store_i64(request + r.Y, load_i64(parent + r.Y) + place)
    elif num_steps > 1 or num_old > 0 or load_i64(shard + w.IS_ALWAYS):
        # Otherwise y lies in the wave's scratch, and is sent before the next wave.
        block = take_block(shard, num_steps * y_bytes)
        if block == 0:
            set_error(request, _BUSY)
            return
        store_i64(request + r.Y_BLOCK, block)
        store_i64(request + r.Y, block)
    kind = h.IS_NUMBERED if first > 0 else h.IS_UNNUMBERED
    store_u8(header + h.FLAGS, load_u8(header + h.FLAGS) | kind)
    store_i64(request + r.LAST_SEQ, first + num_steps - 1 if first > 0 else 0)
    store_i64(request + r.PROGRESS, num_old)
    if num_old > 0:
        _answer_old(plan, model, slot, header, request, first, num_old)
        count(shard, w.NUM_DUPLICATES, num_old)


@jit
def _check_x(shard: int, plan: Any, model: int, header: int, request: int) -> bool:
    """Look at x's length and values; find NUM_STEPS."""
    step_bytes = load_i64(model + w.STEP_BYTES)
    form = load_i64(request + r.FORM)
    num_bytes = load_i64(request + r.X_COUNT)
    if form == r.FORM_ARRAY:
        num_bytes *= 4
    num_steps = 1
    if num_bytes != step_bytes:  # a division costs more than all else here
        num_steps = num_bytes // step_bytes
    if num_steps == 0 or num_bytes != num_steps * step_bytes:
        set_error(request, _WRONG_LENGTH, num_bytes, step_bytes)
        store_i64(request + r.DETAIL + 16, 0)
        store_i64(request + r.DETAIL + 24, form)
        return False
    window = 1 << load_u8(header + h.WINDOW_LOG2)
    if num_steps > window:
        set_error(request, _WINDOW, num_steps, window)
        return False
    reply_bytes = 2 * num_steps * load_i64(model + w.Y_BYTES) + _REPLY_SLACK_BYTES
    if reply_bytes > load_i64(shard + w.OUT_BYTES):
        set_error(request, _TOO_LARGE, reply_bytes, load_i64(shard + w.OUT_BYTES))
        return False
    x = load_i64(request + r.X)
    bad = -1
    if form == r.FORM_ARRAY:
        bad = _convert(x, num_bytes // 4, load_i64(model + w.IS_TOKEN))
    if bad < 0:
        bad = check_input(plan, x, num_steps)
    if bad >= 0:
        num_inputs = step_bytes // 4
        set_error(request, _BAD_VALUE, bad // num_inputs, bad % num_inputs)
        store_i64(request + r.DETAIL + 16, load_i32(x + 4 * bad))
        store_i64(request + r.DETAIL + 24, load_u16(header + h.MODEL))
        return False
    store_i64(request + r.NUM_STEPS, num_steps)
    store_i64(request + r.Y_COUNT, num_steps * load_i64(model + w.Y_BYTES))
    return True


@jit
def _convert(x: int, num_values: int, is_token: int) -> int:
    """Turn float64 in place into what the model takes; return the first that does not fit, or -1.

    The forms are of 8 and 4 bytes, so what is written never reaches what is still to be read.
    """
    for k in range(num_values):
        value = load_f64(x + 8 * k)
        if is_token:
            if not (0.0 <= value <= 4294967295.0 and value == float(int(value))):
                store_i32(x + 4 * k, -1)
                return k
            store_i32(x + 4 * k, int(value))
        else:
            store_f32(x + 4 * k, value)
    return -1


@jit
def _are_the_same(model: int, header: int, request: int, first: int, num_old: int) -> bool:
    """Compare the steps that were applied before with what came now."""
    step_bytes, y_bytes = load_i64(model + w.STEP_BYTES), load_i64(model + w.Y_BYTES)
    x = load_i64(request + r.X)
    for k in range(num_old):
        digest = digest_of(x + k * step_bytes, step_bytes)
        if remembered(header, first + k, digest, y_bytes) == 0:
            set_error(request, _CONFLICT, first + k)
            return False
    return True


@jit
def _answer_old(
    plan: Any, model: int, slot: int, header: int, request: int, first: int, num_old: int
) -> None:
    """Put the outputs of steps that were applied before into place."""
    y_bytes = load_i64(model + w.Y_BYTES)
    y = load_i64(request + r.Y)
    if load_u8(header + h.WINDOW_LOG2) == 0:
        output_of_row(plan, row_of(model, slot), y)
        return
    ring = load_i64(header + h.RING)
    window = 1 << load_u8(header + h.WINDOW_LOG2)
    for k in range(num_old):
        place = (first + k) & (window - 1)
        copy_bytes(y + k * y_bytes, ring + 8 * window + place * y_bytes, y_bytes)
