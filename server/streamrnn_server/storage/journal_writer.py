"""Journal thread: makes a shard's groups of entries durable, and drops segments that are done with.

A segment has what was appended between two checkpoints, and a little before. When a checkpoint has
ended well, records have all that was appended before it began; segments that end there are deleted,
the oldest first.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zmq

from streamrnn.state.journal import SegmentHead, SegmentWriter, delete_segment
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.memory.journal import GroupAck, JournalOrder
from streamrnn_server.worker import DISK_PATIENCE_S, OnFailure, Worker

__all__ = ["JournalWriter"]

_MAX_SEGMENT_BYTES = 64 * 2**20
_MAX_JOURNAL_BYTES = 2**30  # of a shard; then it waits for a checkpoint
_LARGE_JOURNAL_BYTES = 2**28  # then a checkpoint is asked for
_MAX_RETRY_S = 1.0
_POLL_MS = 100


class _Order(NamedTuple):
    """What a shard has sent: a `JournalOrder`."""

    num_bytes: int
    at: int
    num_entries: int
    end: int
    began_at: int


class _Closed(NamedTuple):
    """A segment that nothing more is written to."""

    path: Path
    end: int
    num_bytes: int


class JournalWriter:
    """Writes one shard's journal.

    Attributes
    ----------
    read_only : str or None
        Why it cannot be written just now.
    num_groups, num_bytes : int
        What has been written.
    models : tuple
        What its segments say of models, as `SegmentHead` has it: the arithmetic, and which they
        are. Another thread may set it.
    """

    def __init__(
        self,
        directory: Path,
        head: SegmentHead,
        socket: zmq.Socket[bytes],
        log: EventLog,
        retry_s: float,
        make_segment: Callable[[Path, SegmentHead], SegmentWriter] = SegmentWriter,
    ) -> None:
        self.read_only: str | None = None
        self.num_groups = self.num_bytes = 0
        self._directory, self._head, self._socket, self._log = directory, head, socket, log
        self.models = head.arithmetic, head.models
        self._retry_s = min(retry_s, _MAX_RETRY_S)
        self._make_segment = make_segment
        self._closed: list[_Closed] = []
        self._segment: SegmentWriter | None = None
        self._first = self._end = 0  # entries before the segment, and up to its last good group
        self._sequence = 0
        self._pending: _Order | None = None
        self._covered = 0
        self._retry_at_s = 0.0
        self._has_ended = threading.Event()
        self.worker = Worker(f"journal-{head.shard}", self._serve, DISK_PATIENCE_S)

    def start(self, on_failure: OnFailure) -> None:
        """Begin; ``on_failure`` is called if the thread ends by an exception."""
        self.worker.start(on_failure)

    def stop(self) -> None:
        """End, after the shard has: what it has sent is done before, if the disk lets it."""
        self._has_ended.set()
        self.worker.join()
        self._drop(self._covered)  # also a segment that nothing was written to
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _serve(self) -> None:
        while not self._has_ended.is_set():
            self._socket.poll(_POLL_MS)
            self.worker.beat()
            self.turn()
        self.turn()

    def turn(self) -> None:
        """Do what has come, and try again what has failed."""
        try:
            while True:
                order = _Order(*np.frombuffer(self._socket.recv(zmq.DONTWAIT), _DTYPE)[0].item())
                if order.num_bytes > 0:
                    self._pending, self._retry_at_s = order, 0.0
                else:
                    self._drop(order.end)
        except zmq.Again:
            pass
        if time.monotonic() < self._retry_at_s:
            return
        if self._pending is not None:
            self._write(self._pending)
        elif self.read_only is not None:
            self._probe()

    def _write(self, order: _Order) -> None:
        try:
            self._append(order)
        except OSError as error:
            self._give_up_segment()
            self._fail(error.strerror or str(error))
            return
        self._acknowledge(order)
        self._succeed()

    def _probe(self) -> None:
        """Look whether the journal can be written again, when there is nothing to write."""
        try:
            self._begin_segment(self._covered)
            assert self._segment is not None
            self._segment.sync()
        except OSError as error:
            self._give_up_segment()
            self._fail(error.strerror or str(error))
        else:
            self._succeed()

    def _append(self, order: _Order) -> None:
        segment = self._segment
        is_old = order.began_at > self._first
        is_old |= self.models != (self._head.arithmetic, self._head.models)
        if segment is not None and (is_old or segment.num_bytes > _MAX_SEGMENT_BYTES):
            self._close_segment()
        if self._segment is None:
            if self._closed_bytes() > _MAX_JOURNAL_BYTES:
                raise OSError(0, "the journal has reached its largest size")
            self._begin_segment(order.end - order.num_entries)
            assert self._segment is not None
        entries = memoryview((ctypes.c_char * order.num_bytes).from_address(order.at)).cast("B")
        self._segment.append(self._sequence, order.num_entries, entries)
        self._sequence += 1
        self._end = order.end
        self.num_groups += 1
        self.num_bytes += order.num_bytes

    def _begin_segment(self, first: int) -> None:
        arithmetic, models = self.models
        self._head = SegmentHead(
            self._head.epoch, self._head.shard, self._head.number + 1, arithmetic, models
        )
        self._first = self._end = first
        self._segment = self._make_segment(self._directory, self._head)

    def _closed_bytes(self) -> int:
        return sum(closed.num_bytes for closed in self._closed)

    def _acknowledge(self, order: _Order) -> None:
        self._pending = None
        self._tell(order.end, True, self._closed_bytes() > _LARGE_JOURNAL_BYTES)

    def _tell(self, end: int, is_done: bool, needs_checkpoint: bool) -> None:
        ack = np.array([(end, is_done, needs_checkpoint)], GroupAck.dtype)
        self._socket.send(ack.tobytes())

    def _close_segment(self) -> None:
        segment = self._segment
        if segment is not None:
            segment.close()
            self._closed.append(_Closed(segment.path, self._end, segment.num_bytes))
            self._segment = None

    def _give_up_segment(self) -> None:
        """Write to a segment no more in which a group may not be on disk, or not whole.

        After an error of fdatasync, a later one that succeeds says nothing of what was written
        before.
        """
        is_empty = self._end == self._first
        path = self._directory / self._head.file_name
        self._close_segment()
        if is_empty:  # no group of it was acknowledged, or it could not even be made
            self._closed = [closed for closed in self._closed if closed.path != path]
            try:
                path.unlink(missing_ok=True)
            except OSError:
                self._closed.append(_Closed(path, self._end, 0))

    def _drop(self, covered: int) -> None:
        """Delete the segments whose entries are all in records."""
        self._covered = covered
        if self._segment is not None and self._end <= covered:
            self._close_segment()
        try:
            while self._closed and self._closed[0].end <= covered:
                delete_segment(self._closed[0].path)
                self._closed.pop(0)
        except OSError as error:  # it is tried again after the next checkpoint
            self._log.write(
                "warning",
                "a segment of the journal cannot be deleted",
                directory=self._directory,
                reason=os.strerror(error.errno or 0),
            )
        if self._pending is not None:
            self._retry_at_s = 0.0
            if self._pending.end <= covered:
                self._acknowledge(self._pending)

    def _succeed(self) -> None:
        if self.read_only is not None:
            self.read_only = None
            self._log.write("info", "the journal can be written again")

    def _fail(self, reason: str) -> None:
        self._retry_at_s = time.monotonic() + self._retry_s
        if self._pending is not None:  # with no group on its way the shard does not listen
            self._tell(0, False, True)
        if reason != self.read_only:
            self._log.write(
                "error",
                "the journal cannot be written: replies wait for checkpoints",
                directory=self._directory,
                reason=reason,
            )
        self.read_only = reason


_DTYPE = JournalOrder.dtype
