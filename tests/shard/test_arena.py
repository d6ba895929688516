"""The arena: blocks never overlap, and freed memory is reused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import fill_bytes, load_u8
from streamrnn_server.shard.memory.arena import (
    PAGE_BYTES,
    Arena,
    allocate,
    release,
    release_free_pages,
)


@jit
def fill(address, num_bytes, byte):
    fill_bytes(address, num_bytes, byte)


@jit
def holds(address, num_bytes, byte):
    num_equal = 0
    for k in range(num_bytes):
        num_equal += load_u8(address + k) == byte
    return num_equal == num_bytes


SIZES = st.one_of(
    st.integers(0, 300),
    st.integers(0, PAGE_BYTES // 4 + 100),
    st.integers(PAGE_BYTES // 4, 3 * PAGE_BYTES),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), SIZES, st.integers(0, 10**9)), max_size=120))
def test_blocks_keep_what_was_written_until_they_are_released(actions):
    arena = Arena(16 * PAGE_BYTES)
    blocks: list[tuple[int, int, int]] = []
    for number, (take, size, choice) in enumerate(actions):
        if take or not blocks:
            block = allocate(arena.struct, size)
            if block == 0:
                assert arena.struct["used_bytes"] + size > arena.max_bytes // 4
                continue
            assert block % 64 == 0
            byte = number % 251
            fill(block, size, byte)
            blocks.append((block, size, byte))
        else:
            block, size, byte = blocks.pop(choice % len(blocks))
            assert holds(block, size, byte)
            release(arena.struct, block)
    spans = sorted((block, block + size) for block, size, _ in blocks)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    for block, size, byte in blocks:
        assert holds(block, size, byte)
        release(arena.struct, block)
    release_free_pages(arena.struct)
    assert arena._budget["used_bytes"] == 0  # no page is left over, of whatever class
    assert arena.struct["used_bytes"] == 0


@pytest.mark.parametrize("size", [1, 64, 65, 8320, PAGE_BYTES // 4, PAGE_BYTES, PAGE_BYTES + 1])
def test_the_whole_budget_can_be_used_again_for_another_size(size):
    arena = Arena(8 * PAGE_BYTES)
    for wanted in (size, 3000, size):
        blocks = []
        while (block := allocate(arena.struct, wanted)) != 0:
            blocks.append(block)
        assert len(set(blocks)) == len(blocks)
        # A class wastes at most a fifth and the rest of each page; a run the rest of its pages.
        assert len(blocks) * wanted >= 0.35 * arena.max_bytes or wanted < 64
        order = np.random.default_rng(size).permutation(len(blocks))
        for k in order:
            release(arena.struct, blocks[k])
        assert arena.struct["used_bytes"] == 0
    # Every page comes back, whatever the order of the releases.
    assert allocate(arena.struct, arena.max_bytes) != 0


def test_releasing_nothing_does_nothing():
    arena = Arena(PAGE_BYTES)
    release(arena.struct, 0)
    assert arena.struct["used_bytes"] == 0
