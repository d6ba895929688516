"""Checkpoints: the shard's part of bringing streams to disk.

A stream that changes enters the list DIRTY. A checkpoint takes the whole list and copies one slot
after the other into a stage, a slice between two waves; a full stage goes to the thread that writes
(`streamrnn_server.saver`), which answers when its commit has returned. Streams are independent, so
a checkpoint may be many commits, and each stream is as it was at the moment of its copy.

A request that must be on disk before its reply either is *held*, at the head of its stream's queue,
and answered when its entry comes back; or, where it was applied already, it waits on the list
UNCOVERED for the next checkpoint that begins, and on COVERED for its end.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    prefetch,
    store_i64,
    store_u8,
)
from streamrnn.state import packing as e
from streamrnn.state import slab as h
from streamrnn.state.packing import part_bytes
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count
from streamrnn_server.libzmq import send_bytes
from streamrnn_server.requests import (
    append_to_list,
    first_waiting,
    take_from_list,
)
from streamrnn_server.rows import is_away
from streamrnn_server.saved import MAX_SLICE_SLOTS, mark_dirty, take_answers
from streamrnn_server.slots import header_of, model_of, row_of
from streamrnn_server.users import name_of_owner

__all__ = [
    "ask_for_checkpoint",
    "can_save_more",
    "entry_bytes",
    "hold",
    "is_all_saved",
    "ms_until_checkpoint",
    "save",
    "write_entry",
]

# A slice takes about 25 µs.
_MAX_SLICE_BYTES = 96 * 1024
_PREFETCHED_SLOTS = 8
_MAX_PREFETCHED_BYTES = 1024
_PACE = 4  # a checkpoint is copied in an interval less its fourth
_MIN_SLICE_SLOTS = 8


@jit
def hold(shard: int, slot: int, header: int) -> None:
    """Let a stream's requests wait until the one at their head is on disk.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The stream's slot, which is in no list.
    header : int
        Address of its header.
    """
    flags = load_u8(header + h.FLAGS)
    store_u8(header + h.FLAGS, (flags | h.IS_HELD) & ~h.IS_READY)
    mark_dirty(shard, slot, header)
    ask_for_checkpoint(shard)


@jit
def ask_for_checkpoint(shard: int) -> None:
    """Let the next checkpoint begin at once.

    Parameters
    ----------
    shard : int
        Address of the shard.
    """
    store_i64(shard + w.SAVE_NOW, 1)


@jit
def _is_due(shard: int) -> bool:
    has_work = load_i64(shard + w.NUM_DIRTY) > 0 or load_i64(shard + w.UNCOVERED) != 0
    if not has_work:
        return False
    if load_i64(shard + w.NUM_FAILED_IN_A_ROW) == 0 and (
        load_i64(shard + w.SAVE_NOW) or load_i64(shard + w.IS_ALWAYS)
    ):
        return True
    return load_i64(shard + w.NOW_NS) >= load_i64(shard + w.SAVE_AT_NS)


@jit
def ms_until_checkpoint(shard: int) -> int:
    """Return how long a shard with nothing else to do may wait.

    Parameters
    ----------
    shard : int
        Address of the shard.

    Returns
    -------
    int
        Milliseconds; -1 for no limit.
    """
    if load_i64(shard + w.DISK) == 0 or load_i64(shard + w.IS_SAVING):
        return -1  # the thread that writes will say when it is done
    if load_i64(shard + w.NUM_DIRTY) == 0 and load_i64(shard + w.UNCOVERED) == 0:
        return -1
    left_ns = load_i64(shard + w.SAVE_AT_NS) - load_i64(shard + w.NOW_NS)
    return max(0, (left_ns + 999_999) // 1_000_000)


@jit
def can_save_more(shard: int) -> bool:
    """Tell whether a checkpoint can go on without waiting for the disk.

    Parameters
    ----------
    shard : int
        Address of the shard.

    Returns
    -------
    bool
    """
    if load_i64(shard + w.DISK) == 0:
        return False
    if load_i64(shard + w.ACKNOWLEDGED) >= 0:
        return True
    if load_i64(shard + w.IS_SAVING) == 0:
        return _is_due(shard)
    is_copied = load_i64(shard + w.SAVED_PLACE) == load_i64(shard + w.NUM_SAVED)
    return not is_copied and load_i64(shard + w.NUM_IN_FLIGHT) < w.NUM_STAGES


@jit
def is_all_saved(shard: int) -> bool:
    """Tell whether nothing is left that a checkpoint would write, or that it may not succeed.

    Parameters
    ----------
    shard : int
        Address of a shard that is about to end.

    Returns
    -------
    bool
    """
    if load_i64(shard + w.DISK) == 0:
        return True
    if load_i64(shard + w.IS_SAVING):
        return False
    has_work = load_i64(shard + w.NUM_DIRTY) > 0 or load_i64(shard + w.UNCOVERED) != 0
    return not has_work or load_i64(shard + w.NUM_FAILED_IN_A_ROW) > 0


@jit
def save(shard: int, is_busy: bool) -> None:
    """Do one slice of a checkpoint, if one is being made or due.

    Parameters
    ----------
    shard : int
        Address of the shard; no wave is being computed.
    is_busy : bool
        Whether messages are coming. Then a checkpoint that nobody waits for takes its time.
    """
    if load_i64(shard + w.DISK) == 0:
        return
    if load_i64(shard + w.NUM_IN_FLIGHT) > 0:
        take_answers(shard)
    if load_i64(shard + w.IS_SAVING) == 0:
        if not _is_due(shard):
            return
        _begin(shard)
    _copy_some(shard, _end_of_slice(shard) if is_busy else load_i64(shard + w.NUM_SAVED))
    is_copied = load_i64(shard + w.SAVED_PLACE) == load_i64(shard + w.NUM_SAVED)
    if is_copied and load_i64(shard + w.NUM_IN_FLIGHT) == 0:
        _end(shard)


@jit
def _end_of_slice(shard: int) -> int:
    """Return how many slots may be copied by now, spread over most of the interval.

    Copied in one go, streams are slowed down for as long as that and the disk take; and the longest
    replies are of then.
    """
    num_saved = load_i64(shard + w.NUM_SAVED)
    is_waited_for = load_i64(shard + w.SAVE_NOW) or load_i64(shard + w.UNCOVERED) != 0
    if load_i64(shard + w.IS_PACED) == 0 or is_waited_for:
        return num_saved
    interval_ns = load_i64(shard + w.SAVE_EVERY_NS)
    began_ns = load_i64(shard + w.SAVE_AT_NS) - interval_ns
    passed_us = (load_i64(shard + w.NOW_NS) - began_ns) // 1000
    num_slots = num_saved * passed_us * _PACE // (max(interval_ns // 1000, 1) * (_PACE - 1))
    return min(num_saved, num_slots // _MIN_SLICE_SLOTS * _MIN_SLICE_SLOTS)


@jit
def _begin(shard: int) -> None:
    is_waited_for = load_i64(shard + w.SAVE_NOW) or load_i64(shard + w.UNCOVERED) != 0
    is_paced = not is_waited_for and load_i64(shard + w.IS_ALWAYS) == 0
    store_i64(shard + w.IS_PACED, 1 if is_paced else 0)
    taken = load_i64(shard + w.DIRTY)
    store_i64(shard + w.DIRTY, load_i64(shard + w.SAVED))
    store_i64(shard + w.SAVED, taken)
    store_i64(shard + w.NUM_SAVED, load_i64(shard + w.NUM_DIRTY))
    store_i64(shard + w.NUM_DIRTY, 0)
    store_i64(shard + w.SAVED_PLACE, 0)
    store_i64(shard + w.SAVE_NOW, 0)
    store_i64(shard + w.HAS_FAILED, 0)
    store_i64(shard + w.IS_SAVING, 1)
    store_i64(shard + w.SAVE_AT_NS, load_i64(shard + w.NOW_NS) + load_i64(shard + w.SAVE_EVERY_NS))
    store_i64(shard + w.COVERED, load_i64(shard + w.UNCOVERED))
    store_i64(shard + w.COVERED + 8, load_i64(shard + w.UNCOVERED + 8))
    store_i64(shard + w.UNCOVERED, 0)


@jit
def _end(shard: int) -> None:
    """Answer what waited for this checkpoint; what it could not write waits for the next one."""
    pool = load_i64(shard + w.POOL)
    has_failed = load_i64(shard + w.HAS_FAILED)
    store_i64(shard + w.IS_SAVING, 0)
    if has_failed:
        count(shard, w.NUM_CHECKPOINTS_FAILED, 1)
        failed = load_i64(shard + w.NUM_FAILED_IN_A_ROW) + 1
        store_i64(shard + w.NUM_FAILED_IN_A_ROW, failed)
        store_i64(shard + w.SAVE_AT_NS, load_i64(shard + w.NOW_NS) + load_i64(shard + w.RETRY_NS))
    else:
        count(shard, w.NUM_CHECKPOINTS, 1)
        store_i64(shard + w.NUM_FAILED_IN_A_ROW, 0)
    while True:
        request = take_from_list(pool, shard + w.COVERED)
        if request == 0:
            return
        is_done = has_failed == 0
        if load_i64(request + r.KIND) == r.SYNC_ALL:
            store_i64(request + r.LAST_SEQ, 1 if is_done else 0)
            is_done = True
        append_to_list(pool, shard + (w.FINISHED if is_done else w.UNCOVERED), request)


# ---------------------------------------------------------------------------------------------
# Copying
# ---------------------------------------------------------------------------------------------


@jit
def _copy_some(shard: int, end: int) -> None:
    """Copy a slice of the slots that this checkpoint writes, those before one of them."""
    slots = load_i64(shard + w.SAVED)
    place, last = load_i64(shard + w.SAVED_PLACE), load_i64(shard + w.NUM_SAVED)
    num_bytes = 0
    for _ in range(MAX_SLICE_SLOTS):
        if place >= end or num_bytes >= _MAX_SLICE_BYTES:
            break
        if place + _PREFETCHED_SLOTS < last:
            _prefetch_slot(shard, load_i32(slots + 4 * (place + _PREFETCHED_SLOTS)))
        slot = load_i32(slots + 4 * place)
        header = header_of(shard, slot)
        flags = load_u8(header + h.FLAGS)
        is_held = flags & h.IS_HELD != 0
        is_good = flags & (h.IS_OPEN | h.IS_FROZEN) == h.IS_OPEN
        if flags & h.IS_DIRTY and (is_held or is_good):
            if is_away(shard, slot):
                break  # it is brought here before the next slice
            model = model_of(shard, load_u16(header + h.MODEL))
            request = first_waiting(load_i64(shard + w.POOL), header) if is_held else 0
            size = entry_bytes(shard, model, slot, header, request)
            stage = _stage_with_room(shard, size)
            if stage == 0:
                break
            used = load_i64(stage + w.STAGE_USED)
            at = load_i64(stage + w.STAGE_AT) + used
            write_entry(shard, model, slot, header, request, at)
            store_i64(stage + w.STAGE_USED, used + size)
            store_i64(stage + w.STAGE_ENTRIES, load_i64(stage + w.STAGE_ENTRIES) + 1)
            num_bytes += size
            flags |= h.IS_STAGED
        store_u8(header + h.FLAGS, flags & ~h.IS_DIRTY)
        place += 1
    store_i64(shard + w.SAVED_PLACE, place)
    if place == last:
        _send_stage(shard)


@jit
def _prefetch_slot(shard: int, slot: int) -> None:
    header = header_of(shard, slot)
    prefetch(header)
    # Its model is not known before the header is here. With several models this may be in vain.
    model = model_of(shard, 0)
    row = row_of(model, slot)
    for k in range(0, min(load_i64(model + w.ROW_BYTES), _MAX_PREFETCHED_BYTES), 64):
        prefetch(row + k)


@jit
def entry_bytes(shard: int, model: int, slot: int, header: int, request: int) -> int:
    """Return how large an entry is.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.
    header : int
        Address of the slot's header.
    request : int
        Address of the record of the request that it is for, or 0.

    Returns
    -------
    int
    """
    num_bytes = e.ENTRY_HEAD_BYTES + part_bytes(load_u8(header + h.ID_BYTES))
    kind = _kind_of(request)
    if kind == e.SNAPSHOT:
        num_bytes += part_bytes(load_i64(request + r.X_COUNT))
    if kind != e.DELETE:
        owner = name_of_owner(shard, slot)
        num_bytes += part_bytes(load_u8(owner)) if owner != 0 else 0
        num_bytes += load_i64(model + w.ROW_BYTES)
        window_log2 = load_u8(header + h.WINDOW_LOG2)
        if window_log2 > 0 and load_i64(header + h.RING) != 0:
            num_bytes += part_bytes((8 + load_i64(model + w.Y_BYTES)) << window_log2)
    return num_bytes


@jit
def _kind_of(request: int) -> int:
    kind = load_i64(request + r.KIND) if request != 0 else r.STEP
    if kind == r.CLOSE:
        return e.DELETE
    return e.SNAPSHOT if kind == r.SNAPSHOT else e.PUT


@jit
def write_entry(shard: int, model: int, slot: int, header: int, request: int, entry: int) -> None:
    """Copy a stream as it is.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.
    header : int
        Address of its header.
    request : int
        As for `entry_bytes`.
    entry : int
        Where to write.
    """
    kind = _kind_of(request)
    id_bytes, row_bytes = load_u8(header + h.ID_BYTES), load_i64(model + w.ROW_BYTES)
    y_bytes, window_log2 = load_i64(model + w.Y_BYTES), load_u8(header + h.WINDOW_LOG2)
    last_seq, ring = load_i64(header + h.LAST_SEQ), load_i64(header + h.RING)
    name_bytes = load_i64(request + r.X_COUNT) if kind == e.SNAPSHOT else 0
    flags = load_u8(header + h.FLAGS)
    store_i64(entry + e.ENTRY_BYTES, entry_bytes(shard, model, slot, header, request))
    store_i64(entry + e.ENTRY_KIND, kind)
    store_i64(entry + e.ENTRY_SLOT, slot)
    store_i64(entry + e.ENTRY_GENERATION, load_i32(header + h.GENERATION))
    store_i64(entry + e.ENTRY_LAST_SEQ, last_seq)
    store_i64(entry + e.ENTRY_MODEL, load_u16(header + h.MODEL))
    store_i64(entry + e.ENTRY_FLAGS, flags)
    store_i64(entry + e.ENTRY_WINDOW_LOG2, window_log2)
    store_i64(entry + e.ENTRY_ID_BYTES, id_bytes)
    store_i64(entry + e.ENTRY_NAME_BYTES, name_bytes)
    store_i64(entry + e.ENTRY_ROW_BYTES, row_bytes)
    store_i64(entry + e.ENTRY_Y_BYTES, y_bytes if window_log2 > 0 else 0)
    store_i64(entry + e.ENTRY_HAS_RING, 1 if flags & h.IS_NUMBERED else 0)
    store_i64(entry + e.ENTRY_DIGEST, ring if window_log2 == 0 else 0)
    owner = name_of_owner(shard, slot)
    owner_bytes = load_u8(owner) if owner != 0 else 0
    store_i64(entry + e.ENTRY_OWNER_BYTES, owner_bytes)
    at = entry + e.ENTRY_HEAD_BYTES
    copy_bytes(at, h.id_address(header), id_bytes)
    at += part_bytes(id_bytes)
    if kind == e.DELETE:
        return
    copy_bytes(at, load_i64(request + r.X) if name_bytes > 0 else 0, name_bytes)
    at += part_bytes(name_bytes)
    copy_bytes(at, owner + 1, owner_bytes)
    at += part_bytes(owner_bytes)
    copy_bytes(at, row_of(model, slot), row_bytes)
    if window_log2 > 0 and ring != 0:
        copy_bytes(at + row_bytes, ring, (8 + y_bytes) << window_log2)


@jit
def _stage_with_room(shard: int, num_bytes: int) -> int:
    """Return the stage being filled, if so much fits; or else send it and begin another."""
    stages = load_i64(shard + w.STAGES)
    number = load_i64(shard + w.STAGE)
    if number >= 0:
        stage = stages + number * w.STAGE_RECORD_BYTES
        # An entry that is larger than a stage has one for itself; its memory is large enough.
        used = load_i64(stage + w.STAGE_USED)
        if used == 0 or used + num_bytes <= w.STAGE_BYTES:
            return stage
        _send_stage(shard)
    for k in range(w.NUM_STAGES):
        stage = stages + k * w.STAGE_RECORD_BYTES
        if load_i64(stage + w.STAGE_STATE) == w.STAGE_FREE:
            store_i64(stage + w.STAGE_STATE, w.STAGE_FILLING)
            store_i64(stage + w.STAGE_USED, 0)
            store_i64(stage + w.STAGE_ENTRIES, 0)
            store_i64(shard + w.STAGE, k)
            return stage
    return 0


@jit
def _send_stage(shard: int) -> None:
    """Give the stage being filled to the thread that writes."""
    number = load_i64(shard + w.STAGE)
    if number < 0:
        return
    stage = load_i64(shard + w.STAGES) + number * w.STAGE_RECORD_BYTES
    out = load_i64(shard + w.OUT)
    store_i64(out, number)
    store_i64(out + 8, load_i64(stage + w.STAGE_AT))
    store_i64(out + 16, load_i64(stage + w.STAGE_USED))
    store_i64(out + 24, load_i64(stage + w.STAGE_ENTRIES))
    store_i64(stage + w.STAGE_STATE, w.STAGE_SENT)
    store_i64(shard + w.STAGE, -1)
    store_i64(shard + w.NUM_IN_FLIGHT, load_i64(shard + w.NUM_IN_FLIGHT) + 1)
    send_bytes(load_i64(shard + w.DISK), out, 32, False)
