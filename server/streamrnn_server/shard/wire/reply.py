"""Encode the replies to finished requests and send them.

Errors without details, and always `busy`, `moved` and `late`, are encoded once, at the start.
"""

from __future__ import annotations

import errno

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, fill_bytes, load_i64, store_i64, store_u8
from streamrnn.kernels.pointers import address, field_address
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.libzmq import (
    msg_close,
    msg_init,
    msg_init_data,
    msg_send,
    send_bytes,
)
from streamrnn_server.shard.memory.admission import Limit
from streamrnn_server.shard.memory.arena import release
from streamrnn_server.shard.memory.clients import (
    MARKER_BYTES,
    charge_reply,
    forget_marker,
    make_marker,
    may_reply,
    needs_marker,
)
from streamrnn_server.shard.memory.step_times import end_encode, end_timing, note_reply
from streamrnn_server.shard.memory.tally import TALLY_BYTES, Tally, note_time, tally_at
from streamrnn_server.shard.requests.queue import pop_first
from streamrnn_server.shard.requests.request import (
    NUM_KINDS,
    Form,
    Kind,
    Pool,
    Request,
    free_request,
    request_of,
)
from streamrnn_server.shard.structs import Shard
from streamrnn_server.shard.to_python import ask_python, tell_reply
from streamrnn_server.shard.wire.encode import (
    write_array,
    write_bin,
    write_bin_head,
    write_float_array,
    write_map,
    write_nil,
    write_response,
    write_uint,
)

__all__ = ["reply", "send_reply"]

_EAGAIN, _EHOSTUNREACH, _ENOMEM = errno.EAGAIN, errno.EHOSTUNREACH, errno.ENOMEM


@jit
def reply(shard: Shard) -> None:
    """Send the replies to all finished requests, and free the requests."""
    pool = shard.pool
    while True:
        request = pop_first(pool, shard.finished)
        if not request:
            return
        times, timing, at = shard.step_times, request.timing, address(request)
        if timing != 0:
            note_reply(times, timing, at)
        is_asked = ask_python(shard, request)
        _count(shard, request)  # before anybody has the answer
        if not is_asked:
            end = _encode(shard, request)
            if timing != 0:
                end_encode(times, timing, at)
            out = shard.out
            _send(shard, request, out, end - out)
        if timing != 0:
            items = request.num_items if request.first_child != 0 else 1
            end_timing(times, timing, at, request.msgid, request.code, request.num_steps, items)
        _free_request(shard, pool, request)


@jit
def _send(shard: Shard, request: Request, data: int, num_bytes: int) -> None:
    """Send one reply, or count why it cannot be sent."""
    if request.identity_bytes == 0:
        tell_reply(shard, request, data, num_bytes)
        return
    identity = field_address(request, "identity")
    send_reply(shard, request.client, identity, request.identity_bytes, data, num_bytes)


@jit
def send_reply(
    shard: Shard, client: int, identity: int, identity_bytes: int, data: int, num_bytes: int
) -> None:
    """Send a reply to a client, or drop it and count why: the client asks again."""
    clients, router = shard.clients, shard.router
    if not may_reply(clients, client, num_bytes):
        shard.counters.num_dropped_slow_reader += 1
        return
    error = send_bytes(router, identity, identity_bytes, True)
    # After a failed identity the payload would go out as an orphan.
    if error == 0:
        block = 0
        if needs_marker(clients, client, num_bytes):
            block = make_marker(clients, client, data, num_bytes)
        if block != 0:
            error = _send_marker(shard, block, num_bytes)
        else:
            error = send_bytes(router, data, num_bytes, False)
            if error == 0:
                charge_reply(clients, client, num_bytes)
    if error == 0:
        shard.counters.num_replies += 1
    else:
        _count_unsent(shard, error)


@jit
def _send_marker(shard: Shard, block: int, num_bytes: int) -> int:
    """Send what `make_marker` has made; however it ends, it is given back and no longer counted."""
    message, forget = field_address(shard, "reply_message"), shard.clients.forget
    if not msg_init_data(message, block + MARKER_BYTES, num_bytes, forget, block):
        msg_init(message)
        msg_send(shard.router, message, False)  # an empty one, for its identity is sent
        forget_marker(block)
        return _ENOMEM
    error = msg_send(shard.router, message, False)
    if error != 0:
        msg_close(message)
    return error


@jit
def _count_unsent(shard: Shard, error: int) -> None:
    """Count a reply that could not be sent, by its error number."""
    if error == _EAGAIN:
        shard.counters.num_dropped_slow_reader += 1
    elif error == _EHOSTUNREACH:
        shard.counters.num_dropped_peer_gone += 1
    else:
        shard.counters.num_dropped_other += 1


@jit
def _tally_of(shard: Shard, request: Request) -> Tally:
    model = request.model
    if model < 0 or model >= shard.num_models:  # none was found
        model = shard.lookup_model
    return tally_at(shard.tallies + (model * NUM_KINDS + request.kind) * TALLY_BYTES)


@jit
def _count(shard: Shard, request: Request) -> None:
    """Count a request's time from receive to send, and its error."""
    tally = _tally_of(shard, request)
    note_time(tally, shard.now_ns - request.received_ns)
    if request.code != 0:
        tally.errors[request.code] += 1


@jit
def _free_request(shard: Shard, pool: Pool, request: Request) -> None:
    arena = shard.arena
    link = request.first_child
    while link != 0:
        child = request_of(pool, link)
        link = child.sibling
        if child.code != 0:
            _tally_of(shard, child).errors[child.code] += 1
        free_request(pool, child)
    release(arena, request.x_block)
    release(arena, request.y_block)
    free_request(pool, request)


@jit
def _encode(shard: Shard, request: Request) -> int:
    """Write the reply at ``shard.out``; return where it ends."""
    out = shard.out
    kind = request.kind
    if request.code != 0:
        store_u8(out, 0x94)
        store_u8(out + 1, 1)
        at = write_uint(out + 2, request.msgid)
        return write_nil(_write_error(shard, request, at))
    at = write_response(out, request.msgid)
    if kind != Kind.STEP_MANY and kind != Kind.OPEN_MANY:
        return _write_result(shard, request, at)
    if kind == Kind.STEP_MANY and request.columns:
        return _write_columns(shard, request, at)
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
def _write_columns(shard: Shard, parent: Request, at: int) -> int:
    """Write ``[errors by index, last_seqs, durable_seqs, y]``; failed items have zeros there."""
    num_items = parent.num_items
    num_errors, y_bytes = _count_errors(shard.pool, parent)
    at = write_map(write_array(at, 4), num_errors)
    if num_errors > 0:
        at = _write_errors(shard, parent, at)
    last_seqs = write_bin_head(at, 8 * num_items)
    durable_seqs = write_bin_head(last_seqs + 8 * num_items, 8 * num_items)
    y = write_bin_head(durable_seqs + 8 * num_items, y_bytes * num_items)
    link = parent.first_child
    for k in range(num_items):
        child = request_of(shard.pool, link)
        link = child.sibling
        last_seq, durable_seq = 0, 0
        if child.code == 0:
            last_seq = child.last_seq
            durable_seq = last_seq if shard.is_always else child.durable_seq
            copy_bytes(y, child.y, y_bytes)
        else:
            fill_bytes(y, y_bytes, 0)
        store_i64(last_seqs + 8 * k, last_seq)
        store_i64(durable_seqs + 8 * k, durable_seq)
        y += y_bytes
    return y


@jit
def _count_errors(pool: Pool, parent: Request) -> tuple[int, int]:
    """Count a batch's failed items; return the size of the others' outputs too, 0 without any."""
    num_errors, y_bytes = 0, 0
    link = parent.first_child
    while link != 0:
        child = request_of(pool, link)
        link = child.sibling
        if child.code != 0:
            num_errors += 1
        else:
            y_bytes = child.y_bytes  # they are of one model
    return num_errors, y_bytes


@jit
def _write_errors(shard: Shard, parent: Request, at: int) -> int:
    """Write the pairs of index and error of a batch's failed items."""
    link = parent.first_child
    while link != 0:
        child = request_of(shard.pool, link)
        link = child.sibling
        if child.code != 0:
            at = _write_error(shard, child, write_uint(at, child.item))
    return at


@jit
def _write_result(shard: Shard, request: Request, at: int) -> int:
    kind = request.kind
    last_seq = request.last_seq
    durable_seq = request.durable_seq
    if shard.is_always and kind != Kind.SYNC:
        durable_seq = last_seq  # what is answered is on disk; but a sync is, if it cannot be, too
    if kind == Kind.CLOSE or kind == Kind.SYNC_ALL:
        store_u8(at, 0xC2 + last_seq)
        return at + 1
    if kind == Kind.SYNC:
        return write_uint(at, durable_seq)
    if kind == Kind.RECORD:  # slot, generation, number
        at = write_uint(write_array(at, 3), last_seq)
        return write_uint(write_uint(at, request.window), request.oldest_output)
    num_values = 2 if kind in (Kind.RESET, Kind.SNAPSHOT, Kind.ROLLBACK) else 3
    tells_oldest = request.oldest_output >= 0
    at = write_array(at, num_values + tells_oldest)
    at = write_uint(at, last_seq)
    at = write_uint(at, durable_seq)
    if kind == Kind.OPEN or kind == Kind.RESTORE:
        at = write_uint(at, request.window)
        if tells_oldest:
            at = write_uint(at, request.oldest_output)
    elif kind == Kind.STEP:
        y = request.y
        num_bytes = request.y_bytes
        if request.form == Form.BIN:
            at = write_bin(at, y, num_bytes)
        else:
            at = write_float_array(at, y, num_bytes // 4)
    return at


@jit
def _write_error(shard: Shard, request: Request, at: int) -> int:
    """Copy an error that was encoded at the start."""
    code = request.code
    entry = shard.encoded_errors + 16 * code
    is_busy = code == ErrorCode.BUSY
    if is_busy:
        entry = shard.encoded_busy + 16 * request.detail[0]
    elif code == ErrorCode.MOVED and request.detail[0] >= 0:
        entry = shard.encoded_moved + 16 * request.detail[0]
    elif code == ErrorCode.MOVED:  # to another server, and Python could not be asked where
        entry = shard.encoded_busy + 16 * Limit.ROOM
        is_busy = True
    num_bytes = load_i64(entry + 8)
    copy_bytes(at, load_i64(entry), num_bytes)
    at += num_bytes
    if is_busy:  # its last value: how long to wait
        retry_ms = request.detail[1]
        at = write_uint(at - 1, retry_ms if retry_ms > 0 else shard.retry_after_ms)
    return at
