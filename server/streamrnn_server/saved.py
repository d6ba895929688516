"""The other half of a checkpoint: what was written, or not, and who waits for it."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    prefetch,
    store_i32,
    store_i64,
    store_u8,
)
from streamrnn.state import packing as e
from streamrnn.state import slab as h
from streamrnn_client.protocol import ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count, finish
from streamrnn_server.libzmq import msg_data, receive_frame
from streamrnn_server.requests import first_waiting, pop_waiting
from streamrnn_server.room import is_in_room, settle_without_record
from streamrnn_server.slots import free_slot, header_of, make_ready, model_of
from streamrnn_server.streams import close_stream, note_durable, set_error

__all__ = ["MAX_SLICE_SLOTS", "mark_dirty", "take_answers"]

MAX_SLICE_SLOTS = 128
_READ_ONLY, _UNKNOWN = int(ErrorCode.READ_ONLY), int(ErrorCode.UNKNOWN)


@jit
def mark_dirty(shard: int, slot: int, header: int) -> None:
    """Note that a stream has changed.

    Parameters
    ----------
    shard : int
        Address of the shard. Nothing is done without a state directory.
    slot : int
        The stream's slot.
    header : int
        Address of its header.
    """
    flags = load_u8(header + h.FLAGS)
    if flags & h.IS_DIRTY or load_i64(shard + w.DISK) == 0:
        return
    store_u8(header + h.FLAGS, flags | h.IS_DIRTY)
    number = load_i64(shard + w.NUM_DIRTY)
    store_i32(load_i64(shard + w.DIRTY) + 4 * number, slot)
    store_i64(shard + w.NUM_DIRTY, number + 1)


@jit
def take_answers(shard: int) -> None:
    """Go through a slice of the entries of a stage that has come back.

    Parameters
    ----------
    shard : int
        Address of a shard that has stages on their way.
    """
    number = load_i64(shard + w.ACKNOWLEDGED)
    stages = load_i64(shard + w.STAGES)
    if number < 0:
        message = load_i64(shard + w.IDENTITY_MESSAGE)
        if receive_frame(load_i64(shard + w.DISK), message) < 16:
            return
        answer = msg_data(message)
        number = load_i64(answer)
        stage = stages + number * w.STAGE_RECORD_BYTES
        store_i64(shard + w.ACKNOWLEDGED, number)
        store_i64(shard + w.ACK_IS_GOOD, load_i64(answer + 8))
        store_i64(shard + w.ACK_ENTRY, load_i64(stage + w.STAGE_AT))
        store_i64(shard + w.ACK_LEFT, load_i64(stage + w.STAGE_ENTRIES))
        if load_i64(answer + 8) == 0:
            store_i64(shard + w.HAS_FAILED, 1)
    entry, left = load_i64(shard + w.ACK_ENTRY), load_i64(shard + w.ACK_LEFT)
    num_done = min(left, MAX_SLICE_SLOTS)
    for k in range(num_done):
        following = entry + load_i64(entry + e.ENTRY_BYTES)
        if k + 1 < num_done:
            prefetch(header_of(shard, load_i64(following + e.ENTRY_SLOT)))
        _take_answer(shard, entry, load_i64(shard + w.ACK_IS_GOOD))
        entry = following
    store_i64(shard + w.ACK_ENTRY, entry)
    store_i64(shard + w.ACK_LEFT, left - num_done)
    if left == num_done:
        store_i64(stages + number * w.STAGE_RECORD_BYTES + w.STAGE_STATE, w.STAGE_FREE)
        store_i64(shard + w.ACKNOWLEDGED, -1)
        store_i64(shard + w.NUM_IN_FLIGHT, load_i64(shard + w.NUM_IN_FLIGHT) - 1)


@jit
def _take_answer(shard: int, entry: int, is_good: int) -> None:
    slot = load_i64(entry + e.ENTRY_SLOT)
    header = header_of(shard, slot)
    if load_i32(header + h.GENERATION) != load_i64(entry + e.ENTRY_GENERATION):
        return
    flags = load_u8(header + h.FLAGS)
    store_u8(header + h.FLAGS, flags & ~h.IS_STAGED)
    kind = load_i64(entry + e.ENTRY_KIND)
    if is_good:
        count(shard, w.NUM_SAVED_STREAMS, 1)
        if kind != e.DELETE:
            store_i64(header + h.DURABLE_SEQ, load_i64(entry + e.ENTRY_LAST_SEQ))
    elif flags & h.IS_OPEN:
        mark_dirty(shard, slot, header)
    if load_i64(entry + e.ENTRY_FLAGS) & h.IS_HELD:
        _answer_held(shard, slot, header, is_good)


@jit
def _answer_held(shard: int, slot: int, header: int, is_good: int) -> None:
    """End the request that a stream was held for; let the others go on."""
    pool = load_i64(shard + w.POOL)
    request = first_waiting(pool, header)
    kind = load_i64(request + r.KIND)
    if is_good == 0 and (kind == r.PLACE or kind == r.ROLLBACK):
        return  # it is dirty again, and still held
    note_durable(header, request)
    if is_good == 0 and kind != r.SYNC:
        set_error(request, _READ_ONLY)
        count(shard, w.NUM_ERRORS, 1)
    elif kind == r.CLOSE:
        model = model_of(shard, load_u16(header + h.MODEL))
        close_stream(shard, model, header)
        count(shard, w.NUM_CLOSED, 1)
        store_i64(request + r.LAST_SEQ, 1)
    else:
        store_i64(request + r.LAST_SEQ, load_i64(header + h.LAST_SEQ))
        store_i64(request + r.WINDOW, 1 << load_u8(header + h.WINDOW_LOG2))
    pop_waiting(pool, header)
    finish(shard, request)
    if is_in_room(shard, header):
        settle_without_record(shard, slot, header, _UNKNOWN)
    else:
        _release_held(shard, slot, header)


@jit
def _release_held(shard: int, slot: int, header: int) -> None:
    """Let a stream's requests go on."""
    flags = load_u8(header + h.FLAGS) & ~h.IS_HELD
    if first_waiting(load_i64(shard + w.POOL), header) != 0:
        store_u8(header + h.FLAGS, flags | h.IS_READY)
        make_ready(shard, model_of(shard, load_u16(header + h.MODEL)), slot, header)
        return
    store_u8(header + h.FLAGS, flags)
    if flags & h.IS_OPEN == 0:
        free_slot(shard, slot)
