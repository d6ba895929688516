"""Write MessagePack at an address.

No sockets here. Every writer takes the position to write at and returns the position after what it
wrote. The caller makes sure that there is enough memory.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_u32,
    store_i32,
    store_i64,
    store_u8,
    store_u16,
)

__all__ = [
    "reverse_bytes",
    "write_array",
    "write_bin",
    "write_bin_head",
    "write_float_array",
    "write_map",
    "write_nil",
    "write_response",
    "write_uint",
]

_LOW_32 = 0xFFFFFFFF


@intrinsic
def reverse_bytes(typingctx: Any, value: types.Type) -> Any:
    """Reverse the bytes of an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bswap(args[0])

    return types.int64(types.int64), codegen


@jit
def write_nil(at: int) -> int:
    """Write nil."""
    store_u8(at, 0xC0)
    return at + 1


@jit
def _write_sized(at: int, first: int, value: int) -> int:
    """Write a type byte and a number; ``first`` is the type of one that fits in a byte."""
    if value < 0x100:
        store_u8(at, first)
        store_u8(at + 1, value)
        return at + 2
    if value < 0x10000:
        store_u8(at, first + 1)
        store_u16(at + 1, reverse_bytes(value) >> 48)
        return at + 3
    if value <= _LOW_32:
        store_u8(at, first + 2)
        store_i32(at + 1, reverse_bytes(value) >> 32)
        return at + 5
    store_u8(at, first + 3)
    store_i64(at + 1, reverse_bytes(value))
    return at + 9


@jit
def write_uint(at: int, value: int) -> int:
    """Write a number from 0 to 2**63 - 1."""
    if value < 0x80:
        store_u8(at, value)
        return at + 1
    return _write_sized(at, 0xCC, value)


@jit
def write_array(at: int, length: int) -> int:
    """Write the head of an array of fewer than 2**32 elements."""
    if length < 16:
        store_u8(at, 0x90 | length)
        return at + 1
    if length < 0x10000:
        store_u8(at, 0xDC)
        store_u16(at + 1, reverse_bytes(length) >> 48)
        return at + 3
    store_u8(at, 0xDD)
    store_i32(at + 1, reverse_bytes(length) >> 32)
    return at + 5


@jit
def write_map(at: int, length: int) -> int:
    """Write the head of a map of fewer than 2**16 pairs."""
    if length < 16:
        store_u8(at, 0x80 | length)
        return at + 1
    store_u8(at, 0xDE)
    store_u16(at + 1, reverse_bytes(length) >> 48)
    return at + 3


@jit
def write_bin_head(at: int, num_bytes: int) -> int:
    """Write the head of fewer than 2**32 bytes, which the caller writes."""
    return _write_sized(at, 0xC4, num_bytes)


@jit
def write_bin(at: int, data: int, num_bytes: int) -> int:
    """Write fewer than 2**32 bytes."""
    at = write_bin_head(at, num_bytes)
    copy_bytes(at, data, num_bytes)
    return at + num_bytes


@jit
def write_float_array(at: int, data: int, num_values: int) -> int:
    """Write an array of float32 that lie at an address."""
    at = write_array(at, num_values)
    for k in range(num_values):
        store_u8(at, 0xCA)
        store_i32(at + 1, reverse_bytes(load_u32(data + 4 * k)) >> 32)
        at += 5
    return at


@jit
def write_response(at: int, msgid: int) -> int:
    """Write the head of a response that carries a result: ``[1, msgid, nil,``."""
    store_u16(at, 0x0194)
    return write_nil(write_uint(at + 2, msgid))
