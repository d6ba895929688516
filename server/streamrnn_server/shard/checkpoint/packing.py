"""Streams on their way to disk: copied out of the slab as entries, packed into records off it.

The thread that steps streams copies a slot as it is, in a fraction of a microsecond; another thread
adds names and the checksum, and so makes the record (`streamrnn.state.record`, which is also the
judge of what is packed here).

An entry is its fields, then the canonical id, the name of the snapshot, the owner's name, the row,
and the digests, outputs and inputs that are kept, the oldest first; each name and the row begin at
a multiple of 8 bytes.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from isal.isal_zlib import crc32
from numba.extending import register_jitable
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, fill_bytes
from streamrnn.kernels.pointers import address, field_address, pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.state import record as records
from streamrnn.state.record import (
    CHECKSUM_BYTES,
    FRESH,
    HEAD_BYTES,
    MAGIC,
    NUMBERED,
    UNNUMBERED,
    VERSION,
    RecordHead,
)
from streamrnn_server.shard.memory import header as h

__all__ = [
    "ENTRY_HEAD_BYTES",
    "Entry",
    "EntryKind",
    "Templates",
    "entry_at",
    "fault_of",
    "fits_model",
    "inputs_bytes_of",
    "inputs_in_record",
    "num_outputs_of",
    "pack_entries",
    "part_bytes",
    "record_at",
    "record_bytes",
    "row_in_record",
    "seal",
    "table_of_entries",
]


class EntryKind(IntEnum):
    """What is to be done with the stream on disk."""

    PUT = 0
    DELETE = 1
    SNAPSHOT = 2


class Entry(Struct):
    """What an entry begins with; then id, snapshot's name, owner, row, and what is kept."""

    num_bytes: I64  # of the whole entry
    kind: I64
    slot: I64
    generation: I64
    last_seq: I64
    model: I64  # index
    flags: I64  # the header's
    window_log2: I64
    id_bytes: I64
    name_bytes: I64
    row_bytes: I64
    y_bytes: I64  # of one output that is kept; 0 with window 1
    num_ring: I64  # digests
    num_outputs: I64
    owner_bytes: I64
    incarnation: I64
    num_changes: I64
    inputs_bytes: I64


class Template(Struct):
    """What all records of a model have in common."""

    fingerprint: I64  # address of 32 bytes
    texts: I64  # address of the model's name and the arithmetic
    model_bytes: I64  # their lengths
    arithmetic_bytes: I64


ENTRY_HEAD_BYTES = Entry.dtype.itemsize
entry_at, record_at = pointer_to(Entry), pointer_to(RecordHead)
_template_at = pointer_to(Template)
_TEMPLATE_BYTES = Template.dtype.itemsize
_MAGIC = int.from_bytes(MAGIC, "little")
_put_checksum = struct.Struct("<I").pack_into


# Stated once, in `streamrnn.state.record`, which does not load Numba.
head_bytes_of = register_jitable(records.head_bytes_of)  # `row_offset` calls it,
row_offset = register_jitable(records.row_offset)  # `inputs_offset` that
num_outputs_of = register_jitable(records.num_outputs_of)  # and this,
inputs_bytes_of = register_jitable(records.inputs_bytes_of)
inputs_offset = register_jitable(records.inputs_offset)  # and `fault_of` these
fault_of, fits_model = jit(records.fault_of), jit(records.fits_model)


class Templates:
    """What all records of a model have in common.

    Parameters
    ----------
    models : sequence of (str, str, str)
        Of each model, in order, the name, the fingerprint, and what computes it.
    capacity : int
        How many there may be at last; by default no more.

    Attributes
    ----------
    address : int
        What `pack_entries` takes as ``templates``.
    max_text_bytes : int
        The longest names that a record carries besides its id.
    """

    def __init__(self, models: Sequence[tuple[str, str, str]], capacity: int = 0) -> None:
        self._structs = np.zeros(max(len(models), capacity), Template.dtype)
        self._owned: list[NDArray[np.uint8]] = []
        self.max_text_bytes = 0
        for k, each in enumerate(models):
            self.set(k, *each)
        self.address = address_of(self._structs)

    def set(self, k: int, name: str, fingerprint: str, arithmetic: str) -> None:
        """Say what the records of the k-th model have in common, before there are any."""
        texts = [text.encode() for text in (name, arithmetic)]
        joined = b"".join(texts)
        places = self._own(bytes.fromhex(fingerprint)), self._own(joined)
        self._structs[k] = (*places, *map(len, texts))
        self.max_text_bytes = max(self.max_text_bytes, len(joined))

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
def _template_of(templates: int, entry: Entry) -> Template:
    return _template_at(templates + entry.model * _TEMPLATE_BYTES)


@jit
def record_bytes(entry: Entry, template: Template) -> int:
    """Return the length of the record that an entry makes."""
    names = entry.id_bytes + template.model_bytes + template.arithmetic_bytes + entry.owner_bytes
    return part_bytes(HEAD_BYTES + names) + _body_bytes(entry) + CHECKSUM_BYTES


@jit
def _body_bytes(entry: Entry) -> int:
    ring_bytes = 8 * entry.num_ring + entry.num_outputs * entry.y_bytes
    return entry.row_bytes + ring_bytes + entry.inputs_bytes


@jit
def _pack(entry: Entry, out: int, template: Template, clock_s: int) -> int:
    """Write one record but for its checksum; return its length."""
    id_bytes, owner_bytes = entry.id_bytes, entry.owner_bytes
    text_bytes = template.model_bytes + template.arithmetic_bytes
    numbering = FRESH
    if entry.flags & h.IS_NUMBERED:
        numbering = NUMBERED
    elif entry.flags & h.IS_UNNUMBERED:
        numbering = UNNUMBERED
    record = record_at(out)
    record.magic = _MAGIC
    record.version = VERSION if entry.inputs_bytes > 0 else VERSION - 1
    record.numbering = numbering
    record.window_log2 = entry.window_log2
    record.num_bytes = record_bytes(entry, template)
    record.last_seq = entry.last_seq
    record.clock_s = clock_s
    copy_bytes(field_address(record, "fingerprint"), template.fingerprint, 32)
    record.row_bytes = entry.row_bytes
    record.y_bytes = entry.y_bytes if entry.num_ring > 0 else 0
    record.num_ring = entry.num_ring
    record.id_bytes = id_bytes
    record.model_bytes = template.model_bytes
    record.arithmetic_bytes = template.arithmetic_bytes
    record.owner_bytes = owner_bytes
    record.incarnation = entry.incarnation
    record.num_changes = entry.num_changes
    record.num_outputs = entry.num_outputs
    record.inputs_bytes = entry.inputs_bytes
    source, at = address(entry) + ENTRY_HEAD_BYTES, out + HEAD_BYTES
    copy_bytes(at, source, id_bytes)
    copy_bytes(at + id_bytes, template.texts, text_bytes)
    at += id_bytes + text_bytes
    owner = source + part_bytes(id_bytes) + part_bytes(entry.name_bytes)
    copy_bytes(at, owner, owner_bytes)
    at += owner_bytes
    begin = out + part_bytes(at - out)
    fill_bytes(at, begin - at, 0)
    row = owner + part_bytes(owner_bytes)
    copy_bytes(begin, row, _body_bytes(entry))
    return record.num_bytes


@jit
def row_in_record(record: RecordHead) -> int:
    """Return where the row lies in a record; the ring's digests follow it, then its outputs."""
    return address(record) + row_offset(record)


@jit
def inputs_in_record(record: RecordHead) -> int:
    """Return where the inputs lie that a record keeps."""
    return address(record) + inputs_offset(record)


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
        writes, its length (0 for `EntryKind.DELETE`).

    Returns
    -------
    int
        The records' length altogether.
    """
    at, total = entries, 0
    for k in range(num_entries):
        entry = entry_at(at)
        num_bytes = 0
        if entry.kind != EntryKind.DELETE:
            num_bytes = record_bytes(entry, _template_of(templates, entry))
        table[k, 0] = entry.kind
        table[k, 1] = at + ENTRY_HEAD_BYTES - entries
        table[k, 2] = entry.id_bytes
        table[k, 3] = entry.name_bytes
        table[k, 4] = total
        table[k, 5] = num_bytes
        total += part_bytes(num_bytes)
        at += entry.num_bytes
    return total


@jit
def pack_entries(entries: int, num_entries: int, templates: int, clock_s: int, out: int) -> None:
    """Write the records of entries where `table_of_entries` says, but for their checksums.

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
        Address of enough memory.
    """
    at = entries
    for _ in range(num_entries):
        entry = entry_at(at)
        if entry.kind != EntryKind.DELETE:
            out += part_bytes(_pack(entry, out, _template_of(templates, entry), clock_s))
        at += entry.num_bytes


def seal(record: memoryview) -> None:
    """Write the checksum of a packed record, its last bytes."""
    begin = len(record) - CHECKSUM_BYTES
    _put_checksum(record, begin, crc32(record[:begin]))
