"""Arrays that compiled functions borrow."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numba import njit
from numba.core import types

from streamrnn.kernels.borrowed import Borrowed


@pytest.fixture(scope="module")
def describe():
    """Compiled: the shape, the strides and an element of an array."""

    @njit
    def described(array):
        return array.shape, array.strides, array[1, 2]

    signature = (Borrowed(types.float32, 2, "A"),)
    described.compile(signature)
    return described.overloads[signature].entry_point


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[::2, ::-1], np.s_[1:, 3:]])
def test_a_part_of_an_array_is_seen_as_it_lies(describe, part):
    array = np.arange(48, dtype=np.float32).reshape(6, 8)[part]
    assert describe(array) == (array.shape, array.strides, array[1, 2])


def test_no_reference_is_left(describe):
    array = np.zeros((3, 4), np.float32)
    before = sys.getrefcount(array)
    for _ in range(5):
        describe(array)
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("other", [None, 3, [[1.0, 2.0, 3.0]] * 2, b"12345678"])
def test_what_is_no_array_is_refused(describe, other):
    with pytest.raises(TypeError):
        describe(other)
