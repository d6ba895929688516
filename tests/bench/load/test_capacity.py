"""The search for the most load: right for a sharp bound, careful where it is not."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_bench.load.capacity import Capacity, Goal, Trial, describe_capacity, find_most
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.report.results import BenchError


def trial(amount, bound):
    return Trial(amount, 1.0, "" if amount <= bound else "too slow")


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.sampled_from([0.01, 0.05, 0.2]))
def test_what_is_found_is_within_and_a_little_more_is_not(bound, start, tolerance):
    found = find_most(lambda amount: trial(amount, bound), start, 1.0, 1e9, tolerance)
    assert found.amount <= bound < found.amount * (1 + tolerance)
    assert [each.amount for each in found.confirmations] == 3 * [found.amount]
    assert not found.is_limit
    assert len(found.trials) < 60


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.sampled_from([1, 10]))
def test_amounts_are_whole_multiples(bound, start, whole):
    bound, start = bound * whole, start * whole
    found = find_most(lambda amount: trial(amount, bound), start, whole, 10**7, 0.05, whole)
    assert all(each.amount % whole == 0 for each in found.trials)
    assert found.amount <= bound < max(found.amount * 1.05, found.amount + whole)


def test_a_search_that_meets_no_bound_says_so():
    found = find_most(lambda amount: trial(amount, 1e12), 10, 1, 1000, 0.05)
    assert (found.amount, found.is_limit) == (1000, True)


def test_where_even_the_least_is_too_much_it_is_told():
    with pytest.raises(BenchError, match="even 1 is too much: too slow"):
        find_most(lambda amount: trial(amount, 0.5), 100, 1, 1000, 0.05)


def test_what_was_within_once_by_luck_is_not_confirmed():
    numbers = itertools.count()

    def measure(amount):
        bound = 100 if next(numbers) < 9 else 80
        return trial(amount, bound)

    found = find_most(measure, 10, 1, 1000, 0.05)
    assert 80 / 1.05**2 < found.amount <= 80


def test_one_disturbed_run_of_the_search_does_not_end_it():
    numbers = itertools.count()

    def measure(amount):
        return trial(amount, 50) if next(numbers) else Trial(amount, 1.0, "noise")

    found = find_most(measure, 50, 1, 1000, 0.05)
    assert found.amount == 50
    assert [each.amount for each in found.trials[:2]] == [50, 50]


def test_what_was_found_is_told_without_saying_it_twice():
    options = LoadOptions(streams=100, rate=(10.0, 10.0), duration_s=2.0)
    runs = [Trial(1146, 331.0, ""), Trial(1146, 292.0, ""), Trial(1146, 1913.0, "p99 above")]
    found = Capacity(1146, 0.05, runs, runs, is_limit=False)
    assert describe_capacity(Goal("streams", 1e-3, 0.05), options, found) == (
        "1,146 streams with p99 below 1,000 us (10 steps/s each, poisson, 11,460 steps/s in all)\n"
        "confirmed by 2 of 3 more runs of 2 s (p99 331, 292, 1,913 us); 5% more was too much"
    )
    found = found._replace(amount=2000.0, is_limit=True)
    said = describe_capacity(Goal("rate", 1e-3, 0.05), options, found)
    assert "2,000 steps/s with p99 below 1,000 us (100 streams, 20 steps/s each, poisson)" in said
    assert said.endswith("no more was tried")


def test_one_disturbed_confirmation_of_three_is_borne():
    numbers = itertools.count()
    found = find_most(lambda amount: trial(amount, 50), 50, 1, 50, 0.05)
    assert found.amount == 50

    def measure(amount):
        return Trial(amount, 1.0, "noise" if next(numbers) == 2 else "")

    assert find_most(measure, 50, 1, 50, 0.05).amount == 50


def test_what_cannot_be_confirmed_at_all_is_told():
    numbers = itertools.count()

    def measure(amount):
        return Trial(amount, 1.0, "" if next(numbers) == 0 else "noise")

    with pytest.raises(BenchError, match="no load is confirmed"):
        find_most(measure, 50, 1, 50, 0.05)
