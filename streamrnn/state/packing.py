"""Streams on their way to disk: copied out of the slab as entries, packed into records off it.

The thread that steps streams copies a slot as it is, in a fraction of a microsecond; another thread
puts the ring into order, adds names and the checksum, and so makes the record
(`streamrnn.state.record`, which is also the judge of what is packed here).

An entry is its words, then the canonical id, the name of the snapshot, the owner's name, the row,
and the ring as it lies in the arena, each from a multiple of 8 bytes.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    fill_bytes,
    load_i64,
    load_u8,
    store_i32,
    store_i64,
    store_u8,
    store_u16,
)
from streamrnn.state import slab as h
from streamrnn.state.checksum import crc32
from streamrnn.state.record import FRESH, HEAD, MAGIC, NUMBERED, UNNUMBERED, VERSION
from streamrnn.state.slab import address_of

__all__ = [
    "DELETE",
    "ENTRY_HEAD_BYTES",
    "PUT",
    "SNAPSHOT",
    "Templates",
    "pack_entries",
    "part_bytes",
    "record_bytes",
    "row_in_record",
    "table_of_entries",
]

# What is to be done with the stream on disk.
PUT, DELETE, SNAPSHOT = range(3)
# Words of an entry, in bytes from its address.
(
    ENTRY_BYTES,  # of the whole entry
    ENTRY_KIND,
    ENTRY_SLOT,
    ENTRY_GENERATION,
    ENTRY_LAST_SEQ,
    ENTRY_MODEL,  # index
    ENTRY_FLAGS,  # the header's
    ENTRY_WINDOW_LOG2,
    ENTRY_ID_BYTES,
    ENTRY_NAME_BYTES,
    ENTRY_ROW_BYTES,
    ENTRY_Y_BYTES,  # of one output in the ring; 0 with window 1
    ENTRY_HAS_RING,
    ENTRY_DIGEST,  # of the last input, with window 1
    ENTRY_OWNER_BYTES,
) = range(0, 120, 8)
ENTRY_HEAD_BYTES = 120

# Fields of a record, in bytes from its address.
(RECORD_NUMBERING, RECORD_WINDOW_LOG2, RECORD_LAST_SEQ) = (6, 7, 16)
(RECORD_ROW_BYTES, RECORD_Y_BYTES, RECORD_NUM_RING, RECORD_ID_BYTES) = (64, 68, 72, 76)

# Words of a model's template.
(_FINGERPRINT, _TEXTS, _TEXT_LENGTHS, _TEXT_BYTES) = range(0, 32, 8)
_TEMPLATE_BYTES = 32
_RECORD_HEAD_BYTES = HEAD.size
_MAGIC = int.from_bytes(MAGIC, "little")


class Templates:
    """What all records of a model have in common.

    Parameters
    ----------
    models : sequence of (str, str)
        Name and fingerprint of each model, in order.
    arithmetic : str
        What computes them.

    Attributes
    ----------
    address : int
        What `pack_entries` takes as ``templates``.
    max_text_bytes : int
        The longest names that a record carries besides its id.
    """

    def __init__(self, models: Sequence[tuple[str, str]], arithmetic: str) -> None:
        self._words = np.zeros((len(models), _TEMPLATE_BYTES // 8), np.int64)
        self._owned: list[NDArray[np.uint8]] = []
        self.max_text_bytes = 0
        for words, (name, fingerprint) in zip(self._words, models, strict=True):
            texts = [text.encode() for text in (name, arithmetic)]
            joined = b"".join(texts)
            words[:] = [
                self._own(bytes.fromhex(fingerprint)),
                self._own(joined),
                self._own(bytes(map(len, texts))),
                len(joined),
            ]
            self.max_text_bytes = max(self.max_text_bytes, len(joined))
        self.address = address_of(self._words)

    def _own(self, data: bytes) -> int:
        self._owned.append(np.frombuffer(data or b"\0", np.uint8))
        return address_of(self._owned[-1])


@jit
def part_bytes(num_bytes: int) -> int:
    """Return how much of an entry a part takes.

    Parameters
    ----------
    num_bytes : int
        The part's length.

    Returns
    -------
    int
        The next multiple of 8.
    """
    return (num_bytes + 7) // 8 * 8


@jit
def record_bytes(entry: int, templates: int) -> int:
    """Return the length of the record that an entry makes.

    Parameters
    ----------
    entry : int
        Address of the entry.
    templates : int
        Address of the models' templates.

    Returns
    -------
    int
    """
    template = templates + load_i64(entry + ENTRY_MODEL) * _TEMPLATE_BYTES
    names = load_i64(entry + ENTRY_ID_BYTES) + load_i64(template + _TEXT_BYTES)
    names += load_i64(entry + ENTRY_OWNER_BYTES)
    return (
        part_bytes(_RECORD_HEAD_BYTES + names)
        + load_i64(entry + ENTRY_ROW_BYTES)
        + _num_ring(entry) * (8 + load_i64(entry + ENTRY_Y_BYTES))
        + 4
    )


@jit
def _num_ring(entry: int) -> int:
    if load_i64(entry + ENTRY_HAS_RING) == 0:
        return 0
    return min(1 << load_i64(entry + ENTRY_WINDOW_LOG2), load_i64(entry + ENTRY_LAST_SEQ))


@jit
def _pack(entry: int, out: int, templates: int, clock_s: int) -> int:
    """Write one record; return its length."""
    template = templates + load_i64(entry + ENTRY_MODEL) * _TEMPLATE_BYTES
    id_bytes, text_bytes = load_i64(entry + ENTRY_ID_BYTES), load_i64(template + _TEXT_BYTES)
    row_bytes, y_bytes = load_i64(entry + ENTRY_ROW_BYTES), load_i64(entry + ENTRY_Y_BYTES)
    window_log2, last_seq = load_i64(entry + ENTRY_WINDOW_LOG2), load_i64(entry + ENTRY_LAST_SEQ)
    flags, owner_bytes = load_i64(entry + ENTRY_FLAGS), load_i64(entry + ENTRY_OWNER_BYTES)
    num_bytes, num_ring = record_bytes(entry, templates), _num_ring(entry)
    numbering = FRESH
    if flags & h.IS_NUMBERED:
        numbering = NUMBERED
    elif flags & h.IS_UNNUMBERED:
        numbering = UNNUMBERED
    store_i32(out, _MAGIC)
    store_u16(out + 4, VERSION)
    store_u8(out + 6, numbering)
    store_u8(out + 7, window_log2)
    store_i64(out + 8, num_bytes)
    store_i64(out + 16, last_seq)
    store_i64(out + 24, clock_s)
    copy_bytes(out + 32, load_i64(template + _FINGERPRINT), 32)
    store_i32(out + 64, row_bytes)
    store_i32(out + 68, y_bytes if num_ring > 0 else 0)
    store_i32(out + 72, num_ring)
    store_u8(out + 76, id_bytes)
    copy_bytes(out + 77, load_i64(template + _TEXT_LENGTHS), 2)
    store_u8(out + 79, owner_bytes)
    at = out + _RECORD_HEAD_BYTES
    copy_bytes(at, entry + ENTRY_HEAD_BYTES, id_bytes)
    copy_bytes(at + id_bytes, load_i64(template + _TEXTS), text_bytes)
    at += id_bytes + text_bytes
    owner = entry + ENTRY_HEAD_BYTES + part_bytes(id_bytes)
    owner += part_bytes(load_i64(entry + ENTRY_NAME_BYTES))
    copy_bytes(at, owner, owner_bytes)
    at += owner_bytes
    begin = out + part_bytes(at - out)
    fill_bytes(at, begin - at, 0)
    row = owner + part_bytes(owner_bytes)
    copy_bytes(begin, row, row_bytes)
    at = begin + row_bytes
    if num_ring > 0 and window_log2 == 0:
        store_i64(at, load_i64(entry + ENTRY_DIGEST))
        at += 8
    elif num_ring > 0:
        window = 1 << window_log2
        ring = row + row_bytes
        for k in range(num_ring):
            place = (last_seq - num_ring + 1 + k) & (window - 1)
            store_i64(at + 8 * k, load_i64(ring + 8 * place))
            y = ring + 8 * window + place * y_bytes
            copy_bytes(at + 8 * num_ring + k * y_bytes, y, y_bytes)
        at += num_ring * (8 + y_bytes)
    store_i32(at, crc32(out, at - out))
    return num_bytes


@jit
def row_in_record(record: int) -> int:
    """Return where the row lies in a record; the ring's digests follow it, then its outputs.

    Parameters
    ----------
    record : int
        Address of a record that `streamrnn.state.record` has accepted.

    Returns
    -------
    int
    """
    num_bytes = _RECORD_HEAD_BYTES
    for k in range(4):
        num_bytes += load_u8(record + RECORD_ID_BYTES + k)
    return record + part_bytes(num_bytes)


@jit
def table_of_entries(entries: int, num_entries: int, templates: int, table: NDArray[np.int64]):
    """List entries: what to do, where id and name lie, how long their records are.

    Parameters
    ----------
    entries : int
        Address of the first of entries that follow each other.
    num_entries : int
        How many.
    templates : int
        Address of the models' templates.
    table : ndarray of int64, shape (>= num_entries, 6)
        Filled: kind, offset of the id from ``entries``, its length, the name's length (it
        follows the id, from a multiple of 8), offset of the record in what `pack_entries`
        writes, its length (0 for `DELETE`).

    Returns
    -------
    int
        The records' length altogether.
    """
    entry, total = entries, 0
    for k in range(num_entries):
        kind = load_i64(entry + ENTRY_KIND)
        num_bytes = 0 if kind == DELETE else record_bytes(entry, templates)
        table[k, 0] = kind
        table[k, 1] = entry + ENTRY_HEAD_BYTES - entries
        table[k, 2] = load_i64(entry + ENTRY_ID_BYTES)
        table[k, 3] = load_i64(entry + ENTRY_NAME_BYTES)
        table[k, 4] = total
        table[k, 5] = num_bytes
        total += part_bytes(num_bytes)
        entry += load_i64(entry + ENTRY_BYTES)
    return total


@jit
def pack_entries(entries: int, num_entries: int, templates: int, clock_s: int, out: int) -> None:
    """Write the records of entries, each from a multiple of 8 bytes, as `table_of_entries` says.

    Parameters
    ----------
    entries : int
        Address of the first of entries that follow each other.
    num_entries : int
        How many.
    templates : int
        Address of the models' templates.
    clock_s : int
        Time to write into them.
    out : int
        Address of enough room.
    """
    entry = entries
    for _ in range(num_entries):
        if load_i64(entry + ENTRY_KIND) != DELETE:
            out += part_bytes(_pack(entry, out, templates, clock_s))
        entry += load_i64(entry + ENTRY_BYTES)
