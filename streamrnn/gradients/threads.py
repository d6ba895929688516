"""Rows shared among threads: compiled code runs without the GIL.

No sum is ever cut, so the bits are the same with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["share_rows", "use_threads"]

# Of the training that runs here: others may run beside it, in threads of their own.
_pool: ContextVar[tuple[int, ThreadPoolExecutor] | None] = ContextVar("_pool", default=None)


@contextmanager
def use_threads(num_threads: int) -> Iterator[None]:
    """Let `share_rows` take so many threads until the end of a block; 1 if it is never called."""
    with ThreadPoolExecutor(max(1, num_threads - 1), "streamrnn-train") as pool:
        before = _pool.set((num_threads, pool))
        try:
            yield
        finally:
            _pool.reset(before)


def share_rows(
    call: Callable[..., int], end_row: int, first_row: int = 0, arguments: tuple[int, ...] = ()
) -> None:
    """Call with the arguments, and the first row and the end of each thread's part of some rows."""
    num_threads, pool = _pool.get() or (1, None)
    num_rows = end_row - first_row
    num_parts = min(num_threads, num_rows)
    if num_parts <= 1 or pool is None:
        if num_rows:
            call(*arguments, first_row, end_row)
        return
    cuts = [first_row + num_rows * k // num_parts for k in range(num_parts + 1)]
    others = [pool.submit(call, *arguments, *cuts[k : k + 2]) for k in range(1, num_parts)]
    call(*arguments, *cuts[:2])
    for other in others:
        other.result()
