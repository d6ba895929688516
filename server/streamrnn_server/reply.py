"""The loop's end: encode what is done and send it; ask Python where words are needed.

Compiled code builds no text. A request that ended with an error goes to Python as numbers, with the
identity of whom to answer, over the inproc PAIR; Python words the reply and the shard sends it on.
How many may go there is limited, by number and by size; beyond, and always for `busy` and `moved`,
the answer is one that was encoded beforehand.
"""

from __future__ import annotations

import errno
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_i64, store_i64, store_u8
from streamrnn.state.arena import release
from streamrnn_client.protocol import ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.encode import (
    write_array,
    write_bin,
    write_float_array,
    write_nil,
    write_response,
    write_uint,
)
from streamrnn_server.finish import count
from streamrnn_server.libzmq import send_bytes
from streamrnn_server.requests import give_request, record_of, take_from_list

__all__ = ["call_python", "count_unsent", "reply"]

_EAGAIN, _EHOSTUNREACH = errno.EAGAIN, errno.EHOSTUNREACH
_BUSY, _MOVED = int(ErrorCode.BUSY), int(ErrorCode.MOVED)
WORDS_PER_S = 2_000
MAX_WORDS = 2_000
_BYTES_PER_WORD = 4096
_MAX_WORDS_PER_CALL = 200
_NS_PER_WORD = 1_000_000_000 // WORDS_PER_S


@intrinsic
def _floor_log2(typingctx: Any, value: types.Type) -> Any:
    """Return the place of the highest bit of a positive int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width = ir.IntType(64)
        leading = builder.ctlz(args[0], ir.IntType(1)(1))
        return builder.sub(width(63), leading)

    return types.int64(types.int64), codegen


@jit
def reply(shard: int) -> None:
    """Answer every request on the list FINISHED and give its record back.

    Parameters
    ----------
    shard : int
        Address of the shard.
    """
    pool = load_i64(shard + w.POOL)
    while True:
        request = take_from_list(pool, shard + w.FINISHED)
        if request == 0:
            return
        if not _ask_python(shard, request):
            end = _encode(shard, request)
            out = load_i64(shard + w.OUT)
            _send(shard, request, out, end - out)
        _note_latency(shard, request)
        _give_back(shard, pool, request)


@jit
def _send(shard: int, request: int, data: int, num_bytes: int) -> None:
    """Send one reply, or count why it cannot be sent."""
    if load_i64(request + r.IDENTITY_BYTES) == 0:
        _tell_python(shard, request, data, num_bytes)
        return
    router = load_i64(shard + w.ROUTER)
    error = send_bytes(router, request + r.IDENTITY, load_i64(request + r.IDENTITY_BYTES), True)
    # After a failed identity the payload would go out as an orphan.
    if error == 0:
        error = send_bytes(router, data, num_bytes, False)
    if error == 0:
        count(shard, w.NUM_REPLIES, 1)
    else:
        count_unsent(shard, error)


@jit
def _tell_python(shard: int, request: int, data: int, num_bytes: int) -> None:
    """Send the reply to a request that Python has made itself."""
    pair = load_i64(shard + w.PAIR)
    head = (data + num_bytes + 7) // 8 * 8
    store_i64(head + w.ASK, w.ASK_REPLY)
    store_i64(head + w.ASK_MSGID, load_i64(request + r.MSGID))
    store_i64(head + w.ASK_IDENTITY_BYTES, 0)
    if send_bytes(pair, head, w.ASK_HEAD_BYTES, True) == 0:
        send_bytes(pair, data, num_bytes, False)


@jit
def count_unsent(shard: int, error: int) -> None:
    """Count a reply that could not be sent, by its reason.

    Parameters
    ----------
    shard : int
        Address of the shard.
    error : int
        The error number.
    """
    if error == _EAGAIN:
        count(shard, w.NUM_DROPPED_SLOW, 1)
    elif error == _EHOSTUNREACH:
        count(shard, w.NUM_DROPPED_GONE, 1)
    else:
        count(shard, w.NUM_DROPPED_OTHER, 1)


@jit
def _note_latency(shard: int, request: int) -> None:
    """Count the time from receive to send in its bucket: eight to each doubling."""
    passed_ns = load_i64(shard + w.NOW_NS) - load_i64(request + r.RECEIVED_NS)
    doublings = max(_floor_log2(passed_ns | 1) - w.BUCKETS_LOG2, 0)
    bucket = (doublings << w.BUCKETS_LOG2) + (passed_ns >> doublings)
    at = load_i64(shard + w.LATENCIES) + 8 * bucket
    store_i64(at, load_i64(at) + 1)


@jit
def _give_back(shard: int, pool: int, request: int) -> None:
    arena = load_i64(shard + w.ARENA)
    link = load_i64(request + r.FIRST_CHILD)
    while link != 0:
        child = record_of(pool, link)
        link = load_i64(child + r.SIBLING)
        give_request(pool, child)
    release(arena, load_i64(request + r.X_BLOCK))
    release(arena, load_i64(request + r.Y_BLOCK))
    give_request(pool, request)


# ---------------------------------------------------------------------------------------------
# Encoding
# ---------------------------------------------------------------------------------------------


@jit
def _encode(shard: int, request: int) -> int:
    """Write the reply at OUT; return where it ends."""
    out = load_i64(shard + w.OUT)
    kind = load_i64(request + r.KIND)
    if load_i64(request + r.CODE) != 0:
        store_u8(out, 0x94)
        store_u8(out + 1, 1)
        at = write_uint(out + 2, load_i64(request + r.MSGID))
        return write_nil(_write_error(shard, request, at))
    at = write_response(out, load_i64(request + r.MSGID))
    if kind != r.BATCH and kind != r.OPEN_MANY:
        return _write_result(shard, request, at)
    pool = load_i64(shard + w.POOL)
    at = write_array(at, load_i64(request + r.NUM_ITEMS))
    link = load_i64(request + r.FIRST_CHILD)
    while link != 0:
        child = record_of(pool, link)
        link = load_i64(child + r.SIBLING)
        at = write_array(at, 2)
        if load_i64(child + r.CODE) != 0:
            at = write_nil(_write_error(shard, child, at))
        else:
            at = _write_result(shard, child, write_nil(at))
    return at


@jit
def _write_result(shard: int, request: int, at: int) -> int:
    kind = load_i64(request + r.KIND)
    last_seq = load_i64(request + r.LAST_SEQ)
    durable_seq = load_i64(request + r.DURABLE_SEQ)
    if load_i64(shard + w.IS_ALWAYS) and kind != r.SYNC:
        durable_seq = last_seq  # what is answered is on disk; but a sync is, if it cannot be, too
    if kind == r.CLOSE or kind == r.SYNC_ALL:
        store_u8(at, 0xC2 + last_seq)
        return at + 1
    if kind == r.SYNC:
        return write_uint(at, durable_seq)
    at = write_array(at, 2 if kind in (r.RESET, r.SNAPSHOT, r.ROLLBACK) else 3)
    at = write_uint(at, last_seq)
    at = write_uint(at, durable_seq)
    if kind == r.OPEN or kind == r.PLACE:
        at = write_uint(at, load_i64(request + r.WINDOW))
    elif kind == r.STEP:
        y = load_i64(request + r.Y)
        num_bytes = load_i64(request + r.Y_COUNT)
        if load_i64(request + r.FORM) == r.FORM_BIN:
            at = write_bin(at, y, num_bytes)
        else:
            at = write_float_array(at, y, num_bytes // 4)
    return at


@jit
def _write_error(shard: int, request: int, at: int) -> int:
    """Write an error that was encoded beforehand."""
    code = load_i64(request + r.CODE)
    entry = load_i64(shard + w.CANNED) + 16 * code
    if code == _MOVED:
        entry = load_i64(shard + w.MOVED) + 16 * load_i64(request + r.DETAIL)
    num_bytes = load_i64(entry + 8)
    copy_bytes(at, load_i64(entry), num_bytes)
    return at + num_bytes


# ---------------------------------------------------------------------------------------------
# Asking Python
# ---------------------------------------------------------------------------------------------


@jit
def _needs_words(request: int) -> bool:
    code = load_i64(request + r.CODE)
    return code != 0 and code != _BUSY and code != _MOVED


@jit
def _may_ask(shard: int, num_words: int) -> bool:
    """Take from the bucket that limits what goes to Python."""
    now = load_i64(shard + w.NOW_NS)
    passed = (now - load_i64(shard + w.WORDS_NS)) // _NS_PER_WORD
    left = load_i64(shard + w.WORDS_LEFT)
    if passed > 0:
        left = min(left + passed, MAX_WORDS)
        store_i64(shard + w.WORDS_NS, now)
    if left < num_words:
        store_i64(shard + w.WORDS_LEFT, left)
        return False
    store_i64(shard + w.WORDS_LEFT, left - num_words)
    return True


@jit
def _write_ask(shard: int, request: int, ask: int, body_bytes: int) -> int:
    """Write the numbers and the identity; return where the body goes."""
    out = load_i64(shard + w.OUT)
    identity_bytes = load_i64(request + r.IDENTITY_BYTES)
    store_i64(out + w.ASK, ask)
    store_i64(out + w.ASK_MSGID, load_i64(request + r.MSGID))
    store_i64(out + w.ASK_CODE, load_i64(request + r.CODE))
    for k in range(4):
        store_i64(out + w.ASK_DETAIL + 8 * k, load_i64(request + r.DETAIL + 8 * k))
    store_i64(out + w.ASK_MODEL, load_i64(request + r.MODEL))
    store_i64(out + w.ASK_KIND, load_i64(request + r.KIND))
    store_i64(out + w.ASK_FORM, load_i64(request + r.FORM))
    store_i64(out + w.ASK_NUM_ITEMS, load_i64(request + r.NUM_ITEMS))
    store_i64(out + w.ASK_IDENTITY_BYTES, identity_bytes)
    store_i64(out + w.ASK_BODY_BYTES, body_bytes)
    store_i64(out + w.ASK_OWNER, load_i64(request + r.OWNER))
    copy_bytes(out + w.ASK_HEAD_BYTES, request + r.IDENTITY, identity_bytes)
    return out + w.ASK_HEAD_BYTES + identity_bytes


@jit
def _ask(shard: int, end: int) -> bool:
    out = load_i64(shard + w.OUT)
    return send_bytes(load_i64(shard + w.PAIR), out, end - out, False) == 0


@jit
def call_python(shard: int, request: int, data: int, num_bytes: int) -> bool:
    """Hand a message over to Python, which answers it.

    Parameters
    ----------
    shard : int
        Address of the shard.
    request : int
        Address of the record that says whom to answer.
    data, num_bytes : int
        The payload frame.

    Returns
    -------
    bool
        False if Python has too much to do already.
    """
    num_words = min(1 + num_bytes // _BYTES_PER_WORD, _MAX_WORDS_PER_CALL)
    if not _may_ask(shard, num_words):
        count(shard, w.NUM_CALLS_REFUSED, 1)
        return False
    count(shard, w.NUM_CALLS, 1)
    at = _write_ask(shard, request, w.ASK_CALL, num_bytes)
    copy_bytes(at, data, num_bytes)
    return _ask(shard, at + num_bytes)


@jit
def _ask_python(shard: int, request: int) -> bool:
    """Let Python word a reply, if it needs words and Python has time, or make a record."""
    if load_i64(request + r.KIND) == r.EXPORT and load_i64(request + r.CODE) == 0:
        at = _write_ask(shard, request, w.ASK_ENTRY, load_i64(request + r.Y_COUNT))
        copy_bytes(at, load_i64(request + r.Y), load_i64(request + r.Y_COUNT))
        return _ask(shard, at + load_i64(request + r.Y_COUNT))
    num_words = 1 if _needs_words(request) else 0
    if load_i64(request + r.CODE) == 0:
        pool = load_i64(shard + w.POOL)
        link = load_i64(request + r.FIRST_CHILD)
        while link != 0:
            child = record_of(pool, link)
            link = load_i64(child + r.SIBLING)
            num_words += 1 if _needs_words(child) else 0
    if num_words == 0:
        return False
    if not _may_ask(shard, min(num_words, _MAX_WORDS_PER_CALL)):
        count(shard, w.NUM_ERRORS_WITHOUT_WORDS, num_words)
        return False
    if load_i64(request + r.CODE) != 0:
        num_bytes = load_i64(request + r.STREAM_BYTES)
        at = _write_ask(shard, request, w.ASK_ERROR, num_bytes)
        copy_bytes(at, request + r.STREAM, num_bytes)
        return _ask(shard, at + num_bytes)
    return _ask(shard, _write_items(shard, request))


@jit
def _write_items(shard: int, parent: int) -> int:
    """Write what became of each child: a record, its stream id, and its y, one after the other."""
    pool = load_i64(shard + w.POOL)
    at = _write_ask(shard, parent, w.ASK_ITEMS, 0)
    link = load_i64(parent + r.FIRST_CHILD)
    while link != 0:
        child = record_of(pool, link)
        link = load_i64(child + r.SIBLING)
        code = load_i64(child + r.CODE)
        id_bytes = load_i64(child + r.STREAM_BYTES)
        y_bytes = 0
        if code == 0 and load_i64(child + r.KIND) == r.STEP:
            y_bytes = load_i64(child + r.Y_COUNT)
        store_i64(at + w.ITEM_CODE, code)
        for k in range(4):
            store_i64(at + w.ITEM_DETAIL + 8 * k, load_i64(child + r.DETAIL + 8 * k))
        store_i64(at + w.ITEM_LAST_SEQ, load_i64(child + r.LAST_SEQ))
        durable = r.LAST_SEQ if load_i64(shard + w.IS_ALWAYS) else r.DURABLE_SEQ
        store_i64(at + w.ITEM_DURABLE_SEQ, load_i64(child + durable))
        store_i64(at + w.ITEM_WINDOW, load_i64(child + r.WINDOW))
        store_i64(at + w.ITEM_ID_BYTES, id_bytes)
        store_i64(at + w.ITEM_Y_BYTES, y_bytes)
        at += w.ITEM_RECORD_BYTES
        copy_bytes(at, child + r.STREAM, id_bytes)
        at += id_bytes
        copy_bytes(at, load_i64(child + r.Y), y_bytes)
        at += y_bytes
    return at
