"""When streams send: exact schedules that need no memory but the next time of each.

Gap n of a stream is a function of the seed, the stream and n alone. Which stream is next is asked
of a heap.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit

__all__ = ["Arrivals", "Heap", "Pattern", "gap_ns", "make_heap", "pop", "push", "uniform"]


class Pattern(IntEnum):
    """How a stream's messages follow each other."""

    FIXED = 0  # at one distance, each stream with a phase of its own
    POISSON = 1
    BURSTS = 2  # so many at once, and bursts as Poisson has single ones
    TOGETHER = 3  # at one distance, all streams at once


class Arrivals(NamedTuple):
    """The schedules of all streams."""

    pattern: int  # a `Pattern`
    min_period_ns: float  # the mean distance of a stream's messages is of this and ``max``, and
    max_period_ns: float  # between them evenly on a logarithmic scale
    burst: int  # messages of a burst
    seed: int


_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
_MEAN, _GAP = 0, 1  # what is drawn


@jit
def uniform(seed: int, what: int, stream: int, number: int) -> float:
    """Draw from (0, 1): the same for the same numbers (finaliser of SplitMix64)."""
    value = seed * _MULTIPLIERS[2] + what * 1_442_695_040_888_963_407 + stream
    for number_or_none in (number, 0):
        value = (value + 1) * _MULTIPLIERS[0] + number_or_none
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


class Heap(NamedTuple):
    """Streams, the one with the least time first; room for each once."""

    times_ns: NDArray[np.int64]  # [N]
    streams: NDArray[np.int32]  # [N]
    size: NDArray[np.int64]  # [1]


def make_heap(num_streams: int) -> Heap:
    """Make an empty heap."""
    return Heap(
        np.zeros(num_streams, np.int64), np.zeros(num_streams, np.int32), np.zeros(1, np.int64)
    )


_CHILDREN_LOG2 = 2  # four children: half the levels, and one cache line a level


@jit
def push(heap: Heap, time_ns: int, stream: int) -> None:
    """Add a stream that is not in it."""
    at = heap.size[0]
    heap.size[0] += 1
    while at > 0:
        parent = (at - 1) >> _CHILDREN_LOG2
        if heap.times_ns[parent] <= time_ns:
            break
        heap.times_ns[at], heap.streams[at] = heap.times_ns[parent], heap.streams[parent]
        at = parent
    heap.times_ns[at], heap.streams[at] = time_ns, stream


@jit
def pop(heap: Heap) -> int:
    """Take out the stream with the least time; there must be one."""
    first = heap.streams[0]
    heap.size[0] -= 1
    size = heap.size[0]
    time_ns, stream = heap.times_ns[size], heap.streams[size]
    at = 0
    while True:
        child = (at << _CHILDREN_LOG2) + 1
        if child >= size:
            break
        least = child
        for other in range(child + 1, min(child + (1 << _CHILDREN_LOG2), size)):
            if heap.times_ns[other] < heap.times_ns[least]:
                least = other
        if heap.times_ns[least] >= time_ns:
            break
        heap.times_ns[at], heap.streams[at] = heap.times_ns[least], heap.streams[least]
        at = least
    heap.times_ns[at], heap.streams[at] = time_ns, stream
    return first
