"""What Python tells a shard: what was found on disk, and requests that only it can prepare."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    fill_bytes,
)
from streamrnn.kernels.pointers import address, field_address
from streamrnn_client.protocol.messages import ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.checkpoint.ack import mark_dirty
from streamrnn_server.shard.checkpoint.copy import ask_for_checkpoint, hold
from streamrnn_server.shard.checkpoint.packing import record_at
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import MAX_INLINE_ID_BYTES, Header
from streamrnn_server.shard.memory.index import hash64
from streamrnn_server.shard.requests import request as r
from streamrnn_server.shard.requests.finish import fail
from streamrnn_server.shard.requests.request import append, first_waiting, take_request
from streamrnn_server.shard.streams.admit import admit_one
from streamrnn_server.shard.streams.allocate import move_slot
from streamrnn_server.shard.streams.eviction import take_block
from streamrnn_server.shard.streams.lookup import (
    end_waiting,
    is_in_room,
    let_go_on,
    settle_without_record,
)
from streamrnn_server.shard.streams.owners import (
    NOBODY,
    UNKNOWN,
    is_forbidden,
    number_of,
    owner_of,
    set_owner,
)
from streamrnn_server.shard.streams.restore import fill_slot
from streamrnn_server.shard.streams.slots import free_slot, header_of, model_of
from streamrnn_server.shard.structs import Command, Shard

__all__ = ["obey"]

_UNKNOWN, _FORBIDDEN, _EXPIRED, _BUSY = (
    int(ErrorCode.UNKNOWN),
    int(ErrorCode.FORBIDDEN),
    int(ErrorCode.EXPIRED),
    int(ErrorCode.BUSY),
)
_STOP_WITHIN_NS = 2_000_000_000


@jit
def obey(shard: Shard, command: Command) -> None:
    """Do what Python says."""
    what = command.what
    if what == w.COMMAND_STOP and shard.state == w.RUNNING:
        # Not unbound yet: in libzmq that ends the connections that came through the listener too,
        # with all that is still to be said on them.
        shard.stop_at_ns = shard.now_ns + _STOP_WITHIN_NS
        shard.state = w.STOPPING
        # The last checkpoint is tried in any case: one that has begun is not it, should it fail.
        shard.num_failed_in_a_row = -shard.is_saving
    elif what == w.COMMAND_END:
        shard.state = w.ENDED
    elif what == w.COMMAND_FOUND:
        _take_found(shard, command)
    elif what == w.COMMAND_REQUEST:
        _take_request_of_python(shard, command)


@jit
def _take_found(shard: Shard, command: Command) -> None:
    """Bring a stream back whose record was found, or answer those who wait for it."""
    slot = command.slot
    header = header_of(shard, slot)
    if header.generation != command.generation:
        return
    if not is_in_room(shard, header):
        return
    code = command.code
    owner = _owner_in(shard, command)
    if code in (_UNKNOWN, _EXPIRED):
        settle_without_record(shard, slot, header, code)
        return
    if code != 0:
        set_owner(shard, slot, owner)
        _settle_refused(shard, slot, header, code)
        return
    index = command.model
    is_adopted = owner == NOBODY and shard.users != 0
    if is_adopted:  # it is of a time before there were keys
        owner = first_waiting(shard.pool, header).owner
    target = move_slot(shard, slot, index, owner)
    if target < 0:
        _refuse_all(shard, slot, header, _BUSY)
        return
    header = header_of(shard, target)
    header.flags = h.IS_READY
    record = record_at(address(command) + w.COMMAND_BYTES)
    if not fill_slot(shard, model_of(shard, index), target, header, record):
        _refuse_all(shard, target, header, _BUSY)
        return
    header.durable_seq = header.last_seq
    if is_adopted:
        mark_dirty(shard, target, header)
    shard.counters.num_restored += 1
    let_go_on(shard, target)


@jit
def _owner_in(shard: Shard, command: Command) -> int:
    """Return the number of the user whom a command names."""
    if shard.users == 0:
        return NOBODY
    num_bytes = command.owner_bytes
    if num_bytes < 0:
        return UNKNOWN
    at = address(command) + w.COMMAND_BYTES + command.identity_bytes
    at += command.stream_bytes + command.data_bytes
    return number_of(shard, at, num_bytes)


@jit
def _settle_refused(shard: Shard, slot: int, header: Header, code: int) -> None:
    """Answer those who wait for a stream whose record cannot be used; `close` deletes it."""
    pool = shard.pool
    shard.counters.num_records_refused += 1
    is_secret = owner_of(shard, slot) == UNKNOWN  # then nobody may delete it from here
    while True:
        request = first_waiting(pool, header)
        if not request:
            free_slot(shard, slot)
            return
        if is_forbidden(shard, slot, request):
            end_waiting(shard, header, request, _FORBIDDEN)
        elif request.kind == r.CLOSE and code != _FORBIDDEN and not is_secret:
            hold(shard, slot, header)
            return
        else:
            end_waiting(shard, header, request, code)


@jit
def _refuse_all(shard: Shard, slot: int, header: Header, code: int) -> None:
    pool = shard.pool
    while True:
        request = first_waiting(pool, header)
        if not request:
            free_slot(shard, slot)
            return
        end_waiting(shard, header, request, code)


@jit
def _take_request_of_python(shard: Shard, command: Command) -> None:
    """Let a request that Python has prepared have its turn like any other."""
    pool = shard.pool
    if pool.num_free == 0:
        shard.counters.num_calls_refused += 1
        return  # it is as if the message had been lost
    request = take_request(pool)
    request.kind = command.kind
    request.msgid = command.msgid
    request.first_seq = command.seq
    request.window = command.window
    request.model = command.model
    request.detail[0] = command.digest
    request.received_ns = shard.now_ns
    request.owner = _owner_in(shard, command)
    request.identity_bytes = command.identity_bytes
    request.stream_bytes = command.stream_bytes
    request.x_count = data_bytes = command.data_bytes
    request.num_items = 0
    request.form = r.FORM_BIN
    at, stream = address(command) + w.COMMAND_BYTES, field_address(request, "stream")
    copy_bytes(field_address(request, "identity"), at, command.identity_bytes)
    at += command.identity_bytes
    fill_bytes(stream, MAX_INLINE_ID_BYTES, 0)
    copy_bytes(stream, at, command.stream_bytes)
    at += command.stream_bytes
    if data_bytes > 0:
        block = take_block(shard, data_bytes)
        if block == 0:
            fail(shard, request, _BUSY)
            return
        copy_bytes(block, at, data_bytes)
        request.x_block = block
        request.x = block
    if request.kind == r.SYNC_ALL:
        append(pool, shard.uncovered, request)
        ask_for_checkpoint(shard)
        return
    request.hash = hash64(stream, request.stream_bytes)
    admit_one(shard, request)
