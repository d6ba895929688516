"""Rates of steps: what is admitted, and how long the rest must wait."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.virtual_memory import address_of
from streamrnn_server.shard.memory import admission

NS = 10**9
rate_at = pointer_to(admission.StepRate)


@jit
def ask(address, now, num_steps):
    """Return how long steps must wait; those that need not are charged."""
    rate = rate_at(address)
    wait_ns = admission.wait_of_steps(rate, now, num_steps)
    if wait_ns <= 0:
        admission.charge_steps(rate, now, num_steps)
    return wait_ns


class Rate:
    def __init__(self, steps_per_s, num_shards=1):
        self.struct = np.zeros(1, admission.StepRate.dtype)
        self.struct["ns_per_step"] = admission.ns_per_step(steps_per_s, num_shards)
        self.price = int(self.struct["ns_per_step"][0])

    def ask(self, now, num_steps):
        return ask(address_of(self.struct), now, num_steps)


REQUESTS = st.lists(
    st.tuples(st.one_of(st.just(0), st.integers(0, 3 * NS)), st.integers(1, 256)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 64), st.integers(0, 10**17), REQUESTS)
@example(1, 1, 0, [(0, 1), (0, 1), (NS, 1)])
@example(10**9, 64, 10**17, [(0, 256)] * 60)
def test_no_more_is_admitted_than_the_rate_and_a_seconds_burst(per_s, shards, start, requests):
    rate = Rate(per_s, shards)
    now, admitted = start, []
    for gap_ns, num_steps in requests:
        now += gap_ns
        if rate.ask(now, num_steps) <= 0:
            admitted.append((now, num_steps))
    assert admitted  # the first one, whatever its size
    for k, (begin, _) in enumerate(admitted):
        total = 0
        for end, num_steps in admitted[k:]:
            total += num_steps
            # One that is larger than a second's worth is admitted alone, and paid for afterwards.
            assert (total - num_steps) * rate.price <= end - begin + NS
            assert total * rate.price <= end - begin + max(NS, 256 * rate.price)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**9), st.integers(0, 10**17), REQUESTS)
def test_who_comes_again_when_told_is_admitted_and_nobody_before(per_s, start, requests):
    rate = Rate(per_s)
    now = start
    for gap_ns, num_steps in requests:
        now += gap_ns
        before = rate.struct.copy()
        wait_ns = rate.ask(now, num_steps)
        if wait_ns > 0:
            assert (rate.struct == before).all()  # who is refused pays nothing
            assert rate.ask(now + wait_ns - 1, num_steps) > 0
            now += wait_ns
            assert rate.ask(now, num_steps) <= 0


def test_without_a_rate_everything_is_admitted():
    rate = Rate(0)
    assert {rate.ask(0, 256) for _ in range(1000)} == {0}


@pytest.mark.parametrize("limit", admission.Limit)
def test_busy_ends_with_the_time_to_wait_and_fits_an_item(limit):
    code, text, detail = admission.busy_reply(limit, 0)
    assert (code, list(detail)[-1]) == ("busy", "retry_after_ms")
    assert "nothing was changed" in text
    assert detail["limit"] == limit.name.lower()
    assert len(text) < 150
