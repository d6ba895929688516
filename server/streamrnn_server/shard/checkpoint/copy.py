"""Checkpoints: the shard's part of bringing streams to disk.

A stream that changes enters the list DIRTY. A checkpoint takes the whole list and copies one slot
after the other into a buffer, a slice between two batches; a full buffer goes to the checkpoint
writer (`streamrnn_server.storage.writer`), which answers when its commit has returned. Streams are
independent, so a checkpoint may be many commits, and each stream is as it was at the moment of its
copy.

A request that must be on disk before its reply either blocks its stream, at the head of its queue,
and is answered when its entry comes back; or, where it was applied already, it waits on the list
AWAITING_CHECKPOINT for the next checkpoint that begins, and on AWAITING_COMMIT for its end.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    load_i32,
    prefetch,
)
from streamrnn.kernels.pointers import address
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.checkpoint import packing as e
from streamrnn_server.shard.checkpoint.ack import MAX_SLICE_SLOTS, process_acks
from streamrnn_server.shard.checkpoint.entry import entry_bytes, write_entry
from streamrnn_server.shard.checkpoint.groups import tell_covered
from streamrnn_server.shard.libzmq import send_bytes
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.slab import disk_buffer_of, header_of, model_of, row_of
from streamrnn_server.shard.requests.queue import append, first_waiting, pop_first
from streamrnn_server.shard.requests.request import Kind, request_at
from streamrnn_server.shard.streams.row_location import is_row_on_gpu
from streamrnn_server.shard.structs import DiskBuffer, DiskBufferState, Shard

__all__ = ["can_checkpoint", "checkpoint", "is_all_checkpointed", "ms_until_checkpoint"]

# A slice takes about 25 µs.
_MAX_SLICE_BYTES = 96 * 1024
_PREFETCHED_SLOTS = 8
_MAX_PREFETCHED_BYTES = 1024
_PACE = 4  # a checkpoint is copied in an interval less its fourth
_MIN_SLICE_SLOTS = 8


@jit
def _has_work(shard: Shard) -> bool:
    is_journal_behind = shard.journal.num_appended > shard.journal.num_covered
    return shard.num_dirty > 0 or shard.awaiting_checkpoint.first != 0 or is_journal_behind


@jit
def _is_due(shard: Shard) -> bool:
    if not _has_work(shard):
        return False
    is_waited_for = shard.checkpoint_requested != 0 or _must_be_quick(shard)
    if shard.num_failed_in_a_row == 0 and is_waited_for:
        return True
    return shard.now_ns >= shard.checkpoint_due_ns


@jit
def _must_be_quick(shard: Shard) -> bool:
    """Tell whether each reply waits for a checkpoint: a journal is quicker, if there is one."""
    return shard.is_always != 0 and shard.journal.socket == 0


@jit
def ms_until_checkpoint(shard: Shard) -> int:
    """Return how long an idle shard may wait, in ms; -1: no limit."""
    if shard.disk == 0 or shard.is_checkpointing:
        return -1  # the thread that writes will say when it is done
    if not _has_work(shard):
        return -1
    left_ns = shard.checkpoint_due_ns - shard.now_ns
    return max(0, (left_ns + 999_999) // 1_000_000)


@jit
def can_checkpoint(shard: Shard) -> bool:
    """Tell whether a checkpoint can go on without waiting for the disk."""
    if shard.disk == 0:
        return False
    if shard.acknowledged >= 0:
        return True
    if shard.is_checkpointing == 0:
        return _is_due(shard)
    is_copied = shard.checkpoint_position == shard.num_checkpoint_slots
    return not is_copied and shard.num_in_flight < w.NUM_DISK_BUFFERS


@jit
def is_all_checkpointed(shard: Shard) -> bool:
    """Tell whether a shard that ends has nothing left to write, or cannot write it."""
    if shard.disk == 0:
        return True
    if shard.is_checkpointing:
        return False
    return not _has_work(shard) or shard.num_failed_in_a_row > 0


@jit
def checkpoint(shard: Shard, is_busy: bool) -> None:
    """Do one slice of a checkpoint, if one is being made or due.

    Parameters
    ----------
    shard : Shard
        No batch is being computed.
    is_busy : bool
        Whether messages are coming. Then a checkpoint that no request waits for takes its time.
    """
    if shard.disk == 0:
        return
    if shard.num_in_flight > 0:
        process_acks(shard)
    if shard.is_checkpointing == 0:
        if not _is_due(shard):
            return
        _begin(shard)
    _copy_some(shard, _end_of_slice(shard) if is_busy else shard.num_checkpoint_slots)
    is_copied = shard.checkpoint_position == shard.num_checkpoint_slots
    if is_copied and shard.num_in_flight == 0:
        _end(shard)


@jit
def _end_of_slice(shard: Shard) -> int:
    """Return how many slots may be copied by now, spread over most of the interval.

    Copied in one go, streams are slowed down for as long as that and the disk take; and the longest
    replies are of then.
    """
    num_all = shard.num_checkpoint_slots
    is_waited_for = shard.checkpoint_requested or shard.awaiting_checkpoint.first != 0
    if shard.is_paced == 0 or is_waited_for:
        return num_all
    interval_ns = shard.checkpoint_interval_ns
    began_ns = shard.checkpoint_due_ns - interval_ns
    passed_us = (shard.now_ns - began_ns) // 1000
    num_slots = num_all * passed_us * _PACE // (max(interval_ns // 1000, 1) * (_PACE - 1))
    return min(num_all, num_slots // _MIN_SLICE_SLOTS * _MIN_SLICE_SLOTS)


@jit
def _begin(shard: Shard) -> None:
    is_waited_for = shard.checkpoint_requested or shard.awaiting_checkpoint.first != 0
    is_paced = not is_waited_for and not _must_be_quick(shard)
    shard.journal.began_at = shard.journal.num_appended
    shard.is_paced = 1 if is_paced else 0
    taken = shard.dirty
    shard.dirty = shard.checkpoint_slots
    shard.checkpoint_slots = taken
    shard.num_checkpoint_slots = shard.num_dirty
    shard.num_dirty = 0
    shard.checkpoint_position = 0
    shard.checkpoint_since_ns = shard.dirty_since_ns
    shard.checkpoint_requested = 0
    shard.has_failed = 0
    shard.is_checkpointing = 1
    shard.checkpoint_due_ns = shard.now_ns + shard.checkpoint_interval_ns
    shard.awaiting_commit.first = shard.awaiting_checkpoint.first
    shard.awaiting_commit.last = shard.awaiting_checkpoint.last
    shard.awaiting_checkpoint.first = 0


@jit
def _end(shard: Shard) -> None:
    """Answer what waited for this checkpoint; what it could not write waits for the next one."""
    pool = shard.pool
    has_failed = shard.has_failed
    shard.is_checkpointing = 0
    if has_failed:
        shard.counters.num_checkpoints_failed += 1
        failed = shard.num_failed_in_a_row + 1
        shard.num_failed_in_a_row = failed
        shard.checkpoint_due_ns = shard.now_ns + shard.retry_ns
        shard.dirty_since_ns = shard.checkpoint_since_ns  # some of it is dirty again
    else:
        shard.counters.num_checkpoints += 1
        tell_covered(shard)
        shard.num_failed_in_a_row = 0
    while True:
        request = pop_first(pool, shard.awaiting_commit)
        if not request:
            return
        is_done = has_failed == 0
        if request.kind == Kind.SYNC_ALL:
            request.last_seq = 1 if is_done else 0
            is_done = True
        append(pool, shard.finished if is_done else shard.awaiting_checkpoint, request)


# ---------------------------------------------------------------------------------------------
# Copying
# ---------------------------------------------------------------------------------------------


@jit
def _copy_some(shard: Shard, end: int) -> None:
    """Copy a slice of the slots that this checkpoint writes, those before one of them."""
    slots = shard.checkpoint_slots
    place, last = shard.checkpoint_position, shard.num_checkpoint_slots
    num_bytes = 0
    # Where there is a journal, the row of a quarantined stream is that of its last good step.
    bad = h.IS_OPEN | (0 if shard.journal.socket != 0 else h.IS_QUARANTINED)
    for _ in range(MAX_SLICE_SLOTS):
        if place >= end or num_bytes >= _MAX_SLICE_BYTES:
            break
        if place + _PREFETCHED_SLOTS < last:
            _prefetch_slot(shard, load_i32(slots + 4 * (place + _PREFETCHED_SLOTS)))
        slot = load_i32(slots + 4 * place)
        header = header_of(shard, slot)
        flags = header.flags
        is_blocked = flags & h.IS_BLOCKED != 0
        is_good = flags & bad == h.IS_OPEN
        if flags & h.IS_DIRTY and (is_blocked or is_good):
            if is_row_on_gpu(shard, slot):
                break  # it is brought here before the next slice
            request = first_waiting(shard.pool, header) if is_blocked else request_at(0)
            size = entry_bytes(shard, header, request)
            buffer = _disk_buffer_for(shard, size)
            if not buffer:
                break
            entry = e.entry_at(buffer.at + buffer.used_bytes)
            write_entry(shard, header, request, entry)
            buffer.used_bytes += size
            buffer.num_entries += 1
            num_bytes += size
            flags |= h.IS_BUFFERED
        header.flags = flags & ~h.IS_DIRTY
        place += 1
    shard.checkpoint_position = place
    if place == last:
        _send_disk_buffer(shard)


@jit
def _prefetch_slot(shard: Shard, slot: int) -> None:
    header = header_of(shard, slot)
    prefetch(address(header))
    # Its model is not known before the header is here. With several models this may be in vain.
    model = model_of(shard, 0)
    row = row_of(model, slot)
    for k in range(0, min(model.row_bytes, _MAX_PREFETCHED_BYTES), 64):
        prefetch(row + k)


@jit
def _disk_buffer_for(shard: Shard, num_bytes: int) -> DiskBuffer:
    """Return a disk buffer with so much space, sending the one being filled if need be, or null."""
    if shard.filling_buffer >= 0:
        buffer = disk_buffer_of(shard, shard.filling_buffer)
        # An entry that is larger than a buffer has one for itself; its memory is large enough.
        if buffer.used_bytes == 0 or buffer.used_bytes + num_bytes <= w.DISK_BUFFER_BYTES:
            return buffer
        _send_disk_buffer(shard)
    for k in range(w.NUM_DISK_BUFFERS):
        buffer = disk_buffer_of(shard, k)
        if buffer.state == DiskBufferState.FREE:
            buffer.state = DiskBufferState.FILLING
            buffer.used_bytes = 0
            buffer.num_entries = 0
            shard.filling_buffer = k
            return buffer
    return w.disk_buffer_at(0)


@jit
def _send_disk_buffer(shard: Shard) -> None:
    """Give the buffer being filled to the thread that writes."""
    if shard.filling_buffer < 0:
        return
    buffer, sent = disk_buffer_of(shard, shard.filling_buffer), w.sent_buffer_at(shard.out)
    sent.number = shard.filling_buffer
    sent.at = buffer.at
    sent.num_bytes = buffer.used_bytes
    sent.num_entries = buffer.num_entries
    buffer.state = DiskBufferState.SENT
    shard.filling_buffer = -1
    shard.num_in_flight += 1
    send_bytes(shard.disk, shard.out, w.SENT_BUFFER_BYTES, False)
