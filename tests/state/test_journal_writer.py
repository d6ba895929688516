"""The thread that writes a shard's journal, turn by turn, on a disk that fails."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from streamrnn.kernels.virtual_memory import address_of
from streamrnn.state.journal import (
    ChangeKind,
    Entry,
    SegmentHead,
    SegmentWriter,
    encode_entry,
)
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.memory.journal import GroupAck, JournalOrder
from streamrnn_server.storage.journal_writer import JournalWriter

HEAD = SegmentHead(7, 3, 0, "cpu", (("m", "ab" * 32),))
ENTRY = np.frombuffer(encode_entry(Entry(ChangeKind.OPEN, 0, b"sa", 1, 1, 2, b"")), np.uint8)


class Shard:
    """A journal's shard: a test says what it sends, and sees what it is told."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.told: list[tuple[int, ...]] = []

    def _order(self, *values: int) -> None:
        self.sent.append(np.array([values], JournalOrder.dtype).tobytes())

    def append(self, end: int) -> None:
        """Send a group of one entry."""
        self._order(len(ENTRY), address_of(ENTRY), 1, end, 0)

    def cover(self, end: int) -> None:
        """Say that records have all entries up to there."""
        self._order(0, 0, 0, end, end)

    def recv(self, flags: int) -> bytes:
        if not self.sent:
            raise zmq.Again
        return self.sent.pop(0)

    def send(self, ack: bytes) -> None:
        self.told.append(tuple(np.frombuffer(ack, GroupAck.dtype)[0].item()))


class Disk:
    """Makes segments, and fails while it is full: some of a segment's head is there then."""

    def __init__(self) -> None:
        self.is_full = False

    def make(self, directory: Path, head: SegmentHead) -> SegmentWriter:
        if self.is_full:
            (directory / head.file_name).write_bytes(b"SRNJ")
            raise OSError(errno.ENOSPC, "No space left on device")
        return SegmentWriter(directory, head)


@pytest.fixture
def parts(tmp_path):
    shard: Any = Shard()
    disk, log = Disk(), EventLog(stream=io.StringIO())
    return shard, disk, JournalWriter(tmp_path, HEAD, shard, log, 0.0, disk.make)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_segment_that_can_be_neither_made_nor_deleted_goes_with_those_before(
    parts, tmp_path, monkeypatch
):
    shard, disk, journal = parts

    def refuse(path, missing_ok=False):
        raise OSError(errno.EIO, "Input/output error")

    disk.is_full = True
    shard.append(1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        journal.turn()
    disk.is_full = False
    journal.turn()
    assert names(tmp_path) == [HEAD._replace(number=k).file_name for k in (1, 2)]
    shard.cover(1)
    journal.turn()
    journal.stop()
    assert names(tmp_path) == []


def test_a_shard_with_nothing_on_its_way_is_told_nothing(parts, tmp_path):
    shard, disk, journal = parts
    disk.is_full = True
    shard.append(1)
    journal.turn()
    assert shard.told == [(0, 0, 1)]
    shard.cover(1)
    journal.turn()
    assert shard.told == [(0, 0, 1), (1, 1, 0)]
    for _ in range(3):
        journal.turn()
        assert journal.read_only == "No space left on device"
    assert len(shard.told) == 2
    disk.is_full = False
    journal.turn()
    assert journal.read_only is None
    journal.stop()
    assert names(tmp_path) == []
