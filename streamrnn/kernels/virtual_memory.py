"""Memory reserved from the system, and addresses of arrays for compiled code."""

from __future__ import annotations

import contextlib
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import StartError

__all__ = ["HUGE_PAGE_BYTES", "address_of", "reserve", "struct_address", "touch"]


_MAP_NORESERVE = 0x4000  # Linux on all its usual machines; `mmap` names it from Python 3.13 on
HUGE_PAGE_BYTES = 2 * 2**20


def reserve(num_bytes: int, huge_pages: bool = False) -> NDArray[np.uint8]:
    """Reserve zeroed address space, which takes memory only where it is touched.

    Parameters
    ----------
    num_bytes : int
        How much; 0 is taken as 1.
    huge_pages : bool
        Whether to ask for pages of 2 MiB: fewer TLB misses, but memory comes in larger pieces.

    Returns
    -------
    ndarray of uint8, shape (num_bytes,)
        Starts at a multiple of 4 KiB (2 MiB with huge pages) and owns the memory.

    Raises
    ------
    StartError
        If there is not so much address space.
    """
    slack = HUGE_PAGE_BYTES if huge_pages else 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if sys.platform == "linux":
        flags |= _MAP_NORESERVE
    try:
        region = mmap.mmap(-1, max(num_bytes, 1) + slack, flags=flags)
    except (OSError, OverflowError, ValueError) as error:
        raise StartError(
            f"cannot reserve {num_bytes / 2**30:.1f} GiB of address space ({error}); "
            "allow fewer streams (--max-streams)"
        ) from error
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: slower, not wrong
            region.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(region, np.uint8)
    start = -address_of(whole) % slack if slack else 0
    return whole[start : start + max(num_bytes, 1)]


def touch(array: NDArray[np.uint8], max_bytes: int = HUGE_PAGE_BYTES) -> None:
    """Make the system provide the first ``max_bytes`` now and not at the first request."""
    array[: max_bytes : mmap.PAGESIZE] = 0


def address_of(array: NDArray[Any]) -> int:
    """Return the address of an array, which the caller keeps alive while it is used."""
    return int(array.ctypes.data)


def struct_address(struct: Any) -> int:
    """Return the address of a struct that Python owns."""
    return int(struct.__array_interface__["data"][0])
