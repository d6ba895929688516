"""One life of the real server, without threads, sockets or real time.

The shards' loop is the machine code that serves, on a real shard's memory; Python's part and the
saver are the server's own too. What is simulated is libzmq and the clock (`tests.simulation.zmq`),
the disk under the saver, and who has his turn when: a `Scheduler` says.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import io
import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import zmq

from streamrnn.errors import StoreError
from streamrnn.kernels.cpu.program import Program
from streamrnn.model.model import Model
from streamrnn.state.journal import SegmentHead, SegmentWriter
from streamrnn.state.store import (
    ARRIVALS,
    MOVED,
    SNAPSHOTS,
    STREAMS,
    TOMBSTONES,
    Change,
    snapshot_key,
)
from streamrnn_server.config import ServerConfig
from streamrnn_server.control.dispatcher import Control
from streamrnn_server.control.messages import command, parse_ask
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.live.rules import apply_content
from streamrnn_server.live.table import ModelTable
from streamrnn_server.shard.loop import turn
from streamrnn_server.shard.poll import wait
from streamrnn_server.shard.setup import ShardMemory
from streamrnn_server.shard.structs import AskKind, CommandKind, ShardState
from streamrnn_server.storage.expiry import Expiry
from streamrnn_server.storage.journal_writer import JournalWriter
from streamrnn_server.storage.replay import Replay
from streamrnn_server.storage.state_dir import begin_journal, named_models
from streamrnn_server.storage.writer import CheckpointWriter
from tests.simulation.zmq import Frames, Wire

MAX_TURN_S = 3e-4
_handles = itertools.count(1)


class ServerKilled(BaseException):
    """The server's process is gone, in the midst of its start."""


class SimulatedSegment(SegmentWriter):
    """A segment, a real file, on a disk that is full or fails for a while."""

    disk: SimulatedDisk
    random: random.Random

    def append(self, sequence: int, num_entries: int, entries: memoryview | bytes) -> None:
        if self.disk.is_full and self.random.random() < 0.5:
            self.tear(sequence, num_entries, entries)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(sequence, num_entries, entries)
        if self.disk.is_full:  # it is all there, as far as one can see
            raise OSError(errno.EIO, "Input/output error")

    def tear(self, sequence: int, num_entries: int, entries: memoryview | bytes) -> None:
        """Write a part of a group, as a crash leaves it."""
        before = self.num_bytes
        super().append(sequence, num_entries, entries)
        size = self.num_bytes - before
        os.ftruncate(self._file, before + self.random.randrange(size))


class SimulatedDisk:
    """What `StateStore` is to a server; outlives each of its lives. A commit is all or nothing."""

    directory = Path("simulated")

    def __init__(self) -> None:
        self.tables: list[dict[bytes, bytes]] = [{} for _ in range(5)]
        self.clock_s = 0
        self.epoch = 1
        self.num_commits = self.num_failed = 0
        self.is_full = False
        self.commits_left: int | None = None  # then the process dies

    def commit(self, changes: Iterable[Change], clock_s: int) -> None:
        tables = [dict(table) for table in self.tables]
        for table, key, value in changes:
            if value is not None:
                tables[table][key] = bytes(value)
                if table == STREAMS:
                    for ended in (TOMBSTONES, MOVED, ARRIVALS):
                        tables[ended].pop(key, None)
                continue
            tables[table].pop(key, None)
            if table == STREAMS:
                prefix = snapshot_key(key, b"")
                for name in [name for name in tables[SNAPSHOTS] if name.startswith(prefix)]:
                    del tables[SNAPSHOTS][name]
        if self.commits_left is not None:
            self.commits_left -= 1
            if self.commits_left < 0:
                raise ServerKilled
        if self.is_full:
            self.num_failed += 1
            raise StoreError("No space left on device")
        self.tables, self.clock_s = tables, clock_s
        self.num_commits += 1

    def get(self, table: int, key: bytes) -> bytes | None:
        return self.tables[table].get(key)

    def items(self, table: int, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(item for item in self.tables[table].items() if item[0] >= start))

    def num_items(self, table: int) -> int:
        return len(self.tables[table])

    def close(self) -> None:
        pass


class Scheduler(Protocol):
    """Who decides when things happen; kinds are names of a `Life`'s methods."""

    random: random.Random

    def at(self, delay_s: float, kind: str, *what: Any) -> None: ...


class _DiskEnd:
    """Python's end of the PAIR from one shard to a thread that writes."""

    def __init__(self, answer: Callable[[bytes], None]) -> None:
        self.arrived: deque[bytes] = deque()
        self.send = answer

    def recv(self, flags: int) -> bytes:
        if not self.arrived:
            raise zmq.Again
        return self.arrived.popleft()


@dataclass
class _Shard:
    """A shard, and when it is next called."""

    router: int
    pair: int
    disk: int
    journal: int
    memory: ShardMemory
    asked: deque[Frames] = field(default_factory=deque)  # and not yet answered by Python
    num_calls: int = 0  # what is scheduled for another number is out of date
    is_asleep: bool = False


class Life:
    """A server from its start to its crash, or to its clean end.

    Parameters
    ----------
    scheduler : Scheduler
        Decides what happens when.
    wire : Wire
        What this process's compiled code talks to.
    store : SimulatedDisk or StateStore
        What survives.
    models, programs : mapping of str to Model, of str to Program
        What is served.
    config : ServerConfig
        How.
    endpoints : list of str
        The shards'.
    on_reply : callable
        Takes an identity and a payload for it.
    catalogue : Catalogue
        Of models and aliases.
    disk : SimulatedDisk
        Says whether it is full.
    journal_directory : Path
        Where the journal's segments are.

    Raises
    ------
    StoreError, ServerKilled
        If the journal cannot be replayed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        wire: Wire,
        store: Any,
        models: Mapping[str, Model],
        programs: Mapping[str, Program],
        config: ServerConfig,
        endpoints: list[str],
        on_reply: Callable[[bytes, bytes], None],
        catalogue: Catalogue,
        disk: SimulatedDisk,
        journal_directory: Path,
    ) -> None:
        self.store = store
        self.directory = journal_directory
        self.log = io.StringIO()
        self._scheduler, self._wire, self._random = scheduler, wire, scheduler.random
        self._on_reply = on_reply
        self._saves = False  # whether a turn of the saver is scheduled
        self._num_asked = 0
        self._log = log = EventLog(stream=self.log)
        arithmetics = {name: program.arithmetic for name, program in programs.items()}
        expiry = Expiry(store.clock_s, config.time_to_live_s)
        numbers = range(config.num_shards)
        capacity = config.max_models_from(len(models))
        table = ModelTable(models, programs, arithmetics, capacity, config.history_of)
        apply_content(table, catalogue.content, log)
        served = table.served
        held = Replay(store, journal_directory, served, programs, log).run()
        assert not held
        self._journal_ends = [
            _DiskEnd(functools.partial(self._answer_group_later, k)) for k in numbers
        ]
        self._writes: set[int] = set()  # shards whose journal's turn is scheduled
        self.journals: list[JournalWriter] = []
        if config.keeps_journal:
            begin_journal(store, journal_directory)
            self.journals = [self._make_journal(k, served, disk) for k in numbers]
        self._ends = [_DiskEnd(functools.partial(self._answer_later, k)) for k in numbers]
        self.saver = CheckpointWriter(store, table.templates, self._ends, expiry, log)  # type: ignore[arg-type]
        state_dir: Any = SimpleNamespace(
            store=store,
            expiry=expiry,
            saver=self.saver,
            stats=dict,
            usage=None,
            held=held,
            has_journal=bool(self.journals),
            read_only=None,
        )
        args = (config, table, "cpu", endpoints, log, state_dir)
        self.control = Control(*args, catalogue=catalogue)
        self.shards = [self._make_shard(k, config, programs, endpoints) for k in numbers]
        self.control.shards += [shard.memory for shard in self.shards]
        for shard in self.shards:
            shard.memory.set_models(*table.for_shard())
            shard.memory.struct["incarnation"] = store.epoch << 32
        store.epoch += 1
        wire.is_dead, wire.dies_in = False, -1
        wire.on_send, wire.error_of = self._take_sent, self._error_of
        for k in numbers:
            self._call(k, 0)

    def _make_shard(
        self, k: int, config: ServerConfig, programs: Mapping[str, Program], endpoints: list[str]
    ) -> _Shard:
        own = {name: program.for_shard() for name, program in programs.items()}
        router, pair, disk, journal = (next(_handles) for _ in range(4))
        for handle in (router, pair, disk, journal):
            self._wire.queues[handle] = deque()
        a: Any
        b: Any
        c: Any
        d: Any
        a, b, c, d = (SimpleNamespace(underlying=each) for each in (router, pair, disk, journal))
        ends = {"journal": d} if self.journals else {}
        made = ShardMemory(config, k, own, a, b, c, endpoints, **ends)
        return _Shard(router, pair, disk, journal, made)

    def _make_journal(self, k: int, served: Any, disk: SimulatedDisk) -> JournalWriter:
        def make(directory: Path, head: SegmentHead) -> SimulatedSegment:
            if disk.is_full and self._random.random() < 0.5:
                (directory / head.file_name).write_bytes(b"SRNJ"[: self._random.randrange(5)])
                raise OSError(errno.ENOSPC, "No space left on device")
            segment = SimulatedSegment(directory, head)
            segment.disk, segment.random = disk, self._random
            return segment

        head = SegmentHead(self.store.epoch, k, 0, *named_models(served))
        end: Any = self._journal_ends[k]
        return JournalWriter(self.directory, head, end, self._log, 0.05, make)

    def end(self) -> None:
        """Throw all of it away."""
        assert self._log.num_faults == 0, self.log.getvalue()
        for shard in self.shards:
            for handle in (shard.router, shard.pair, shard.disk, shard.journal):
                del self._wire.queues[handle]
        for journal in self.journals:
            journal.stop()

    def tear(self) -> None:
        """Leave on disk what a crash in the midst of a write may leave."""
        for journal in self.journals:
            order, segment = journal._pending, journal._segment
            if order is None or not isinstance(segment, SimulatedSegment):
                continue
            if self._random.random() < 0.5:
                entries = ctypes.string_at(order.at, order.num_bytes)
                segment.tear(journal._sequence, order.num_entries, entries)

    # ---- the shards -----------------------------------------------------------------------------

    def receive(self, k: int, identity: bytes, payload: bytes) -> None:
        """Let a message arrive at a shard."""
        self._put(k, self.shards[k].router, [identity, payload])

    def stop(self) -> None:
        """Do what SIGTERM does."""
        for k, shard in enumerate(self.shards):
            self._put(k, shard.pair, command(CommandKind.STOP))

    @property
    def has_ended(self) -> bool:
        """Whether all shards have come to their clean end."""
        return all(shard.memory.struct["state"] == ShardState.ENDED for shard in self.shards)

    def _put(self, k: int, handle: int, frames: Frames) -> None:
        self._wire.put(handle, frames)
        if self.shards[k].is_asleep:
            self._call(k, 0)

    def _call(self, k: int, delay_s: float) -> None:
        """Give a shard its next turn after a while, instead of any that was scheduled."""
        shard = self.shards[k]
        shard.is_asleep = False
        shard.num_calls += 1
        took_s = self._random.uniform(0, MAX_TURN_S)
        if self._random.random() < 0.01:
            took_s *= 100  # it was not let run, or had much to do
        self._scheduler.at(delay_s + took_s, "turn", k, shard.num_calls)

    def turn(self, k: int, number: int) -> None:
        """Let a shard go once through its loop, and wait if it has nothing to do."""
        shard = self.shards[k]
        if number != shard.num_calls or shard.memory.struct["state"] == ShardState.ENDED:
            return
        self._wire.timeout_ms = None
        if turn(shard.memory.struct):
            wait(shard.memory.struct)
        if self._wire.failure is not None:
            raise self._wire.failure
        timeout_ms = self._wire.timeout_ms
        if timeout_ms is None or timeout_ms >= 0:
            self._call(k, (timeout_ms or 0) / 1e3)
        shard.is_asleep = timeout_ms is not None

    # ---- what they send -------------------------------------------------------------------------

    def _error_of(self, handle: int, frame: bytes) -> int:
        if any(handle == shard.router for shard in self.shards) and self._random.random() < 0.01:
            return errno.EAGAIN  # a slow reader
        return 0

    def _take_sent(self, handle: int, frames: Frames) -> None:
        k, shard = next(
            (k, each)
            for k, each in enumerate(self.shards)
            if handle in (each.router, each.pair, each.disk, each.journal)
        )
        if handle == shard.router:
            self._on_reply(*frames)
        elif handle == shard.journal:
            self._journal_ends[k].arrived.append(frames[0])
            self._write_later(k, self._random.expovariate(500))
        elif handle == shard.disk:
            self._ends[k].arrived.append(frames[0])
            if not self._saves:
                self._saves = True
                self._scheduler.at(self._random.expovariate(100), "save")
        else:
            shard.asked.append(frames)
            self._scheduler.at(self._random.expovariate(2000), "answer", k)

    def answer(self, k: int) -> None:
        """Let Python answer what a shard has asked."""
        shard = self.shards[k]
        while shard.asked:
            ask = parse_ask(*shard.asked.popleft())
            if ask.ask == AskKind.DRAINED:
                self._put(k, shard.pair, command(CommandKind.END))
                continue
            for order in self.control.answer(k, ask):
                self._put(order.shard, self.shards[order.shard].pair, order.frames)

    # ---- the disk -------------------------------------------------------------------------------

    def save(self) -> None:
        """Let the saver commit what has come. Its answers come later: a crash may be between."""
        self._saves = False
        self.saver.turn()

    def _write_later(self, k: int, delay_s: float) -> None:
        if k not in self._writes:
            self._writes.add(k)
            self._scheduler.at(delay_s, "write", k)

    def write(self, k: int) -> None:
        """Let a journal's thread write what has come; if it cannot, it tries again."""
        self._writes.discard(k)
        self.journals[k].turn()
        if self.journals[k]._pending is not None or self.journals[k].read_only is not None:
            self._write_later(k, 0.05)

    def _answer_group_later(self, k: int, answer: bytes) -> None:
        self._scheduler.at(self._random.expovariate(1000), "tell_written", k, answer)

    def tell_written(self, k: int, answer: bytes) -> None:
        """Let a journal's answer come to its shard."""
        self._put(k, self.shards[k].journal, [answer])

    def _answer_later(self, k: int, answer: bytes) -> None:
        self._scheduler.at(self._random.expovariate(500), "tell_saved", k, answer)

    def tell_saved(self, k: int, answer: bytes) -> None:
        """Let the saver's answer come to a shard."""
        self._put(k, self.shards[k].disk, [answer])
