"""Eviction: free slots and memory when a shard has reached a limit.

Streams that rest and are on disk as they are can be evicted: of some that are sampled, the one
unused for longest. They are restored at the next message. If there is none, the new stream is
refused with `busy`.

The memory of rows counts in units of 2 MiB, the large pages in which the system gives it. A free
slot keeps its memory for the next stream of its model. For anything else a whole unit must be
emptied, which is then returned to the system.
"""

from __future__ import annotations

from enum import IntEnum

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import fill_bytes, load_u8, store_u8
from streamrnn.kernels.virtual_memory import HUGE_PAGE_BYTES
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.admission import Limit
from streamrnn_server.shard.memory.arena import allocate, release_free_pages
from streamrnn_server.shard.memory.budget import release_pages, reserve_bytes
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.slab import header_of, model_of, row_of
from streamrnn_server.shard.streams.owners import count_ring, exceeded_limit, owner_of
from streamrnn_server.shard.streams.replay_ring import ring_size
from streamrnn_server.shard.streams.slots import evict_stream, is_clean
from streamrnn_server.shard.structs import HISTORY_BYTES, Model, Shard

__all__ = [
    "NUM_SAMPLED",
    "SLOT_BYTES",
    "allocate_block",
    "allocate_ring",
    "evict_for_stream",
    "free_memory_for_row",
    "has_row",
    "make_room_for_user",
]

# What a slot takes besides its row: also its places in the two lists, and its history.
SLOT_BYTES = h.HEADER_BYTES + 8 + HISTORY_BYTES
NUM_SAMPLED = 32  # slots looked at for one to evict
_MAX_EVICTIONS = 8  # for one block, or for one user's next stream
_MAX_SCANS = 4  # units looked through for one that can be emptied
_NEVER_S = 2**31
_ANY_RING = -1
_ANYBODY = 0


class Search(IntEnum):
    """What a search looks for.

    Each goes on, in each model, where the last one of its kind ended: searches of two kinds in turn
    might otherwise leave the same slots out for ever.
    """

    ROW = 0
    RING_OF_SIZE = 1
    ANY_RING = 2
    UNIT = 3
    OF_USER = 4


@jit
def evict_for_stream(shard: Shard) -> bool:
    """Evict one stream of any model; if none can be, start a checkpoint."""
    is_done = _evict(shard, _find_idle_of_all(shard, 0, _ANYBODY))
    shard.counters.num_spilled_for_room += is_done
    return is_done


@jit
def make_room_for_user(shard: Shard, owner: int, num_streams: int, num_bytes: int) -> int:
    """Evict streams of a user until he may take so much more; return the `Limit` that forbids it.

    If none can be evicted, a checkpoint is started.
    """
    limit = exceeded_limit(shard, owner, num_streams, num_bytes)
    for _ in range(_MAX_EVICTIONS):
        if limit == Limit.ROOM or not _evict(shard, _find_idle_of_all(shard, 0, owner)):
            break
        shard.counters.num_spilled_for_room += 1
        limit = exceeded_limit(shard, owner, num_streams, num_bytes)
    shard.counters.num_refused_user_streams += limit == Limit.USER_STREAMS
    shard.counters.num_refused_user_bytes += limit == Limit.USER_BYTES
    return limit


@jit
def has_row(shard: Shard, model: Model) -> bool:
    """Tell whether a model's next slot has memory, taken from the budget."""
    units = model.units
    if units == 0:
        return True
    row_bytes = model.row_bytes
    slot = model.free_slot - 1
    is_fresh = slot < 0
    place = model.num_fresh if is_fresh else slot - model.first_slot
    first = place * row_bytes // HUGE_PAGE_BYTES
    last = ((place + 1) * row_bytes - 1) // HUGE_PAGE_BYTES
    num_missing = 0
    for unit in range(first, last + 1):
        num_missing += 1 - load_u8(units + unit)
    wanted = num_missing * HUGE_PAGE_BYTES + (SLOT_BYTES if is_fresh else 0)
    if not reserve_bytes(shard.budget, wanted):
        return False
    for unit in range(first, last + 1):
        store_u8(units + unit, 1)
    return True


@jit
def free_memory_for_row(shard: Shard, index: int) -> bool:
    """Free memory for a model's next row; false if nothing could be freed."""
    if release_free_pages(shard.arena):
        return True
    own = _find_idle(shard, index, 0, _ANYBODY)
    if _empty_unit(shard, index, _last_used_s(shard, own)):
        return True
    return _evict_for_memory(shard, own)


@jit
def allocate_block(shard: Shard, num_bytes: int) -> int:
    """Allocate a block, evicting streams if the arena is full; 0 without memory."""
    arena = shard.arena
    block = allocate(arena, num_bytes)
    for _ in range(_MAX_EVICTIONS):
        if block != 0 or not _evict_for_block(shard, num_bytes):
            break
        block = allocate(arena, num_bytes)
    if block == 0:
        shard.counters.num_refused_for_room += 1
    return block


@jit
def allocate_ring(shard: Shard, header: Header, y_bytes: int) -> bool:
    """Allocate the ring that a stream at work lacks; false without memory."""
    window_log2 = header.window_log2
    if window_log2 == 0 or header.ring != 0:
        return True
    num_bytes = ring_size(window_log2, y_bytes)
    if make_room_for_user(shard, owner_of(shard, header), 0, num_bytes) != Limit.ROOM:
        return False
    ring = allocate_block(shard, num_bytes)
    header.ring = ring
    if ring != 0:  # what another stream left there must reach neither disk nor anybody
        fill_bytes(ring, num_bytes, 0)
        count_ring(shard, header, 1)
    return ring != 0


@jit
def _evict_for_block(shard: Shard, num_bytes: int) -> bool:
    """Evict a stream whose ring is as large, or else any that frees memory."""
    slot = _find_idle_of_all(shard, num_bytes, _ANYBODY)
    if slot < 0:
        if _empty_unit(shard, -1, _NEVER_S):
            return True
        slot = _find_idle_of_all(shard, _ANY_RING, _ANYBODY)
    return _evict_for_memory(shard, slot)


@jit
def _evict_for_memory(shard: Shard, slot: int) -> bool:
    is_done = _evict(shard, slot)
    shard.counters.num_spilled_for_memory += is_done
    return is_done


@jit
def _evict(shard: Shard, slot: int) -> bool:
    if slot < 0:
        shard.checkpoint_requested = 1
        return False
    evict_stream(shard, header_of(shard, slot))
    return True


@jit
def _last_used_s(shard: Shard, slot: int) -> int:
    return header_of(shard, slot).last_used_s if slot >= 0 else _NEVER_S


@jit
def _can_evict(shard: Shard, header: Header) -> bool:
    return is_clean(header) and shard.can_look_up != 0


@jit
def _find_idle_of_all(shard: Shard, ring_bytes: int, owner: int) -> int:
    oldest = -1
    for index in range(shard.num_models):
        slot = _find_idle(shard, index, ring_bytes, owner)
        if _last_used_s(shard, slot) < _last_used_s(shard, oldest):
            oldest = slot
    return oldest


@jit
def _find_idle(shard: Shard, index: int, ring_bytes: int, owner: int) -> int:
    """Return the oldest of some streams that can be evicted, or -1.

    ``ring_bytes`` is the size of ring to look for; 0: any or none, `_ANY_RING`: any. ``owner``: the
    streams of one user, or `_ANYBODY`'s.
    """
    model = model_of(shard, index)
    num_fresh, first_slot = model.num_fresh, model.first_slot
    search = Search.ROW
    if ring_bytes != 0:
        search = Search.ANY_RING if ring_bytes == _ANY_RING else Search.RING_OF_SIZE
    elif owner != _ANYBODY:
        search = Search.OF_USER
    place = model.search_positions[search]
    oldest = -1
    for _ in range(min(num_fresh, NUM_SAMPLED)):
        place = place + 1 if place + 1 < num_fresh else 0
        header = header_of(shard, first_slot + place)
        if not _can_evict(shard, header):
            continue
        if owner != _ANYBODY and owner_of(shard, header) != owner:
            continue
        if ring_bytes != 0:
            has_ring = header.ring != 0 and header.window_log2 > 0
            size = ring_size(header.window_log2, model.y_bytes)
            if not has_ring or (ring_bytes != _ANY_RING and size != ring_bytes):
                continue
        if header.last_used_s < _last_used_s(shard, oldest):
            oldest = first_slot + place
    model.search_positions[search] = place
    return oldest


@jit
def _empty_unit(shard: Shard, needing: int, before_s: int) -> bool:
    """Free a unit of another model than ``needing``, unused since ``before_s``."""
    oldest, oldest_unit, used_s = -1, 0, before_s
    num_scans = 0
    for index in range(shard.num_models):
        if index == needing:
            continue
        model = model_of(shard, index)
        num_fresh, first_slot = model.num_fresh, model.first_slot
        place = model.search_positions[Search.UNIT]
        for _ in range(min(num_fresh, NUM_SAMPLED)):
            place = place + 1 if place + 1 < num_fresh else 0
            unit = place * model.row_bytes // HUGE_PAGE_BYTES
            slot_used_s = _unused_since_s(shard, first_slot + place)
            has_memory = load_u8(model.units + unit) != 0
            if slot_used_s < used_s and has_memory and num_scans < _MAX_SCANS:
                num_scans += 1
                if _is_idle_unit(shard, model, unit, before_s):
                    oldest, oldest_unit, used_s = index, unit, slot_used_s
        model.search_positions[Search.UNIT] = place
    return oldest >= 0 and _release_unit(shard, model_of(shard, oldest), oldest_unit)


@jit
def _unused_since_s(shard: Shard, slot: int) -> int:
    """Return when a slot was last used: -1 if it is free, `_NEVER_S` if it is in use."""
    header = header_of(shard, slot)
    if header.flags == 0:
        return -1
    return header.last_used_s if _can_evict(shard, header) else _NEVER_S


@jit
def _first_in_unit(model: Model, unit: int) -> int:
    return model.first_slot + unit * HUGE_PAGE_BYTES // model.row_bytes


@jit
def _end_of_unit(model: Model, unit: int) -> int:
    last = ((unit + 1) * HUGE_PAGE_BYTES - 1) // model.row_bytes
    return model.first_slot + min(last + 1, model.num_fresh)


@jit
def _is_idle_unit(shard: Shard, model: Model, unit: int, before_s: int) -> bool:
    for slot in range(_first_in_unit(model, unit), _end_of_unit(model, unit)):
        if _unused_since_s(shard, slot) >= before_s:
            return False
    return True


@jit
def _release_unit(shard: Shard, model: Model, unit: int) -> bool:
    """Evict all streams that overlap a unit, and return its memory to the system."""
    for slot in range(_first_in_unit(model, unit), _end_of_unit(model, unit)):
        header = header_of(shard, slot)
        if header.flags != 0:
            evict_stream(shard, header)
            shard.counters.num_spilled_for_memory += 1
    rows = row_of(model, model.first_slot)
    at = rows + unit * HUGE_PAGE_BYTES
    if not release_pages(shard.budget, at, HUGE_PAGE_BYTES):
        return False
    store_u8(model.units + unit, 0)
    return True
