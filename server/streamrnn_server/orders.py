"""What Python tells a shard: what was found on disk, and requests that only it can prepare."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    store_i64,
    store_u8,
)
from streamrnn.state import slab as h
from streamrnn.state.index import hash64
from streamrnn_client.protocol import ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.admit import admit_one
from streamrnn_server.finish import count, fail
from streamrnn_server.placing import fill_slot
from streamrnn_server.requests import (
    append_to_list,
    first_waiting,
    num_free,
    take_request,
)
from streamrnn_server.room import end_waiting, is_in_room, let_go_on, settle_without_record
from streamrnn_server.saved import mark_dirty
from streamrnn_server.saving import ask_for_checkpoint, hold
from streamrnn_server.slots import free_slot, header_of, model_of
from streamrnn_server.spilling import take_block
from streamrnn_server.taking import move_slot
from streamrnn_server.users import NOBODY, UNKNOWN, is_forbidden, number_of, owner_of, set_owner

__all__ = ["obey"]

_UNKNOWN, _FORBIDDEN, _EXPIRED, _BUSY = (
    int(ErrorCode.UNKNOWN),
    int(ErrorCode.FORBIDDEN),
    int(ErrorCode.EXPIRED),
    int(ErrorCode.BUSY),
)
_STOP_WITHIN_NS = 2_000_000_000


@jit
def obey(shard: int, command: int, num_bytes: int) -> None:
    """Do what Python says.

    Parameters
    ----------
    shard : int
        Address of the shard.
    command, num_bytes : int
        The message: words of `layout`, and what belongs to them.
    """
    if num_bytes < w.COMMAND_HEAD_BYTES:
        return
    what = load_i64(command + w.COMMAND)
    if what == w.COMMAND_STOP and load_i64(shard + w.STATE) == w.RUNNING:
        # Not unbound yet: in libzmq that ends the connections that came through the listener too,
        # with all that is still to be said on them.
        store_i64(shard + w.STOP_AT_NS, load_i64(shard + w.NOW_NS) + _STOP_WITHIN_NS)
        store_i64(shard + w.STATE, w.STOPPING)
        # The last checkpoint is tried in any case: one that has begun is not it, should it fail.
        store_i64(shard + w.NUM_FAILED_IN_A_ROW, -load_i64(shard + w.IS_SAVING))
    elif what == w.COMMAND_END:
        store_i64(shard + w.STATE, w.ENDED)
    elif what == w.COMMAND_FOUND:
        _take_found(shard, command)
    elif what == w.COMMAND_REQUEST:
        _take_request_of_python(shard, command)


@jit
def _take_found(shard: int, command: int) -> None:
    """Bring a stream back whose record was found, or answer those who wait for it."""
    slot = load_i64(command + w.COMMAND_SLOT)
    header = header_of(shard, slot)
    if load_i32(header + h.GENERATION) != load_i64(command + w.COMMAND_GENERATION):
        return
    if not is_in_room(shard, header):
        return
    code = load_i64(command + w.COMMAND_CODE)
    owner = _owner_in(shard, command)
    if code in (_UNKNOWN, _EXPIRED):
        settle_without_record(shard, slot, header, code)
        return
    if code != 0:
        set_owner(shard, slot, owner)
        _settle_refused(shard, slot, header, code)
        return
    index = load_i64(command + w.COMMAND_MODEL)
    is_adopted = owner == NOBODY and load_i64(shard + w.USERS) != 0
    if is_adopted:  # it is of a time before there were keys
        owner = load_i64(first_waiting(load_i64(shard + w.POOL), header) + r.OWNER)
    target = move_slot(shard, slot, index, owner)
    if target < 0:
        _refuse_all(shard, slot, header, _BUSY)
        return
    header = header_of(shard, target)
    store_u8(header + h.FLAGS, h.IS_READY)
    if not fill_slot(shard, model_of(shard, index), target, header, command + w.COMMAND_HEAD_BYTES):
        _refuse_all(shard, target, header, _BUSY)
        return
    store_i64(header + h.DURABLE_SEQ, load_i64(header + h.LAST_SEQ))
    if is_adopted:
        mark_dirty(shard, target, header)
    count(shard, w.NUM_RESTORED, 1)
    let_go_on(shard, target)


@jit
def _owner_in(shard: int, command: int) -> int:
    """Return the number of the user whom a command names."""
    if load_i64(shard + w.USERS) == 0:
        return NOBODY
    num_bytes = load_i64(command + w.COMMAND_OWNER_BYTES)
    if num_bytes < 0:
        return UNKNOWN
    at = command + w.COMMAND_HEAD_BYTES + load_i64(command + w.COMMAND_IDENTITY_BYTES)
    at += load_i64(command + w.COMMAND_STREAM_BYTES) + load_i64(command + w.COMMAND_DATA_BYTES)
    return number_of(shard, at, num_bytes)


@jit
def _settle_refused(shard: int, slot: int, header: int, code: int) -> None:
    """Answer those who wait for a stream whose record cannot be used; `close` deletes it."""
    pool = load_i64(shard + w.POOL)
    count(shard, w.NUM_RECORDS_REFUSED, 1)
    is_secret = owner_of(shard, slot) == UNKNOWN  # then nobody may delete it from here
    while True:
        request = first_waiting(pool, header)
        if request == 0:
            free_slot(shard, slot)
            return
        if is_forbidden(shard, slot, request):
            end_waiting(shard, header, request, _FORBIDDEN)
        elif load_i64(request + r.KIND) == r.CLOSE and code != _FORBIDDEN and not is_secret:
            hold(shard, slot, header)
            return
        else:
            end_waiting(shard, header, request, code)


@jit
def _refuse_all(shard: int, slot: int, header: int, code: int) -> None:
    pool = load_i64(shard + w.POOL)
    while True:
        request = first_waiting(pool, header)
        if request == 0:
            free_slot(shard, slot)
            return
        end_waiting(shard, header, request, code)


@jit
def _take_request_of_python(shard: int, command: int) -> None:
    """Let a request that Python has prepared have its turn like any other."""
    pool = load_i64(shard + w.POOL)
    if num_free(pool) == 0:
        count(shard, w.NUM_CALLS_REFUSED, 1)
        return  # it is as if the message had been lost
    request = take_request(pool)
    kind = load_i64(command + w.COMMAND_KIND)
    identity_bytes = load_i64(command + w.COMMAND_IDENTITY_BYTES)
    stream_bytes = load_i64(command + w.COMMAND_STREAM_BYTES)
    data_bytes = load_i64(command + w.COMMAND_DATA_BYTES)
    store_i64(request + r.KIND, kind)
    store_i64(request + r.MSGID, load_i64(command + w.COMMAND_MSGID))
    store_i64(request + r.FIRST_SEQ, load_i64(command + w.COMMAND_SEQ))
    store_i64(request + r.WINDOW, load_i64(command + w.COMMAND_WINDOW))
    store_i64(request + r.MODEL, load_i64(command + w.COMMAND_MODEL))
    store_i64(request + r.DETAIL, load_i64(command + w.COMMAND_DIGEST))
    store_i64(request + r.RECEIVED_NS, load_i64(shard + w.NOW_NS))
    store_i64(request + r.OWNER, _owner_in(shard, command))
    store_i64(request + r.IDENTITY_BYTES, identity_bytes)
    store_i64(request + r.STREAM_BYTES, stream_bytes)
    at = command + w.COMMAND_HEAD_BYTES
    copy_bytes(request + r.IDENTITY, at, identity_bytes)
    at += identity_bytes
    store_i64(request + r.STREAM, 0)
    store_i64(request + r.STREAM + 8, 0)
    copy_bytes(request + r.STREAM, at, stream_bytes)
    at += stream_bytes
    store_i64(request + r.X_COUNT, data_bytes)
    store_i64(request + r.NUM_ITEMS, 0)
    store_i64(request + r.FORM, r.FORM_BIN)
    if data_bytes > 0:
        block = take_block(shard, data_bytes)
        if block == 0:
            fail(shard, request, _BUSY, 0, 0, 0, 0)
            return
        copy_bytes(block, at, data_bytes)
        store_i64(request + r.X_BLOCK, block)
        store_i64(request + r.X, block)
    if kind == r.SYNC_ALL:
        append_to_list(pool, shard + w.UNCOVERED, request)
        ask_for_checkpoint(shard)
        return
    store_i64(request + r.HASH, hash64(request + r.STREAM, stream_bytes))
    admit_one(shard, request)
