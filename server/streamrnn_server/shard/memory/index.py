"""Which slot a stream has: open addressing over the hash of the canonical id.

An entry is one int64: the low 32 bits of the hash above, slot + 1 below; 0 is an empty entry. The
table has a power of two of entries, at most half of them used, probed one after the other. A
deletion shifts later entries back, so that no tombstones pile up however long the server lives.
Ids stand in the slots' headers and are compared in full.
"""

from __future__ import annotations

from typing import Any

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array, load_i64, load_u8, prefetch
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.virtual_memory import address_of, reserve, touch
from streamrnn_server.shard.memory.header import HEADER_BYTES, header_at, id_address, id_size

__all__ = [
    "IndexStruct",
    "StreamIndex",
    "equal_bytes",
    "find_slot",
    "first_candidate",
    "hash64",
    "index_at",
    "insert_slot",
    "prefetch_entry",
    "remove_slot",
]

_ENTRY_BYTES = 8
_MAX_TOUCHED_BYTES = 32 * 2**20
_LOW_32 = 0xFFFFFFFF
_LOW_31 = 0x7FFFFFFF
# FNV-1a and MurmurHash3's fmix64; as signed numbers, for compiled integers are int64.
_FNV_OFFSET = 0xCBF29CE484222325 - 2**64
_FNV_PRIME = 0x100000001B3
_FMIX_1 = 0xFF51AFD7ED558CCD - 2**64
_FMIX_2 = 0xC4CEB9FE1A85EC53 - 2**64


class IndexStruct(Struct):
    """What the compiled functions of this module take as ``index``."""

    table: I64  # address of the entries
    mask: I64  # their number, less 1
    headers: I64  # address of the table of headers that the slots number


index_at = pointer_to(IndexStruct)


class StreamIndex:
    """The memory of an index.

    Parameters
    ----------
    max_slots : int
        The most slots that will be in the index at once, at most 2**31 - 1.
    headers : int
        Address of the table of headers that the slots number.
    struct : IndexStruct, optional
        Filled; by default one of its own.

    Attributes
    ----------
    struct : IndexStruct
    num_bytes : int
        The size of its table.
    """

    def __init__(self, max_slots: int, headers: int, struct: Any = None) -> None:
        num_entries = 1 << max(4, (2 * max_slots - 1).bit_length())
        self.num_bytes = num_entries * _ENTRY_BYTES
        self._table = reserve(self.num_bytes, huge_pages=True)
        touch(self._table, _MAX_TOUCHED_BYTES)  # its entries lie anywhere in it from the start on
        self.struct = IndexStruct.one() if struct is None else struct
        self.struct["table"] = address_of(self._table)
        self.struct["mask"] = num_entries - 1
        self.struct["headers"] = headers


@jit
def _table_of(index: IndexStruct) -> Any:
    return int64_array(index.table, index.mask + 1)


@jit
def hash64(id_at: int, num_bytes: int) -> int:
    """Hash canonical id bytes as the protocol says: the 64 bits as a signed number."""
    value = _FNV_OFFSET
    for k in range(num_bytes):
        value = (value ^ load_u8(id_at + k)) * _FNV_PRIME
    value = (value ^ ((value >> 33) & _LOW_31)) * _FMIX_1
    value = (value ^ ((value >> 33) & _LOW_31)) * _FMIX_2
    return value ^ ((value >> 33) & _LOW_31)


@jit
def equal_bytes(a: int, b: int, num_bytes: int) -> bool:
    """Tell whether two pieces of memory hold the same bytes."""
    k = 0
    while k + 8 <= num_bytes:
        if load_i64(a + k) != load_i64(b + k):
            return False
        k += 8
    while k < num_bytes:
        if load_u8(a + k) != load_u8(b + k):
            return False
        k += 1
    return True


@jit
def prefetch_entry(index: IndexStruct, hash_value: int) -> None:
    """Prefetch the cache line where a search begins."""
    place = hash_value & index.mask
    prefetch(index.table + place * _ENTRY_BYTES)


@jit
def first_candidate(index: IndexStruct, hash_value: int) -> int:
    """Return an id's very probable slot, from its hash alone; -1: certainly none."""
    table, mask = _table_of(index), index.mask
    place = hash_value & mask
    while True:
        entry = table[place]
        if entry == 0:
            return -1
        if (entry >> 32) & _LOW_32 == hash_value & _LOW_32:
            return (entry & _LOW_32) - 1
        place = (place + 1) & mask


@jit
def find_slot(index: IndexStruct, hash_value: int, id_at: int, num_bytes: int) -> int:
    """Return the slot of a canonical id with this hash; -1 if there is none."""
    table, mask = _table_of(index), index.mask
    place = hash_value & mask
    while True:
        entry = table[place]
        if entry == 0:
            return -1
        if (entry >> 32) & _LOW_32 == hash_value & _LOW_32:
            slot = (entry & _LOW_32) - 1
            header = header_at(index.headers + slot * HEADER_BYTES)
            if id_size(header) == num_bytes and equal_bytes(id_address(header), id_at, num_bytes):
                return slot
        place = (place + 1) & mask


@jit
def insert_slot(index: IndexStruct, hash_value: int, slot: int) -> None:
    """Enter a slot whose header holds its id, which is not in the index yet."""
    table, mask = _table_of(index), index.mask
    place = hash_value & mask
    while table[place] != 0:
        place = (place + 1) & mask
    table[place] = (hash_value << 32) | (slot + 1)


@jit
def remove_slot(index: IndexStruct, hash_value: int, slot: int) -> bool:
    """Remove a slot from the index; tell whether it was there."""
    table, mask = _table_of(index), index.mask
    wanted = (hash_value << 32) | (slot + 1)
    hole = hash_value & mask
    while table[hole] != wanted:
        if table[hole] == 0:
            return False
        hole = (hole + 1) & mask
    place = hole
    while True:
        place = (place + 1) & mask
        entry = table[place]
        if entry == 0:
            break
        home = (entry >> 32) & mask
        # An entry may move back to the hole unless it would then stand before its home.
        if (place - home) & mask >= (place - hole) & mask:
            table[hole] = entry
            hole = place
    table[hole] = 0
    return True
