"""Histograms of times: the error that is stated, and nothing lost."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_bench.load.histogram import MAX_NS, PERCENTILES, RELATIVE_ERROR, Histogram
from streamrnn_bench.report.results import BenchError

times = st.integers(0, MAX_NS) | st.integers(0, 1000) | st.integers(10**5, 10**8)
lists = st.lists(times, min_size=1, max_size=200)


def of(values):
    histogram = Histogram()
    histogram.note(values)
    return histogram


@given(lists, st.sampled_from(PERCENTILES) | st.floats(0, 100))
def test_a_percentile_is_never_too_low_and_at_most_the_stated_error_too_high(values, percent):
    exact = sorted(values)[max(1, math.ceil(percent / 100 * len(values) * (1 - 1e-15))) - 1]
    found = of(values).percentile_ns(percent)
    assert exact <= found <= exact * (1 + RELATIVE_ERROR)


@given(lists)
def test_number_mean_and_largest_time_are_exact(values):
    histogram = of(values)
    assert histogram.number == len(values)
    assert histogram.mean_ns == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert histogram.max_ns == max(values)
    assert histogram.percentile_ns(100) == max(values)


@given(lists, lists)
def test_merged_histograms_are_that_of_all_times(some, others):
    merged = Histogram.merged([of(some), of(others)])
    np.testing.assert_array_equal(merged.counts, of(some + others).counts)


@given(lists, lists)
def test_what_came_since_a_copy_is_told_alone(before, after):
    histogram = of(before)
    copy = histogram.copy()
    histogram.note(after)
    since = histogram.since(copy)
    assert since.number == len(after)
    for percent in PERCENTILES:
        exact = of(after).percentile_ns(percent)
        assert exact <= since.percentile_ns(percent) <= (exact + 1) * (1 + RELATIVE_ERROR)


@given(lists)
def test_a_histogram_comes_back_from_json(values):
    histogram = of(values)
    again = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    np.testing.assert_array_equal(again.counts, histogram.counts)


def test_times_beyond_both_ends_are_counted_at_them():
    histogram = of([-5, MAX_NS + 1_000_000])
    assert histogram.number == 2
    assert histogram.percentile_ns(50) == 0
    assert histogram.max_ns == MAX_NS + 1_000_000


def test_percentiles_have_the_names_of_reports():
    assert of([2_000] * 9 + [70_000]).percentiles_us() == {
        "50": pytest.approx(2, rel=RELATIVE_ERROR),
        "90": pytest.approx(2, rel=RELATIVE_ERROR),
        "99": 70,
        "99.9": 70,
        "99.99": 70,
        "max": 70,
    }
    assert set(Histogram().percentiles_us().values()) == {0}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps_log2": 3}, "no histogram"),
        ({"buckets": 5}, "without buckets"),
        ({"buckets": [[1]]}, "expected are its number and its count"),
        ({"buckets": [[-1, 1]]}, "expected are its number"),
        ({"buckets": [[10**6, 1]]}, "no bucket 1000000"),
        ({"max_ns": None}, "max_ns of a histogram is None"),
    ],
)
def test_what_is_no_histogram_is_refused(wrong, words):
    with pytest.raises(BenchError, match=words):
        Histogram.from_dict(of([1, 2]).to_dict() | wrong)
