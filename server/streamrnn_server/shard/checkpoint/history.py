"""Histories: which stream a slot holds, and how often it was changed.

Where a journal is kept, each change of a stream is counted and entered there. What makes or
replaces a whole row (a record, a rollback) is counted only: it is answered when a record with the
row is on disk, and nothing else is done to the stream before.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_u8
from streamrnn.state.journal import ChangeKind
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.journal import append_entry
from streamrnn_server.shard.memory.slab import history_of, slot_of
from streamrnn_server.shard.streams.owners import name_of_owner
from streamrnn_server.shard.structs import Shard

__all__ = ["begin_history", "count_change", "note_change", "note_owner"]


@jit
def begin_history(shard: Shard, header: Header) -> None:
    """Tell a stream that was just made from all that had its id."""
    if shard.histories == 0:
        return
    shard.incarnation += 1
    history = history_of(shard, slot_of(shard, header))
    history.incarnation, history.num_changes = shard.incarnation, 0


@jit
def count_change(shard: Shard, header: Header) -> None:
    """Count a change whose record will be on disk before it is answered."""
    if shard.journal.socket != 0:
        history_of(shard, slot_of(shard, header)).num_changes += 1


@jit
def note_change(
    shard: Shard, header: Header, kind: int, seq: int, data: int, data_bytes: int
) -> None:
    """Count a change and enter it in the journal, if there is one."""
    journal = shard.journal
    if journal.socket == 0:
        return
    history = history_of(shard, slot_of(shard, header))
    history.num_changes += 1
    append_entry(
        journal,
        kind,
        header.model,
        h.id_address(header),
        h.id_size(header),
        history.incarnation,
        history.num_changes,
        seq,
        data,
        data_bytes,
    )


@jit
def note_owner(shard: Shard, header: Header, kind: int) -> None:
    """Note an `OPEN` or `OWNER`, with the owner's name."""
    owner = name_of_owner(shard, header)
    seq = header.window_log2 if kind == ChangeKind.OPEN else 0
    num_bytes = load_u8(owner) if owner != 0 else 0
    note_change(shard, header, kind, seq, owner + 1, num_bytes)
