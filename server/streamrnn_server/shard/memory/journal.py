"""The shard's end of the journal: entries in a buffer that becomes a group of `state.journal`.

While a group is on its way to disk the next one is filled in the other buffer.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, store_i64
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.state.journal import EntryHead

__all__ = [
    "MAX_ENTRY_BYTES",
    "GroupAck",
    "JournalOrder",
    "JournalStruct",
    "append_entry",
    "group_ack_at",
    "is_full",
    "journal_order_at",
]

MAX_ENTRY_BYTES = 32 + 136 + 256  # of one that has no input


class JournalStruct(Struct):
    """Where entries go, and how far they have come, by their number since the shard began."""

    socket: I64  # handle of the PAIR to the thread that writes; 0 without a journal
    filling: I64  # address of the buffer that entries are written to
    other: I64  # address of the one that is on its way
    capacity: I64  # bytes of each
    max_used_bytes: I64  # with more than this in it, no batch is begun
    used_bytes: I64
    num_entries: I64  # in FILLING
    num_appended: I64
    is_in_flight: I64
    sent_ns: I64  # when the last group was sent
    num_synced: I64  # entries that survive a crash, in the journal or in records
    began_at: I64  # entries appended before the checkpoint that is being made began
    num_covered: I64  # entries that records on disk have in them
    overflowed_at: I64  # the last one for which there was no space
    rows: I64  # address of the rows of a batch as they were before it
    row_stride: I64


class JournalOrder(Struct, packed=True):
    """What a shard tells the thread that writes its journal."""

    num_bytes: I64  # of a group; 0: a checkpoint has ended
    at: I64  # address of the group's entries
    num_entries: I64
    end: I64  # entries up to the group's end; up to which records have all of them
    began_at: I64  # entries before the last checkpoint that has begun


class GroupAck(Struct, packed=True):
    """The answer: a group is durable, or could not be written yet."""

    end: I64  # the order's
    is_done: I64
    needs_checkpoint: I64  # to empty the journal, or because it cannot be written


_entry_head_at = pointer_to(EntryHead)
journal_order_at = pointer_to(JournalOrder)
group_ack_at = pointer_to(GroupAck)
_HEAD_BYTES = EntryHead.dtype.itemsize


@jit
def is_full(journal: JournalStruct) -> bool:
    """Tell whether no batch may be begun before a group has come to disk."""
    return journal.used_bytes > journal.max_used_bytes


@jit
def append_entry(
    journal: JournalStruct,
    kind: int,
    model: int,
    stream: int,
    id_bytes: int,
    incarnation: int,
    num_changes: int,
    seq: int,
    data: int,
    data_bytes: int,
) -> None:
    """Write an entry; without space for it, what is answered next waits for a checkpoint."""
    journal.num_appended += 1
    x = _HEAD_BYTES + (id_bytes + 7) // 8 * 8
    num_bytes = x + (data_bytes + 7) // 8 * 8
    if journal.used_bytes + num_bytes > journal.capacity:
        journal.overflowed_at = journal.num_appended
        return
    at = journal.filling + journal.used_bytes
    store_i64(at + x - 8, 0)
    store_i64(at + num_bytes - 8, 0)
    head = _entry_head_at(at)
    head.data_bytes = data_bytes
    head.model = model
    head.kind = kind
    head.id_bytes = id_bytes
    head.incarnation = incarnation
    head.num_changes = num_changes
    head.seq = seq
    copy_bytes(at + _HEAD_BYTES, stream, id_bytes)
    copy_bytes(at + x, data, data_bytes)
    journal.used_bytes += num_bytes
    journal.num_entries += 1
