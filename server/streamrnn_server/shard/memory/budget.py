"""A limit in bytes that several kinds of memory share: rows of streams, rings, ids.

What counts is memory that the system has given, whether something lies in it just now or not: then
a process stays below its budget whatever comes. One thread only.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import mmap
from typing import Any

from numba.core import types
from numba.types import ExternalFunction

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct

__all__ = [
    "BudgetStruct",
    "budget_at",
    "new_budget",
    "release_bytes",
    "release_pages",
    "reserve_bytes",
]

_DONTNEED = int(getattr(mmap, "MADV_DONTNEED", 4))
_madvise = ExternalFunction("madvise", types.int32(types.int64, types.int64, types.int32))


class BudgetStruct(Struct):
    """So many bytes, of which compiled code takes some and gives some back."""

    max_bytes: I64
    used_bytes: I64


budget_at = pointer_to(BudgetStruct)


def new_budget(max_bytes: int) -> Any:
    """Return a budget of so many bytes, none of them taken."""
    budget = BudgetStruct.one()
    budget["max_bytes"] = max_bytes
    return budget


@jit
def reserve_bytes(budget: BudgetStruct, num_bytes: int) -> bool:
    """Reserve bytes of a budget; false if so many are not left, and then none is reserved."""
    if budget.used_bytes + num_bytes > budget.max_bytes:
        return False
    budget.used_bytes += num_bytes
    return True


@jit
def release_bytes(budget: BudgetStruct, num_bytes: int) -> None:
    """Release bytes that were reserved before."""
    budget.used_bytes -= num_bytes


@jit
def release_pages(budget: BudgetStruct, address: int, num_bytes: int) -> bool:
    """Return whole pages of reserved memory to the system and its bytes to the budget.

    They stay reserved, with arbitrary content. False if the system refused: then they still count.
    """
    if _madvise(address, num_bytes, _DONTNEED) != 0:
        return False
    release_bytes(budget, num_bytes)
    return True
