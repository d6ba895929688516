"""What Python tells a shard: what was found on disk, and requests that only it can prepare."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.kernels.pointers import address, field_address
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.memory.clients import find_client
from streamrnn_server.shard.memory.index import hash64
from streamrnn_server.shard.models import change_models
from streamrnn_server.shard.requests.finish import fail
from streamrnn_server.shard.requests.queue import append
from streamrnn_server.shard.requests.request import (
    Form,
    Kind,
    allocate_request,
    free_request,
    names_model,
    set_identity,
    set_stream,
)
from streamrnn_server.shard.streams.admit import admit_one
from streamrnn_server.shard.streams.dirty import ask_for_checkpoint
from streamrnn_server.shard.streams.eviction import allocate_block
from streamrnn_server.shard.streams.lookup import (
    finish_lookup,
    named_owner,
)
from streamrnn_server.shard.streams.restore import usable_record
from streamrnn_server.shard.structs import Command, CommandKind, Shard, ShardState
from streamrnn_server.shard.to_python import tell_done

__all__ = ["handle_command"]

_STOP_WITHIN_NS = 2_000_000_000


@jit
def handle_command(shard: Shard, command: Command, num_bytes: int) -> None:
    """Do what Python says, in a message of so many bytes."""
    what = command.what
    if not _are_parts_there(command, num_bytes - w.COMMAND_BYTES):
        shard.counters.num_calls_refused += 1
    elif what == CommandKind.STOP and shard.state == ShardState.RUNNING:
        # Not unbound yet: in libzmq that ends the connections that came through the listener too,
        # with all that is still to be said on them.
        shard.stop_at_ns = shard.now_ns + _STOP_WITHIN_NS
        shard.state = ShardState.STOPPING
        # The last checkpoint is tried in any case: one that has begun is not it, should it fail.
        shard.num_failed_in_a_row = -shard.is_checkpointing
    elif what == CommandKind.END:
        shard.state = ShardState.ENDED
    elif what == CommandKind.FOUND:
        finish_lookup(shard, command)
    elif what == CommandKind.REQUEST:
        _admit_python_request(shard, command)
    elif what == CommandKind.PING:
        shard.heartbeat = command.seq
    elif what >= CommandKind.LOAD and what <= CommandKind.UNLOAD:
        change_models(shard, command)


@jit
def _are_parts_there(command: Command, num_bytes: int) -> bool:
    """Tell whether what a command's numbers announce is what follows them."""
    identity, stream, data = command.identity_bytes, command.stream_bytes, command.data_bytes
    owner = max(command.owner_bytes, 0)
    is_less = min(identity, stream, data) < 0 or max(identity, stream, data, owner) > num_bytes
    return not is_less and identity + stream + data + owner == num_bytes


@jit
def _admit_python_request(shard: Shard, command: Command) -> None:
    """Let a request that Python has prepared have its turn like any other."""
    pool = shard.pool
    if pool.num_free == 0:
        shard.counters.num_calls_refused += 1
        if command.kind == Kind.SYNC_ALL and command.identity_bytes == 0:
            tell_done(shard, command.msgid, 0)
        return  # else it is as if the message had been lost
    request = allocate_request(pool)
    request.kind = command.kind
    request.msgid = command.msgid
    request.first_seq = command.seq
    request.window = command.window
    request.model = command.model if names_model(command.kind) else -1
    request.detail[0] = command.digest
    request.received_ns = shard.now_ns
    request.owner = named_owner(shard, command)
    request.x_count = data_bytes = command.data_bytes
    request.num_items = 0
    request.form = Form.BIN
    identity = address(command) + w.COMMAND_BYTES
    stream = identity + command.identity_bytes
    at = stream + command.stream_bytes
    if not set_identity(request, identity, command.identity_bytes) or not set_stream(
        request, stream, command.stream_bytes
    ):
        free_request(pool, request)
        shard.counters.num_calls_refused += 1
        return
    request.client = find_client(shard.clients, identity, command.identity_bytes)
    # A rollback without one only says that Python has found none.
    has_record = request.kind == Kind.RESTORE or (request.kind == Kind.ROLLBACK and data_bytes > 0)
    if has_record and not usable_record(shard, command.model, at, data_bytes):
        fail(shard, request, ErrorCode.DAMAGED)
        return
    if data_bytes > 0:
        block = allocate_block(shard, data_bytes)
        if block == 0:
            fail(shard, request, ErrorCode.BUSY)
            return
        copy_bytes(block, at, data_bytes)
        request.x_block = block
        request.x = block
    if request.kind == Kind.SYNC_ALL:
        append(pool, shard.awaiting_checkpoint, request)
        ask_for_checkpoint(shard)
        return
    request.hash = hash64(field_address(request, "stream"), request.stream_bytes)
    admit_one(shard, request)
