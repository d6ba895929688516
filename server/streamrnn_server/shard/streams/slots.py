"""Slots: the lists they are in, and freeing them."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64
from streamrnn.kernels.pointers import field_address
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.arena import release
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.index import find_slot, hash64, remove_slot
from streamrnn_server.shard.memory.recording import RecordingEnd
from streamrnn_server.shard.memory.slab import header_of, model_of, slot_of
from streamrnn_server.shard.recorder import end_recording
from streamrnn_server.shard.requests.request import Request
from streamrnn_server.shard.streams.owners import count_ring, count_stream
from streamrnn_server.shard.streams.replay_ring import drop_ring
from streamrnn_server.shard.structs import Shard

__all__ = ["evict_stream", "find_stream", "free_slot", "is_clean", "make_ready", "push_free_slot"]

_AT_WORK = h.IS_READY | h.IS_BLOCKED | h.IS_DIRTY | h.IS_BUFFERED


@jit
def make_ready(shard: Shard, header: Header) -> None:
    """Put a stream, which is in no list, at the end of its model's list of those with work."""
    model, slot = model_of(shard, header.model), slot_of(shard, header)
    header.next = 0
    if model.ready.first == 0:
        model.ready.first = slot + 1
    else:
        header_of(shard, model.ready.last - 1).next = slot + 1
    model.ready.last = slot + 1
    shard.num_ready += 1


@jit
def free_slot(shard: Shard, header: Header) -> None:
    """Free a slot that is in no list, holds no open stream, and for which nothing waits."""
    hash_value = hash64(h.id_address(header), h.id_size(header))
    remove_slot(shard.index, hash_value, slot_of(shard, header))
    if h.id_size(header) > h.MAX_INLINE_ID_BYTES:
        release(shard.arena, load_i64(field_address(header, "id")))
    push_free_slot(shard, header)


@jit
def push_free_slot(shard: Shard, header: Header) -> None:
    """Put a slot that is neither in the index nor in a list on its model's list of free ones."""
    end_recording(shard, header, RecordingEnd.EVICTED)
    model = model_of(shard, header.model)
    model.num_taken -= 1
    header.next = model.free_slot
    model.free_slot = slot_of(shard, header) + 1
    header.flags = 0
    if header.model < shard.num_models:
        shard.num_streams -= 1
        count_stream(shard, header, -1)


@jit
def is_clean(header: Header) -> bool:
    """Tell whether a stream is at rest, and nothing of it is on its way to disk."""
    return header.flags & (_AT_WORK | h.IS_OPEN) == h.IS_OPEN


@jit
def evict_stream(shard: Shard, header: Header) -> None:
    """Forget an open stream that rests; what is on disk stays there."""
    count_ring(shard, header, -1)
    drop_ring(shard.arena, header)
    model_of(shard, header.model).num_open -= 1
    free_slot(shard, header)


@jit
def find_stream(shard: Shard, request: Request) -> int:
    """Return the slot of a request's stream; -1 if it is not in memory."""
    return find_slot(
        shard.index,
        request.hash,
        field_address(request, "stream"),
        request.stream_bytes,
    )
