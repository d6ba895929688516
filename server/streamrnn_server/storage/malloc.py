"""malloc tuning: keep freed memory instead of returning it to the system."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 * 2**20
_MAX_MMAP_THRESHOLD_BYTES = 32 * 2**20  # that glibc takes


def keep_freed_memory() -> None:
    """Have the C library keep some tens of megabytes that were freed, to give them out again.

    By default glibc returns all but 128 kB at the end of a heap to the system at once. LMDB frees
    the pages of a commit when it is done: each commit then paid for having them mapped and zeroed
    anew, which was half of the time of the thread that writes. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD_BYTES)
