"""CRC-32, as zlib computes it, of memory at an address.

Where the processor multiplies polynomials (PCLMULQDQ), the bytes are folded 64 at a time. 128 bits
that n bits follow weigh as much, modulo the CRC's polynomial, as the sum of their two halves, each
times a constant, put where those n bits end; so they are added to what comes there. Method and
constants are those of V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using
PCLMULQDQ Instruction" (Intel, 2009). The last 128 bits, and on other processors all of it, go by
tables.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, load_u8

__all__ = ["crc32"]

_LOW_32 = 0xFFFFFFFF
_CAN_FOLD = platform.machine() in ("x86_64", "AMD64") and bool(
    llvm.get_host_cpu_features().get("pclmul")
)
_NUM_LANES, _LANE_BYTES = 4, 16
_BLOCK_BYTES = _NUM_LANES * _LANE_BYTES
_MIN_FOLDED_BYTES = _BLOCK_BYTES if _CAN_FOLD else 2**62
# x^(n+32) and x^(n-32) modulo the polynomial, their bits reversed.
_OVER_512_BITS = (0x154442BD4, 0x1C6E41596)
_OVER_128_BITS = (0x1751997D0, 0x0CCAA009E)


def _crc_tables() -> NDArray[np.int64]:
    """Return the tables of CRC-32 for eight bytes at a time, made with zlib's own."""
    tables = np.zeros((8, 256), np.int64)
    # zlib.crc32(x) of one byte is table[x ^ 0xff] ^ 0xff000000, turned around.
    for byte in range(256):
        tables[0, byte] = zlib.crc32(bytes([byte ^ 0xFF])) ^ 0xFF000000
    tables[0] ^= tables[0, 0]
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0, tables[k - 1] & 0xFF]
    return tables


_CRC = _crc_tables()
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_PAIR = ir.VectorType(_I64, 2)


class _Folding:
    """Emits what folding is made of.

    Parameters
    ----------
    builder : ir.IRBuilder
        Where to.
    """

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._builder = builder
        # By name: llvmlite's declare_intrinsic refuses vector types.
        self._multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_PAIR, (_PAIR, _PAIR, _I8)), "llvm.x86.pclmulqdq"
        )

    def load(self, address: ir.Value, lane: int) -> ir.Value:
        """Load the bytes of a lane."""
        at = self._builder.add(address, _I64(lane * _LANE_BYTES))
        return self._builder.load(self._builder.inttoptr(at, _PAIR.as_pointer()), align=1)

    def fold(self, pair: ir.Value, factors: Sequence[int], onto: ir.Value) -> ir.Value:
        """Add 128 bits to those that follow at the factors' distance."""
        both = ir.Constant(_PAIR, list(factors))
        low = self._builder.call(self._multiply, [pair, both, _I8(0x00)])
        high = self._builder.call(self._multiply, [pair, both, _I8(0x11)])
        return self._builder.xor(self._builder.xor(low, high), onto)


@intrinsic
def _folded(typingctx: Any, data: types.Type, num_bytes: types.Type) -> Any:
    """Return 128 bits that the CRC goes on from as if they were all of the data.

    Parameters
    ----------
    data : int
        Address of the bytes, which begin the message.
    num_bytes : int
        How many, a multiple of 64 and not 0.

    Returns
    -------
    tuple of (int, int)
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if not _CAN_FOLD:  # never called
            return context.make_tuple(builder, signature.return_type, (_I64(0), _I64(0)))
        folding = _Folding(builder)
        start, num = args
        end = builder.add(start, num)
        lanes = [folding.load(start, lane) for lane in range(_NUM_LANES)]
        # The CRC begins with all bits set.
        lanes[0] = builder.xor(lanes[0], ir.Constant(_PAIR, [_LOW_32, 0]))
        before = builder.block
        loop = builder.append_basic_block("crc.fold")
        done = builder.append_basic_block("crc.folded")
        first = builder.add(start, _I64(_BLOCK_BYTES))
        builder.cbranch(builder.icmp_unsigned("<", first, end), loop, done)
        builder.position_at_end(loop)
        at = builder.phi(_I64)
        states = [builder.phi(_PAIR) for _ in lanes]
        following = [
            folding.fold(state, _OVER_512_BITS, folding.load(at, lane))
            for lane, state in enumerate(states)
        ]
        behind = builder.add(at, _I64(_BLOCK_BYTES))
        at.add_incoming(first, before)
        at.add_incoming(behind, loop)
        for state, lane, new in zip(states, lanes, following, strict=True):
            state.add_incoming(lane, before)
            state.add_incoming(new, loop)
        builder.cbranch(builder.icmp_unsigned("<", behind, end), loop, done)
        builder.position_at_end(done)
        last = [builder.phi(_PAIR) for _ in lanes]
        for state, lane, new in zip(last, lanes, following, strict=True):
            state.add_incoming(lane, before)
            state.add_incoming(new, loop)
        pair = last[0]
        for lane in last[1:]:
            pair = folding.fold(pair, _OVER_128_BITS, lane)
        halves = [builder.extract_element(pair, _I32(k)) for k in range(2)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.containers.UniTuple(types.int64, 2)(types.int64, types.int64), codegen


@jit
def _by_tables(crc: int, word: int) -> int:
    """Go on by the eight bytes of a word."""
    word ^= crc
    return (
        _CRC[7, word & 0xFF]
        ^ _CRC[6, (word >> 8) & 0xFF]
        ^ _CRC[5, (word >> 16) & 0xFF]
        ^ _CRC[4, (word >> 24) & 0xFF]
        ^ _CRC[3, (word >> 32) & 0xFF]
        ^ _CRC[2, (word >> 40) & 0xFF]
        ^ _CRC[1, (word >> 48) & 0xFF]
        ^ _CRC[0, (word >> 56) & 0xFF]
    )


@jit
def crc32(data: int, num_bytes: int) -> int:
    """Return the CRC-32 that zlib computes.

    Parameters
    ----------
    data : int
        Address of the bytes.
    num_bytes : int
        How many.

    Returns
    -------
    int
        0 to 2**32 - 1.
    """
    crc = _LOW_32
    k = 0
    if num_bytes >= _MIN_FOLDED_BYTES:
        k = num_bytes // _BLOCK_BYTES * _BLOCK_BYTES
        low, high = _folded(data, k)
        crc = _by_tables(_by_tables(0, low), high)
    while k + 8 <= num_bytes:
        crc = _by_tables(crc, load_i64(data + k))
        k += 8
    while k < num_bytes:
        crc = _CRC[0, (crc ^ load_u8(data + k)) & 0xFF] ^ (crc >> 8)
        k += 1
    return crc ^ _LOW_32
