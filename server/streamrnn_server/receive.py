"""The loop's first half: receive what has arrived, decode it, and let it wait for its stream.

Nothing of a message is needed after `receive`: identity, stream id and x are copied into the
request's record (a message that is held pins 8 KiB of libzmq's buffer).
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_i64, store_i64
from streamrnn.state.index import equal_bytes, hash64, prefetch_entry
from streamrnn_client.protocol import MAX_BATCH, ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.decode import decode_request, read_numbers, read_stream, read_uint
from streamrnn_server.finish import count, fail, finish
from streamrnn_server.libzmq import (
    monotonic_ns,
    msg_data,
    msg_more,
    msg_size,
    receive_frame,
)
from streamrnn_server.reply import call_python
from streamrnn_server.requests import (
    append_to_list,
    give_request,
    link_of,
    num_free,
    take_request,
)
from streamrnn_server.spilling import take_block
from streamrnn_server.users import NOBODY, user_of

__all__ = ["receive"]

# An empty receive costs 0.5 µs: while streams have work, look for messages only so often.
_LOOK_AGAIN_NS = 20_000
_MALFORMED, _FORBIDDEN, _TOO_LARGE, _BUSY = (
    int(ErrorCode.MALFORMED),
    int(ErrorCode.FORBIDDEN),
    int(ErrorCode.TOO_LARGE),
    int(ErrorCode.BUSY),
)
_KEPT_FOR_PYTHON = 1024  # records for requests that Python makes
_HEAD_BYTES = 32  # enough to find the msgid


@jit
def receive(shard: int) -> int:
    """Take messages that have arrived, at most a wave of them, and decode them.

    Parameters
    ----------
    shard : int
        Address of the shard. Requests that a stream must serve are put on its list ARRIVED.

    Returns
    -------
    int
        The number of messages taken.
    """
    now = load_i64(shard + w.NOW_NS)
    just_looked = now - load_i64(shard + w.LAST_EMPTY_NS) < _LOOK_AGAIN_NS
    if just_looked and load_i64(shard + w.NUM_READY) > 0:
        return 0
    state = load_i64(shard + w.STATE)
    if state >= w.DRAINED or (state == w.STOPPING and now > load_i64(shard + w.STOP_AT_NS)):
        return 0
    router, pool = load_i64(shard + w.ROUTER), load_i64(shard + w.POOL)
    identity = load_i64(shard + w.IDENTITY_MESSAGE)
    num_messages, max_rows = 0, load_i64(shard + w.MAX_ROWS)
    # A message may need a record for each item. Without room it stays where it is: at last the
    # client's own socket holds it back.
    while num_messages < max_rows and num_free(pool) > MAX_BATCH + _KEPT_FOR_PYTHON:
        if receive_frame(router, identity) < 0:
            store_i64(shard + w.LAST_EMPTY_NS, now)
            break
        if num_messages == 0:
            now = monotonic_ns(load_i64(shard + w.CLOCK))
            store_i64(shard + w.NOW_NS, now)
        num_messages += 1
        _take_message(shard, router, identity, pool)
    count(shard, w.NUM_MESSAGES, num_messages)
    return num_messages


@jit
def _take_message(shard: int, router: int, identity: int, pool: int) -> None:
    """Take the rest of the message whose identity frame is here."""
    if not msg_more(identity):
        count(shard, w.NUM_WITHOUT_PAYLOAD, 1)
        return
    request = take_request(pool)
    num_bytes = msg_size(identity)
    copy_bytes(request + r.IDENTITY, msg_data(identity), num_bytes)
    store_i64(request + r.IDENTITY_BYTES, num_bytes)
    store_i64(request + r.RECEIVED_NS, load_i64(shard + w.NOW_NS))
    payload = load_i64(shard + w.PAYLOAD_MESSAGE)
    num_bytes = receive_frame(router, payload)
    data = msg_data(payload)
    is_stranger = not _note_user(shard, payload, request)
    max_bytes = load_i64(shard + w.MAX_MESSAGE_BYTES)
    kind = decode_request(data, num_bytes if num_bytes <= max_bytes else _HEAD_BYTES, request)
    if msg_more(payload):
        num_frames = 1
        while msg_more(payload) and receive_frame(router, payload) >= 0:
            num_frames += 1
        count(shard, w.NUM_EXTRA_FRAMES, 1)
        _refuse(shard, request, _MALFORMED, num_frames, 0)
    elif is_stranger:
        _refuse(shard, request, _FORBIDDEN, 0, 0)
    elif num_bytes > max_bytes:
        _refuse(shard, request, _TOO_LARGE, num_bytes, max_bytes)
    elif kind == r.COLD or (kind in (r.OPEN, r.OPEN_MANY) and not _find_model(shard, request)):
        if call_python(shard, request, data, num_bytes):
            give_request(pool, request)
        else:
            _refuse(shard, request, _BUSY, 0, 0)
    elif not _keep(shard, request, data + num_bytes):
        fail(shard, request, _BUSY, 0, 0, 0, 0)
    elif load_i64(request + r.FIRST_CHILD) == 0 and kind in (r.BATCH, r.OPEN_MANY):
        finish(shard, request)
    else:
        append_to_list(pool, shard + w.ARRIVED, request)


@jit
def _note_user(shard: int, message: int, request: int) -> bool:
    """Note who asks; False if there are users and this is none."""
    if load_i64(shard + w.USERS) == 0:
        return True
    user = user_of(shard, message)
    store_i64(request + r.OWNER, user)
    return user != NOBODY


@jit
def _refuse(shard: int, request: int, code: int, detail_0: int, detail_1: int) -> None:
    """Answer a message that nothing was kept of, or count it if nobody can be answered."""
    store_i64(request + r.KIND, r.COLD)
    store_i64(request + r.STREAM_BYTES, 0)
    if load_i64(request + r.MSGID) < 0:
        count(shard, w.NUM_TOO_BROKEN, 1)
        give_request(load_i64(shard + w.POOL), request)
    else:
        fail(shard, request, code, detail_0, detail_1, 0, 0)


@jit
def _find_model(shard: int, request: int) -> bool:
    """Find the model that an `open` names; nil is the only one."""
    name, num_bytes = load_i64(request + r.X), load_i64(request + r.X_COUNT)
    num_models = load_i64(shard + w.NUM_MODELS)
    store_i64(request + r.MODEL, 0)
    if name == 0:
        return num_models == 1
    for k in range(num_models):
        model = load_i64(shard + w.MODELS) + k * w.MODEL_RECORD_BYTES
        if load_i64(model + w.NAME_BYTES) == num_bytes and equal_bytes(
            load_i64(model + w.NAME), name, num_bytes
        ):
            store_i64(request + r.MODEL, k)
            return True
    return False


@jit
def _keep(shard: int, request: int, end: int) -> bool:
    """Copy what is still in the message; tell whether there was room."""
    kind = load_i64(request + r.KIND)
    if kind in (r.STEP, r.BATCH) and not _keep_x(shard, request, end):
        return False
    if kind in (r.BATCH, r.OPEN_MANY):
        _make_children(shard, request, kind, end)
        return True
    _set_hash(shard, request)
    return True


@jit
def _keep_x(shard: int, request: int, end: int) -> bool:
    x, length = load_i64(request + r.X), load_i64(request + r.X_COUNT)
    form = load_i64(request + r.FORM)
    num_bytes = length if form == r.FORM_BIN else 8 * length
    target = request + r.INLINE_X
    if num_bytes > load_i64(shard + w.INLINE_X_BYTES):
        target = take_block(shard, num_bytes)
        if target == 0:
            return False
        store_i64(request + r.X_BLOCK, target)
    store_i64(request + r.X, target)
    if form == r.FORM_BIN:
        copy_bytes(target, x, num_bytes)
    else:  # float64, until the model is known
        read_numbers(x, end, length, target)
    return True


@jit
def _set_hash(shard: int, request: int) -> None:
    hash_value = hash64(request + r.STREAM, load_i64(request + r.STREAM_BYTES))
    store_i64(request + r.HASH, hash_value)
    prefetch_entry(load_i64(shard + w.INDEX), hash_value)


@jit
def _make_children(shard: int, parent: int, kind: int, end: int) -> None:
    """Give each stream of a batch, or of an `open` of many, a record of its own."""
    pool = load_i64(shard + w.POOL)
    num_items = load_i64(parent + r.NUM_ITEMS)
    at = load_i64(parent + r.STREAMS)
    seqs_at = load_i64(parent + r.SEQS) if kind == r.BATCH else 0
    store_i64(parent + r.NUM_LEFT, num_items)
    previous = parent + r.FIRST_CHILD
    for k in range(num_items):
        child = take_request(pool)
        store_i64(previous, link_of(pool, child))
        previous = child + r.SIBLING
        seq = 0
        if seqs_at != 0:
            seq, seqs_at = read_uint(seqs_at, end)
        num_bytes, at = read_stream(at, end, child + r.STREAM)
        store_i64(child + r.STREAM_BYTES, num_bytes)
        store_i64(child + r.KIND, r.STEP if kind == r.BATCH else r.OPEN)
        store_i64(child + r.PARENT, parent)
        store_i64(child + r.OWNER, load_i64(parent + r.OWNER))
        store_i64(child + r.ITEM, k)
        store_i64(child + r.FIRST_SEQ, seq)
        store_i64(child + r.FORM, load_i64(parent + r.FORM))
        store_i64(child + r.MODEL, load_i64(parent + r.MODEL))
        store_i64(child + r.WINDOW, load_i64(parent + r.WINDOW))
        _set_hash(shard, child)
    store_i64(previous, 0)
    store_i64(parent + r.MODEL, -1)
