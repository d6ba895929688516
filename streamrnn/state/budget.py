"""A limit in bytes that several kinds of memory share: rows of streams, rings, ids.

What counts is memory that the system has given, whether something lies in it just now or not: then
a process stays below its budget whatever comes. One thread only.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import mmap

import numpy as np
from numba.core import types
from numba.types import ExternalFunction
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, store_i64
from streamrnn.state.slab import address_of

__all__ = ["Budget", "give_bytes", "give_pages", "take_bytes"]

_MAX_BYTES, _USED_BYTES = 0, 8  # words of a budget, in bytes from its address
_DONTNEED = int(getattr(mmap, "MADV_DONTNEED", 4))
_madvise = ExternalFunction("madvise", types.int32(types.int64, types.int64, types.int32))


class Budget:
    """So many bytes, of which compiled code takes some and gives some back.

    Parameters
    ----------
    max_bytes : int
        How many.

    Attributes
    ----------
    address : int
        What the compiled functions of this module take as ``budget``.
    max_bytes : int
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._words: NDArray[np.int64] = np.array([max_bytes, 0], np.int64)
        self.address = address_of(self._words)

    @property
    def used_bytes(self) -> int:
        """How many are taken."""
        return int(self._words[_USED_BYTES // 8])


@jit
def take_bytes(budget: int, num_bytes: int) -> bool:
    """Take from a budget.

    Parameters
    ----------
    budget : int
        Address of the budget.
    num_bytes : int
        How many.

    Returns
    -------
    bool
        False if so many are not left; then none is taken.
    """
    used = load_i64(budget + _USED_BYTES) + num_bytes
    if used > load_i64(budget + _MAX_BYTES):
        return False
    store_i64(budget + _USED_BYTES, used)
    return True


@jit
def give_bytes(budget: int, num_bytes: int) -> None:
    """Give back to a budget.

    Parameters
    ----------
    budget : int
        Address of the budget.
    num_bytes : int
        How many, taken before.
    """
    store_i64(budget + _USED_BYTES, load_i64(budget + _USED_BYTES) - num_bytes)


@jit
def give_pages(budget: int, address: int, num_bytes: int) -> bool:
    """Give memory back to the system, and its bytes to the budget.

    Parameters
    ----------
    budget : int
        Address of the budget.
    address, num_bytes : int
        Whole pages of a region from `streamrnn.state.slab.reserve`. They stay reserved; what is
        in them next is arbitrary.

    Returns
    -------
    bool
        False if the system did not take it; then it still counts.
    """
    if _madvise(address, num_bytes, _DONTNEED) != 0:
        return False
    give_bytes(budget, num_bytes)
    return True
