"""Checkpoint acknowledgements, and the requests that they end."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    prefetch,
)
from streamrnn.kernels.pointers import address, field_address
from streamrnn.state.journal import ChangeKind
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.checkpoint.history import note_change
from streamrnn_server.shard.checkpoint.packing import Entry, EntryKind, entry_at
from streamrnn_server.shard.libzmq import msg_data, receive_frame
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.slab import disk_buffer_of, header_of
from streamrnn_server.shard.requests.finish import end_close, finish, set_error
from streamrnn_server.shard.requests.queue import first_waiting, pop_waiting
from streamrnn_server.shard.requests.request import Kind, free_request
from streamrnn_server.shard.streams.dirty import mark_dirty
from streamrnn_server.shard.streams.lookup import answer_without_record, is_pending, let_go
from streamrnn_server.shard.streams.operations import close_stream, note_durable
from streamrnn_server.shard.streams.slots import free_slot, make_ready
from streamrnn_server.shard.structs import DiskBufferState, Shard, buffer_ack_at
from streamrnn_server.shard.to_python import tell_left

__all__ = ["MAX_SLICE_SLOTS", "process_acks"]

MAX_SLICE_SLOTS = 128


@jit
def process_acks(shard: Shard) -> None:
    """Process a slice of the entries of a write buffer that has come back."""
    number = shard.acknowledged
    if number < 0:
        message = field_address(shard, "identity_message")
        if receive_frame(shard.disk, message) < 16:
            return
        answer = buffer_ack_at(msg_data(message))
        number = answer.number
        buffer = disk_buffer_of(shard, number)
        shard.acknowledged = number
        shard.ack_is_good = answer.is_good
        shard.ack_entry = buffer.at
        shard.ack_left = buffer.num_entries
        if answer.is_good == 0:
            shard.has_failed = 1
    entry, left = entry_at(shard.ack_entry), shard.ack_left
    num_done = min(left, MAX_SLICE_SLOTS)
    for k in range(num_done):
        following = entry_at(address(entry) + entry.num_bytes)
        if k + 1 < num_done:
            prefetch(address(header_of(shard, following.slot)))
        _process_ack(shard, entry, shard.ack_is_good)
        entry = following
    shard.ack_entry = address(entry)
    shard.ack_left = left - num_done
    if left == num_done:
        disk_buffer_of(shard, number).state = DiskBufferState.FREE
        shard.acknowledged = -1
        shard.num_in_flight -= 1


@jit
def _process_ack(shard: Shard, entry: Entry, is_good: int) -> None:
    header = header_of(shard, entry.slot)
    if header.generation != entry.generation:
        return
    flags = header.flags
    header.flags = flags & ~h.IS_BUFFERED
    kind = entry.kind
    if is_good:
        shard.counters.num_saved += 1
        if kind != EntryKind.DELETE:
            header.durable_seq = entry.last_seq
    elif flags & h.IS_OPEN:
        mark_dirty(shard, header)
    if entry.flags & h.IS_BLOCKED:
        _answer_blocked(shard, header, is_good)


@jit
def _answer_blocked(shard: Shard, header: Header, is_good: int) -> None:
    """End the request that blocked its stream; let the others go on."""
    pool = shard.pool
    request = first_waiting(pool, header)
    kind = request.kind
    if is_good == 0 and kind in (Kind.RESTORE, Kind.ROLLBACK, Kind.SWAP):
        return  # it is dirty again, and still blocked
    if kind == Kind.SWAP:
        header.num_waiting += 1  # it was not counted
        pop_waiting(pool, header)
        free_request(pool, request)
        _unblock(shard, header)
        return
    note_durable(header, request)
    lets_go = kind == Kind.SYNC and request.window != 0 and is_good != 0
    if is_good == 0 and kind != Kind.SYNC:
        set_error(request, ErrorCode.READ_ONLY)
        shard.counters.num_errors += 1
    elif kind == Kind.CLOSE:
        if header.flags & h.IS_OPEN:
            note_change(shard, header, ChangeKind.CLOSE, 0, 0, 0)
        close_stream(shard, header)
        shard.counters.num_closed += 1
        request.last_seq = 1
    else:
        request.last_seq = header.last_seq
        request.window = 1 << header.window_log2
    if lets_go:
        tell_left(shard, request)
    pop_waiting(pool, header)
    if kind == Kind.CLOSE and request.code == 0:
        end_close(shard, request)
    else:
        finish(shard, request)
    if lets_go:
        let_go(shard, header)
    elif is_pending(shard, header):
        answer_without_record(shard, header, ErrorCode.UNKNOWN)
    else:
        _unblock(shard, header)


@jit
def _unblock(shard: Shard, header: Header) -> None:
    """Let a stream's requests go on."""
    flags = header.flags & ~h.IS_BLOCKED
    if first_waiting(shard.pool, header):
        header.flags = flags | h.IS_READY
        make_ready(shard, header)
        return
    header.flags = flags
    if flags & h.IS_OPEN == 0:
        free_slot(shard, header)
