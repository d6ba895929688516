"""Allocation of slots, and the move of a stream from its lookup to its model.

With a state directory, a stream that is not in memory may be on disk, of any model: until Python
has looked, it has a slot of a pseudo-model, whose index is above all others and which has no rows.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    fill_bytes,
    store_i64,
)
from streamrnn.kernels.pointers import address, field_address
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.admission import Limit
from streamrnn_server.shard.memory.arena import release
from streamrnn_server.shard.memory.header import Header, header_at
from streamrnn_server.shard.memory.index import hash64, insert_slot, remove_slot
from streamrnn_server.shard.memory.slab import header_of, model_of, slot_of
from streamrnn_server.shard.requests.request import Request
from streamrnn_server.shard.streams.eviction import (
    allocate_block,
    evict_for_stream,
    free_memory_for_row,
    has_row,
    make_room_for_user,
)
from streamrnn_server.shard.streams.owners import (
    UNKNOWN,
    count_stream,
    set_owner,
)
from streamrnn_server.shard.streams.slots import push_free_slot
from streamrnn_server.shard.structs import Shard

__all__ = ["allocate_named_slot", "allocate_slot", "move_stream", "take_place"]


@jit
def allocate_named_slot(shard: Shard, index: int, request: Request) -> int:
    """Allocate and index a slot for a request's stream; -1 - the `Limit` that forbids it."""
    num_bytes = request.stream_bytes
    long_id = 0
    if num_bytes > h.MAX_INLINE_ID_BYTES:
        long_id = allocate_block(shard, num_bytes)
        if long_id == 0:
            return -1
    slot = allocate_slot(shard, index, request.owner)
    if slot < 0:
        release(shard.arena, long_id)
        return slot
    header = header_of(shard, slot)
    is_known = index < shard.num_models
    set_owner(shard, header, request.owner if is_known else UNKNOWN)
    if is_known:
        count_stream(shard, header, 1)
    header.id_bytes = num_bytes
    if long_id != 0:
        copy_bytes(long_id, field_address(request, "stream"), num_bytes)
        store_i64(field_address(header, "id"), long_id)
    else:
        copy_bytes(
            field_address(header, "id"), field_address(request, "stream"), h.MAX_INLINE_ID_BYTES
        )
    insert_slot(shard.index, request.hash, slot)
    return slot


@jit
def allocate_slot(shard: Shard, index: int, owner: int) -> int:
    """Allocate a slot without an id, not in the index; -1 - the `Limit` that forbids it."""
    if index < 0:  # no version is for new streams just now
        return -1 - Limit.ROOM
    model = model_of(shard, index)
    if model.step_bytes < 0:  # it was unloaded while the request waited
        return -1 - Limit.ROOM
    if index < shard.num_models:
        limit = make_room_for_user(shard, owner, 1, model.row_bytes)
        if limit != Limit.ROOM:
            return -1 - limit
        num_streams = shard.num_streams
        if num_streams >= shard.max_streams and not evict_for_stream(shard):
            shard.counters.num_refused_for_room += 1
            return -1
    while not has_row(shard, model):
        if not free_memory_for_row(shard, index):
            shard.counters.num_refused_for_room += 1
            return -1
    if index < shard.num_models:
        shard.num_streams += 1
    slot = model.free_slot - 1
    if slot >= 0:
        model.free_slot = header_of(shard, slot).next
    else:
        num_fresh = model.num_fresh
        slot = model.first_slot + num_fresh
        model.num_fresh = num_fresh + 1
    model.num_taken += 1
    header = header_of(shard, slot)
    generation = header.generation + 1
    fill_bytes(address(header), h.HEADER_BYTES, 0)
    header.generation = generation
    header.model = index
    return slot


@jit
def move_stream(shard: Shard, header: Header, index: int, owner: int) -> Header:
    """Move a stream from its lookup slot, which is freed, to a slot of its model.

    Its waiting requests go with it. Returns the new header; a null one without memory, with nothing
    changed.
    """
    target = allocate_slot(shard, index, owner)
    if target < 0:
        return header_at(0)
    to = header_of(shard, target)
    take_place(shard, header, to, owner)
    return to


@jit
def take_place(shard: Shard, header: Header, to: Header, owner: int) -> None:
    """Let a slot just allocated have another's stream id and waiting requests; free the other."""
    num_bytes, target = h.id_size(header), slot_of(shard, to)
    hash_value = hash64(h.id_address(header), num_bytes)
    copy_bytes(field_address(to, "id"), field_address(header, "id"), h.MAX_INLINE_ID_BYTES)
    to.id_bytes = num_bytes
    to.tail = header.tail
    to.num_waiting = header.num_waiting
    to.last_used_s = header.last_used_s
    remove_slot(shard.index, hash_value, slot_of(shard, header))
    insert_slot(shard.index, hash_value, target)
    header.id_bytes = 0
    push_free_slot(shard, header)
    set_owner(shard, to, owner)
    count_stream(shard, to, 1)
