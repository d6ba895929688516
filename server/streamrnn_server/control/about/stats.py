"""What shards tell about themselves: counters, times and batches, for `stats` and for metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.memory.header import IS_OPEN, IS_QUARANTINED
from streamrnn_server.shard.memory.recording import Recorder
from streamrnn_server.shard.memory.tally import BUCKETS_LOG2, NUM_BUCKETS
from streamrnn_server.shard.model_memory import ModelMemory
from streamrnn_server.shard.requests.request import Kind
from streamrnn_server.storage.state_dir import StateDir

__all__ = [
    "OTHER_METHOD",
    "BatchTotals",
    "MethodTotals",
    "ShardView",
    "all_times",
    "batch_totals",
    "disk_stats",
    "errors_by_code",
    "latency_us",
    "memory_parts",
    "method_totals",
    "num_quarantined_now",
    "shard_stats",
    "times_us",
    "total_counters",
]

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
OTHER_METHOD = "other"  # of a message that was refused before its method was looked at
# The method of the protocol that asks for each kind of request.
_METHODS = {
    Kind.FOR_PYTHON: OTHER_METHOD,
    Kind.STEP: "step",
    Kind.RESET: "reset",
    Kind.OPEN: "open",
    Kind.CLOSE: "close",
    Kind.STEP_MANY: "batch",
    Kind.OPEN_MANY: "open",
    Kind.EXPORT: "export",
    Kind.SNAPSHOT: "snapshot",
    Kind.SYNC: "sync",
    Kind.RESTORE: "import",
    Kind.ROLLBACK: "rollback",
    Kind.SYNC_ALL: "sync",
    Kind.RECORD: "diagnostics",
}


class ShardView(Protocol):
    """What control reads of a shard's memory."""

    struct: Any
    headers: NDArray[Any]
    num_requests: int
    batches: NDArray[Any]
    tallies: NDArray[Any]
    step_times: NDArray[Any]
    recorder: Recorder
    models: ModelMemory

    def num_open(self) -> dict[str, int]:
        """Return the number of open streams of each model."""

    def memory_parts(self) -> dict[str, int]:
        """Return what the bytes of the memory budget are used for."""

    def user(self, number: int) -> str:
        """Return a user's name."""

    def budget_of(self, user: str) -> dict[str, int]:
        """Return what of a user's is in memory: ``num_streams``, ``num_bytes``."""

    def note_answered(self, client: int, num_bytes: int) -> None:
        """Note that Python is done with so much of what a client has asked."""

    def close(self) -> None:
        """Free it, after its thread has ended."""


def _bucket_ends_us() -> NDArray[np.float64]:
    """Return the upper end of each bucket of a `Tally`."""
    bucket = np.arange(NUM_BUCKETS)
    steps = 1 << BUCKETS_LOG2
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


def times_us(histogram: NDArray[np.int64]) -> list[list[float]]:
    """Return the upper end in µs, and the number, of each bucket that is not empty."""
    return [[float(_ENDS_US[k]), int(histogram[k])] for k in np.flatnonzero(histogram)]


def all_times(shards: Sequence[ShardView]) -> NDArray[np.int64]:
    """Return how many requests, of all kinds, took how long: shape (NUM_BUCKETS,)."""
    times = np.zeros(NUM_BUCKETS, np.int64)
    for shard in shards:
        times += shard.tallies["times"].sum((0, 1))
    return times


class MethodTotals(NamedTuple):
    """What became of one method's requests; arrays by model's index, of which the last is none."""

    sum_ns: NDArray[np.int64]  # (capacity + 1,)
    errors: NDArray[np.int64]  # (capacity + 1, NUM_CODES)
    times: NDArray[np.int64]  # (capacity + 1, NUM_BUCKETS)


def method_totals(shards: Sequence[ShardView]) -> dict[str, MethodTotals]:
    """Return what became of the requests that shards have answered, by method."""
    totals: dict[str, MethodTotals] = {}
    for kind, method in _METHODS.items():
        for shard in shards:
            own = (shard.tallies[:, kind][name] for name in MethodTotals._fields)
            if method not in totals:
                totals[method] = MethodTotals(*(each.copy() for each in own))
                continue
            for total, each in zip(totals[method], own, strict=True):
                total += each
    return totals


class BatchTotals(NamedTuple):
    """The batches of each model."""

    num_steps: NDArray[np.int64]  # (capacity,)
    num_rows: NDArray[np.int64]  # (capacity,)
    sizes: NDArray[np.int64]  # (capacity, BATCH_BUCKETS)


def batch_totals(shards: Sequence[ShardView]) -> BatchTotals:
    """Return what was computed, by model."""
    return BatchTotals(
        *(np.sum([each.batches[name] for each in shards], 0) for name in BatchTotals._fields)
    )


def errors_by_code(shards: Sequence[ShardView]) -> dict[str, int]:
    """Return how many errors shards have answered, those of batches' items among them."""
    errors = np.sum([each.tallies["errors"].sum((0, 1)) for each in shards], 0)
    return {code.wire: int(errors[code]) for code in ErrorCode if errors[code]}


def total_counters(shards: Sequence[ShardView]) -> dict[str, int]:
    """Return the counters, added up over all shards."""
    names = w.Counters.dtype.names or ()
    return {name: sum(int(each.struct["counters"][name]) for each in shards) for name in names}


def memory_parts(shards: Sequence[ShardView]) -> dict[str, int]:
    """Return what the bytes of the memory budget are used for, added up over all shards."""
    parts = [each.memory_parts() for each in shards]
    return {name: sum(each[name] for each in parts) for name in parts[0]}


def disk_stats(disk: StateDir | None, shards: Sequence[ShardView]) -> dict[str, Any]:
    """Return what there is to say of the disk; nothing without one."""
    if disk is None:
        return {}
    return {
        **disk.stats(),
        "num_not_on_disk": _num_not_on_disk(shards),
        "checkpoint_lag_s": _checkpoint_lag_s(shards),
    }


def _num_not_on_disk(shards: Sequence[ShardView]) -> int:
    """Return how many changed streams wait for a checkpoint, or for its end."""
    return sum(
        int(each.struct["num_dirty"])
        + int(each.struct["is_checkpointing"]) * int(each.struct["num_checkpoint_slots"])
        for each in shards
    )


def num_quarantined_now(shards: Sequence[ShardView]) -> int:
    """Return how many streams in memory are frozen; looked for only where any ever was."""
    both, number = IS_OPEN | IS_QUARANTINED, 0
    for shard in shards:
        if not shard.struct["counters"]["num_quarantined"]:
            continue
        flags, models = shard.headers["flags"], shard.models.structs[:-1]
        # Of the slots that were ever taken: there are those of all models that may come, too.
        for first, num_taken in zip(models["first_slot"], models["num_fresh"], strict=True):
            part = flags[first : first + num_taken]
            number += int(np.count_nonzero(part & both == both))
    return number


def _checkpoint_lag_s(shards: Sequence[ShardView]) -> float:
    """Return how old the oldest change is that no checkpoint has brought to disk; 0: none is."""
    since_ns = []
    for shard in shards:
        if shard.struct["is_checkpointing"] and shard.struct["num_checkpoint_slots"]:
            since_ns.append(int(shard.struct["checkpoint_since_ns"]))
        elif shard.struct["num_dirty"]:
            since_ns.append(int(shard.struct["dirty_since_ns"]))
    return max(0.0, time.monotonic() - min(since_ns) / 1e9) if since_ns else 0.0


def shard_stats(shard: ShardView, endpoint: str) -> dict[str, Any]:
    """Return what one shard tells about itself.

    Returns
    -------
    dict
        Plain types.
    """
    clients = shard.struct["clients"]
    return {
        "endpoint": endpoint,
        **total_counters([shard]),
        "num_streams": int(shard.struct["num_streams"]),
        "num_ready": int(shard.struct["num_ready"]),
        "num_open": shard.num_open(),
        "unread_bytes": int(clients["sent_bytes"]) - int(clients["left_bytes"]),
        "asked_bytes": int(clients["asked_bytes"]) - int(clients["answered_bytes"]),
        "num_requests_in_flight": shard.num_requests - int(shard.struct["pool"]["num_free"]),
        "arena_used_bytes": int(shard.struct["arena"]["used_bytes"]),
        "memory_used_bytes": int(shard.struct["budget"]["used_bytes"]),
        "memory_budget_bytes": int(shard.struct["budget"]["max_bytes"]),
        "latency_us": latency_us(all_times([shard])),
    }
