"""What a server tells about itself: counters and latencies, as plain types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamrnn_server.shard import structs as w

__all__ = ["ShardView", "latency_us", "num_not_on_disk", "shard_stats", "total_counters"]

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


class ShardView(Protocol):
    """What control reads of a shard's memory."""

    struct: Any

    def num_open(self) -> dict[str, int]:
        """Return the number of open streams of each model."""

    def user(self, number: int) -> str:
        """Return a user's name."""

    def num_streams_of(self, user: str) -> int:
        """Return how many of a user's streams are in memory."""

    def note_answered(self, client: int, num_bytes: int) -> None:
        """Note that Python is done with so much of what a client has asked."""

    def close(self) -> None:
        """Free it, after its thread has ended."""


def _bucket_ends_us() -> NDArray[np.float64]:
    """Return the upper end of each bucket of `reply`."""
    bucket = np.arange(w.NUM_BUCKETS)
    steps = 1 << w.BUCKETS_LOG2
    doublings = np.maximum(bucket // steps - 1, 0)
    ends = (bucket - doublings * steps + 1) * 2.0**doublings
    return ends / 1e3


_ENDS_US = _bucket_ends_us()


def latency_us(histogram: NDArray[np.int64]) -> dict[str, float]:
    """Return percentiles of the time from receive to send.

    Returns
    -------
    dict of str to float
        Upper ends of the buckets, in µs, at most an eighth too high; empty before the first reply.
    """
    sums = np.cumsum(histogram)
    if sums[-1] == 0:
        return {}
    places = np.searchsorted(sums, [np.ceil(q * sums[-1]) for q in _QUANTILES.values()])
    return {name: float(_ENDS_US[k]) for name, k in zip(_QUANTILES, places, strict=True)}


def total_counters(shards: Sequence[ShardView]) -> dict[str, int]:
    """Return the counters, added up over all shards."""
    names = w.Counters.dtype.names or ()
    return {name: sum(int(each.struct["counters"][name]) for each in shards) for name in names}


def num_not_on_disk(shards: Sequence[ShardView]) -> int:
    """Return how many changes of streams wait for a checkpoint, or for its end."""
    return sum(
        int(each.struct["num_dirty"])
        + int(each.struct["num_checkpoint_slots"])
        + int(each.struct["num_in_flight"])
        for each in shards
    )


def shard_stats(shard: ShardView, endpoint: str) -> dict[str, Any]:
    """Return what one shard tells about itself.

    Returns
    -------
    dict
        Plain types.
    """
    return {
        "endpoint": endpoint,
        **total_counters([shard]),
        "num_streams": int(shard.struct["num_streams"]),
        "num_open": shard.num_open(),
        "arena_used_bytes": int(shard.struct["arena"]["used_bytes"]),
        "memory_used_bytes": int(shard.struct["budget"]["used_bytes"]),
        "memory_budget_bytes": int(shard.struct["budget"]["max_bytes"]),
        "latency_us": latency_us(shard.struct["latencies"]),
    }
