"""What a numbered stream remembers of its last steps, to know a step that comes again.

The ring of a stream with window W > 1 is one block: W digests of inputs (int64), then W outputs;
the step ``seq`` has place ``seq % W``. It is taken at the stream's first numbered step
(`streamrnn_server.shard.streams.eviction`). With window 1 nothing but the digest is kept, in the
header: y follows from the state.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_i64, load_u32, prefetch, store_i64
from streamrnn_server.shard.memory.arena import ArenaStruct, release
from streamrnn_server.shard.memory.header import Header

__all__ = [
    "RESET_DIGEST",
    "digest_of",
    "drop_ring",
    "output_place",
    "prefetch_place",
    "remember",
    "remembered",
]

RESET_DIGEST = 0x5EED_0F_A_2E5E7  # stands for a reset in place of an input
_MIX_A = 0x9E3779B97F4A7C15 - 2**64
_MIX_B = 0xBF58476D1CE4E5B9 - 2**64
_LOW_32 = 0xFFFFFFFF
_MAX_PREFETCHED_BYTES = 1024


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


@jit
def drop_ring(arena: ArenaStruct, header: Header) -> None:
    """Free a stream's ring."""
    if header.window_log2 > 0:
        release(arena, header.ring)
    header.ring = 0


@jit
def _digest_place(header: Header, seq: int) -> int:
    window = 1 << header.window_log2
    return header.ring + 8 * (seq & (window - 1))


@jit
def output_place(header: Header, seq: int, y_bytes: int) -> int:
    """Return where the output of a step lies in the ring of a stream with a window above 1."""
    window = 1 << header.window_log2
    return header.ring + 8 * window + (seq & (window - 1)) * y_bytes


@jit
def remember(header: Header, seq: int, digest: int, y: int, y_bytes: int) -> None:
    """Enter a step just applied, by its input's digest or `RESET_DIGEST`."""
    if header.window_log2 == 0:
        header.ring = digest
        return
    store_i64(_digest_place(header, seq), digest)
    copy_bytes(output_place(header, seq, y_bytes), y, y_bytes)


@jit
def prefetch_place(header: Header, seq: int, y_bytes: int) -> None:
    """Ask for the memory that `remember` will write, while the step is computed."""
    if header.window_log2 == 0:
        return
    prefetch(_digest_place(header, seq))
    y = output_place(header, seq, y_bytes)
    for k in range(0, min(y_bytes, _MAX_PREFETCHED_BYTES), 64):
        prefetch(y + k)


@jit
def remembered(header: Header, seq: int, digest: int) -> bool:
    """Tell whether a step within the window had this digest when it was applied."""
    if header.window_log2 == 0:
        return header.ring == digest
    return load_i64(_digest_place(header, seq)) == digest
