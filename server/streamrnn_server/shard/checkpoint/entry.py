"""Checkpoint entries: a stream's header, texts, state, and what is kept of its last steps."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_u8
from streamrnn.kernels.pointers import address
from streamrnn_server.shard.checkpoint import packing as e
from streamrnn_server.shard.checkpoint.packing import Entry, EntryKind, part_bytes
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.kept_inputs import copy_inputs, num_inputs
from streamrnn_server.shard.memory.slab import (
    history_of,
    kept_inputs_of,
    model_of,
    row_of,
    slot_of,
)
from streamrnn_server.shard.requests.request import Kind, Request
from streamrnn_server.shard.streams.owners import name_of_owner
from streamrnn_server.shard.streams.replay_ring import copy_ring, num_kept
from streamrnn_server.shard.structs import Shard

__all__ = ["entry_bytes", "write_entry"]


@jit
def entry_bytes(shard: Shard, header: Header, request: Request) -> int:
    """Return the size of an entry for a request, or for none (null)."""
    model, owner = model_of(shard, header.model), name_of_owner(shard, header)
    num_bytes = e.ENTRY_HEAD_BYTES + part_bytes(h.id_size(header))
    kind = _kind_of(request)
    if kind == EntryKind.SNAPSHOT:
        num_bytes += part_bytes(request.x_count)
    if kind != EntryKind.DELETE:
        num_bytes += part_bytes(load_u8(owner)) if owner != 0 else 0
        num_ring, num_outputs = num_kept(header, _last_seq(shard, header))
        kept_bytes = 8 * num_ring + num_outputs * model.y_bytes + _inputs_bytes(shard, header)
        num_bytes += model.state_bytes + part_bytes(kept_bytes)
    return num_bytes


@jit
def _inputs_bytes(shard: Shard, header: Header) -> int:
    model = model_of(shard, header.model)
    if model.max_kept == 0:
        return 0
    return num_inputs(kept_inputs_of(model, slot_of(shard, header))) * model.step_bytes


@jit
def _last_seq(shard: Shard, header: Header) -> int:
    """Return the last step whose state the row is."""
    is_put_back = shard.journal.socket != 0 and header.flags & h.IS_QUARANTINED != 0
    return max(0, header.last_seq - 1) if is_put_back else header.last_seq


@jit
def _kind_of(request: Request) -> int:
    if request and request.kind == Kind.CLOSE:
        return EntryKind.DELETE
    if request and request.kind == Kind.SNAPSHOT:
        return EntryKind.SNAPSHOT
    return EntryKind.PUT


@jit
def write_entry(shard: Shard, header: Header, request: Request, entry: Entry) -> None:
    """Copy a stream as it is; arguments as for `entry_bytes`."""
    model, slot = model_of(shard, header.model), slot_of(shard, header)
    owner = name_of_owner(shard, header)
    kind = _kind_of(request)
    last_seq = _last_seq(shard, header)
    num_ring, num_outputs = num_kept(header, last_seq)
    name_bytes = request.x_count if kind == EntryKind.SNAPSHOT else 0
    entry.num_bytes = entry_bytes(shard, header, request)
    entry.kind = kind
    entry.slot = slot
    entry.generation = header.generation
    entry.last_seq = last_seq
    entry.model = header.model
    entry.flags = header.flags
    entry.window_log2 = header.window_log2
    entry.id_bytes = h.id_size(header)
    entry.name_bytes = name_bytes
    entry.row_bytes = model.state_bytes
    entry.y_bytes = model.y_bytes if header.window_log2 > 0 else 0
    entry.num_ring, entry.num_outputs = num_ring, num_outputs
    entry.inputs_bytes = 0 if kind == EntryKind.DELETE else _inputs_bytes(shard, header)
    owner_bytes = load_u8(owner) if owner != 0 else 0
    entry.owner_bytes = owner_bytes
    entry.incarnation, entry.num_changes = 0, 0
    if shard.histories != 0:
        history = history_of(shard, slot)
        entry.incarnation, entry.num_changes = history.incarnation, history.num_changes
    at = address(entry) + e.ENTRY_HEAD_BYTES
    copy_bytes(at, h.id_address(header), h.id_size(header))
    at += part_bytes(h.id_size(header))
    if kind == EntryKind.DELETE:
        return
    copy_bytes(at, request.x if name_bytes > 0 else 0, name_bytes)
    at += part_bytes(name_bytes)
    copy_bytes(at, owner + 1, owner_bytes)
    at += part_bytes(owner_bytes)
    copy_bytes(at, row_of(model, slot), model.state_bytes)
    at += model.state_bytes
    copy_ring(header, last_seq, model.y_bytes, at)
    if entry.inputs_bytes > 0:
        at += 8 * num_ring + num_outputs * model.y_bytes
        copy_inputs(kept_inputs_of(model, slot), at)
