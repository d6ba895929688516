"""Let requests wait for their streams.

A slot is taken when an `open` of an unknown stream arrives, before that `open` is carried out, so
that every request for the stream finds one queue and keeps its turn. It is freed when its stream is
closed and nothing waits any more. With a state directory, a stream that is not in memory may be on
disk, of any model: until Python has looked, it lives in the *room*, which has headers and no rows.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    prefetch,
)
from streamrnn.kernels.pointers import address, field_address
from streamrnn_client.protocol.messages import MAX_WINDOW, NUM_HASH_SLOTS, ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.libzmq import send_bytes
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.index import find_slot, first_candidate
from streamrnn_server.shard.requests import request as r
from streamrnn_server.shard.requests.finish import fail, finish
from streamrnn_server.shard.requests.request import (
    Pool,
    Request,
    pop_first,
    push_waiting,
    request_of,
)
from streamrnn_server.shard.streams.allocate import take_named_slot
from streamrnn_server.shard.streams.eviction import take_block
from streamrnn_server.shard.streams.owners import is_forbidden
from streamrnn_server.shard.streams.slots import header_of, make_ready, model_of
from streamrnn_server.shard.structs import ASK_BYTES, Shard, ask_at

__all__ = ["admit", "admit_one"]

_UNKNOWN, _FORBIDDEN, _BUSY, _MOVED, _TOO_LARGE, _WRONG_LENGTH = (
    int(ErrorCode.UNKNOWN),
    int(ErrorCode.FORBIDDEN),
    int(ErrorCode.BUSY),
    int(ErrorCode.MOVED),
    int(ErrorCode.TOO_LARGE),
    int(ErrorCode.WRONG_LENGTH),
)
_LOW_14 = NUM_HASH_SLOTS - 1
_HASH_SLOT_SHIFT = 64 - 14
# An `open`, `close` or `reset` may wait behind a full window of steps.
_MORE_THAN_WINDOW = 4
_NEW_STREAM_WAITS = MAX_WINDOW + _MORE_THAN_WINDOW
_MAX_PREFETCHED_BYTES = 1024
_REPLY_SLACK_BYTES = 4096
_MAX_ITEM_BYTES = 256  # of a batch's reply beside y, in whatever form


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
        if kind in (r.BATCH, r.OPEN_MANY):
            if kind == r.OPEN_MANY or _prepare_batch(shard, request):
                link = request.first_child
                while link != 0:
                    child = request_of(pool, link)
                    # The last child may end the parent, but nobody gives records back here.
                    link = child.sibling
                    admit_one(shard, child)
        else:
            admit_one(shard, request)


@jit
def _prefetch_headers(shard: Shard, pool: Pool) -> None:
    """Ask for all headers, so that the misses of a whole wave pass at the same time."""
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
def _find(shard: Shard, request: Request) -> int:
    return find_slot(
        shard.index,
        request.hash,
        field_address(request, "stream"),
        request.stream_bytes,
    )


@jit
def admit_one(shard: Shard, request: Request) -> None:
    """Let a request wait for its stream, or refuse it.

    Parameters
    ----------
    request : Request
        Which is in no list.
    """
    num_shards = shard.num_shards
    if num_shards > 1:
        hash_slot = (request.hash >> _HASH_SLOT_SHIFT) & _LOW_14
        home = hash_slot * num_shards // NUM_HASH_SLOTS
        if home != shard.number:
            fail(shard, request, _MOVED, home)
            return
    kind = request.kind
    slot = _find(shard, request)
    if slot >= 0 and is_forbidden(shard, slot, request):
        fail(shard, request, _FORBIDDEN)
        return
    if slot < 0:
        if shard.can_look_up:
            slot = _take_in(shard, request)
        elif kind == r.CLOSE:
            request.last_seq = 0
            finish(shard, request)
            return
        elif kind not in (r.OPEN, r.PLACE):
            fail(shard, request, _UNKNOWN)
            return
        else:
            slot = take_named_slot(shard, request.model, request)
        if slot < 0:
            fail(shard, request, _BUSY)
            return
    header = header_of(shard, slot)
    flags = header.flags
    # One that comes back from disk may have a full window of steps on their way.
    max_waiting = MAX_WINDOW if flags & h.IS_HELD else _NEW_STREAM_WAITS
    if flags & h.IS_OPEN:
        max_waiting = 1 << header.window_log2
        if kind != r.STEP:
            max_waiting += _MORE_THAN_WINDOW
    if header.num_waiting >= max_waiting:
        fail(shard, request, _BUSY)
        return
    header.last_used_s = _now_s(shard)
    model = model_of(shard, header.model)
    row_bytes = model.row_bytes
    row = model.first_row + slot * row_bytes
    for k in range(0, min(row_bytes, _MAX_PREFETCHED_BYTES), 64):
        prefetch(row + k)
    push_waiting(shard.pool, header, request)
    if flags & (h.IS_READY | h.IS_HELD) == 0:
        header.flags = flags | h.IS_READY
        make_ready(shard, model, slot, header)


@jit
def _now_s(shard: Shard) -> int:
    return (shard.now_ns - shard.started_ns) // 1_000_000_000


@jit
def _prepare_batch(shard: Shard, parent: Request) -> bool:
    """Take the first known stream's model for the batch's; check X's length; make room for y."""
    pool = shard.pool
    num_models = shard.num_models
    link = parent.first_child
    slot = -1
    while link != 0 and slot < 0:
        child = request_of(pool, link)
        slot = _find(shard, child)
        link = child.sibling
        if slot >= 0 and header_of(shard, slot).model == num_models:
            slot = -1  # it is being looked up
        if slot >= 0 and is_forbidden(shard, slot, child):
            slot = -1
    if slot >= 0:
        index = header_of(shard, slot).model
    elif shard.can_look_up:
        index = _model_by_size(shard, parent)
    else:
        return True  # each item says so for itself
    model = model_of(shard, index)
    num_items, form = parent.num_items, parent.form
    step_bytes, y_bytes = model.step_bytes, model.y_bytes
    if slot >= 0:
        parent.model = index
    else:  # known is how long its inputs are; the first stream that is found says the rest
        parent.model = -1 - index
        for k in range(num_models):
            if model_of(shard, k).step_bytes == step_bytes:
                y_bytes = max(y_bytes, model_of(shard, k).y_bytes)
    expected = num_items * step_bytes
    came = parent.x_count
    if form == r.FORM_ARRAY:
        came *= 4
    if came != expected:
        fail(shard, parent, _WRONG_LENGTH, came, step_bytes, expected, form)
        return False
    reply_bytes = num_items * (2 * y_bytes + _MAX_ITEM_BYTES) + _REPLY_SLACK_BYTES
    if reply_bytes > shard.out_bytes:
        fail(shard, parent, _TOO_LARGE, reply_bytes, shard.out_bytes)
        return False
    block = take_block(shard, num_items * y_bytes)
    if block == 0:
        fail(shard, parent, _BUSY)
        return False
    parent.y_block = block
    parent.y = block
    x = parent.x
    stride = step_bytes if form == r.FORM_BIN else 2 * step_bytes
    link = parent.first_child
    while link != 0:
        child = request_of(pool, link)
        child.x = x
        child.x_count = step_bytes if form == r.FORM_BIN else step_bytes // 4
        x += stride
        link = child.sibling
    return True


@jit
def _model_by_size(shard: Shard, parent: Request) -> int:
    """Guess the model of a batch whose streams are all on disk: the first that X fits."""
    num_values = parent.x_count
    if parent.form == r.FORM_BIN:
        num_values //= 4
    num_items = parent.num_items
    for index in range(shard.num_models):
        if model_of(shard, index).step_bytes * num_items == 4 * num_values:
            return index
    return 0


@jit
def _take_in(shard: Shard, request: Request) -> int:
    """Let a stream that is not in memory wait in the room, and have it looked up; -1: no room."""
    slot = take_named_slot(shard, shard.num_models, request)
    if slot < 0:
        return -1
    header = header_of(shard, slot)
    header.flags = h.IS_HELD
    ask = ask_at(shard.out)
    ask.what = w.ASK_LOOK_UP
    ask.detail[0] = slot
    ask.detail[1] = header.generation
    ask.identity_bytes = 0
    ask.body_bytes = request.stream_bytes
    body = shard.out + ASK_BYTES
    copy_bytes(body, field_address(request, "stream"), request.stream_bytes)
    send_bytes(shard.pair, shard.out, ASK_BYTES + request.stream_bytes, False)
    shard.counters.num_looked_up += 1
    return slot
