"""Memory between two pages without access: one byte too far, on either side, ends the process.

Properties that use it run in a process of their own (`check_in_child`), so that this is a failed
test, and not the end of all.
"""

from __future__ import annotations

import ctypes
import mmap
import signal

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.virtual_memory import address_of
from tests.support.program import run_python

__all__ = ["Guarded", "check_in_child", "memory_at"]

_PAGE = mmap.PAGESIZE


class Guarded:
    """Some pages of memory, and what lies at their two ends."""

    def __init__(self, num_bytes: int = 64 * _PAGE) -> None:
        self.num_bytes = -(-num_bytes // _PAGE) * _PAGE
        self._region = mmap.mmap(-1, self.num_bytes + 2 * _PAGE)
        start = address_of(np.frombuffer(self._region, np.uint8))
        self.begin, self.end = start + _PAGE, start + _PAGE + self.num_bytes
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (start, self.end):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(_PAGE), 0) == 0

    def put_last(self, data: bytes) -> int:
        """Return the address of bytes that end where the memory does."""
        return self._put(self.end - len(data), data)

    def put_first(self, data: bytes) -> int:
        """Return the address of bytes that begin where the memory does."""
        return self._put(self.begin, data)

    def last(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return the last bytes of the memory, to be read and written."""
        return memory_at(self.end - num_bytes, num_bytes)

    def _put(self, at: int, data: bytes) -> int:
        assert len(data) <= self.num_bytes
        ctypes.memmove(at, data, len(data))
        return at


def memory_at(at: int, num_bytes: int) -> NDArray[np.uint8]:
    """Return the bytes at an address, which are kept alive elsewhere."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(at))


def check_in_child(module: str, name: str) -> None:
    """Run a function of a module in another process, which must end well.

    Raises
    ------
    AssertionError
        With what it wrote.
    """
    ran = run_python(f"import {module}; {module}.{name}()", PYTHONFAULTHANDLER="1")
    how = signal.Signals(-ran.returncode).name if ran.returncode < 0 else ran.returncode
    assert ran.returncode == 0, f"{name} ended with {how}:\n{ran.stdout}{ran.stderr}"
