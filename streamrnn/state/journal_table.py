"""The entries of a segment by stream, found by compiled code: what a start replays.

`streamrnn.state.journal.entries_of` is the slow and obvious reader. It judges this one, and words
what is wrong with a group.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import RecordError, StoreError
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.state.journal import (
    ENTRY_HEAD,
    ChangeKind,
    Entry,
    EntryHead,
    Group,
    Segment,
    entries_of,
)
from streamrnn.state.record import check_id

__all__ = [
    "EntryTable",
    "data_of",
    "entry_at",
    "entry_head_at",
    "find_entries",
    "find_lacking",
    "table_of",
]

_HEAD_BYTES = EntryHead.dtype.itemsize
entry_head_at = pointer_to(EntryHead)


class EntryTable(NamedTuple):
    """The entries of a segment; those of one stream side by side, in their order.

    Attributes
    ----------
    streams : list of bytes
        Canonical ids.
    places : ndarray of int64
        Addresses of entries: `entry_at`.
    bounds : list of int
        Those of stream k are ``places[bounds[k]:bounds[k + 1]]``.
    segment : Segment
        Where they lie; kept alive.
    address : int
        Of ``places``.
    """

    streams: list[bytes]
    places: NDArray[np.int64]
    bounds: list[int]
    segment: Segment
    address: int


def table_of(segment: Segment) -> EntryTable:
    """Find the entries of a segment, and check each.

    Raises
    ------
    StoreError
        As `entries_of` does.
    """
    numbers: dict[bytes, int] = {}
    places, streams = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for group in segment.groups:
        found = _places_in(group, len(segment.head.models))
        at = found - _address(group)
        begins = (at + _HEAD_BYTES).tolist()
        ends = (at + _HEAD_BYTES + np.frombuffer(group.entries, np.uint8)[at + 7]).tolist()
        ids = [bytes(group.entries[a:b]) for a, b in zip(begins, ends, strict=True)]
        for stream in ids:
            if stream not in numbers:
                _check_id(stream, group)
                numbers[stream] = len(numbers)
        places.append(found)
        streams.append(np.array([numbers[stream] for stream in ids], np.int64))
    of_stream = np.concatenate(streams)
    bounds = np.cumsum(np.bincount(of_stream, minlength=len(numbers)))
    ordered = np.concatenate(places)[np.argsort(of_stream, kind="stable")]
    return EntryTable(list(numbers), ordered, [0, *bounds.tolist()], segment, address_of(ordered))


def _address(group: Group) -> int:
    return address_of(np.frombuffer(group.entries, np.uint8))


def _places_in(group: Group, num_models: int) -> NDArray[np.int64]:
    """Return the addresses of a group's entries; their ids are not checked."""
    num_bytes, num_entries = len(group.entries), group.num_entries
    if num_entries * _HEAD_BYTES <= num_bytes:
        places = np.empty(num_entries, np.int64)
        args = _address(group), num_bytes, num_models, address_of(places), num_entries
        if find_entries(*args):
            return places
    for _ in entries_of(group, num_models):
        pass
    raise StoreError(f"group {group.sequence} has entries that cannot be read")


def _check_id(stream: bytes, group: Group) -> None:
    try:
        check_id(stream)
    except RecordError as error:
        raise StoreError(f"group {group.sequence}: {error}") from error


@jit
def find_entries(
    begin: int, num_bytes: int, num_models: int, places: int, num_entries: int
) -> bool:
    """Store the address of each entry; tell whether they are all there, and nothing else is.

    Then id and data of each lie within the group, and no number in it is out of its range.
    """
    found, end, at = int64_array(places, num_entries), begin + num_bytes, begin
    for k in range(num_entries):
        if end - at < _HEAD_BYTES:
            return False
        head = entry_head_at(at)
        x = data_of(at)
        if (
            head.data_bytes < 0
            or end - x < (head.data_bytes + 7) // 8 * 8
            or head.kind < ChangeKind.OPEN
            or head.kind > ChangeKind.OWNER
            or head.model & 0xFFFF >= num_models
            or head.incarnation < 0
            or head.num_changes < 0
            or head.seq < 0
        ):
            return False
        found[k] = at
        at = x + (head.data_bytes + 7) // 8 * 8
    return at == end


@jit
def data_of(place: int) -> int:
    """Return the address of an entry's data: behind its id."""
    return place + _HEAD_BYTES + (entry_head_at(place).id_bytes + 7) // 8 * 8


def entry_at(place: int) -> Entry:
    """Read an entry that was found."""
    place = int(place)
    head = ENTRY_HEAD.unpack(ctypes.string_at(place, _HEAD_BYTES))
    num_bytes, model, kind, id_bytes, incarnation, num_changes, seq = head
    stream = ctypes.string_at(place + _HEAD_BYTES, id_bytes)
    data = ctypes.string_at(place + _HEAD_BYTES + (id_bytes + 7) // 8 * 8, num_bytes)
    return Entry(kind, model, stream, incarnation, num_changes, seq, data)


@jit
def find_lacking(
    places: int, num_entries: int, incarnation: int, num_changes: int
) -> tuple[int, bool, bool]:
    """Move to the front what a record lacks of a stream's entries that has come so far.

    Where a stream is opened in them, its own are left: those before are of streams now closed.

    Returns
    -------
    num_lacking : int
    is_opened : bool
        Whether the first of them opens it.
    is_whole : bool
        Whether each change follows on the one before, and the first on the record.
    """
    entries, left, is_opened = int64_array(places, num_entries), 0, False
    for k in range(num_entries):
        entry = entry_head_at(entries[k])
        if _is_above(entry.incarnation, entry.num_changes, incarnation, num_changes):
            if entry.kind == ChangeKind.OPEN and entry.num_changes == 1:
                is_opened, left = True, 0
            entries[left] = entries[k]
            left += 1
    if left == 0:
        return 0, False, True
    last = entry_head_at(entries[left - 1])
    is_whole, reached = is_opened or last.incarnation == incarnation, num_changes
    if is_opened:
        reached = 0
    for k in range(left):
        entry = entry_head_at(entries[k])
        is_same = entry.incarnation == last.incarnation and entry.model == last.model
        is_whole = is_whole and is_same and entry.num_changes <= reached + 1
        reached = max(reached, entry.num_changes)  # a group may be there twice
    return left, is_opened, is_whole


@jit
def _is_above(incarnation: int, num_changes: int, reached: int, num_reached: int) -> bool:
    """Tell whether a record that has reached an incarnation and a change lacks an entry."""
    return incarnation > reached or (incarnation == reached and num_changes > num_reached)
