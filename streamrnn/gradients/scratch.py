"""Buffers that are used again and again, aligned for vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Scratch", "State"]

Array = NDArray[Any]
State = tuple[Array, ...]

_ALIGNMENT_BYTES = 64


class Scratch:
    """Named buffers that grow to the largest chunk seen and are then reused."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._buffers: dict[str, Array] = {}

    def get(self, name: str, *shape: int) -> Array:
        """Return a contiguous array whose contents are left over from its last use.

        It is valid until the next call with the same name; it starts at a multiple of 64 bytes.
        """
        size = 1
        for length in shape:
            size *= length
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            memory = np.empty(size * self.dtype.itemsize + _ALIGNMENT_BYTES, np.uint8)
            start = -memory.ctypes.data % _ALIGNMENT_BYTES
            buffer = memory[start : start + size * self.dtype.itemsize].view(self.dtype)
            self._buffers[name] = buffer
        return buffer[:size].reshape(shape)

    def zeros(self, name: str, *shape: int) -> Array:
        """Return the same, filled with zeros."""
        made = self.get(name, *shape)
        made[...] = 0.0
        return made
