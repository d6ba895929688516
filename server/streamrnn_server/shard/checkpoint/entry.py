"""Checkpoint entries: a stream's header, texts, row and ring, copied as they are."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_u8
from streamrnn.kernels.pointers import address
from streamrnn_server.shard.checkpoint import packing as e
from streamrnn_server.shard.checkpoint.packing import Entry, EntryKind, part_bytes
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.slab import history_of, model_of, row_of, slot_of
from streamrnn_server.shard.requests.request import Kind, Request
from streamrnn_server.shard.streams.owners import name_of_owner
from streamrnn_server.shard.structs import Shard

__all__ = ["entry_bytes", "write_entry"]


@jit
def entry_bytes(shard: Shard, header: Header, request: Request) -> int:
    """Return the size of an entry for a request, or for none (null)."""
    model, owner = model_of(shard, header.model), name_of_owner(shard, header)
    num_bytes = e.ENTRY_HEAD_BYTES + part_bytes(header.id_bytes)
    kind = _kind_of(request)
    if kind == EntryKind.SNAPSHOT:
        num_bytes += part_bytes(request.x_count)
    if kind != EntryKind.DELETE:
        num_bytes += part_bytes(load_u8(owner)) if owner != 0 else 0
        num_bytes += model.row_bytes
        window_log2 = header.window_log2
        if window_log2 > 0 and header.ring != 0:
            num_bytes += part_bytes((8 + model.y_bytes) << window_log2)
    return num_bytes


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
    y_bytes, window_log2, ring = model.y_bytes, header.window_log2, header.ring
    name_bytes = request.x_count if kind == EntryKind.SNAPSHOT else 0
    entry.num_bytes = entry_bytes(shard, header, request)
    entry.kind = kind
    entry.slot = slot
    entry.generation = header.generation
    entry.last_seq = header.last_seq
    if shard.journal.socket != 0 and header.flags & h.IS_QUARANTINED and header.last_seq > 0:
        entry.last_seq -= 1  # the row is that of the step before the one that was refused
    entry.model = header.model
    entry.flags = header.flags
    entry.window_log2 = window_log2
    entry.id_bytes = header.id_bytes
    entry.name_bytes = name_bytes
    entry.row_bytes = model.row_bytes
    entry.y_bytes = y_bytes if window_log2 > 0 else 0
    entry.has_ring = 1 if header.flags & h.IS_NUMBERED else 0
    entry.digest = ring if window_log2 == 0 else 0
    owner_bytes = load_u8(owner) if owner != 0 else 0
    entry.owner_bytes = owner_bytes
    entry.incarnation, entry.num_changes = 0, 0
    if shard.histories != 0:
        history = history_of(shard, slot)
        entry.incarnation, entry.num_changes = history.incarnation, history.num_changes
    at = address(entry) + e.ENTRY_HEAD_BYTES
    copy_bytes(at, h.id_address(header), header.id_bytes)
    at += part_bytes(header.id_bytes)
    if kind == EntryKind.DELETE:
        return
    copy_bytes(at, request.x if name_bytes > 0 else 0, name_bytes)
    at += part_bytes(name_bytes)
    copy_bytes(at, owner + 1, owner_bytes)
    at += part_bytes(owner_bytes)
    copy_bytes(at, row_of(model, slot), model.row_bytes)
    if window_log2 > 0 and ring != 0:
        copy_bytes(at + model.row_bytes, ring, (8 + y_bytes) << window_log2)
