"""Read MessagePack values at an address, within a message.

Readers take and return positions (addresses). Position 0 means that the value is not there, and
every reader passes it on, so a chain of them needs one check at its end.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_f64,
    store_i64,
    store_u8,
)
from streamrnn_client.protocol import MAX_ID_BYTES
from streamrnn_server.shard.wire.encode import reverse_bytes

__all__ = [
    "ValueKind",
    "has_few_values",
    "is_utf8",
    "read_array",
    "read_head",
    "read_numbers",
    "read_stream",
    "read_uint",
    "skip_numbers",
]


class ValueKind(IntEnum):
    """What a head announces."""

    NOTHING = 0
    UINT = 1
    BIG = 2  # above 2**63 - 1: the value is its bits
    NEGATIVE = 3
    NIL = 4
    BOOL = 5
    FLOAT = 6
    # Those below have a length.
    STR = 7
    BIN = 8
    ARRAY = 9
    MAP = 10
    EXT = 11


_LOW_32 = 0xFFFFFFFF
_HIGH_BITS = 0x8080808080808080 - 2**64


@intrinsic
def _double_of_bits(typingctx: Any, value: types.Type) -> Any:
    """Reinterpret 64 bits as a float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic
def _double_of_single_bits(typingctx: Any, value: types.Type) -> Any:
    """Reinterpret the low 32 bits as a float32, and widen it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        single = builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())
        return builder.fpext(single, ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic
def _bits_of_double(typingctx: Any, value: types.Type) -> Any:
    """Reinterpret a float64 as its 64 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@jit
def _load_big(at: int, num_bytes: int) -> int:
    """Read an unsigned big-endian number of 1, 2, 4 or 8 bytes."""
    if num_bytes == 1:
        return load_u8(at)
    if num_bytes == 2:
        return (reverse_bytes(load_u16(at)) >> 48) & 0xFFFF
    if num_bytes == 4:
        return (reverse_bytes(load_u32(at)) >> 32) & _LOW_32
    return reverse_bytes(load_i64(at))


@jit
def read_head(at: int, end: int) -> tuple[ValueKind, int, int]:
    """Read the head of a value: its kind, its number or length, and where its content begins.

    The number of a float is its float64's bits. A length counts bytes (str, bin, ext), elements, or
    pairs (map), and never exceeds the bytes that are left. The position is 0 if there is no value.
    """
    if at == 0 or at >= end:
        return ValueKind.NOTHING, 0, 0
    first = load_u8(at)
    at += 1
    if first < 0x80:
        return ValueKind.UINT, first, at
    if first >= 0xE0:
        return ValueKind.NEGATIVE, first - 0x100, at
    kind, length = ValueKind.STR, first & 0x1F
    if first < 0xA0:
        kind, length = (ValueKind.MAP if first < 0x90 else ValueKind.ARRAY), first & 0x0F
    elif first >= 0xC0:
        kind, length, at = _read_long_head(first, at, end)
        if at == 0 or kind < ValueKind.STR:
            return kind, length, at
    # Each element has at least one byte: a false length cannot make a loop run for long.
    if length > end - at:
        return ValueKind.NOTHING, 0, 0
    return kind, length, at


@jit
def _read_long_head(first: int, at: int, end: int) -> tuple[ValueKind, int, int]:
    """Read the rest of a head whose first byte is 0xc0 to 0xdf."""
    kind, width = ValueKind.NOTHING, 0
    if first == 0xC0:
        return ValueKind.NIL, 0, at
    if first == 0xC2 or first == 0xC3:
        return ValueKind.BOOL, first & 1, at
    if 0xC4 <= first <= 0xC6:
        kind, width = ValueKind.BIN, 1 << (first - 0xC4)
    elif 0xC7 <= first <= 0xC9:
        kind, width = ValueKind.EXT, 1 << (first - 0xC7)
    elif first == 0xCA or first == 0xCB:
        kind, width = ValueKind.FLOAT, 4 << (first - 0xCA)
    elif 0xCC <= first <= 0xCF:
        kind, width = ValueKind.UINT, 1 << (first - 0xCC)
    elif 0xD0 <= first <= 0xD3:
        kind, width = ValueKind.NEGATIVE, 1 << (first - 0xD0)
    elif 0xD9 <= first <= 0xDB:
        kind, width = ValueKind.STR, 1 << (first - 0xD9)
    elif 0xDC <= first <= 0xDD:
        kind, width = ValueKind.ARRAY, 2 << (first - 0xDC)
    elif 0xDE <= first <= 0xDF:
        kind, width = ValueKind.MAP, 2 << (first - 0xDE)
    if kind == ValueKind.NOTHING or width > end - at:  # 0xc1, and fixext: nothing we know has one
        return ValueKind.NOTHING, 0, 0
    value = _load_big(at, width)
    at += width
    if kind == ValueKind.UINT and value < 0:
        kind = ValueKind.BIG
    elif kind == ValueKind.NEGATIVE:
        shift = 64 - 8 * width
        value = (value << shift) >> shift
        if value >= 0:
            kind = ValueKind.UINT
    elif kind == ValueKind.FLOAT and width == 4:
        value = _bits_of_double(_double_of_single_bits(value))
    return kind, value, at


@jit
def read_uint(at: int, end: int) -> tuple[int, int]:
    """Read an integer from 0 to 2**63 - 1; return it and the position after it."""
    kind, value, at = read_head(at, end)
    return value, at if kind == ValueKind.UINT else 0


@jit
def read_array(at: int, end: int, length: int) -> int:
    """Read the head of an array of exactly ``length`` elements."""
    kind, value, at = read_head(at, end)
    return at if kind == ValueKind.ARRAY and value == length else 0


@jit
def read_stream(at: int, end: int, target: int) -> tuple[int, int]:
    """Read a stream id and write its canonical bytes; return their number.

    ``target`` is the address of at least 136 bytes; zeros follow the id up to byte 16.
    """
    kind, value, at = read_head(at, end)
    store_i64(target, 0)
    store_i64(target + 8, 0)
    if kind == ValueKind.STR and 1 <= value <= MAX_ID_BYTES and is_utf8(at, value):
        store_u8(target, 0x73)
        copy_bytes(target + 1, at, value)
        return value + 1, at + value
    if kind in (ValueKind.UINT, ValueKind.BIG):
        store_u8(target, 0x75)
        store_i64(target + 1, reverse_bytes(value))
        return 9, at
    return 0, 0


@jit
def is_utf8(at: int, num_bytes: int) -> bool:
    """Tell whether bytes are valid UTF-8 (Unicode 15, table 3-7)."""
    k = 0
    while k + 8 <= num_bytes and load_i64(at + k) & _HIGH_BITS == 0:
        k += 8
    while k < num_bytes:
        first = load_u8(at + k)
        k += 1
        if first < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= first <= 0xDF:
            num_following = 1
        elif 0xE0 <= first <= 0xEF:
            num_following = 2
            low = 0xA0 if first == 0xE0 else 0x80
            high = 0x9F if first == 0xED else 0xBF
        elif 0xF0 <= first <= 0xF4:
            num_following = 3
            low = 0x90 if first == 0xF0 else 0x80
            high = 0x8F if first == 0xF4 else 0xBF
        else:
            return False
        if num_following > num_bytes - k:
            return False
        for _ in range(num_following):
            byte = load_u8(at + k)
            if byte < low or byte > high:
                return False
            low, high = 0x80, 0xBF
            k += 1
    return True


@jit
def skip_numbers(at: int, end: int, num_values: int) -> int:
    """Return the position after numbers of any kind, 0 if one of them is no number."""
    k = 0
    while at != 0 and k < num_values:
        first = load_u8(at) if at < end else 0xC1
        if first < 0x80 or first >= 0xE0:
            at += 1
        elif first == 0xCB:
            at += 9
        elif first == 0xCA:
            at += 5
        else:
            kind, _, at = read_head(at, end)
            if kind not in (ValueKind.UINT, ValueKind.NEGATIVE, ValueKind.BIG):
                return 0
        k += 1
    return at if at <= end else 0


@jit
def has_few_values(at: int, end: int, max_values: int) -> bool:
    """Tell whether all values of a message together, there or only announced, are at most so many.

    A decoder makes room for what is announced, also where the message ends before.
    """
    num_values, num_read = 1, 0
    while num_read < num_values and num_values <= max_values:
        if at >= end:
            return True
        first = load_u8(at)
        kind, length, after = read_head(at, end)
        if 0xDC <= first <= 0xDF and at + 5 <= end:
            kind = ValueKind.ARRAY if first < 0xDE else ValueKind.MAP
            width = 4 if first & 1 else 2
            length, after = _load_big(at + 1, width), at + 1 + width
        elif 0x80 <= first < 0xA0:
            kind = ValueKind.MAP if first < 0x90 else ValueKind.ARRAY
            length, after = first & 0x0F, at + 1
        elif 0xD4 <= first <= 0xD8:
            kind, length, after = ValueKind.BIN, 1 + (1 << (first - 0xD4)), at + 1
        elif after == 0:
            return True  # here ends every decoder
        if kind == ValueKind.ARRAY:
            num_values += length
        elif kind == ValueKind.MAP:
            num_values += 2 * length
        elif kind in (ValueKind.STR, ValueKind.BIN):
            after += length
        elif kind == ValueKind.EXT:
            after += 1 + length
        at = after
        num_read += 1
    return num_values <= max_values


@jit
def read_numbers(at: int, end: int, num_values: int, target: int) -> int:
    """Read numbers of any kind as float64, to an address.

    Returns the position after them, 0 if one of them is no number.
    """
    for k in range(num_values):
        kind, value, at = read_head(at, end)
        if kind in (ValueKind.UINT, ValueKind.NEGATIVE):
            number = float(value)
        elif kind == ValueKind.BIG:
            # Its last bit stands for all below: 2^64 added to a float would round a second time.
            number = 2.0 * float(((value >> 1) & 0x7FFF_FFFF_FFFF_FFFF) | (value & 1))
        elif kind == ValueKind.FLOAT:
            number = _double_of_bits(value)
        else:
            return 0
        store_f64(target + 8 * k, number)
    return at
