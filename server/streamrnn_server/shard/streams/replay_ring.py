"""What a numbered stream remembers of its last steps, to know a step that comes again.

The ring of a stream with window W > 1 is one block: the last step whose output the client has
received, as far as it said; W digests of inputs (int64); W outputs. The step ``seq`` has place
``seq % W``. It is taken at the stream's first numbered step
(`streamrnn_server.shard.streams.eviction`). With window 1 nothing but the digest is kept, in the
header: y follows from the state.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_i64, prefetch, store_i64
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.arena import ArenaStruct, release
from streamrnn_server.shard.memory.header import Header

__all__ = [
    "copy_ring",
    "drop_ring",
    "note_received",
    "num_kept",
    "oldest_output",
    "output_place",
    "prefetch_place",
    "remember",
    "remember_digest",
    "remembered",
    "ring_size",
]

_DIGESTS = 8  # where they begin
_MAX_PREFETCHED_BYTES = 1024


@jit
def ring_size(window_log2: int, y_bytes: int) -> int:
    """Return the size of a ring of a window above 1."""
    return _DIGESTS + ((8 + y_bytes) << window_log2)


@jit
def drop_ring(arena: ArenaStruct, header: Header) -> None:
    """Free a stream's ring."""
    if header.window_log2 > 0:
        release(arena, header.ring)
    header.ring = 0


@jit
def _digest_place(header: Header, seq: int) -> int:
    window = 1 << header.window_log2
    return header.ring + _DIGESTS + 8 * (seq & (window - 1))


@jit
def output_place(header: Header, seq: int, y_bytes: int) -> int:
    """Return where the output of a step lies in the ring of a stream with a window above 1."""
    window = 1 << header.window_log2
    return header.ring + _DIGESTS + 8 * window + (seq & (window - 1)) * y_bytes


@jit
def remember(header: Header, seq: int, digest: int, y: int, y_bytes: int) -> None:
    """Enter a step just applied, by its input's digest or what stands for it."""
    remember_digest(header, seq, digest)
    if header.window_log2 > 0:
        copy_bytes(output_place(header, seq, y_bytes), y, y_bytes)


@jit
def remember_digest(header: Header, seq: int, digest: int) -> None:
    """Enter a change that has no output, or whose output the client has."""
    if header.window_log2 == 0:
        header.ring = digest
    else:
        store_i64(_digest_place(header, seq), digest)


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


# ---------------------------------------------------------------------------------------------
# Outputs that the client has
# ---------------------------------------------------------------------------------------------


@jit
def note_received(header: Header, seq: int) -> None:
    """Note that the client has the outputs up to a step; it never has less than before."""
    if header.window_log2 > 0 and header.ring != 0:
        seq = min(seq, header.last_seq)
        if seq > load_i64(header.ring):
            store_i64(header.ring, seq)


@jit
def num_kept(header: Header, last_seq: int) -> tuple[int, int]:
    """Return how many steps and outputs are kept of a stream whose last step is a given one.

    With window 1 no output is: it follows from the state.
    """
    if header.flags & h.IS_NUMBERED == 0:
        return 0, 0
    num_steps = min(1 << header.window_log2, last_seq)
    if header.window_log2 == 0 or header.ring == 0:
        return num_steps, 0
    return num_steps, min(num_steps, max(0, last_seq - load_i64(header.ring)))


@jit
def oldest_output(header: Header) -> int:
    """Return the number of the oldest step that is answered if it comes again."""
    num_steps, num_outputs = num_kept(header, header.last_seq)
    if header.window_log2 == 0:
        num_outputs = num_steps
    return header.last_seq + 1 - num_outputs


@jit
def copy_ring(header: Header, last_seq: int, y_bytes: int, to: int) -> None:
    """Copy what `num_kept` counts, the oldest first: digests, then outputs."""
    num_steps, num_outputs = num_kept(header, last_seq)
    if header.window_log2 == 0:
        if num_steps > 0:
            store_i64(to, header.ring)
        return
    for seq in range(last_seq + 1 - num_steps, last_seq + 1):
        store_i64(to, load_i64(_digest_place(header, seq)))
        to += 8
    for seq in range(last_seq + 1 - num_outputs, last_seq + 1):
        copy_bytes(to, output_place(header, seq, y_bytes), y_bytes)
        to += y_bytes
