"""How many threads a training takes.

One is the default: the steps of a small network are too short to be shared. The network's bits are
the same with any number; the least squares of some baselines are NumPy's, whose may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamrnn.errors import TrainingError
from streamrnn.gradients.threads import use_threads

__all__ = ["limit_threads"]


@contextmanager
def limit_threads(num_threads: int) -> Iterator[None]:
    """Let a training take so many threads until the end of a block, and BLAS no more."""
    if num_threads < 1:
        raise TrainingError(f"threads is {num_threads}; it must be 1 or more")
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise TrainingError(
            "training needs the package threadpoolctl: pip install 'streamrnn[train]'"
        ) from error
    with threadpool_limits(limits=num_threads, user_api="blas"), use_threads(num_threads):
        yield
