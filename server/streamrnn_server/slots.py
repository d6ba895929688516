"""Slots: taking one for a stream, giving it back, moving a stream out of the room.

With a state directory, a stream that is not in memory may be on disk, of any model: until Python
has looked, it lives in the *room*, a model's record with headers and no rows.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    store_i32,
    store_i64,
    store_u8,
    store_u16,
)
from streamrnn.state import slab as h
from streamrnn.state.arena import allocate, release
from streamrnn.state.index import hash64, insert_slot, remove_slot
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count
from streamrnn_server.ring import drop_ring

__all__ = [
    "free_slot",
    "header_of",
    "is_clean",
    "let_go",
    "make_ready",
    "model_of",
    "move_slot",
    "spill_one",
    "take_named_slot",
    "take_slot",
]

_NUM_SAMPLED = 32
_AT_WORK = h.IS_READY | h.IS_HELD | h.IS_DIRTY | h.IS_STAGED


@jit
def header_of(shard: int, slot: int) -> int:
    """Return where a slot's header lies.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The slot.

    Returns
    -------
    int
    """
    return load_i64(shard + w.HEADERS) + slot * h.HEADER_BYTES


@jit
def model_of(shard: int, index: int) -> int:
    """Return where a model's record lies.

    Parameters
    ----------
    shard : int
        Address of the shard.
    index : int
        The model's.

    Returns
    -------
    int
    """
    return load_i64(shard + w.MODELS) + index * w.MODEL_RECORD_BYTES


@jit
def make_ready(shard: int, model: int, slot: int, header: int) -> None:
    """Put a slot that has work at the end of its model's list.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the model's record.
    slot : int
        The slot, which is in no list.
    header : int
        Address of its header.
    """
    store_i32(header + h.NEXT, 0)
    if load_i64(model + w.READY) == 0:
        store_i64(model + w.READY, slot + 1)
    else:
        store_i32(header_of(shard, load_i64(model + w.READY_LAST) - 1) + h.NEXT, slot + 1)
    store_i64(model + w.READY_LAST, slot + 1)
    store_i64(shard + w.NUM_READY, load_i64(shard + w.NUM_READY) + 1)


@jit
def take_named_slot(shard: int, index: int, request: int) -> int:
    """Take a slot for a request's stream, and enter it in the index.

    Parameters
    ----------
    shard : int
        Address of the shard.
    index : int
        The model's; the number of models stands for the room.
    request : int
        Address of the request's record.

    Returns
    -------
    int
        The slot; -1 if there is no room.
    """
    num_bytes = load_i64(request + r.STREAM_BYTES)
    long_id = 0
    if num_bytes > h.MAX_INLINE_ID_BYTES:
        long_id = allocate(load_i64(shard + w.ARENA), num_bytes)
        if long_id == 0:
            return -1
    slot = take_slot(shard, index)
    if slot < 0:
        release(load_i64(shard + w.ARENA), long_id)
        return -1
    header = header_of(shard, slot)
    store_u8(header + h.ID_BYTES, num_bytes)
    if long_id != 0:
        copy_bytes(long_id, request + r.STREAM, num_bytes)
        store_i64(header + h.ID, long_id)
    else:
        copy_bytes(header + h.ID, request + r.STREAM, h.MAX_INLINE_ID_BYTES)
    insert_slot(load_i64(shard + w.INDEX), load_i64(request + r.HASH), slot)
    return slot


@jit
def take_slot(shard: int, index: int) -> int:
    """Take a slot that no stream has.

    Parameters
    ----------
    shard : int
        Address of the shard.
    index : int
        The model's; the number of models stands for the room.

    Returns
    -------
    int
        The slot, without an id and not in the index; -1 if there is no room.
    """
    model = model_of(shard, index)
    if index < load_i64(shard + w.NUM_MODELS):
        num_streams = load_i64(shard + w.NUM_STREAMS)
        if num_streams >= load_i64(shard + w.MAX_STREAMS) and not spill_one(shard):
            return -1
        store_i64(shard + w.NUM_STREAMS, load_i64(shard + w.NUM_STREAMS) + 1)
    slot = load_i64(model + w.FREE_SLOT) - 1
    if slot >= 0:
        store_i64(model + w.FREE_SLOT, load_i32(header_of(shard, slot) + h.NEXT))
    else:
        num_fresh = load_i64(model + w.NUM_FRESH)
        slot = load_i64(model + w.FIRST_SLOT) + num_fresh
        store_i64(model + w.NUM_FRESH, num_fresh + 1)
    header = header_of(shard, slot)
    for k in range(0, h.LAST_USED_S, 8):
        store_i64(header + k, 0)
    store_i32(header + h.LAST_USED_S, 0)
    store_i32(header + h.GENERATION, load_i32(header + h.GENERATION) + 1)
    store_u16(header + h.NUM_WAITING, 0)
    store_u16(header + h.MODEL, index)
    store_u8(header + h.FLAGS, 0)
    store_u8(header + h.ID_BYTES, 0)
    store_u8(header + h.WINDOW_LOG2, 0)
    return slot


@jit
def free_slot(shard: int, slot: int) -> None:
    """Free a slot that holds no open stream and for which nothing waits.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The slot, which is in no list.
    """
    header = header_of(shard, slot)
    num_bytes = load_u8(header + h.ID_BYTES)
    hash_value = hash64(h.id_address(header), num_bytes)
    remove_slot(load_i64(shard + w.INDEX), hash_value, slot)
    if num_bytes > h.MAX_INLINE_ID_BYTES:
        release(load_i64(shard + w.ARENA), load_i64(header + h.ID))
    _free(shard, slot)


@jit
def _free(shard: int, slot: int) -> None:
    header = header_of(shard, slot)
    index = load_u16(header + h.MODEL)
    model = model_of(shard, index)
    store_i32(header + h.NEXT, load_i64(model + w.FREE_SLOT))
    store_i64(model + w.FREE_SLOT, slot + 1)
    store_u8(header + h.FLAGS, 0)
    if index < load_i64(shard + w.NUM_MODELS):
        store_i64(shard + w.NUM_STREAMS, load_i64(shard + w.NUM_STREAMS) - 1)


@jit
def move_slot(shard: int, slot: int, index: int) -> int:
    """Move a stream from the room to a slot of its model, with all that wait for it.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        Its slot in the room, which is free afterwards.
    index : int
        The model's.

    Returns
    -------
    int
        The new slot; -1 if there is no room, and nothing has changed.
    """
    target = take_slot(shard, index)
    if target < 0:
        return -1
    header, to = header_of(shard, slot), header_of(shard, target)
    num_bytes = load_u8(header + h.ID_BYTES)
    hash_value = hash64(h.id_address(header), num_bytes)
    copy_bytes(to + h.ID, header + h.ID, h.MAX_INLINE_ID_BYTES)
    store_u8(to + h.ID_BYTES, num_bytes)
    store_i32(to + h.TAIL, load_i32(header + h.TAIL))
    store_u16(to + h.NUM_WAITING, load_u16(header + h.NUM_WAITING))
    store_i32(to + h.LAST_USED_S, load_i32(header + h.LAST_USED_S))
    remove_slot(load_i64(shard + w.INDEX), hash_value, slot)
    insert_slot(load_i64(shard + w.INDEX), hash_value, target)
    store_u8(header + h.ID_BYTES, 0)
    _free(shard, slot)
    return target


@jit
def spill_one(shard: int) -> bool:
    """Free the slot of a stream that is on disk as it is: of some, the one unused for longest.

    Parameters
    ----------
    shard : int
        Address of the shard.

    Returns
    -------
    bool
        Whether there is a free slot now. If not, a checkpoint begins soon that makes some clean.
    """
    if load_i64(shard + w.CAN_LOOK_UP) == 0:
        return False
    oldest, used_s = -1, 2**31
    for index in range(load_i64(shard + w.NUM_MODELS)):
        model = model_of(shard, index)
        num_fresh = load_i64(model + w.NUM_FRESH)
        place = load_i64(shard + w.SPILL_PLACE)
        for _ in range(min(num_fresh, _NUM_SAMPLED)):
            place = place + 1 if place + 1 < num_fresh else 0
            slot = load_i64(model + w.FIRST_SLOT) + place
            header = header_of(shard, slot)
            if is_clean(header) and load_i32(header + h.LAST_USED_S) < used_s:
                oldest, used_s = slot, load_i32(header + h.LAST_USED_S)
        store_i64(shard + w.SPILL_PLACE, place)
    if oldest < 0:
        store_i64(shard + w.SAVE_NOW, 1)
        return False
    let_go(shard, oldest)
    count(shard, w.NUM_SPILLED_FOR_ROOM, 1)
    return True


@jit
def is_clean(header: int) -> bool:
    """Tell whether a stream is at rest, and nothing of it is on its way to disk.

    Parameters
    ----------
    header : int
        Address of its header.

    Returns
    -------
    bool
    """
    return load_u8(header + h.FLAGS) & (_AT_WORK | h.IS_OPEN) == h.IS_OPEN


@jit
def let_go(shard: int, slot: int) -> None:
    """Forget a stream that rests; what is on disk stays there.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The slot of an open stream, which is in no list.
    """
    header = header_of(shard, slot)
    model = model_of(shard, load_u16(header + h.MODEL))
    drop_ring(load_i64(shard + w.ARENA), header)
    store_i64(model + w.NUM_OPEN, load_i64(model + w.NUM_OPEN) - 1)
    free_slot(shard, slot)
