"""Where the streams live: one 64-byte header and one row of floats for each slot.

Address space for all slots is reserved at once and costs memory only where it is touched. A slot
is a number; the headers of all models lie in one table, the rows of each model in a slab of their
own. Header and row are one cache miss each, and both can be asked for as soon as the slot is known.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64
from streamrnn.kernels.pointers import field_address, pointer_to
from streamrnn.kernels.structs import I8, I16, I32, I64, U8, Struct

__all__ = [
    "HEADER_BYTES",
    "IS_BLOCKED",
    "IS_BUFFERED",
    "IS_DIRTY",
    "IS_NUMBERED",
    "IS_OPEN",
    "IS_QUARANTINED",
    "IS_READY",
    "IS_UNNUMBERED",
    "MAX_INLINE_ID_BYTES",
    "Header",
    "header_at",
    "id_address",
    "id_size",
]

MAX_INLINE_ID_BYTES = 16


class Header(Struct):
    """What a shard knows of a slot beside its row: one cache line."""

    last_seq: I64  # the last step applied; of an unnumbered stream 0
    durable_seq: I64  # the last step that is on disk
    ring: I64  # address of the ring of replies; with window 1 the last input's digest
    id: Annotated[
        Any, np.uint8, (MAX_INLINE_ID_BYTES,)
    ]  # zeros at its end; or a long one's address
    tail: I32  # link of the last waiting request, whose next one is the first; 0 none
    next: I32  # next slot + 1 in the list this slot is in (ready, or free); 0 the last
    last_used_s: I32  # the loop's clock when a request last came
    generation: I32  # counts the streams that have lived in this slot
    num_waiting: I16
    model: I16
    id_bytes: U8  # length of the canonical id; read it by `id_size`
    recording: I8  # number of the recording of its steps, from 1; 0: they are not recorded
    flags: U8  # see below
    window_log2: I8


HEADER_BYTES = Header.dtype.itemsize
header_at = pointer_to(Header)

IS_OPEN = 1  # a stream lives here; without it requests wait for an `open` that waits before them
IS_READY = 2  # in the list of slots that have work
IS_NUMBERED = 4  # fixed by the stream's first step
IS_UNNUMBERED = 8
IS_DIRTY = 16  # in the list of slots that the next checkpoint writes
IS_BLOCKED = 32  # its requests wait, for the disk or for a lookup
IS_QUARANTINED = 64  # its state turned NaN
IS_BUFFERED = 128  # copied into a disk buffer that is not acknowledged yet


@jit
def id_address(header: Header) -> int:
    """Return where a slot's canonical id lies: ``id_bytes`` bytes."""
    inline = field_address(header, "id")
    return inline if id_size(header) <= MAX_INLINE_ID_BYTES else load_i64(inline)


@jit
def id_size(header: Header) -> int:
    """Return the length of a slot's canonical id, as a signed number."""
    size: int = np.int64(header.id_bytes)  # type: ignore[assignment]
    return size
