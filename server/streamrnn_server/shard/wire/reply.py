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
from streamrnn.kernels.memory import copy_bytes, load_i64, store_u8
from streamrnn.kernels.pointers import field_address
from streamrnn_client.protocol.messages import ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.libzmq import send_bytes
from streamrnn_server.shard.memory.arena import release
from streamrnn_server.shard.requests import request as r
from streamrnn_server.shard.requests.request import (
    Pool,
    Request,
    give_request,
    pop_first,
    request_of,
)
from streamrnn_server.shard.structs import Shard
from streamrnn_server.shard.wire.encode import (
    write_array,
    write_bin,
    write_float_array,
    write_nil,
    write_response,
    write_uint,
)

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
def reply(shard: Shard) -> None:
    """Answer every request on the list FINISHED and give its record back."""
    pool = shard.pool
    while True:
        request = pop_first(pool, shard.finished)
        if not request:
            return
        if not _ask_python(shard, request):
            end = _encode(shard, request)
            out = shard.out
            _send(shard, request, out, end - out)
        _note_latency(shard, request)
        _give_back(shard, pool, request)


@jit
def _send(shard: Shard, request: Request, data: int, num_bytes: int) -> None:
    """Send one reply, or count why it cannot be sent."""
    if request.identity_bytes == 0:
        _tell_python(shard, request, data, num_bytes)
        return
    router = shard.router
    error = send_bytes(router, field_address(request, "identity"), request.identity_bytes, True)
    # After a failed identity the payload would go out as an orphan.
    if error == 0:
        error = send_bytes(router, data, num_bytes, False)
    if error == 0:
        shard.counters.num_replies += 1
    else:
        count_unsent(shard, error)


@jit
def _tell_python(shard: Shard, request: Request, data: int, num_bytes: int) -> None:
    """Send the reply to a request that Python has made itself."""
    pair = shard.pair
    head = data + num_bytes
    ask = w.ask_at(head)
    ask.what = w.ASK_REPLY
    ask.msgid = request.msgid
    ask.identity_bytes = 0
    if send_bytes(pair, head, w.ASK_BYTES, True) == 0:
        send_bytes(pair, data, num_bytes, False)


@jit
def count_unsent(shard: Shard, error: int) -> None:
    """Count a reply that could not be sent, by its reason.

    Parameters
    ----------
    error : int
        The error number.
    """
    if error == _EAGAIN:
        shard.counters.num_dropped_slow_reader += 1
    elif error == _EHOSTUNREACH:
        shard.counters.num_dropped_peer_gone += 1
    else:
        shard.counters.num_dropped_other += 1


@jit
def _note_latency(shard: Shard, request: Request) -> None:
    """Count the time from receive to send in its bucket: eight to each doubling."""
    passed_ns = shard.now_ns - request.received_ns
    doublings = max(_floor_log2(passed_ns | 1) - w.BUCKETS_LOG2, 0)
    bucket = (doublings << w.BUCKETS_LOG2) + (passed_ns >> doublings)
    shard.latencies[bucket] += 1


@jit
def _give_back(shard: Shard, pool: Pool, request: Request) -> None:
    arena = shard.arena
    link = request.first_child
    while link != 0:
        child = request_of(pool, link)
        link = child.sibling
        give_request(pool, child)
    release(arena, request.x_block)
    release(arena, request.y_block)
    give_request(pool, request)


# ---------------------------------------------------------------------------------------------
# Encoding
# ---------------------------------------------------------------------------------------------


@jit
def _encode(shard: Shard, request: Request) -> int:
    """Write the reply at OUT; return where it ends."""
    out = shard.out
    kind = request.kind
    if request.code != 0:
        store_u8(out, 0x94)
        store_u8(out + 1, 1)
        at = write_uint(out + 2, request.msgid)
        return write_nil(_write_error(shard, request, at))
    at = write_response(out, request.msgid)
    if kind != r.BATCH and kind != r.OPEN_MANY:
        return _write_result(shard, request, at)
    pool = shard.pool
    at = write_array(at, request.num_items)
    link = request.first_child
    while link != 0:
        child = request_of(pool, link)
        link = child.sibling
        at = write_array(at, 2)
        if child.code != 0:
            at = write_nil(_write_error(shard, child, at))
        else:
            at = _write_result(shard, child, write_nil(at))
    return at


@jit
def _write_result(shard: Shard, request: Request, at: int) -> int:
    kind = request.kind
    last_seq = request.last_seq
    durable_seq = request.durable_seq
    if shard.is_always and kind != r.SYNC:
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
        at = write_uint(at, request.window)
    elif kind == r.STEP:
        y = request.y
        num_bytes = request.y_bytes
        if request.form == r.FORM_BIN:
            at = write_bin(at, y, num_bytes)
        else:
            at = write_float_array(at, y, num_bytes // 4)
    return at


@jit
def _write_error(shard: Shard, request: Request, at: int) -> int:
    """Write an error that was encoded beforehand."""
    code = request.code
    entry = shard.canned + 16 * code
    if code == _MOVED:
        entry = shard.moved + 16 * request.detail[0]
    num_bytes = load_i64(entry + 8)
    copy_bytes(at, load_i64(entry), num_bytes)
    return at + num_bytes


# ---------------------------------------------------------------------------------------------
# Asking Python
# ---------------------------------------------------------------------------------------------


@jit
def _needs_words(request: Request) -> bool:
    code = request.code
    return code != 0 and code != _BUSY and code != _MOVED


@jit
def _may_ask(shard: Shard, num_words: int) -> bool:
    """Take from the bucket that limits what goes to Python."""
    now = shard.now_ns
    passed = (now - shard.words_ns) // _NS_PER_WORD
    left = shard.words_left
    if passed > 0:
        left = min(left + passed, MAX_WORDS)
        shard.words_ns = now
    if left < num_words:
        shard.words_left = left
        return False
    shard.words_left = left - num_words
    return True


@jit
def _write_ask(shard: Shard, request: Request, what: int, body_bytes: int) -> int:
    """Write the numbers and the identity; return where the body goes."""
    ask = w.ask_at(shard.out)
    ask.what = what
    ask.msgid = request.msgid
    ask.code = request.code
    for k in range(4):
        ask.detail[k] = request.detail[k]
    ask.model = request.model
    ask.kind = request.kind
    ask.form = request.form
    ask.num_items = request.num_items
    ask.identity_bytes = request.identity_bytes
    ask.body_bytes = body_bytes
    ask.owner = request.owner
    identity = shard.out + w.ASK_BYTES
    copy_bytes(identity, field_address(request, "identity"), request.identity_bytes)
    return identity + request.identity_bytes


@jit
def _ask(shard: Shard, end: int) -> bool:
    out = shard.out
    return send_bytes(shard.pair, out, end - out, False) == 0


@jit
def call_python(shard: Shard, request: Request, data: int, num_bytes: int) -> bool:
    """Hand a message over to Python, which answers it.

    Parameters
    ----------
    request : Request
        That says whom to answer.
    data, num_bytes : int
        The payload frame.

    Returns
    -------
    bool
        False if Python has too much to do already.
    """
    num_words = min(1 + num_bytes // _BYTES_PER_WORD, _MAX_WORDS_PER_CALL)
    if not _may_ask(shard, num_words):
        shard.counters.num_calls_refused += 1
        return False
    shard.counters.num_calls += 1
    at = _write_ask(shard, request, w.ASK_CALL, num_bytes)
    copy_bytes(at, data, num_bytes)
    return _ask(shard, at + num_bytes)


@jit
def _ask_python(shard: Shard, request: Request) -> bool:
    """Let Python word a reply, if it needs words and Python has time, or make a record."""
    if request.kind == r.EXPORT and request.code == 0:
        at = _write_ask(shard, request, w.ASK_ENTRY, request.y_bytes)
        copy_bytes(at, request.y, request.y_bytes)
        return _ask(shard, at + request.y_bytes)
    num_words = 1 if _needs_words(request) else 0
    if request.code == 0:
        pool = shard.pool
        link = request.first_child
        while link != 0:
            child = request_of(pool, link)
            link = child.sibling
            num_words += 1 if _needs_words(child) else 0
    if num_words == 0:
        return False
    if not _may_ask(shard, min(num_words, _MAX_WORDS_PER_CALL)):
        shard.counters.num_errors_without_words += num_words
        return False
    if request.code != 0:
        num_bytes = request.stream_bytes
        at = _write_ask(shard, request, w.ASK_ERROR, num_bytes)
        copy_bytes(at, field_address(request, "stream"), num_bytes)
        return _ask(shard, at + num_bytes)
    return _ask(shard, _write_items(shard, request))


@jit
def _write_items(shard: Shard, parent: Request) -> int:
    """Write what became of each child: a record, its stream id, and its y, one after the other."""
    pool = shard.pool
    at = _write_ask(shard, parent, w.ASK_ITEMS, 0)
    link = parent.first_child
    while link != 0:
        child = request_of(pool, link)
        link = child.sibling
        item = w.item_at(at)
        item.code = child.code
        for k in range(4):
            item.detail[k] = child.detail[k]
        item.last_seq = child.last_seq
        item.durable_seq = child.last_seq if shard.is_always else child.durable_seq
        item.window = child.window
        item.id_bytes = child.stream_bytes
        item.y_bytes = child.y_bytes if child.code == 0 and child.kind == r.STEP else 0
        at += w.ITEM_BYTES
        copy_bytes(at, field_address(child, "stream"), child.stream_bytes)
        at += child.stream_bytes
        copy_bytes(at, child.y, item.y_bytes)
        at += item.y_bytes
    return at
