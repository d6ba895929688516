"""The journal of inputs: segments of groups of entries, as docs/STATE.md states it.

A group is what one fdatasync makes durable. Groups count on from segment to segment, so that one
that is missing is told from one that was never written. A group that could not be synced is written
again, into the next segment, with its number; so nothing follows what a crash or a failure has torn
in a segment, and a bad group before a good one is damage.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence, Set
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from isal.isal_zlib import crc32

from streamrnn.errors import RecordError, StoreError
from streamrnn.kernels.structs import I16, I32, I64, U8, Struct
from streamrnn.state.record import check_id

__all__ = [
    "ENTRY_HEAD",
    "GROUP_HEAD_BYTES",
    "JOURNAL_DIRECTORY",
    "ChangeKind",
    "Entry",
    "EntryHead",
    "Group",
    "Segment",
    "SegmentHead",
    "SegmentWriter",
    "delete_segment",
    "encode_entry",
    "entries_of",
    "leave_in_segment",
    "read_journal",
    "remove_unfinished",
    "segment_paths",
    "sync_directory",
]

JOURNAL_DIRECTORY = "journal"  # in a state directory
_SEGMENT_NAME = re.compile(r"\d{10}-\d{5}-\d{10}\.journal", re.ASCII)
_NEW_SUFFIX = ".new"  # of a segment that takes another's place
_MAGIC, _GROUP_MAGIC, _VERSION = b"SRNJ", b"SRNG", 1
_HEAD = struct.Struct("<4sHHIIqqII")  # magic, version, shard, bytes, models, epoch, number, ...
_GROUP_HEAD = struct.Struct("<4sIqqqII")  # magic, entries, bytes, place, sequence, CRC, 0
ENTRY_HEAD = struct.Struct("<iHBBqqq")  # data's bytes, model, kind, id's bytes, and the numbers
GROUP_HEAD_BYTES = _GROUP_HEAD.size
_CHECKSUM_BYTES = 4
_MAX_HEAD_BYTES = 2**24
_FILE_MODE = 0o600


class ChangeKind(IntEnum):
    """What was done to a stream."""

    OPEN = 1  # `seq` is log2 of the window, `data` the owner's name
    STEP = 2  # `data` is x
    RESET = 3
    CLOSE = 4
    OWNER = 5  # `data` is the name of who has it now


class EntryHead(Struct):
    """What an entry begins with, `ENTRY_HEAD`, for compiled code."""

    data_bytes: I32
    model: I16
    kind: U8
    id_bytes: U8
    incarnation: I64
    num_changes: I64
    seq: I64


class Entry(NamedTuple):
    """One change of one stream.

    Attributes
    ----------
    kind : int
        An `ChangeKind`.
    model : int
        Index in the segment's models.
    stream : bytes
        The canonical id.
    incarnation, num_changes : int
        The stream's own, after the change.
    seq : int
        The step's number; 0 if it has none.
    data : bytes
    """

    kind: int
    model: int
    stream: bytes
    incarnation: int
    num_changes: int
    seq: int
    data: bytes


class SegmentHead(NamedTuple):
    """What a segment says about itself.

    Attributes
    ----------
    epoch, shard, number : int
        Its place.
    arithmetic : str
        What has computed the steps.
    models : tuple of (str, str)
        Name and fingerprint of each.
    """

    epoch: int
    shard: int
    number: int
    arithmetic: str
    models: tuple[tuple[str, str], ...]

    @property
    def file_name(self) -> str:
        """Of its segment; names are ordered as segments were made."""
        return f"{self.epoch:010}-{self.shard:05}-{self.number:010}.journal"


class Group(NamedTuple):
    """What one fdatasync has made durable: entries, as `entries_of` reads them."""

    sequence: int
    num_entries: int
    entries: memoryview


class Segment(NamedTuple):
    """A segment that was read. ``num_torn`` bytes at its end are of no group."""

    path: Path
    head: SegmentHead
    groups: list[Group]
    num_torn: int


def _padded(num_bytes: int) -> int:
    return (num_bytes + 7) // 8 * 8


def encode_entry(entry: Entry) -> bytes:
    """Write an entry; the server's compiled code does the same.

    Returns
    -------
    bytes
        A multiple of 8 of them.
    """
    kind, model, stream, incarnation, num_changes, seq, data = entry
    sizes = len(data), model, kind, len(stream)
    parts = [ENTRY_HEAD.pack(*sizes, incarnation, num_changes, seq)]
    parts += [stream, bytes(-len(stream) % 8), data, bytes(-len(data) % 8)]
    return b"".join(parts)


def entries_of(group: Group, num_models: int) -> Iterator[Entry]:
    """Read the entries of a group.

    Raises
    ------
    StoreError
        If something is in it that no server writes.
    """
    data, at = group.entries, 0
    for _ in range(group.num_entries):
        if at + ENTRY_HEAD.size > len(data):
            raise StoreError(f"group {group.sequence} ends within an entry")
        num_bytes, model, kind, id_bytes, incarnation, num_changes, seq = ENTRY_HEAD.unpack_from(
            data, at
        )
        begin = at + ENTRY_HEAD.size
        x = begin + _padded(id_bytes)
        at = x + _padded(num_bytes)
        if (
            num_bytes < 0
            or at > len(data)
            or not ChangeKind.OPEN <= kind <= ChangeKind.OWNER
            or model >= num_models
            or min(incarnation, num_changes, seq) < 0
        ):
            raise StoreError(f"group {group.sequence} has an entry that no server writes")
        stream = bytes(data[begin : begin + id_bytes])
        try:
            check_id(stream)
        except RecordError as error:
            raise StoreError(f"group {group.sequence}: {error}") from error
        yield Entry(
            kind, model, stream, incarnation, num_changes, seq, bytes(data[x : x + num_bytes])
        )
    if at != len(data):
        raise StoreError(f"group {group.sequence} has {len(data) - at} bytes behind its entries")


def _encode_head(head: SegmentHead) -> bytes:
    texts = [head.arithmetic.encode()]
    for name, fingerprint in head.models:
        texts += [bytes.fromhex(fingerprint), struct.pack("<I", len(name.encode())), name.encode()]
    body = b"".join(texts)
    num_bytes = _padded(_HEAD.size + len(body) + _CHECKSUM_BYTES)
    numbers = (head.shard, num_bytes, len(head.models), head.epoch, head.number)
    data = _HEAD.pack(_MAGIC, _VERSION, *numbers, len(head.arithmetic.encode()), 0) + body
    data = data.ljust(num_bytes - _CHECKSUM_BYTES, b"\0")
    return data + crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def _decode_head(data: memoryview) -> tuple[SegmentHead, int] | None:
    """Read a segment's head and its length; None if it is not whole."""
    if len(data) < _HEAD.size:
        return None
    magic, version, shard, num_bytes, num_models, epoch, number, length, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or not _HEAD.size < num_bytes <= min(len(data), _MAX_HEAD_BYTES):
        return None
    body = data[: num_bytes - _CHECKSUM_BYTES]
    if crc32(body) != int.from_bytes(data[len(body) : num_bytes], "little"):
        return None
    if version != _VERSION:
        raise StoreError(f"it has version {version}; {_VERSION} is known")
    at = _HEAD.size
    try:
        arithmetic = str(body[at : at + length], "utf-8")
        at += length
        models = []
        for _ in range(num_models):
            fingerprint = bytes(body[at : at + 32])
            (length,) = struct.unpack_from("<I", body, at + 32)
            at += 36 + length
            models.append((str(body[at - length : at], "utf-8"), fingerprint.hex()))
            if at > len(body):
                raise StoreError("its head ends within a model's name")
    except (struct.error, UnicodeDecodeError) as error:
        raise StoreError(f"its head cannot be read: {error}") from error
    return SegmentHead(epoch, shard, number, arithmetic, tuple(models)), num_bytes


class SegmentWriter:
    """A segment being written; after an error of any of its methods it must not be used any more.

    Attributes
    ----------
    path : Path
    num_bytes : int

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, directory: Path, head: SegmentHead, path: Path | None = None) -> None:
        self.path = directory / head.file_name if path is None else path
        data = _encode_head(head)
        self._seed = int.from_bytes(data[-_CHECKSUM_BYTES:], "little")
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        self.num_bytes = 0
        try:
            self._write([data])
            sync_directory(directory)
        except BaseException:
            self.close()
            raise

    def append(self, sequence: int, num_entries: int, entries: memoryview | bytes) -> None:
        """Make a group durable.

        Raises
        ------
        OSError
            If it may not be.
        """
        self.write_group(sequence, num_entries, entries)
        self.sync()

    def write_group(self, sequence: int, num_entries: int, entries: memoryview | bytes) -> None:
        """Write a group that is durable only when `sync` has returned; raises OSError."""
        num_bytes = GROUP_HEAD_BYTES + len(entries)
        numbers = _GROUP_MAGIC, num_entries, num_bytes, self.num_bytes, sequence
        checksum = crc32(entries, crc32(_GROUP_HEAD.pack(*numbers, 0, 0), self._seed))
        self._write([_GROUP_HEAD.pack(*numbers, checksum, 0), entries])

    def sync(self) -> None:
        """Make what was written durable; raises OSError if it may not be."""
        os.fdatasync(self._file)

    def _write(self, parts: Sequence[memoryview | bytes]) -> None:
        left = [memoryview(part) for part in parts]
        while left:
            done = os.writev(self._file, left)
            self.num_bytes += done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if left:
                left[0] = left[0][done:]

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def sync_directory(directory: Path) -> None:
    """Make what was made in or taken out of a directory durable."""
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def delete_segment(path: Path) -> None:
    """Delete a segment, before any that comes after it.

    If the next one went first in a crash, a stream could be left opened that was closed there.
    """
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def leave_in_segment(segment: Segment, streams: Set[bytes]) -> None:
    """Leave in a segment on disk only what was done to some streams; its groups keep their places.

    After a crash the file is what it was before, or what it was to be.

    Raises
    ------
    OSError
        If it cannot be written; nothing is changed then.
    StoreError
        As `entries_of` does.
    """
    num_models = len(segment.head.models)
    path = segment.path.with_suffix(_NEW_SUFFIX)
    left = SegmentWriter(segment.path.parent, segment.head, path)
    try:
        for group in segment.groups:
            entries = [each for each in entries_of(group, num_models) if each.stream in streams]
            left.write_group(group.sequence, len(entries), b"".join(map(encode_entry, entries)))
        left.sync()
        path.replace(segment.path)
        sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        left.close()


def remove_unfinished(directory: Path) -> None:
    """Delete what a crash has left of `leave_in_segment`."""
    for path in directory.glob(f"*{_NEW_SUFFIX}"):
        path.unlink()


def segment_paths(directory: Path) -> list[Path]:
    """Return a journal's segments, in the order in which they were made; none if there is none."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _SEGMENT_NAME.fullmatch(path.name))


def read_journal(directory: Path) -> Iterator[Segment]:
    """Read a journal, one segment at a time.

    Yields
    ------
    Segment
        In order; those without a whole head, of a crash before anything was in them, are left out.

    Raises
    ------
    StoreError
        If it is damaged: a group is bad before a good one, or missing.
    """
    place, last = (-1, -1), -1
    for path in segment_paths(directory):
        try:
            segment = _read_segment(path)
            if segment is None:
                continue
            if place != (segment.head.epoch, segment.head.shard):
                place, last = (segment.head.epoch, segment.head.shard), -1
            for k, group in enumerate(segment.groups):
                # The first may be the one that could not be synced in the segment before.
                is_next = group.sequence == last + 1 or (k == 0 and group.sequence == last)
                if last >= 0 and not is_next:
                    raise StoreError(f"group {group.sequence} follows on group {last}")
                last = group.sequence
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        except StoreError as error:
            raise StoreError(
                f"the journal is damaged: {path}: {error}. Nothing is dropped: restore it from a "
                f"copy, or move {path.parent} away to begin without the steps in it"
            ) from error
        yield segment


def _read_segment(path: Path) -> Segment | None:
    content = path.read_bytes()
    data = memoryview(content)
    found = _decode_head(data)
    if found is None:
        if _GROUP_MAGIC in content:
            raise StoreError("its head is torn or changed, and groups follow it")
        return None
    head, at = found
    if head.file_name != path.name:
        raise StoreError(f"it is {head.file_name}")
    seed = int.from_bytes(data[at - _CHECKSUM_BYTES : at], "little")
    groups: list[Group] = []
    while (group := _group_at(data, at, seed)) is not None:
        groups.append(group)
        at += GROUP_HEAD_BYTES + len(group.entries)
    later = at
    while (later := content.find(_GROUP_MAGIC, later + 1)) >= 0:
        if _group_at(data, later, seed) is not None:
            raise StoreError(f"the group at {at} is torn or changed, and a good one is at {later}")
    return Segment(path, head, groups, len(data) - at)


def _group_at(data: memoryview, at: int, seed: int) -> Group | None:
    """Read the group at a place; None if none is there as it was written."""
    if at + GROUP_HEAD_BYTES > len(data):
        return None
    magic, num_entries, num_bytes, place, sequence, checksum, _ = _GROUP_HEAD.unpack_from(data, at)
    is_whole = GROUP_HEAD_BYTES <= num_bytes <= len(data) - at
    if magic != _GROUP_MAGIC or place != at or sequence < 0 or not is_whole:
        return None
    entries = data[at + GROUP_HEAD_BYTES : at + num_bytes]
    numbers = magic, num_entries, num_bytes, place, sequence
    if crc32(entries, crc32(_GROUP_HEAD.pack(*numbers, 0, 0), seed)) != checksum:
        return None
    return Group(sequence, num_entries, entries)
