"""One life of the real server, without threads, sockets or real time.

The shards' loop is the machine code that serves, on a real shard's memory; Python's part and the
saver are the server's own too. What is simulated is libzmq and the clock (`tests.simulation.zmq`),
the disk under the saver, and who has his turn when: a `Scheduler` says.
"""

from __future__ import annotations

import errno
import functools
import io
import itertools
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
from streamrnn.state.store import SNAPSHOTS, STREAMS, TOMBSTONES, Change, snapshot_key
from streamrnn_server.config import ServerConfig
from streamrnn_server.control.dispatcher import Control
from streamrnn_server.control.messages import command, parse_ask
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.loop import turn
from streamrnn_server.shard.poll import wait
from streamrnn_server.shard.setup import ShardMemory
from streamrnn_server.shard.structs import AskKind, CommandKind, ShardState
from streamrnn_server.storage.expiry import Expiry
from streamrnn_server.storage.state_dir import served_models, templates_of
from streamrnn_server.storage.writer import CheckpointWriter
from tests.simulation.zmq import Frames, Wire

MAX_TURN_S = 3e-4
_handles = itertools.count(1)


class SimulatedDisk:
    """What `StateStore` is to a server; outlives each of its lives. A commit is all or nothing."""

    directory = Path("simulated")

    def __init__(self) -> None:
        self.tables: list[dict[bytes, bytes]] = [{}, {}, {}]
        self.clock_s = 0
        self.epoch = 1
        self.num_commits = self.num_failed = 0
        self.is_full = False

    def commit(self, changes: Iterable[Change], clock_s: int) -> None:
        tables = [dict(table) for table in self.tables]
        for table, key, value in changes:
            if value is not None:
                tables[table][key] = bytes(value)
                if table == STREAMS:
                    tables[TOMBSTONES].pop(key, None)
                continue
            tables[table].pop(key, None)
            if table == STREAMS:
                prefix = snapshot_key(key, b"")
                for name in [name for name in tables[SNAPSHOTS] if name.startswith(prefix)]:
                    del tables[SNAPSHOTS][name]
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
    """The saver's end of the PAIR to one shard."""

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
    ) -> None:
        self.store = store
        self.log = io.StringIO()
        self._scheduler, self._wire, self._random = scheduler, wire, scheduler.random
        self._on_reply = on_reply
        self._saves = False  # whether a turn of the saver is scheduled
        self._num_asked = 0
        self._log = log = EventLog(stream=self.log)
        arithmetic = next(iter(programs.values())).arithmetic
        expiry = Expiry(store.clock_s, config.time_to_live_s)
        numbers = range(config.num_shards)
        self._ends = [_DiskEnd(functools.partial(self._answer_later, k)) for k in numbers]
        templates = templates_of(served_models(models, programs), arithmetic)
        self.saver = CheckpointWriter(store, templates, self._ends, expiry, log)  # type: ignore[arg-type]
        disk: Any = SimpleNamespace(
            store=store, expiry=expiry, saver=self.saver, stats=dict, usage=None
        )
        self.control = Control(config, models, programs, arithmetic, "cpu", endpoints, log, disk)
        self.shards = [self._make_shard(k, config, programs, endpoints) for k in numbers]
        self.control.shards = [shard.memory for shard in self.shards]
        for shard in self.shards:
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
        router, pair, disk = (next(_handles) for _ in range(3))
        for handle in (router, pair, disk):
            self._wire.queues[handle] = deque()
        a: Any
        b: Any
        c: Any
        a, b, c = (SimpleNamespace(underlying=each) for each in (router, pair, disk))
        return _Shard(router, pair, disk, ShardMemory(config, k, own, a, b, c, endpoints))

    def end(self) -> None:
        """Throw all of it away."""
        assert self._log.num_faults == 0, self.log.getvalue()
        for shard in self.shards:
            for handle in (shard.router, shard.pair, shard.disk):
                del self._wire.queues[handle]

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
            if handle in (each.router, each.pair, each.disk)
        )
        if handle == shard.router:
            self._on_reply(*frames)
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

    def _answer_later(self, k: int, answer: bytes) -> None:
        self._scheduler.at(self._random.expovariate(500), "tell_saved", k, answer)

    def tell_saved(self, k: int, answer: bytes) -> None:
        """Let the saver's answer come to a shard."""
        self._put(k, self.shards[k].disk, [answer])
