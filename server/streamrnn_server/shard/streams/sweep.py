"""Idle limit: evict streams that have been unused for too long, a few at a time."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn_server.shard.memory.slab import header_of, model_of
from streamrnn_server.shard.streams.slots import evict_stream, is_clean
from streamrnn_server.shard.structs import Shard

__all__ = ["sweep"]


_SWEEP_EVERY_NS = 20_000_000
_MAX_SWEPT = 512


@jit
def sweep(shard: Shard) -> None:
    """Evict streams that exceed the idle limit."""
    limit_s = shard.idle_limit_s
    now = shard.now_ns
    if limit_s == 0 or now - shard.sweep_ns < _SWEEP_EVERY_NS:
        return
    shard.sweep_ns = now
    now_s = (now - shard.started_ns) // 1_000_000_000
    model = model_of(shard, shard.sweep_model)
    place = shard.sweep_position
    last = min(place + _MAX_SWEPT, model.num_fresh)
    while place < last:
        header = header_of(shard, model.first_slot + place)
        if is_clean(header) and now_s - header.last_used_s > limit_s:
            evict_stream(shard, header)
            if shard.can_look_up:
                shard.counters.num_spilled_idle += 1
            else:
                shard.counters.num_evicted_idle += 1
        place += 1
    if place >= model.num_fresh:
        place = 0
        following = shard.sweep_model + 1
        if following == shard.num_models:
            following = 0
        shard.sweep_model = following
    shard.sweep_position = place
