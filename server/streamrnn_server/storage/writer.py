"""Writer thread: turns checkpoint entries into records and commits them to LMDB."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

from streamrnn.errors import StoreError
from streamrnn.kernels.virtual_memory import address_of, reserve
from streamrnn.state.store import SNAPSHOTS, STREAMS, Change, StateStore, snapshot_key
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.checkpoint.packing import (
    EntryKind,
    Templates,
    pack_entries,
    part_bytes,
    seal,
    table_of_entries,
)
from streamrnn_server.storage.disk_reserve import DiskReserve
from streamrnn_server.storage.durations import Durations
from streamrnn_server.storage.expiry import Expiry
from streamrnn_server.storage.usage import DiskUsage
from streamrnn_server.worker import DISK_PATIENCE_S, OnFailure, Worker

__all__ = ["CheckpointWriter", "Committed"]

# Records are longer than their entries by no more than this, besides their names.
_MAX_GROWTH_BYTES = 96
_MIN_ENTRY_BYTES = 112
_EXPIRE_EVERY_S = 1.0


class Committed:
    """What another thread wants to be on disk, and whether it is.

    Attributes
    ----------
    is_done : bool
        Whether it was tried.
    error : str or None
        Why nothing of it is on disk.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes
        self.error: str | None = None
        self.is_done = False

    @property
    def has_succeeded(self) -> bool:
        """Whether all of it is on disk."""
        return self.is_done and self.error is None


class _Part(NamedTuple):
    """A write buffer that a shard has sent."""

    shard: int
    number: int
    address: int
    num_bytes: int
    num_entries: int


class CheckpointWriter:
    """Commits what the shards send, all that has come at once, and acknowledges it.

    Attributes
    ----------
    read_only : str or None
        Why the directory cannot be written just now.
    num_commits, num_bytes : int
        What has been written.
    last_commit_s : float
        How long the last commit took, from its first record to the disk.
    committed_at_s : float
        When that was, on the monotonic clock; before the first one, when the server started.
    commit_times : Durations
        Of all commits that have succeeded.
    began_at_s : float or None
        When the commit that is under way began.
    """

    def __init__(
        self,
        store: StateStore,
        templates: Templates,
        disks: Sequence[zmq.Socket[bytes]],
        expiry: Expiry,
        log: EventLog,
        usage: DiskUsage | None = None,
        disk_reserve: DiskReserve | None = None,
    ) -> None:
        self.read_only: str | None = None
        self.num_commits = 0
        self.num_bytes = 0
        self.last_commit_s = 0.0
        self.commit_times = Durations()
        self.committed_at_s = time.monotonic()
        self.began_at_s: float | None = None
        self._store, self._templates, self._disks = store, templates, disks
        self._expiry, self._log, self._usage = expiry, log, usage
        self._disk_reserve = disk_reserve
        self._look_at_s = time.monotonic() + _EXPIRE_EVERY_S
        self._others: deque[Committed] = deque()
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._has_ended = threading.Event()
        self.worker = Worker("saver", self._serve, DISK_PATIENCE_S)
        # The most that a commit packs at once: what one shard may have on its way, in one go.
        growth = _MAX_GROWTH_BYTES + templates.max_text_bytes
        most = w.NUM_DISK_BUFFERS * w.DISK_BUFFER_BYTES
        self._records = reserve(most + most // _MIN_ENTRY_BYTES * growth)
        self._table: NDArray[np.int64] = np.zeros((0, 6), np.int64)

    def start(self, on_failure: OnFailure) -> None:
        """Begin; ``on_failure`` is called if the thread ends by an exception."""
        self.worker.start(on_failure)

    def stop(self) -> None:
        """End, when the shards have ended and nothing is on its way."""
        self._has_ended.set()
        self.worker.join()
        self._woken.close()
        self._wake.close()

    def commit_too(self, changes: Sequence[Change]) -> Committed:
        """Make changes durable, all of them or none, soon; from any thread."""
        committed = Committed(changes)
        self._others.append(committed)
        with contextlib.suppress(OSError):  # it was woken often enough
            self._wake.send(b"\0", socket.MSG_DONTWAIT)
        return committed

    def _serve(self) -> None:
        poller = zmq.Poller()
        for disk in (*self._disks, self._woken):
            poller.register(disk, zmq.POLLIN)
        while not self._has_ended.is_set():
            poller.poll(100)
            self.worker.beat()
            self.turn()

    def turn(self) -> None:
        """Write what has come; if nothing has, look now and then for what has expired."""
        self._commit_others()
        parts = [part for k, disk in enumerate(self._disks) for part in _receive(k, disk)]
        if parts:
            self._write(parts)
        elif time.monotonic() >= self._look_at_s:
            self._look_at_s = time.monotonic() + _EXPIRE_EVERY_S
            self._expire()

    def _commit_others(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        others = [self._others.popleft() for _ in range(len(self._others))]
        if not others:
            return
        try:
            self._commit([change for each in others for change in each.changes])
        except Exception:  # one may be bad: it keeps no other from the disk
            for each in others:
                self._commit_alone(each)
        if any(each.error is None for each in others):
            self._succeed()
        for each in others:
            each.is_done = True

    def _commit_alone(self, other: Committed) -> None:
        self.worker.beat()
        try:
            self._commit(other.changes)
        except StoreError as error:
            other.error = str(error)
            if self.read_only != other.error:  # said once, and not for each
                self._fail(other.error)
        except Exception as error:  # a fault of ours: what shards have sent is still written
            self._log.write_fault("what is drained cannot be written", error)
            other.error = f"a fault of the server's own ({type(error).__name__})"

    def _write(self, parts: list[_Part]) -> None:
        """Commit what has come; if it cannot be, say so to the shards, which keep it."""
        self.began_at_s = began_s = time.monotonic()
        is_good = True
        try:
            try:
                self._commit(self._changes(parts))
            except StoreError:
                if self._disk_reserve is None or not self._disk_reserve.release():
                    raise
                self._commit(self._changes(parts))
        except StoreError as error:
            is_good = False
            self._fail(str(error))
        except Exception as error:  # a fault of ours: the shards keep what they have sent
            is_good = False
            self._log.write_fault("a checkpoint failed", error)
            self._fail(f"a fault of the server's own ({type(error).__name__})")
        else:
            self.num_commits += 1
            self.committed_at_s = time.monotonic()
            self.last_commit_s = self.committed_at_s - began_s
            self.commit_times.note(self.last_commit_s)
            self._succeed()
            if self._disk_reserve is not None:
                self._disk_reserve.hold()
        self.began_at_s = None
        for part in parts:
            answer = np.array([(part.number, is_good)], w.BufferAck.dtype)
            self._disks[part.shard].send(answer.tobytes())

    def _commit(self, changes: Iterable[Change]) -> None:
        if self._usage is None:
            self._store.commit(changes, self._expiry.now_s())
        else:
            self._usage.commit(self._store, changes, self._expiry.now_s())

    def _changes(self, parts: list[_Part]) -> Iterator[Change]:
        for part in parts:
            yield from self._changes_of(part)

    def _changes_of(self, part: _Part) -> Iterator[Change]:
        if len(self._table) < part.num_entries:
            self._table = np.zeros((part.num_entries, 6), np.int64)
        templates = self._templates.address
        total = table_of_entries(part.address, part.num_entries, templates, self._table)
        if total > len(self._records):
            self._records = reserve(total)
        out = address_of(self._records)
        pack_entries(part.address, part.num_entries, templates, self._expiry.now_s(), out)
        self.num_bytes += total
        entries = memoryview((ctypes.c_char * part.num_bytes).from_address(part.address)).cast("B")
        records = self._records.data
        listed = [
            (bytes(entries[at : at + id_bytes]), kind, at + part_bytes(id_bytes), *rest)
            for kind, at, id_bytes, *rest in self._table[: part.num_entries].tolist()
        ]
        listed.sort(key=itemgetter(0))  # neighbours in the file are written one after the other
        for key, kind, at, name_bytes, begin, length in listed:
            if kind == EntryKind.DELETE:
                yield STREAMS, key, None
                continue
            record = records[begin : begin + length]
            seal(record)
            yield STREAMS, key, record
            if kind == EntryKind.SNAPSHOT:
                name = bytes(entries[at : at + name_bytes])
                yield SNAPSHOTS, snapshot_key(key, name), record

    def _expire(self) -> None:
        try:
            changes = self._expiry.due(self._store)
            if changes:
                self._commit(changes)
        except StoreError as error:
            self._fail(str(error))
        except Exception as error:  # a fault of ours; it is tried again
            self._log.write_fault("expired streams cannot be deleted", error)

    def _fail(self, reason: str) -> None:
        self.read_only = reason
        self._log.write(
            "error",
            "the state cannot be written: serving goes on, durable_seq stands still",
            directory=self._store.directory,
            reason=reason,
        )

    def _succeed(self) -> None:
        if self.read_only is not None:
            self.read_only = None
            self._log.write("info", "the state can be written again")


def _receive(shard: int, disk: zmq.Socket[bytes]) -> Iterator[_Part]:
    try:
        while True:
            sent = np.frombuffer(disk.recv(zmq.DONTWAIT), w.SentBuffer.dtype, 1)
            yield _Part(shard, *sent[0].item())
    except zmq.Again:
        return
