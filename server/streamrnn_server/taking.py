"""Taking a slot for a stream; moving a stream out of the room.

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
from streamrnn.state.arena import release
from streamrnn.state.index import hash64, insert_slot, remove_slot
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count
from streamrnn_server.slots import give_slot, header_of, model_of
from streamrnn_server.spilling import (
    has_row,
    make_room_for_row,
    make_room_for_stream,
    take_block,
)
from streamrnn_server.users import UNKNOWN, set_owner

__all__ = ["move_slot", "take_named_slot", "take_slot"]


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
        long_id = take_block(shard, num_bytes)
        if long_id == 0:
            return -1
    slot = take_slot(shard, index)
    if slot < 0:
        release(load_i64(shard + w.ARENA), long_id)
        return -1
    is_known = index < load_i64(shard + w.NUM_MODELS)
    set_owner(shard, slot, load_i64(request + r.OWNER) if is_known else UNKNOWN)
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
        if num_streams >= load_i64(shard + w.MAX_STREAMS) and not make_room_for_stream(shard):
            count(shard, w.NUM_REFUSED_FOR_ROOM, 1)
            return -1
    while not has_row(shard, model):
        if not make_room_for_row(shard, index):
            count(shard, w.NUM_REFUSED_FOR_ROOM, 1)
            return -1
    if index < load_i64(shard + w.NUM_MODELS):
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
def move_slot(shard: int, slot: int, index: int, owner: int) -> int:
    """Move a stream from the room to a slot of its model, with all that wait for it.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        Its slot in the room, which is free afterwards.
    index : int
        The model's.
    owner : int
        Number of the user whose stream it is.

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
    give_slot(shard, slot)
    set_owner(shard, target, owner)
    return target
