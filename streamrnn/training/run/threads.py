"""How many threads the matrix products of NumPy take.

One is the default: the products of a small network are too short to be shared, and threads that
wait for work burn the processor time of those that have some.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamrnn.errors import TrainingError

__all__ = ["limit_threads"]


@contextmanager
def limit_threads(num_threads: int) -> Iterator[None]:
    """Let BLAS use at most so many threads until the end of a block."""
    if num_threads < 1:
        raise TrainingError(f"threads is {num_threads}; it must be 1 or more")
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise TrainingError(
            "training needs the package threadpoolctl: pip install 'streamrnn[train]'"
        ) from error
    with threadpool_limits(limits=num_threads, user_api="blas"):
        yield
