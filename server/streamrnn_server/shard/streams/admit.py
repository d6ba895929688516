"""Admission: queue requests for their streams.

A slot is allocated when an `open` of an unknown stream arrives, before that `open` is carried out,
so that every request for the stream finds one queue and keeps its turn. It is freed when its stream
is closed and nothing waits any more. Streams that may be on disk: `shard.streams.lookup`.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    prefetch,
)
from streamrnn.kernels.pointers import address
from streamrnn_client.protocol import MAX_WINDOW, NUM_HASH_SLOTS, ErrorCode
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.index import first_candidate
from streamrnn_server.shard.memory.slab import header_of, model_of, row_of
from streamrnn_server.shard.requests.finish import fail, finish
from streamrnn_server.shard.requests.queue import pop_first, push_waiting
from streamrnn_server.shard.requests.request import Kind, Pool, Request, request_of
from streamrnn_server.shard.streams.allocate import allocate_named_slot
from streamrnn_server.shard.streams.batch import prepare_batch
from streamrnn_server.shard.streams.lookup import start_lookup
from streamrnn_server.shard.streams.owners import is_forbidden
from streamrnn_server.shard.streams.slots import find_stream, make_ready
from streamrnn_server.shard.structs import Shard

__all__ = ["admit", "admit_one"]

_LOW_14 = NUM_HASH_SLOTS - 1
_HASH_SLOT_SHIFT = 64 - 14
# An `open`, `close` or `reset` may wait behind a full window of steps.
_MORE_THAN_WINDOW = 4
_NEW_STREAM_WAITS = MAX_WINDOW + _MORE_THAN_WINDOW
_MAX_PREFETCHED_BYTES = 1024


@jit
def admit(shard: Shard) -> None:
    """Let every request on the list ARRIVED wait for its stream, or refuse it."""
    pool = shard.pool
    _prefetch_headers(shard, pool)
    while True:
        request = pop_first(pool, shard.arrived)
        if not request:
            return
        kind = request.kind
        if kind in (Kind.STEP_MANY, Kind.OPEN_MANY):
            if kind == Kind.OPEN_MANY or prepare_batch(shard, request):
                link = request.first_child
                while link != 0:
                    child = request_of(pool, link)
                    # The last child may end the parent, but no record is freed here.
                    link = child.sibling
                    admit_one(shard, child)
        else:
            admit_one(shard, request)


@jit
def _prefetch_headers(shard: Shard, pool: Pool) -> None:
    """Ask for all headers, so that the misses of a whole batch pass at the same time."""
    index = shard.index
    link = shard.arrived.first
    while link != 0:
        request = request_of(pool, link)
        link = request.next
        if request.first_child == 0:
            slot = first_candidate(index, request.hash)
            if slot >= 0:
                prefetch(address(header_of(shard, slot)))


@jit
def admit_one(shard: Shard, request: Request) -> None:
    """Let a request, which is in no list, wait for its stream, or refuse it."""
    num_shards = shard.num_shards
    if num_shards > 1:
        hash_slot = (request.hash >> _HASH_SLOT_SHIFT) & _LOW_14
        home = hash_slot * num_shards // NUM_HASH_SLOTS
        if home != shard.number:
            fail(shard, request, ErrorCode.MOVED, home)
            return
    slot = _find_or_allocate(shard, request)
    if slot < 0:
        return
    header = header_of(shard, slot)
    flags = header.flags
    # One that comes back from disk may have a full window of steps on their way.
    max_waiting = MAX_WINDOW if flags & h.IS_BLOCKED else _NEW_STREAM_WAITS
    if flags & h.IS_OPEN:
        max_waiting = 1 << header.window_log2
        if request.kind != Kind.STEP:
            max_waiting += _MORE_THAN_WINDOW
    if header.num_waiting >= max_waiting:
        fail(shard, request, ErrorCode.BUSY)
        return
    header.last_used_s = _now_s(shard)
    model = model_of(shard, header.model)
    row = row_of(model, slot)
    for k in range(0, min(model.row_bytes, _MAX_PREFETCHED_BYTES), 64):
        prefetch(row + k)
    push_waiting(shard.pool, header, request)
    if flags & (h.IS_READY | h.IS_BLOCKED) == 0:
        header.flags = flags | h.IS_READY
        make_ready(shard, header)


@jit
def _find_or_allocate(shard: Shard, request: Request) -> int:
    """Return the slot of a request's stream, a new one if need be; -1: the request has ended."""
    slot = find_stream(shard, request)
    if slot >= 0:
        if is_forbidden(shard, header_of(shard, slot), request):
            fail(shard, request, ErrorCode.FORBIDDEN)
            return -1
        return slot
    if shard.can_look_up:
        slot = start_lookup(shard, request)
    elif request.kind in (Kind.OPEN, Kind.RESTORE):
        slot = allocate_named_slot(shard, request.model, request)
    elif request.kind == Kind.CLOSE:
        request.last_seq = 0
        finish(shard, request)
        return -1
    else:
        fail(shard, request, ErrorCode.UNKNOWN)
        return -1
    if slot < 0:
        fail(shard, request, ErrorCode.BUSY, -1 - slot)
    return slot


@jit
def _now_s(shard: Shard) -> int:
    return (shard.now_ns - shard.started_ns) // 1_000_000_000
