"""Digests of inputs: what is remembered of a step, to tell whether it comes again as it was."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, load_u32

__all__ = ["REFUSED_DIGEST", "RESET_DIGEST", "digest_of"]

RESET_DIGEST = 0x5EED_0F_A_2E5E7  # stands for a reset in place of an input
REFUSED_DIGEST = 0x5EED_0F_A_4EF  # of a step whose state turned NaN, and that was put back
_MIX_A = 0x9E3779B97F4A7C15 - 2**64
_MIX_B = 0xBF58476D1CE4E5B9 - 2**64
_LOW_32 = 0xFFFFFFFF


@jit
def _stir(value: int, factor: int) -> int:
    value *= factor
    return value ^ ((value >> 32) & _LOW_32)


@jit
def digest_of(x: int, num_bytes: int) -> int:
    """Return a 64-bit hash, not cryptographic, of a multiple of 4 bytes."""
    # Two lanes, for one alone would wait for each multiplication.
    a, b = num_bytes * _MIX_A, _MIX_B
    k = 0
    while k + 16 <= num_bytes:
        a = _stir(a ^ load_i64(x + k), _MIX_B)
        b = _stir(b ^ load_i64(x + k + 8), _MIX_A)
        k += 16
    while k < num_bytes:
        a = _stir(a ^ load_u32(x + k), _MIX_B)
        k += 4
    return _stir(_stir(a, _MIX_A) ^ b, _MIX_B)
