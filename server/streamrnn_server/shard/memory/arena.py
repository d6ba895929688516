"""Blocks of any size out of a fixed budget: chunks of inputs and outputs, rings, long ids.

The arena is cut into pages of 1 MiB. A page serves blocks of one size class (four classes for each
doubling, so at most a fifth is wasted) and is free when its last block is given back; larger blocks
take whole pages that lie side by side. A free page keeps its memory until the budget, which others
may share, has no room for a page elsewhere. One thread only; a full arena says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, load_u8, store_i64, store_u8
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.virtual_memory import address_of, reserve, struct_address, touch
from streamrnn_server.shard.memory.budget import budget_at, new_budget, release_pages, reserve_bytes

__all__ = ["PAGE_BYTES", "Arena", "ArenaStruct", "allocate", "release", "release_free_pages"]

PAGE_BYTES = 2**20
_UNIT_BYTES = 64  # every block starts at a multiple of it
_MAX_CLASS_BYTES = PAGE_BYTES // 4


class ArenaStruct(Struct):
    """What the compiled functions of this module take as ``arena``."""

    base: I64  # address of the pages
    num_pages: I64
    pages: I64  # address of the pages' structs
    kinds: I64  # address of uint8[num_pages]
    sizes: I64  # address of int64[number of classes]: bytes of a block
    classes: I64  # address of uint8[]: the class for so many units of 64 bytes
    partial: I64  # address of int64[number of classes]: page + 1 of the first one with room
    lowest_free: I64
    used_bytes: I64  # in blocks
    budget: I64  # address of what its pages count against
    num_empty: I64  # free pages that have memory


class Page(Struct):
    """What is known of a page besides its kind."""

    num_used: I64  # blocks
    free: I64  # address of the first block given back, which holds that of the next
    fresh: I64  # bytes of the page that blocks were ever taken from
    next: I64  # page + 1 in the list of those of its class that have room; 0 the last
    previous: I64
    run: I64  # pages of a block of whole pages


_PAGE_STRUCT_BYTES = Page.dtype.itemsize
_page_at = pointer_to(Page)
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


_NUM_CLASSES = len(_class_sizes())


class Arena:
    """The memory of an arena.

    Parameters
    ----------
    max_bytes : int
        The most bytes that all blocks together take; rounded up to whole pages. Memory is taken
        only as it is touched.
    budget : BudgetStruct, optional
        Where its pages count too; by default nothing but ``max_bytes`` bounds them.
    struct : ArenaStruct, optional
        Filled; by default one of its own.

    Attributes
    ----------
    struct : ArenaStruct
    max_bytes : int
        As given, rounded.
    """

    def __init__(self, max_bytes: int, budget: Any = None, struct: Any = None) -> None:
        num_pages = max(1, -(-max_bytes // PAGE_BYTES))
        self.max_bytes = num_pages * PAGE_BYTES
        self._budget = new_budget(self.max_bytes) if budget is None else budget
        sizes = _class_sizes()
        units = np.arange(_MAX_CLASS_BYTES // _UNIT_BYTES + 1) * _UNIT_BYTES
        self._memory = reserve(self.max_bytes, huge_pages=True)
        num_touched = min(num_pages, _NUM_TOUCHED)
        if not reserve_bytes(self._budget, num_touched * PAGE_BYTES):
            num_touched = 0
        touch(self._memory, num_touched * PAGE_BYTES)
        self._pages = reserve(num_pages * _PAGE_STRUCT_BYTES)
        self._kinds = np.zeros(num_pages, np.uint8)
        self._kinds[:num_touched] = _KIND_EMPTY
        self._sizes = np.array(sizes, np.int64)
        self._classes = np.searchsorted(sizes, units).astype(np.uint8)
        self._partial = np.zeros(len(sizes), np.int64)
        self.struct = ArenaStruct.one() if struct is None else struct
        self.struct["base"], self.struct["num_pages"] = address_of(self._memory), num_pages
        for name in ("pages", "kinds", "sizes", "classes", "partial"):
            self.struct[name] = address_of(getattr(self, f"_{name}"))
        self.struct["budget"] = struct_address(self._budget)
        self.struct["num_empty"] = num_touched

    @property
    def num_bytes(self) -> int:
        """How much memory its pages have."""
        return int(np.count_nonzero(self._kinds)) * PAGE_BYTES


@jit
def _page_of(arena: ArenaStruct, page: int) -> Page:
    return _page_at(arena.pages + page * _PAGE_STRUCT_BYTES)


@jit
def allocate(arena: ArenaStruct, num_bytes: int) -> int:
    """Allocate a block at a multiple of 64; 0 if the arena is full."""
    if num_bytes > _MAX_CLASS_BYTES:
        return _allocate_run(arena, num_bytes)
    size_class = load_u8(arena.classes + (num_bytes + _UNIT_BYTES - 1) // _UNIT_BYTES)
    size = load_i64(arena.sizes + size_class * 8)
    partial = arena.partial + size_class * 8
    page = load_i64(partial) - 1
    if page < 0:
        page = _allocate_pages(arena, 1)
        if page < 0:
            return 0
        store_u8(arena.kinds + page, size_class + 1)
        record = _page_of(arena, page)
        record.num_used = 0
        record.free = 0
        record.fresh = 0
        _link(arena, partial, page)
    record = _page_of(arena, page)
    block = record.free
    if block != 0:
        record.free = load_i64(block)
    else:
        fresh = record.fresh
        block = arena.base + page * PAGE_BYTES + fresh
        record.fresh = fresh + size
    record.num_used += 1
    arena.used_bytes += size
    if record.free == 0 and record.fresh + size > PAGE_BYTES:
        _unlink(arena, partial, page)
    return block


@jit
def release(arena: ArenaStruct, block: int) -> None:
    """Free a block that `allocate` returned; 0 does nothing."""
    if block == 0:
        return
    page = (block - arena.base) // PAGE_BYTES
    kind = load_u8(arena.kinds + page)
    record = _page_of(arena, page)
    if kind == _KIND_RUN_HEAD:
        run = record.run
        arena.used_bytes -= run * PAGE_BYTES
        _free_run(arena, page, run)
        return
    size = load_i64(arena.sizes + (kind - 1) * 8)
    partial = arena.partial + (kind - 1) * 8
    was_full = record.free == 0 and record.fresh + size > PAGE_BYTES
    store_i64(block, record.free)
    record.free = block
    num_used = record.num_used - 1
    record.num_used = num_used
    arena.used_bytes -= size
    if was_full:
        _link(arena, partial, page)
        _free_if_empty(arena, partial, record.next - 1)
    # The class's only page with space is kept, or one block back and forth would churn it.
    if record.next != 0 or record.previous != 0:
        _free_if_empty(arena, partial, page)


@jit
def _free_if_empty(arena: ArenaStruct, partial: int, page: int) -> None:
    """Free a page of the list ``partial`` if it holds no block; -1 is none."""
    if page >= 0 and _page_of(arena, page).num_used == 0:
        _unlink(arena, partial, page)
        _free_run(arena, page, 1)


@jit
def _free_kept_pages(arena: ArenaStruct) -> None:
    """Free the empty page that a class may keep; such a page is alone in its list."""
    for size_class in range(_NUM_CLASSES):
        partial = arena.partial + 8 * size_class
        _free_if_empty(arena, partial, load_i64(partial) - 1)


@jit
def _allocate_run(arena: ArenaStruct, num_bytes: int) -> int:
    run = (num_bytes + PAGE_BYTES - 1) // PAGE_BYTES
    page = _allocate_pages(arena, run)
    if page < 0:
        return 0
    kinds = arena.kinds
    store_u8(kinds + page, _KIND_RUN_HEAD)
    for k in range(1, run):
        store_u8(kinds + page + k, _KIND_RUN_REST)
    _page_of(arena, page).run = run
    arena.used_bytes += run * PAGE_BYTES
    return arena.base + page * PAGE_BYTES


@jit
def _is_free(kind: int) -> bool:
    return kind in (_KIND_FREE, _KIND_EMPTY)


@jit
def _allocate_pages(arena: ArenaStruct, run: int) -> int:
    """Return the first of ``run`` free pages side by side, or -1; the caller sets their kinds."""
    kinds, budget = arena.kinds, budget_at(arena.budget)
    page = _find_pages(arena, run)
    if page < 0:
        _free_kept_pages(arena)
        page = _find_pages(arena, run)
        if page < 0:
            return -1
    num_empty = _count_empty(kinds, page, run)
    if not reserve_bytes(budget, (run - num_empty) * PAGE_BYTES):
        # Other free pages may have what these lack.
        release_free_pages(arena)
        num_empty = _count_empty(kinds, page, run)
        if not reserve_bytes(budget, (run - num_empty) * PAGE_BYTES):
            return -1
    arena.num_empty -= num_empty
    return page


@jit
def _count_empty(kinds: int, page: int, run: int) -> int:
    number = 0
    for k in range(run):
        number += 1 if load_u8(kinds + page + k) == _KIND_EMPTY else 0
    return number


@jit
def _find_pages(arena: ArenaStruct, run: int) -> int:
    kinds = arena.kinds
    num_pages = arena.num_pages
    page = arena.lowest_free
    while page < num_pages and not _is_free(load_u8(kinds + page)):
        page += 1
    arena.lowest_free = page
    found = 0
    while page < num_pages:
        found = found + 1 if _is_free(load_u8(kinds + page)) else 0
        page += 1
        if found == run:
            return page - run
    return -1


@jit
def _free_run(arena: ArenaStruct, page: int, run: int) -> None:
    kinds = arena.kinds
    for k in range(run):
        store_u8(kinds + page + k, _KIND_EMPTY)
    arena.num_empty += run
    if page < arena.lowest_free:
        arena.lowest_free = page


@jit
def release_free_pages(arena: ArenaStruct) -> bool:
    """Return the memory of all pages without blocks to the system; tell whether there was any."""
    _free_kept_pages(arena)
    if arena.num_empty == 0:
        return False
    kinds, base = arena.kinds, arena.base
    given = 0
    for page in range(arena.num_pages):
        if load_u8(kinds + page) == _KIND_EMPTY and release_pages(
            budget_at(arena.budget), base + page * PAGE_BYTES, PAGE_BYTES
        ):
            store_u8(kinds + page, _KIND_FREE)
            given += 1
    arena.num_empty -= given
    return given > 0


@jit
def _link(arena: ArenaStruct, partial: int, page: int) -> None:
    """Put a page at the head of its class's list of pages with room."""
    record = _page_of(arena, page)
    first = load_i64(partial)
    record.next = first
    record.previous = 0
    if first != 0:
        _page_of(arena, first - 1).previous = page + 1
    store_i64(partial, page + 1)


@jit
def _unlink(arena: ArenaStruct, partial: int, page: int) -> None:
    record = _page_of(arena, page)
    following, previous = record.next, record.previous
    if previous != 0:
        _page_of(arena, previous - 1).next = following
    else:
        store_i64(partial, following)
    if following != 0:
        _page_of(arena, following - 1).previous = previous
