"""When streams send: exact schedules that need no memory but the next time of each.

Gap n of a stream is a function of the seed, the stream and n alone. Which stream is next is asked
of a heap.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Annotated

import numpy as np

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, store_i64
from streamrnn.kernels.structs import I64, Struct

__all__ = ["Arrivals", "Heap", "Pattern", "first_ns", "gap_ns", "pop", "push", "uniform"]

F64 = Annotated[float, np.float64]


class Pattern(IntEnum):
    """How a stream's messages follow each other."""

    FIXED = 0  # at one distance, each stream with a phase of its own
    POISSON = 1
    BURSTS = 2  # so many at once, and bursts as Poisson has single ones
    TOGETHER = 3  # at one distance, all streams at once


class Arrivals(Struct):
    """The schedules of all streams."""

    pattern: I64  # a `Pattern`
    # The mean distance of a stream's messages: between these, evenly on a logarithmic scale.
    min_period_ns: F64
    max_period_ns: F64
    burst: I64  # messages of a burst
    seed: I64


_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
_MEAN, _GAP = 0, 1  # what is drawn


@jit
def uniform(seed: int, what: int, stream: int, number: int) -> float:
    """Draw from (0, 1): the same for the same numbers (finaliser of SplitMix64)."""
    value = seed * _MULTIPLIERS[2] + what * 1_442_695_040_888_963_407 + stream
    for k in range(2):
        value = (value + 1) * _MULTIPLIERS[0] + number * (1 - k)
        value = (value ^ ((value >> 30) & 0x3_FFFF_FFFF)) * _MULTIPLIERS[1]
        value = (value ^ ((value >> 27) & 0x1F_FFFF_FFFF)) * _MULTIPLIERS[2]
        value = value ^ ((value >> 31) & 0x1_FFFF_FFFF)
    return (((value >> 11) & 0x1F_FFFF_FFFF_FFFF) + 0.5) * 2.0**-53


@jit
def gap_ns(arrivals: Arrivals, stream: int, number: int) -> int:
    """Return the time from a stream's message ``number`` - 1, or the start, to that message."""
    mean = arrivals.min_period_ns
    if arrivals.max_period_ns > mean:
        share = uniform(arrivals.seed, _MEAN, stream, 0)
        mean *= (arrivals.max_period_ns / mean) ** share
    pattern = arrivals.pattern
    if pattern == Pattern.TOGETHER:
        return 0 if number == 0 else round(mean)
    if pattern == Pattern.FIXED and number > 0:
        return round(mean)
    drawn = uniform(arrivals.seed, _GAP, stream, number)
    if pattern == Pattern.FIXED:
        return int(drawn * mean)
    if pattern == Pattern.POISSON:
        return int(-math.log(drawn) * mean)
    if number % arrivals.burst > 0:
        return 0
    return int(-math.log(drawn) * mean * arrivals.burst)


class Heap(Struct):
    """Streams, the one with the least time first; room for each once."""

    times_ns: I64  # address of int64[N]
    streams: I64  # address of int64[N]
    size: I64


_CHILDREN_LOG2 = 2  # four children: half the levels, and one cache line a level


@jit
def _set(heap: Heap, at: int, time_ns: int, stream: int) -> None:
    store_i64(heap.times_ns + 8 * at, time_ns)
    store_i64(heap.streams + 8 * at, stream)


@jit
def push(heap: Heap, time_ns: int, stream: int) -> None:
    """Add a stream that is not in it."""
    at = heap.size
    heap.size += 1
    while at > 0:
        parent = (at - 1) >> _CHILDREN_LOG2
        parent_ns = load_i64(heap.times_ns + 8 * parent)
        if parent_ns <= time_ns:
            break
        _set(heap, at, parent_ns, load_i64(heap.streams + 8 * parent))
        at = parent
    _set(heap, at, time_ns, stream)


@jit
def first_ns(heap: Heap) -> int:
    """Return the least time; a heap that is empty has a late one."""
    return load_i64(heap.times_ns) if heap.size > 0 else 1 << 62


@jit
def pop(heap: Heap) -> int:
    """Take out the stream with the least time; there must be one."""
    times, streams = heap.times_ns, heap.streams
    first = load_i64(streams)
    heap.size -= 1
    size = heap.size
    time_ns, stream = load_i64(times + 8 * size), load_i64(streams + 8 * size)
    at = 0
    while True:
        child = (at << _CHILDREN_LOG2) + 1
        if child >= size:
            break
        least, least_ns = child, load_i64(times + 8 * child)
        for other in range(child + 1, min(child + (1 << _CHILDREN_LOG2), size)):
            other_ns = load_i64(times + 8 * other)
            if other_ns < least_ns:
                least, least_ns = other, other_ns
        if least_ns >= time_ns:
            break
        _set(heap, at, least_ns, load_i64(streams + 8 * least))
        at = least
    _set(heap, at, time_ns, stream)
    return first
