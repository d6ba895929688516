"""What a numbered stream remembers of its last steps, to know a step that comes again.

The ring of a stream with window W > 1 is one block: W digests of inputs (int64), then W outputs;
the step ``seq`` has place ``seq % W``. It is taken at the stream's first numbered step
(`streamrnn_server.spilling`). With window 1 nothing but the digest is kept, in the header: y
follows from the state.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i64,
    load_u8,
    load_u32,
    prefetch,
    store_i64,
)
from streamrnn.state import slab as h
from streamrnn.state.arena import release

__all__ = [
    "RESET_DIGEST",
    "digest_of",
    "drop_ring",
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
    """Return 64 bits that another input has by a chance of about 2**-64; not cryptographic.

    Parameters
    ----------
    x, num_bytes : int
        The input of one step; its length is a multiple of 4.

    Returns
    -------
    int
    """
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
def drop_ring(arena: int, header: int) -> None:
    """Give the stream's ring back.

    Parameters
    ----------
    arena : int
        Address of the arena.
    header : int
        Address of the stream's header.
    """
    if load_u8(header + h.WINDOW_LOG2) > 0:
        release(arena, load_i64(header + h.RING))
    store_i64(header + h.RING, 0)


@jit
def remember(header: int, seq: int, digest: int, y: int, y_bytes: int) -> None:
    """Enter a step that was just applied.

    Parameters
    ----------
    header : int
        Address of the stream's header; `take_ring` was true.
    seq : int
        The step's number.
    digest : int
        Of its input, or `RESET_DIGEST`.
    y, y_bytes : int
        Its output; 0 bytes for a reset.
    """
    window_log2 = load_u8(header + h.WINDOW_LOG2)
    if window_log2 == 0:
        store_i64(header + h.RING, digest)
        return
    ring = load_i64(header + h.RING)
    window = 1 << window_log2
    place = seq & (window - 1)
    store_i64(ring + 8 * place, digest)
    copy_bytes(ring + 8 * window + place * y_bytes, y, y_bytes)


@jit
def prefetch_place(header: int, seq: int, y_bytes: int) -> None:
    """Ask for the memory that `remember` will write, while the step is computed.

    Parameters
    ----------
    header : int
        Address of the stream's header; `take_ring` was true.
    seq : int
        The step's number.
    y_bytes : int
        Bytes of its output.
    """
    window_log2 = load_u8(header + h.WINDOW_LOG2)
    if window_log2 == 0:
        return
    ring = load_i64(header + h.RING)
    window = 1 << window_log2
    place = seq & (window - 1)
    prefetch(ring + 8 * place)
    y = ring + 8 * window + place * y_bytes
    for k in range(0, min(y_bytes, _MAX_PREFETCHED_BYTES), 64):
        prefetch(y + k)


@jit
def remembered(header: int, seq: int, digest: int, y_bytes: int) -> int:
    """Look up a step that was applied before.

    Parameters
    ----------
    header : int
        Address of the stream's header.
    seq : int
        Above last_seq - window, not above last_seq.
    digest : int
        What came now.
    y_bytes : int
        Bytes of one output.

    Returns
    -------
    int
        Address of its output; 1 with window 1, where it must be computed; 0 if another input came.
    """
    window_log2 = load_u8(header + h.WINDOW_LOG2)
    ring = load_i64(header + h.RING)
    if window_log2 == 0:
        return 1 if ring == digest else 0
    window = 1 << window_log2
    place = seq & (window - 1)
    if load_i64(ring + 8 * place) != digest:
        return 0
    return ring + 8 * window + place * y_bytes
