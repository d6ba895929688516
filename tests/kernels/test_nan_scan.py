"""The search for NaN."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.kernels.cpu.nan_scan import has_nan
from streamrnn.kernels.jit import jit
from streamrnn.kernels.virtual_memory import address_of

NANS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
NO_NANS = np.array([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00000001, 0x80000000], np.uint32)


@jit
def find(address, num_bytes):
    return has_nan(address, num_bytes)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_a_nan_is_found_wherever_it_is(length):
    values = np.resize(NO_NANS, length + 2).view(np.float32)
    address = address_of(values) + 4
    values[0] = values[-1] = np.nan  # beside, not in
    assert not find(address, 4 * length)
    for place in range(length):
        for nan in NANS.view(np.uint32):
            whole = values.view(np.uint32)
            before = whole[1 + place]
            whole[1 + place] = nan
            assert find(address, 4 * length)
            whole[1 + place] = before
    assert not find(address, 4 * length)
    assert not find(address, 0)
