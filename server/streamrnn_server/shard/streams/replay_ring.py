"""What a numbered stream remembers of its last steps, to know a step that comes again.

The ring of a stream with window W > 1 is one block: W digests of inputs (int64), then W outputs;
the step ``seq`` has place ``seq % W``. It is taken at the stream's first numbered step
(`streamrnn_server.shard.streams.eviction`). With window 1 nothing but the digest is kept, in the
header: y follows from the state.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_i64, prefetch, store_i64
from streamrnn_server.shard.memory.arena import ArenaStruct, release
from streamrnn_server.shard.memory.header import Header

__all__ = [
    "drop_ring",
    "output_place",
    "prefetch_place",
    "remember",
    "remembered",
]

_MAX_PREFETCHED_BYTES = 1024


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
    """Enter a step just applied, by its input's digest or what stands for it."""
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
