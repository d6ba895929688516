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
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    prefetch,
    store_i32,
    store_i64,
    store_u8,
)
from streamrnn.state import slab as h
from streamrnn.state.index import find_slot, first_candidate
from streamrnn_client.protocol import MAX_WINDOW, NUM_HASH_SLOTS, ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count, fail, finish
from streamrnn_server.libzmq import send_bytes
from streamrnn_server.requests import push_waiting, record_of, take_from_list
from streamrnn_server.slots import header_of, make_ready, model_of
from streamrnn_server.spilling import take_block
from streamrnn_server.taking import take_named_slot
from streamrnn_server.users import is_forbidden

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
def admit(shard: int) -> None:
    """Let every request on the list ARRIVED wait for its stream, or refuse it.

    Parameters
    ----------
    shard : int
        Address of the shard.
    """
    pool = load_i64(shard + w.POOL)
    _prefetch_headers(shard, pool)
    while True:
        request = take_from_list(pool, shard + w.ARRIVED)
        if request == 0:
            return
        kind = load_i64(request + r.KIND)
        if kind in (r.BATCH, r.OPEN_MANY):
            if kind == r.OPEN_MANY or _prepare_batch(shard, request):
                link = load_i64(request + r.FIRST_CHILD)
                while link != 0:
                    child = record_of(pool, link)
                    # The last child may end the parent, but nobody gives records back here.
                    link = load_i64(child + r.SIBLING)
                    admit_one(shard, child)
        else:
            admit_one(shard, request)


@jit
def _prefetch_headers(shard: int, pool: int) -> None:
    """Ask for all headers, so that the misses of a whole wave pass at the same time."""
    index = load_i64(shard + w.INDEX)
    link = load_i64(shard + w.ARRIVED)
    while link != 0:
        request = record_of(pool, link)
        link = load_i64(request + r.NEXT)
        if load_i64(request + r.FIRST_CHILD) == 0:
            slot = first_candidate(index, load_i64(request + r.HASH))
            if slot >= 0:
                prefetch(header_of(shard, slot))


@jit
def _find(shard: int, request: int) -> int:
    return find_slot(
        load_i64(shard + w.INDEX),
        load_i64(request + r.HASH),
        request + r.STREAM,
        load_i64(request + r.STREAM_BYTES),
    )


@jit
def admit_one(shard: int, request: int) -> None:
    """Let a request wait for its stream, or refuse it.

    Parameters
    ----------
    shard : int
        Address of the shard.
    request : int
        Address of the record, which is in no list.
    """
    num_shards = load_i64(shard + w.NUM_SHARDS)
    if num_shards > 1:
        hash_slot = (load_i64(request + r.HASH) >> _HASH_SLOT_SHIFT) & _LOW_14
        home = hash_slot * num_shards // NUM_HASH_SLOTS
        if home != load_i64(shard + w.SHARD):
            fail(shard, request, _MOVED, home, 0, 0, 0)
            return
    kind = load_i64(request + r.KIND)
    slot = _find(shard, request)
    if slot >= 0 and is_forbidden(shard, slot, request):
        fail(shard, request, _FORBIDDEN, 0, 0, 0, 0)
        return
    if slot < 0:
        if load_i64(shard + w.CAN_LOOK_UP):
            slot = _take_in(shard, request)
        elif kind == r.CLOSE:
            store_i64(request + r.LAST_SEQ, 0)
            finish(shard, request)
            return
        elif kind not in (r.OPEN, r.PLACE):
            fail(shard, request, _UNKNOWN, 0, 0, 0, 0)
            return
        else:
            slot = take_named_slot(shard, load_i64(request + r.MODEL), request)
        if slot < 0:
            fail(shard, request, _BUSY, 0, 0, 0, 0)
            return
    header = header_of(shard, slot)
    flags = load_u8(header + h.FLAGS)
    # One that comes back from disk may have a full window of steps on their way.
    max_waiting = MAX_WINDOW if flags & h.IS_HELD else _NEW_STREAM_WAITS
    if flags & h.IS_OPEN:
        max_waiting = 1 << load_u8(header + h.WINDOW_LOG2)
        if kind != r.STEP:
            max_waiting += _MORE_THAN_WINDOW
    if load_u16(header + h.NUM_WAITING) >= max_waiting:
        fail(shard, request, _BUSY, 0, 0, 0, 0)
        return
    store_i32(header + h.LAST_USED_S, _now_s(shard))
    model = model_of(shard, load_u16(header + h.MODEL))
    row_bytes = load_i64(model + w.ROW_BYTES)
    row = load_i64(model + w.FIRST_ROW) + slot * row_bytes
    for k in range(0, min(row_bytes, _MAX_PREFETCHED_BYTES), 64):
        prefetch(row + k)
    push_waiting(load_i64(shard + w.POOL), header, request)
    if flags & (h.IS_READY | h.IS_HELD) == 0:
        store_u8(header + h.FLAGS, flags | h.IS_READY)
        make_ready(shard, model, slot, header)


@jit
def _now_s(shard: int) -> int:
    return (load_i64(shard + w.NOW_NS) - load_i64(shard + w.STARTED_NS)) // 1_000_000_000


@jit
def _prepare_batch(shard: int, parent: int) -> bool:
    """Take the first known stream's model for the batch's; check X's length; make room for y."""
    pool = load_i64(shard + w.POOL)
    num_models = load_i64(shard + w.NUM_MODELS)
    link = load_i64(parent + r.FIRST_CHILD)
    slot = -1
    while link != 0 and slot < 0:
        child = record_of(pool, link)
        slot = _find(shard, child)
        link = load_i64(child + r.SIBLING)
        if slot >= 0 and load_u16(header_of(shard, slot) + h.MODEL) == num_models:
            slot = -1  # it is being looked up
        if slot >= 0 and is_forbidden(shard, slot, child):
            slot = -1
    if slot >= 0:
        index = load_u16(header_of(shard, slot) + h.MODEL)
    elif load_i64(shard + w.CAN_LOOK_UP):
        index = _model_by_size(shard, parent)
    else:
        return True  # each item says so for itself
    model = model_of(shard, index)
    num_items, form = load_i64(parent + r.NUM_ITEMS), load_i64(parent + r.FORM)
    step_bytes, y_bytes = load_i64(model + w.STEP_BYTES), load_i64(model + w.Y_BYTES)
    if slot >= 0:
        store_i64(parent + r.MODEL, index)
    else:  # known is how long its inputs are; the first stream that is found says the rest
        store_i64(parent + r.MODEL, -1 - index)
        for k in range(num_models):
            if load_i64(model_of(shard, k) + w.STEP_BYTES) == step_bytes:
                y_bytes = max(y_bytes, load_i64(model_of(shard, k) + w.Y_BYTES))
    expected = num_items * step_bytes
    came = load_i64(parent + r.X_COUNT)
    if form == r.FORM_ARRAY:
        came *= 4
    if came != expected:
        fail(shard, parent, _WRONG_LENGTH, came, step_bytes, expected, form)
        return False
    reply_bytes = num_items * (2 * y_bytes + _MAX_ITEM_BYTES) + _REPLY_SLACK_BYTES
    if reply_bytes > load_i64(shard + w.OUT_BYTES):
        fail(shard, parent, _TOO_LARGE, reply_bytes, load_i64(shard + w.OUT_BYTES), 0, 0)
        return False
    block = take_block(shard, num_items * y_bytes)
    if block == 0:
        fail(shard, parent, _BUSY, 0, 0, 0, 0)
        return False
    store_i64(parent + r.Y_BLOCK, block)
    store_i64(parent + r.Y, block)
    x = load_i64(parent + r.X)
    stride = step_bytes if form == r.FORM_BIN else 2 * step_bytes
    link = load_i64(parent + r.FIRST_CHILD)
    while link != 0:
        child = record_of(pool, link)
        store_i64(child + r.X, x)
        store_i64(child + r.X_COUNT, step_bytes if form == r.FORM_BIN else step_bytes // 4)
        x += stride
        link = load_i64(child + r.SIBLING)
    return True


@jit
def _model_by_size(shard: int, parent: int) -> int:
    """Guess the model of a batch whose streams are all on disk: the first that X fits."""
    num_values = load_i64(parent + r.X_COUNT)
    if load_i64(parent + r.FORM) == r.FORM_BIN:
        num_values //= 4
    num_items = load_i64(parent + r.NUM_ITEMS)
    for index in range(load_i64(shard + w.NUM_MODELS)):
        if load_i64(model_of(shard, index) + w.STEP_BYTES) * num_items == 4 * num_values:
            return index
    return 0


@jit
def _take_in(shard: int, request: int) -> int:
    """Let a stream that is not in memory wait in the room, and have it looked up; -1: no room."""
    slot = take_named_slot(shard, load_i64(shard + w.NUM_MODELS), request)
    if slot < 0:
        return -1
    header = header_of(shard, slot)
    store_u8(header + h.FLAGS, h.IS_HELD)
    num_bytes = load_i64(request + r.STREAM_BYTES)
    out = load_i64(shard + w.OUT)
    store_i64(out + w.ASK, w.ASK_LOOK_UP)
    store_i64(out + w.ASK_DETAIL, slot)
    store_i64(out + w.ASK_DETAIL + 8, load_i32(header + h.GENERATION))
    store_i64(out + w.ASK_IDENTITY_BYTES, 0)
    store_i64(out + w.ASK_BODY_BYTES, num_bytes)
    copy_bytes(out + w.ASK_HEAD_BYTES, request + r.STREAM, num_bytes)
    send_bytes(load_i64(shard + w.PAIR), out, w.ASK_HEAD_BYTES + num_bytes, False)
    count(shard, w.NUM_LOOKED_UP, 1)
    return slot
