"""The loop's second half: choose the rows of a wave, and commit what was computed.

A wave takes at most one step of each stream, of one model. A chunk's stream stays in for as many
waves as it has steps, and every wave others come and go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    load_i32,
    load_i64,
    load_u8,
    store_i64,
    store_u8,
)
from streamrnn.kernels.nans import has_nan
from streamrnn.state import slab as h
from streamrnn.state.arena import release
from streamrnn_client.protocol import ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count, finish
from streamrnn_server.placing import place_stream, roll_back
from streamrnn_server.requests import first_waiting, pop_waiting
from streamrnn_server.ring import digest_of, prefetch_place, remember
from streamrnn_server.rows import ask_for_row, is_away
from streamrnn_server.saved import mark_dirty
from streamrnn_server.saving import entry_bytes, hold, write_entry
from streamrnn_server.slots import free_slot, header_of, make_ready, model_of, row_of
from streamrnn_server.spilling import take_block
from streamrnn_server.streams import (
    close_stream,
    note_durable,
    open_stream,
    prepare_step,
    reset_stream,
    set_error,
)
from streamrnn_server.users import is_forbidden

__all__ = ["choose_model", "commit", "gather", "note_all_but_last", "note_step", "view"]

_LOOKED_AT_A_ROW = 4  # slots, at most
_UNKNOWN, _FORBIDDEN, _BUSY, _QUARANTINED = (
    int(ErrorCode.UNKNOWN),
    int(ErrorCode.FORBIDDEN),
    int(ErrorCode.BUSY),
    int(ErrorCode.QUARANTINED),
)


@intrinsic
def _pointer(typingctx: Any, address: types.Type) -> Any:
    """Take an address for a pointer to int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(types.int64), codegen  # type: ignore[attr-defined]


@jit
def view(address: int, length: int) -> Any:
    """Return memory as an array.

    Parameters
    ----------
    address, length : int
        Where it lies, and how many int64 it holds.

    Returns
    -------
    ndarray of int64, shape (length,)
        It owns nothing.
    """
    return carray(_pointer(address), (length,), np.int64)


@jit
def choose_model(shard: int) -> int:
    """Choose whose wave is next: the models that have work take turns.

    Parameters
    ----------
    shard : int
        Address of the shard.

    Returns
    -------
    int
        Address of the model's record; 0 if no stream has work.
    """
    if load_i64(shard + w.NUM_READY) == 0:
        return 0
    index = load_i64(shard + w.NEXT_MODEL)
    while True:
        model = model_of(shard, index)
        index += 1
        if index == load_i64(shard + w.NUM_MODELS):
            index = 0
        if load_i64(model + w.READY) != 0:
            store_i64(shard + w.NEXT_MODEL, index)
            return model


@jit
def gather(shard: int, plan: Any, model: int) -> int:
    """Take streams from a model's list until the wave is full or the list empty.

    What needs no row (an open, a close, a reset, a duplicate, an error) is done on the way.

    Parameters
    ----------
    shard : int
        Address of the shard; ROWS, XS, YS, WAVE_SLOTS and WAVE_REQUESTS are filled.
    plan : ndarray of int64
        The model's plan.
    model : int
        Address of its record.

    Returns
    -------
    int
        The number of rows.
    """
    y_bytes = load_i64(model + w.Y_BYTES)
    max_rows = load_i64(shard + w.MAX_ROWS)
    num_rows = 0
    for _ in range(_LOOKED_AT_A_ROW * max_rows):
        slot = load_i64(model + w.READY) - 1
        if slot < 0 or num_rows == max_rows:
            break
        header = header_of(shard, slot)
        store_i64(model + w.READY, load_i32(header + h.NEXT))
        store_i64(shard + w.NUM_READY, load_i64(shard + w.NUM_READY) - 1)
        request = _next_step(shard, plan, model, slot, header)
        if request != 0:
            _place(shard, model, slot, request, num_rows)
            if load_i64(request + r.FIRST_SEQ) > 0:
                prefetch_place(header, load_i64(header + h.LAST_SEQ) + 1, y_bytes)
            num_rows += 1
    return num_rows


@jit
def _next_step(shard: int, plan: Any, model: int, slot: int, header: int) -> int:
    """Do what waits for a stream up to the next step to compute; return that request, or 0."""
    pool = load_i64(shard + w.POOL)
    while True:
        request = first_waiting(pool, header)
        if request == 0:
            _rest(shard, slot, header)
            return 0
        kind = load_i64(request + r.KIND)
        is_frozen = load_u8(header + h.FLAGS) & h.IS_FROZEN != 0
        if is_forbidden(shard, slot, request):
            set_error(request, _FORBIDDEN)
        elif is_frozen and kind in (r.STEP, r.EXPORT, r.SNAPSHOT, r.SYNC):
            seq = load_i64(header + h.LAST_SEQ)
            set_error(request, _QUARANTINED, seq, seq + 1 if seq > 0 else 0)
        elif kind == r.STEP:
            if load_i64(request + r.NUM_STEPS) < 0:
                prepare_step(shard, plan, model, slot, header, request)
            if load_i64(request + r.CODE) == 0 and load_i64(request + r.PROGRESS) < load_i64(
                request + r.NUM_STEPS
            ):
                return request
        elif kind in (r.EXPORT, r.PLACE) and is_away(shard, slot):
            ask_for_row(shard, slot)
            return 0
        elif _must_be_held(shard, model, slot, header, request, kind):
            hold(shard, slot, header)
            return 0
        if load_i64(request + r.CODE) != 0:
            count(shard, w.NUM_ERRORS, 1)
        note_durable(header, request)
        pop_waiting(pool, header)
        finish(shard, request)


@jit
def _must_be_held(shard: int, model: int, slot: int, header: int, request: int, kind: int) -> bool:
    """Do what is no step; tell whether its stream is held until it is on disk."""
    has_disk = load_i64(shard + w.DISK) != 0
    flags = load_u8(header + h.FLAGS)
    if kind == r.OPEN:
        if open_stream(shard, model, slot, header, request):
            mark_dirty(shard, slot, header)
        return False
    if kind == r.RESET:
        if reset_stream(shard, model, slot, header, request):
            mark_dirty(shard, slot, header)
        return False
    if kind == r.CLOSE:
        if has_disk and flags & h.IS_OPEN:
            return True
        was_open = close_stream(shard, model, header)
        store_i64(request + r.LAST_SEQ, 1 if was_open else 0)
        count(shard, w.NUM_CLOSED, 1 if was_open else 0)
        return False
    if kind == r.PLACE:
        return place_stream(shard, model, slot, header, request) and has_disk
    if flags & h.IS_OPEN == 0:
        set_error(request, _UNKNOWN)
        return False
    if kind == r.ROLLBACK:
        return roll_back(shard, model, slot, header, request) and has_disk
    if kind == r.EXPORT:
        _copy_out(shard, model, slot, header, request)
        return False
    store_i64(request + r.LAST_SEQ, load_i64(header + h.LAST_SEQ))  # SNAPSHOT and SYNC
    return True


@jit
def _copy_out(shard: int, model: int, slot: int, header: int, request: int) -> None:
    """Copy a stream as it is now; Python makes a record of it."""
    num_bytes = entry_bytes(shard, model, slot, header, 0)
    block = take_block(shard, num_bytes)
    if block == 0 or num_bytes > load_i64(shard + w.OUT_BYTES) // 2:
        set_error(request, _BUSY)
        release(load_i64(shard + w.ARENA), block)
        return
    write_entry(shard, model, slot, header, 0, block)
    store_i64(request + r.Y_BLOCK, block)
    store_i64(request + r.Y, block)
    store_i64(request + r.Y_COUNT, num_bytes)


@jit
def _rest(shard: int, slot: int, header: int) -> None:
    """Leave a stream for which nothing waits alone; free its slot if it is not open."""
    flags = load_u8(header + h.FLAGS)
    store_u8(header + h.FLAGS, flags & ~h.IS_READY)
    if flags & h.IS_OPEN == 0:
        free_slot(shard, slot)


@jit
def _place(shard: int, model: int, slot: int, request: int, row: int) -> None:
    progress = load_i64(request + r.PROGRESS)
    x = load_i64(request + r.X) + progress * load_i64(model + w.STEP_BYTES)
    y = load_i64(request + r.Y)
    if y == 0:
        y = load_i64(shard + w.WAVE_Y) + row * load_i64(shard + w.WAVE_Y_STRIDE)
        store_i64(request + r.Y, y)
    else:
        y += progress * load_i64(model + w.Y_BYTES)
    at = 8 * row
    store_i64(load_i64(shard + w.ROWS) + at, row_of(model, slot))
    store_i64(load_i64(shard + w.XS) + at, x)
    store_i64(load_i64(shard + w.YS) + at, y)
    store_i64(load_i64(shard + w.WAVE_SLOTS) + at, slot)
    store_i64(load_i64(shard + w.WAVE_REQUESTS) + at, request)


@jit
def commit(shard: int, model: int, num_rows: int) -> None:
    """Give the steps of a wave their numbers, remember them, end the requests that are done.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the wave's model.
    num_rows : int
        The number of rows computed.
    """
    pool = load_i64(shard + w.POOL)
    for row in range(num_rows):
        at = 8 * row
        slot = load_i64(load_i64(shard + w.WAVE_SLOTS) + at)
        request = load_i64(load_i64(shard + w.WAVE_REQUESTS) + at)
        header = header_of(shard, slot)
        note_step(shard, model, row)
        is_done = load_i64(request + r.PROGRESS) == load_i64(request + r.NUM_STEPS)
        if is_done or load_i64(request + r.CODE) != 0:
            note_durable(header, request)
            pop_waiting(pool, header)
            finish(shard, request)
        if first_waiting(pool, header) != 0:
            make_ready(shard, model, slot, header)
        else:
            _rest(shard, slot, header)
    count(shard, w.NUM_STEPS_DONE, num_rows)
    count(shard, w.NUM_WAVES, 1)


@jit
def note_step(shard: int, model: int, row: int) -> None:
    """Give a step of a wave its number and remember it; after an error there is none.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the wave's model.
    row : int
        Of the wave.
    """
    at = 8 * row
    slot = load_i64(load_i64(shard + w.WAVE_SLOTS) + at)
    request = load_i64(load_i64(shard + w.WAVE_REQUESTS) + at)
    if load_i64(request + r.CODE) != 0:
        return
    step_bytes, y_bytes = load_i64(model + w.STEP_BYTES), load_i64(model + w.Y_BYTES)
    y = load_i64(load_i64(shard + w.YS) + at)
    header = header_of(shard, slot)
    if load_i64(request + r.FIRST_SEQ) > 0:
        seq = load_i64(header + h.LAST_SEQ) + 1
        store_i64(header + h.LAST_SEQ, seq)
        digest = digest_of(load_i64(load_i64(shard + w.XS) + at), step_bytes)
        remember(header, seq, digest, y, y_bytes)
    mark_dirty(shard, slot, header)
    # Each output sees all of the state: if it has no NaN, then neither has the state.
    if has_nan(y, y_bytes):
        _freeze(shard, header, request)
    store_i64(request + r.PROGRESS, load_i64(request + r.PROGRESS) + 1)


@jit
def note_all_but_last(shard: int, model: int, num_rows: int, num_steps: int) -> None:
    """Note the steps of a wave that took several of each stream, before `commit` notes the last.

    Parameters
    ----------
    shard : int
        Address of the shard. XS and YS point to each row's first step, and to its last then.
    model : int
        Address of the record of the wave's model.
    num_rows, num_steps : int
        Of the wave.
    """
    xs, ys = load_i64(shard + w.XS), load_i64(shard + w.YS)
    step_bytes, y_bytes = load_i64(model + w.STEP_BYTES), load_i64(model + w.Y_BYTES)
    for row in range(num_rows):
        at = 8 * row
        for _ in range(num_steps - 1):
            note_step(shard, model, row)
            store_i64(xs + at, load_i64(xs + at) + step_bytes)
            store_i64(ys + at, load_i64(ys + at) + y_bytes)
    count(shard, w.NUM_STEPS_DONE, num_rows * (num_steps - 1))


@jit
def _freeze(shard: int, header: int, request: int) -> None:
    """Let nobody step a stream whose state has turned NaN; what is on disk stays as it is."""
    store_u8(header + h.FLAGS, load_u8(header + h.FLAGS) | h.IS_FROZEN)
    seq = load_i64(header + h.LAST_SEQ)
    set_error(request, _QUARANTINED, seq, seq + 1 if seq > 0 else 0)
    count(shard, w.NUM_QUARANTINED, 1)
    count(shard, w.NUM_ERRORS, 1)
