"""Blocks of any size out of a fixed budget: chunks of inputs and outputs, rings, long ids.

The arena is cut into pages of 1 MiB. A page serves blocks of one size class (four classes for each
doubling, so at most a fifth is wasted) and is free when its last block is given back; larger blocks
take whole pages that lie side by side. A free page keeps its memory until the budget, which others
may share, has no room for a page elsewhere. One thread only; a full arena says so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, load_u8, store_i64, store_u8
from streamrnn.state.budget import Budget, give_pages, take_bytes
from streamrnn.state.slab import address_of, reserve, touch

__all__ = ["PAGE_BYTES", "Arena", "allocate", "give_free_pages", "release", "used_bytes"]

PAGE_BYTES = 2**20
_UNIT_BYTES = 64  # every block starts at a multiple of it
_MAX_CLASS_BYTES = PAGE_BYTES // 4

# Words of the arena, in bytes from its address.
(
    _BASE,
    _NUM_PAGES,
    _PAGES,
    _KINDS,
    _SIZES,
    _CLASSES,
    _PARTIAL,
    _LOWEST_FREE,
    _USED_BYTES,
    _BUDGET,
    _NUM_EMPTY,
) = range(0, 88, 8)
# A page's record.
(_NUM_USED, _FREE, _FRESH, _NEXT, _PREVIOUS, _RUN) = range(0, 48, 8)
_PAGE_RECORD_BYTES = 64
# A page's kind, one byte: free and without memory, blocks of class k (k + 1), free with memory, or
# of a block of whole pages.
_KIND_FREE, _KIND_EMPTY, _KIND_RUN_REST, _KIND_RUN_HEAD = 0, 253, 254, 255
_NUM_TOUCHED = 2  # pages that have their memory from the start on


def _class_sizes() -> list[int]:
    sizes = [64, 128, 192]
    base = 256
    while base < _MAX_CLASS_BYTES:
        sizes += [base, base * 5 // 4, base * 6 // 4, base * 7 // 4]
        base *= 2
    return [*sizes, base]


class Arena:
    """The memory of an arena; compiled code works on it through ``address``.

    Parameters
    ----------
    max_bytes : int
        The most bytes that all blocks together take; rounded up to whole pages. Memory is taken
        only as it is touched.
    budget : Budget, optional
        Where its pages count too; by default nothing but ``max_bytes`` bounds them.

    Attributes
    ----------
    address : int
        What the compiled functions of this module take as ``arena``.
    max_bytes : int
        As given, rounded.
    """

    def __init__(self, max_bytes: int, budget: Budget | None = None) -> None:
        num_pages = max(1, -(-max_bytes // PAGE_BYTES))
        self.max_bytes = num_pages * PAGE_BYTES
        self._budget = budget or Budget(self.max_bytes)
        sizes = _class_sizes()
        units = np.arange(_MAX_CLASS_BYTES // _UNIT_BYTES + 1) * _UNIT_BYTES
        self._memory = reserve(self.max_bytes, huge_pages=True)
        num_touched = min(num_pages, _NUM_TOUCHED)
        if not take_bytes(self._budget.address, num_touched * PAGE_BYTES):
            num_touched = 0
        touch(self._memory, num_touched * PAGE_BYTES)
        self._pages = reserve(num_pages * _PAGE_RECORD_BYTES)
        self._kinds = np.zeros(num_pages, np.uint8)
        self._kinds[:num_touched] = _KIND_EMPTY
        self._sizes = np.array(sizes, np.int64)
        self._classes = np.searchsorted(sizes, units).astype(np.uint8)
        self._partial = np.zeros(len(sizes), np.int64)  # page + 1 of the first page with room
        self._words: NDArray[np.int64] = np.array(
            [
                address_of(self._memory),
                num_pages,
                address_of(self._pages),
                address_of(self._kinds),
                address_of(self._sizes),
                address_of(self._classes),
                address_of(self._partial),
                0,
                0,
                self._budget.address,
                num_touched,
            ],
            np.int64,
        )
        self.address = address_of(self._words)


@jit
def used_bytes(arena: int) -> int:
    """Return how many bytes are in blocks.

    Parameters
    ----------
    arena : int
        Address of the arena.

    Returns
    -------
    int
    """
    return load_i64(arena + _USED_BYTES)


@jit
def allocate(arena: int, num_bytes: int) -> int:
    """Take a block.

    Parameters
    ----------
    arena : int
        Address of the arena.
    num_bytes : int
        How large, at least 0.

    Returns
    -------
    int
        Its address, a multiple of 64; 0 if the arena is full. What it holds is arbitrary.
    """
    if num_bytes > _MAX_CLASS_BYTES:
        return _allocate_run(arena, num_bytes)
    size_class = load_u8(load_i64(arena + _CLASSES) + (num_bytes + _UNIT_BYTES - 1) // _UNIT_BYTES)
    size = load_i64(load_i64(arena + _SIZES) + size_class * 8)
    partial = load_i64(arena + _PARTIAL) + size_class * 8
    page = load_i64(partial) - 1
    if page < 0:
        page = _take_pages(arena, 1)
        if page < 0:
            return 0
        store_u8(load_i64(arena + _KINDS) + page, size_class + 1)
        record = load_i64(arena + _PAGES) + page * _PAGE_RECORD_BYTES
        store_i64(record + _NUM_USED, 0)
        store_i64(record + _FREE, 0)
        store_i64(record + _FRESH, 0)
        _link(arena, partial, page)
    record = load_i64(arena + _PAGES) + page * _PAGE_RECORD_BYTES
    block = load_i64(record + _FREE)
    if block != 0:
        store_i64(record + _FREE, load_i64(block))
    else:
        fresh = load_i64(record + _FRESH)
        block = load_i64(arena + _BASE) + page * PAGE_BYTES + fresh
        store_i64(record + _FRESH, fresh + size)
    store_i64(record + _NUM_USED, load_i64(record + _NUM_USED) + 1)
    store_i64(arena + _USED_BYTES, load_i64(arena + _USED_BYTES) + size)
    if load_i64(record + _FREE) == 0 and load_i64(record + _FRESH) + size > PAGE_BYTES:
        _unlink(arena, partial, page)
    return block


@jit
def release(arena: int, block: int) -> None:
    """Give a block back.

    Parameters
    ----------
    arena : int
        Address of the arena.
    block : int
        What `allocate` returned, given back once; 0 does nothing.
    """
    if block == 0:
        return
    page = (block - load_i64(arena + _BASE)) // PAGE_BYTES
    kind = load_u8(load_i64(arena + _KINDS) + page)
    record = load_i64(arena + _PAGES) + page * _PAGE_RECORD_BYTES
    if kind == _KIND_RUN_HEAD:
        run = load_i64(record + _RUN)
        store_i64(arena + _USED_BYTES, load_i64(arena + _USED_BYTES) - run * PAGE_BYTES)
        _give_pages(arena, page, run)
        return
    size = load_i64(load_i64(arena + _SIZES) + (kind - 1) * 8)
    partial = load_i64(arena + _PARTIAL) + (kind - 1) * 8
    was_full = load_i64(record + _FREE) == 0 and load_i64(record + _FRESH) + size > PAGE_BYTES
    store_i64(block, load_i64(record + _FREE))
    store_i64(record + _FREE, block)
    num_used = load_i64(record + _NUM_USED) - 1
    store_i64(record + _NUM_USED, num_used)
    store_i64(arena + _USED_BYTES, load_i64(arena + _USED_BYTES) - size)
    if was_full:
        _link(arena, partial, page)
    # The class's only page with room is kept, or one block back and forth would churn it.
    if num_used == 0 and (load_i64(record + _NEXT) != 0 or load_i64(record + _PREVIOUS) != 0):
        _unlink(arena, partial, page)
        _give_pages(arena, page, 1)


@jit
def _allocate_run(arena: int, num_bytes: int) -> int:
    run = (num_bytes + PAGE_BYTES - 1) // PAGE_BYTES
    page = _take_pages(arena, run)
    if page < 0:
        return 0
    kinds = load_i64(arena + _KINDS)
    store_u8(kinds + page, _KIND_RUN_HEAD)
    for k in range(1, run):
        store_u8(kinds + page + k, _KIND_RUN_REST)
    store_i64(load_i64(arena + _PAGES) + page * _PAGE_RECORD_BYTES + _RUN, run)
    store_i64(arena + _USED_BYTES, load_i64(arena + _USED_BYTES) + run * PAGE_BYTES)
    return load_i64(arena + _BASE) + page * PAGE_BYTES


@jit
def _is_free(kind: int) -> bool:
    return kind in (_KIND_FREE, _KIND_EMPTY)


@jit
def _take_pages(arena: int, run: int) -> int:
    """Return the first of ``run`` free pages side by side, or -1; the caller sets their kinds."""
    kinds, budget = load_i64(arena + _KINDS), load_i64(arena + _BUDGET)
    page = _find_pages(arena, run)
    if page < 0:
        return -1
    num_empty = _count_empty(kinds, page, run)
    if not take_bytes(budget, (run - num_empty) * PAGE_BYTES):
        # Other free pages may have what these lack.
        give_free_pages(arena)
        num_empty = _count_empty(kinds, page, run)
        if not take_bytes(budget, (run - num_empty) * PAGE_BYTES):
            return -1
    store_i64(arena + _NUM_EMPTY, load_i64(arena + _NUM_EMPTY) - num_empty)
    return page


@jit
def _count_empty(kinds: int, page: int, run: int) -> int:
    number = 0
    for k in range(run):
        number += 1 if load_u8(kinds + page + k) == _KIND_EMPTY else 0
    return number


@jit
def _find_pages(arena: int, run: int) -> int:
    kinds = load_i64(arena + _KINDS)
    num_pages = load_i64(arena + _NUM_PAGES)
    page = load_i64(arena + _LOWEST_FREE)
    while page < num_pages and not _is_free(load_u8(kinds + page)):
        page += 1
    store_i64(arena + _LOWEST_FREE, page)
    found = 0
    while page < num_pages:
        found = found + 1 if _is_free(load_u8(kinds + page)) else 0
        page += 1
        if found == run:
            return page - run
    return -1


@jit
def _give_pages(arena: int, page: int, run: int) -> None:
    kinds = load_i64(arena + _KINDS)
    for k in range(run):
        store_u8(kinds + page + k, _KIND_EMPTY)
    store_i64(arena + _NUM_EMPTY, load_i64(arena + _NUM_EMPTY) + run)
    if page < load_i64(arena + _LOWEST_FREE):
        store_i64(arena + _LOWEST_FREE, page)


@jit
def give_free_pages(arena: int) -> bool:
    """Give the memory of all free pages back to the system and to the budget.

    Parameters
    ----------
    arena : int
        Address of the arena.

    Returns
    -------
    bool
        Whether there was any.
    """
    if load_i64(arena + _NUM_EMPTY) == 0:
        return False
    kinds, base = load_i64(arena + _KINDS), load_i64(arena + _BASE)
    given = 0
    for page in range(load_i64(arena + _NUM_PAGES)):
        if load_u8(kinds + page) == _KIND_EMPTY and give_pages(
            load_i64(arena + _BUDGET), base + page * PAGE_BYTES, PAGE_BYTES
        ):
            store_u8(kinds + page, _KIND_FREE)
            given += 1
    store_i64(arena + _NUM_EMPTY, load_i64(arena + _NUM_EMPTY) - given)
    return given > 0


@jit
def _link(arena: int, partial: int, page: int) -> None:
    """Put a page at the head of its class's list of pages with room."""
    pages = load_i64(arena + _PAGES)
    record = pages + page * _PAGE_RECORD_BYTES
    first = load_i64(partial)
    store_i64(record + _NEXT, first)
    store_i64(record + _PREVIOUS, 0)
    if first != 0:
        store_i64(pages + (first - 1) * _PAGE_RECORD_BYTES + _PREVIOUS, page + 1)
    store_i64(partial, page + 1)


@jit
def _unlink(arena: int, partial: int, page: int) -> None:
    pages = load_i64(arena + _PAGES)
    record = pages + page * _PAGE_RECORD_BYTES
    following, previous = load_i64(record + _NEXT), load_i64(record + _PREVIOUS)
    if previous != 0:
        store_i64(pages + (previous - 1) * _PAGE_RECORD_BYTES + _NEXT, following)
    else:
        store_i64(partial, following)
    if following != 0:
        store_i64(pages + (following - 1) * _PAGE_RECORD_BYTES + _PREVIOUS, previous)
