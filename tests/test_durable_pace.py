"""How far a checkpoint may have come while messages are coming."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.state.slab import address_of
from streamrnn_server import layout as w
from streamrnn_server.saving import _end_of_slice

NUM_SAVED = 1_000
PACED = {
    w.NUM_SAVED: NUM_SAVED,
    w.IS_PACED: 1,
    w.SAVE_EVERY_NS: 2_000_000_000,
    w.SAVE_AT_NS: 7_000_000_000,  # so it began at 5 s
}


def end_of_slice(words):
    memory = np.zeros(w.SHARD_WORDS, np.int64)
    for word, value in words.items():
        memory[word // 8] = value
    return _end_of_slice(address_of(memory))


@pytest.mark.parametrize(
    ("now_s", "expected"), [(5, 0), (5.75, 496), (6.25, 832), (6.5, NUM_SAVED), (60, NUM_SAVED)]
)
def test_it_is_spread_over_three_quarters_of_the_interval(now_s, expected):
    assert end_of_slice(PACED | {w.NOW_NS: int(now_s * 1e9)}) == expected


@pytest.mark.parametrize("change", [{w.IS_PACED: 0}, {w.SAVE_NOW: 1}, {w.UNCOVERED: 64}])
def test_whoever_waits_for_it_does_not_wait_for_that(change):
    assert end_of_slice(PACED | {w.NOW_NS: 5_000_000_000} | change) == NUM_SAVED


def test_no_interval_is_too_short_to_come_to_an_end():
    words = PACED | {w.SAVE_EVERY_NS: 1, w.NOW_NS: 7_000_001_000}
    assert end_of_slice(words) == NUM_SAVED
