"""What a shard counts in its own memory, beside counting in Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.virtual_memory import struct_address
from streamrnn_server.control.about.stats import times_us
from streamrnn_server.monitor.metrics import _time_buckets
from streamrnn_server.shard.memory.tally import (
    BatchTally,
    Samples,
    Tally,
    count_batch,
    note_time,
    sample_rows,
    tally_at,
)

batch_tally_at, samples_at = pointer_to(BatchTally), pointer_to(Samples)


@jit
def _note(address, passed_ns):
    note_time(tally_at(address), passed_ns)


@jit
def _count(address, num_rows):
    count_batch(batch_tally_at(address), num_rows)


@jit
def _sample(address, slots):
    sample_rows(samples_at(address), slots, len(slots))


times_ns = st.integers(0, 64).flatmap(lambda k: st.integers(0, 2 ** min(k, 62)))


@settings(max_examples=60)
@given(st.lists(times_ns, max_size=40))
def test_every_time_is_in_its_bucket(passed):
    tally = Tally.one()
    for each in passed:
        _note(struct_address(tally), each)
    assert tally["sum_ns"] == np.array(passed, np.int64).sum()
    *buckets, (last, number) = _time_buckets(tally["times"])
    for bound, count in buckets:
        assert count == sum(each < round(float(bound) * 1e9) for each in passed)
    assert (last, number) == ("+Inf", len(passed))
    ends = [end for end, number in times_us(tally["times"]) for _ in range(int(number))]
    for end, each in zip(ends, sorted(passed), strict=True):
        assert each < end * 1e3 <= max(each + 1, each * 9 / 8 + 1)


@given(st.lists(st.integers(1, 40_000), max_size=40))
def test_every_batch_is_in_the_bucket_of_its_power_of_two(sizes):
    tally = BatchTally.one()
    for each in sizes:
        _count(struct_address(tally), each)
    expected = Counter(min((each - 1).bit_length(), 15) for each in sizes)
    assert {k: n for k, n in enumerate(tally["sizes"].tolist()) if n} == expected
    assert tally["num_rows"] == sum(sizes)


def test_samples_are_fair_to_streams_that_step_in_turn():
    samples = Samples.one()
    for _ in range(4000):
        _sample(struct_address(samples), np.arange(16))
    assert samples["number"] > 3000
    counts = np.bincount(samples["slots"], minlength=16)
    assert len(counts) == 16
    assert counts.min() > 1024 / 16 / 2
    assert counts.max() < 1024 / 16 * 2
