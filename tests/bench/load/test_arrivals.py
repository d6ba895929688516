"""Schedules of arrivals: exact, and as random as they say."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_bench.load.arrivals import (
    Arrivals,
    Heap,
    Pattern,
    gap_ns,
    pop,
    push,
    uniform,
)

MASK = 2**64 - 1


def expected_uniform(seed, what, stream, number):
    """SplitMix64's finaliser over the numbers one after the other, in Python's own integers."""
    value = (seed * 0x94D049BB133111EB + what * 1_442_695_040_888_963_407 + stream) & MASK
    for part in (number, 0):
        value = ((value + 1) * 0x9E3779B97F4A7C15 + part) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        value = value ^ (value >> 31)
    return ((value >> 11) + 0.5) / 2**53


@given(st.integers(0, 2**31), st.integers(0, 2**20), st.integers(0, 2**40))
def test_draws_are_those_of_the_finaliser(seed, stream, number):
    assert uniform(seed, 1, stream, number) == expected_uniform(seed, 1, stream, number)


def test_draws_are_uniform_and_streams_differ():
    drawn = np.array([[uniform(3, 1, stream, n) for n in range(200)] for stream in range(100)])
    counts, _ = np.histogram(drawn, bins=50, range=(0, 1))
    assert ((counts - 400) ** 2 / 400).sum() < 90  # chi-squared of 49 degrees: 1 in 3,000 above
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.03


def arrivals_of(*values):
    arrivals = Arrivals.one()
    for name, value in zip(Arrivals.dtype.names or (), values, strict=True):
        arrivals[name] = value
    return arrivals


def times_of(arrivals, stream, num_messages):
    return np.cumsum([gap_ns(arrivals, stream, n) for n in range(num_messages)])


@given(st.integers(0, 1000), st.sampled_from([7.0, 1e5, 333_333_333.0]))
def test_fixed_arrivals_keep_their_distance_and_have_a_phase(stream, period):
    times = times_of(arrivals_of(Pattern.FIXED, period, period, 1, 5), stream, 20)
    assert set(np.diff(times)) == {period}
    assert times[0] == int(expected_uniform(5, 1, stream, 0) * period)


def test_together_all_streams_send_at_once():
    arrivals = arrivals_of(Pattern.TOGETHER, 1e6, 1e6, 1, 0)
    for stream in range(5):
        assert list(times_of(arrivals, stream, 3)) == [0, 1_000_000, 2_000_000]


@given(st.integers(0, 2**20))
def test_poisson_gaps_are_exponential_draws(stream):
    arrivals = arrivals_of(Pattern.POISSON, 1e6, 1e6, 1, 9)
    for n in range(10):
        expected = -math.log(expected_uniform(9, 1, stream, n)) * 1e6
        assert gap_ns(arrivals, stream, n) == pytest.approx(expected, abs=1)


def test_poisson_arrivals_have_the_rate_and_the_spread():
    arrivals = arrivals_of(Pattern.POISSON, 1e6, 1e6, 1, 1)
    gaps = np.array([gap_ns(arrivals, 3, n) for n in range(20_000)])
    assert gaps.mean() == pytest.approx(1e6, rel=0.03)
    assert gaps.std() == pytest.approx(1e6, rel=0.05)


def test_bursts_come_at_once_and_keep_the_rate():
    arrivals = arrivals_of(Pattern.BURSTS, 1e6, 1e6, 4, 1)
    gaps = np.array([gap_ns(arrivals, 3, n) for n in range(40_000)]).reshape(-1, 4)
    assert not gaps[:, 1:].any()
    assert gaps[:, 0].mean() == pytest.approx(4e6, rel=0.03)


def test_streams_have_rates_between_the_two():
    arrivals = arrivals_of(Pattern.TOGETHER, 1e6, 1e8, 1, 1)
    periods = np.array([gap_ns(arrivals, stream, 1) for stream in range(5_000)])
    assert periods.min() >= 1e6
    assert periods.max() <= 1e8
    assert np.median(periods) == pytest.approx(1e7, rel=0.15)  # evenly on a logarithmic scale
    again = arrivals_of(Pattern.TOGETHER, 1e6, 1e8, 1, 1)
    assert gap_ns(again, 3, 1) == gap_ns(again, 3, 7) == periods[3]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=200))
def test_a_heap_gives_the_least_time_first(actions):
    times, streams, heap = np.zeros(200, np.int64), np.zeros(200, np.int64), Heap.one()
    heap["times_ns"], heap["streams"] = times.ctypes.data, streams.ctypes.data
    expected: list[int] = []
    for stream, (adds, time_ns) in enumerate(actions):
        if adds or not expected:
            push(heap, time_ns, stream)
            heapq.heappush(expected, time_ns)
            continue
        assert times[0] == heapq.heappop(expected)
        assert actions[pop(heap)][1] <= min(expected, default=50)
    assert heap["size"] == len(expected)
    while expected:
        assert times[0] == heapq.heappop(expected)
        pop(heap)
