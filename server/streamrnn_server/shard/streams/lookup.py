"""Pending lookups: streams that may be in the state directory."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.kernels.pointers import address, field_address
from streamrnn.state.journal import ChangeKind
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.checkpoint.history import note_owner
from streamrnn_server.shard.libzmq import send_bytes
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.admission import Limit
from streamrnn_server.shard.memory.clients import charge_ask, may_ask
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.slab import header_of, model_of
from streamrnn_server.shard.requests.finish import finish, set_error
from streamrnn_server.shard.requests.queue import first_waiting, pop_waiting
from streamrnn_server.shard.requests.request import Kind, Request
from streamrnn_server.shard.requests.versions import version_now
from streamrnn_server.shard.streams.allocate import allocate_named_slot, move_stream
from streamrnn_server.shard.streams.dirty import mark_dirty, wait_for_disk
from streamrnn_server.shard.streams.owners import (
    NO_OWNER,
    UNKNOWN,
    begin_lookup,
    end_lookup,
    exceeded_limit,
    is_forbidden,
    number_of,
    owner_of,
    set_owner,
)
from streamrnn_server.shard.streams.restore import fill_slot, usable_record
from streamrnn_server.shard.streams.slots import evict_stream, free_slot, make_ready
from streamrnn_server.shard.structs import ASK_BYTES, AskKind, Command, Shard, ask_at

__all__ = [
    "answer_without_record",
    "finish_lookup",
    "is_pending",
    "let_go",
    "named_owner",
    "start_lookup",
]


@jit
def is_pending(shard: Shard, header: Header) -> bool:
    """Tell whether a slot's stream is being looked up."""
    return header.model == shard.lookup_model


@jit
def _end_first(shard: Shard, header: Header, request: Request, code: int, limit: int) -> None:
    """End a stream's first request, with an error unless ``code`` is 0."""
    if code != 0:
        # To another server, whose address Python knows; to another shard it is told before.
        set_error(request, code, -1 if code == ErrorCode.MOVED else limit)
        shard.counters.num_errors += 1
    pop_waiting(shard.pool, header)
    finish(shard, request)


@jit
def answer_without_record(shard: Shard, header: Header, code: int) -> None:
    """Answer requests for a stream without a record, until one creates it."""
    pool = shard.pool
    while True:
        request = first_waiting(pool, header)
        if not request:
            free_slot(shard, header)
            return
        kind = request.kind
        if kind == Kind.OPEN or kind == Kind.RESTORE:
            if request.alias != 0:
                request.model = version_now(shard, request)
            moved = move_stream(shard, header, request.model, request.owner)
            if moved:
                moved.flags = h.IS_READY
                make_ready(shard, moved)
                return
            limit = _limit_of(shard, request.owner, request.model)
            _end_first(shard, header, request, ErrorCode.BUSY, limit)
        elif kind == Kind.CLOSE:
            request.last_seq = 0
            _end_first(shard, header, request, 0, Limit.ROOM)
        else:
            _end_first(shard, header, request, code, Limit.ROOM)


@jit
def finish_lookup(shard: Shard, command: Command) -> None:
    """Restore a stream whose record was found, or answer its waiting requests."""
    end_lookup(shard, command.asker)
    header = header_of(shard, command.slot)
    if header.generation != command.generation:
        return
    if not is_pending(shard, header):
        return
    code = command.code
    owner = named_owner(shard, command)
    if code in (ErrorCode.UNKNOWN, ErrorCode.EXPIRED):
        answer_without_record(shard, header, code)
        return
    if code != 0:
        set_owner(shard, header, owner)
        _answer_refused(shard, header, code, command.digest != 0)
        return
    data = address(command) + w.COMMAND_BYTES
    record = usable_record(shard, command.model, data, command.data_bytes)
    if not record:
        set_owner(shard, header, owner)
        _answer_refused(shard, header, ErrorCode.DAMAGED, False)
        return
    if owner == UNKNOWN:  # a name for which the shard has no number left
        _answer_refused(shard, header, ErrorCode.FORBIDDEN, False)
        return
    is_adopted = owner == NO_OWNER and shard.users != 0
    if is_adopted:  # it is of a time before there were keys
        owner = first_waiting(shard.pool, header).owner
    moved = move_stream(shard, header, command.model, owner)
    if not moved:
        _fail_all(shard, header, _limit_of(shard, owner, command.model))
        return
    moved.flags = h.IS_READY
    if not fill_slot(shard, moved, record):
        _fail_all(shard, moved, Limit.ROOM)
        return
    moved.durable_seq = moved.last_seq
    if is_adopted:
        mark_dirty(shard, moved)
        note_owner(shard, moved, ChangeKind.OWNER)
    shard.counters.num_restored += 1
    make_ready(shard, moved)


@jit
def named_owner(shard: Shard, command: Command) -> int:
    """Return the id of the user whom a command names."""
    if shard.users == 0:
        return NO_OWNER
    num_bytes = command.owner_bytes
    if num_bytes < 0:
        return UNKNOWN
    at = address(command) + w.COMMAND_BYTES + command.identity_bytes
    at += command.stream_bytes + command.data_bytes
    number = number_of(shard, at, num_bytes)
    return UNKNOWN if number == NO_OWNER and num_bytes > 0 else number


@jit
def _answer_refused(shard: Shard, header: Header, code: int, is_held: bool) -> None:
    """Answer requests for an unusable record; `close` deletes it, unless a journal has more.

    One that a drain holds, or has moved, is in order.
    """
    pool = shard.pool
    shard.counters.num_records_refused += code not in (ErrorCode.BUSY, ErrorCode.MOVED)
    # Then it may not be deleted from here.
    is_kept = is_held or owner_of(shard, header) == UNKNOWN
    while True:
        request = first_waiting(pool, header)
        if not request:
            free_slot(shard, header)
            return
        if is_forbidden(shard, header, request):
            _end_first(shard, header, request, ErrorCode.FORBIDDEN, Limit.ROOM)
        elif request.kind == Kind.CLOSE and code != ErrorCode.FORBIDDEN and not is_kept:
            wait_for_disk(shard, header)
            return
        else:
            limit = Limit.MOVING if code == ErrorCode.BUSY else Limit.ROOM
            _end_first(shard, header, request, code, limit)


@jit
def _limit_of(shard: Shard, owner: int, index: int) -> int:
    """Return the `Limit` that forbids a user another stream of a model."""
    if index < 0:  # of none, just now
        return Limit.ROOM
    return exceeded_limit(shard, owner, 1, model_of(shard, index).row_bytes)


@jit
def _fail_all(shard: Shard, header: Header, limit: int) -> None:
    """Answer all requests of a stream `busy`."""
    pool = shard.pool
    while True:
        request = first_waiting(pool, header)
        if not request:
            free_slot(shard, header)
            return
        _end_first(shard, header, request, ErrorCode.BUSY, limit)


@jit
def let_go(shard: Shard, header: Header) -> None:
    """Forget an open stream that is on disk as it is; what waits for it must come again.

    It is in no list, and was blocked. Whoever comes next has it looked up.
    """
    while True:
        request = first_waiting(shard.pool, header)
        if not request:
            evict_stream(shard, header)
            return
        _end_first(shard, header, request, ErrorCode.BUSY, Limit.MOVING)


@jit
def start_lookup(shard: Shard, request: Request) -> int:
    """Have a stream looked up on disk; its slot, or -1 - `Limit.ROOM`, if Python is behind too."""
    num_bytes = request.stream_bytes
    if not may_ask(shard.clients, request.client, num_bytes):
        shard.counters.num_calls_refused += 1
        return -1
    if not begin_lookup(shard, request.owner):
        return -1
    slot = allocate_named_slot(shard, shard.lookup_model, request)
    if slot < 0:
        end_lookup(shard, request.owner)
        return slot
    header = header_of(shard, slot)
    header.flags = h.IS_BLOCKED
    ask = ask_at(shard.out)
    ask.what = AskKind.LOOK_UP
    # By this Python knows a request of its own: none of a client's is without an identity.
    ask.msgid = request.msgid if request.identity_bytes == 0 else -1
    ask.detail[0] = slot
    ask.detail[1] = header.generation
    ask.owner = request.owner
    ask.identity_bytes = 0
    ask.body_bytes = num_bytes
    ask.client = request.client
    ask.charge = charge_ask(shard.clients, request.client, num_bytes)
    body = shard.out + ASK_BYTES
    copy_bytes(body, field_address(request, "stream"), num_bytes)
    send_bytes(shard.pair, shard.out, ASK_BYTES + num_bytes, False)
    shard.counters.num_looked_up += 1
    return slot
