"""The pace of a checkpoint while messages come."""

from __future__ import annotations

import pytest

from streamrnn_server.shard.checkpoint.copy import _end_of_slice
from streamrnn_server.shard.structs import Shard

NUM_SLOTS = 1_000
PACED = {
    "num_checkpoint_slots": NUM_SLOTS,
    "is_paced": 1,
    "checkpoint_interval_ns": 2_000_000_000,
    "checkpoint_due_ns": 7_000_000_000,  # so it began at 5 s
}


def end_of_slice(fields):
    shard = Shard.one()
    for name, value in fields.items():
        shard[name] = value
    return _end_of_slice(shard)


@pytest.mark.parametrize(
    ("now_s", "expected"), [(5, 0), (5.75, 496), (6.25, 832), (6.5, NUM_SLOTS), (60, NUM_SLOTS)]
)
def test_a_checkpoint_is_spread_over_three_quarters_of_the_interval(now_s, expected):
    assert end_of_slice(PACED | {"now_ns": int(now_s * 1e9)}) == expected


@pytest.mark.parametrize(
    "change", [{"is_paced": 0}, {"checkpoint_requested": 1}, {"awaiting_checkpoint": (64, 64)}]
)
def test_sync_and_eviction_do_not_wait_for_the_pace(change):
    assert end_of_slice(PACED | {"now_ns": 5_000_000_000} | change) == NUM_SLOTS


def test_no_interval_is_too_short_to_come_to_an_end():
    fields = PACED | {"checkpoint_interval_ns": 1, "now_ns": 7_000_001_000}
    assert end_of_slice(fields) == NUM_SLOTS
