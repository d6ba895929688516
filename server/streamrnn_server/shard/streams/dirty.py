"""Changed streams: the list that the next checkpoint copies."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import store_i32
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.slab import slot_of
from streamrnn_server.shard.structs import Shard

__all__ = ["ask_for_checkpoint", "mark_dirty", "wait_for_disk"]


@jit
def mark_dirty(shard: Shard, header: Header) -> None:
    """Mark a stream for the next checkpoint, if there is a state directory."""
    flags = header.flags
    if flags & h.IS_DIRTY or shard.disk == 0:
        return
    header.flags = flags | h.IS_DIRTY
    number = shard.num_dirty
    if number == 0:
        shard.dirty_since_ns = shard.now_ns
    store_i32(shard.dirty + 4 * number, slot_of(shard, header))
    shard.num_dirty = number + 1


@jit
def wait_for_disk(shard: Shard, header: Header) -> None:
    """Make a stream in no list wait until its first request is on disk."""
    flags = header.flags
    header.flags = (flags | h.IS_BLOCKED) & ~h.IS_READY
    mark_dirty(shard, header)
    ask_for_checkpoint(shard)


@jit
def ask_for_checkpoint(shard: Shard) -> None:
    """Start the next checkpoint at once."""
    shard.checkpoint_requested = 1
