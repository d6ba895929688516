"""Everything that goes wrong at once, from one seed: no socket, no real time, but the real server.

A client, over a network that loses, repeats and reorders; a server whose shards run the compiled
loop (`tests.simulation.server`), which is killed at any point, stopped, started with another number
of shards, short of memory, and whose disk is full for a while. Whatever the server promises is
held against what is on disk at that moment.
"""

from __future__ import annotations

import ctypes
import heapq
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamrnn.errors import StoreError
from streamrnn.kernels.cpu.program import Program
from streamrnn.model.model import Model
from streamrnn.state.journal import ChangeKind, entries_of, read_journal, segment_paths
from streamrnn.state.record import RecordHead
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client import protocol
from streamrnn_client._session.exchange import Exchange
from streamrnn_client._session.session import Session
from streamrnn_client._session.turns import give_back
from streamrnn_server.config import ServerConfig
from streamrnn_server.control.about.stats import total_counters
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.shard import setup as memory
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.memory import arena, index
from streamrnn_server.shard.requests import request as requests
from streamrnn_server.storage import replay
from tests.simulation.client import Network, Weather
from tests.simulation.server import Life, ServerKilled, SimulatedDisk
from tests.simulation.zmq import take_over
from tests.support.models import random_model

NUM_INPUTS = 3
_NEVER_S = 1e9
HISTORY = 4  # inputs kept of each stream
BEGAN_S = 1000.0  # what the clock says when a simulation begins
_PR_SET_THP_DISABLE = 41
_MEMORY = "/dev/shm"  # a directory in memory: the disk's own time is of no interest here
WIRE = take_over()
# A server takes its memory beforehand, in huge pages; thousands of short lives use little of it.
for _module in (arena, index, memory, requests):
    _module.touch = lambda *_: None  # type: ignore[attr-defined]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
replay._MAX_STREAMS = 2  # so that a start can end between two commits
_rng = np.random.default_rng(1)
MODELS = {
    "m": random_model(_rng, [("lstm", 8), ("gru", 5)], NUM_INPUTS, 2),
    "other": random_model(_rng, [("rnn_tanh", 17)], NUM_INPUTS, 3),
}
PROGRAMS = {name: Program(model) for name, model in MODELS.items()}


class ClientKilled(BaseException):
    """The client's process is gone, wherever it was."""


class BrokenPromise(AssertionError):
    """The server said that something is on disk that is not."""


class CrashSimulation(Network):
    """One client and a server that is killed and started again, as a seed says."""

    def __init__(
        self,
        seed: int,
        models: Mapping[str, Model] = MODELS,
        programs: Mapping[str, Program] = PROGRAMS,
    ) -> None:
        self._models, self._programs = models, programs
        WIRE.now_s = BEGAN_S
        draw = np.random.default_rng(seed)
        rough = Weather(lost=0.1, twice=0.1, slowest_s=0.1)
        super().__init__(seed, int(draw.integers(1, 4)), rough if draw.random() < 0.8 else None)
        self.crash_s = draw.choice([1.0, 4.0, 16.0])
        self.full_s = draw.choice([2.0, 10.0, math.inf])
        self._options: dict[str, Any] = {
            "durability": draw.choice(["checkpoint", "always"]),
            "checkpoint_interval_s": draw.choice([0.02, 0.1, 1.0]),
            "idle_limit_s": int(draw.random() < 0.15),
            "history": (str(HISTORY),),
        }
        self._max_streams = draw.choice([6, 64, 64])
        self._directory = None
        if seed % 8 == 0:  # the disk of these is LMDB's
            where = _MEMORY if os.path.isdir(_MEMORY) else None
            self._directory = Path(tempfile.mkdtemp(prefix="streamrnn-simulation-", dir=where))
        self._disk = SimulatedDisk()
        where = _MEMORY if os.path.isdir(_MEMORY) else None
        made = tempfile.mkdtemp(prefix="streamrnn-journal-", dir=where)
        self._journal_directory = Path(made)
        self._catalogue_directory = self._journal_directory / "catalogue"
        self._catalogue_directory.mkdir()
        self.exchange = self._new_exchange()
        self.identity = b"client 0"
        self.kill_client_in: int | None = None  # so many events
        self.crashes_with: bytes | None = None  # a stream: when its record comes to disk
        self.counters: dict[str, int] = dict.fromkeys(w.Counters.dtype.names or (), 0)
        self.num_crashes = self.num_torn_turns = self.num_stops = self.num_broken_starts = 0
        self.num_groups = 0
        self.closed_at_s: dict[bytes, float] = {}
        self._asked: dict[tuple[bytes, int], protocol.Request] = {}
        self._told: dict[bytes, int] = {}  # the last step of each stream that was answered
        self._lives = 0
        self.life: Life | None = None
        self._on_start()
        self._on_fill(False)

    def end(self) -> None:
        """Leave nothing behind."""
        if self.life is not None:
            self.life.store.close()
            self.life.end()
        if self._directory is not None:
            shutil.rmtree(self._directory)
        shutil.rmtree(self._journal_directory)

    def new_client(self) -> None:
        """Start the client again: nothing of the old one is left but its messages on their way."""
        old = self.session
        self.session = Session(self.endpoints[0], give_back, old.max_kept_steps, old.max_kept_bytes)
        self.exchange = self._new_exchange()
        self.identity = b"client %d" % self.random.randrange(2**32)

    def _new_exchange(self) -> Exchange:
        return Exchange(lambda: self.now, timeout_s=5.0, resend_s=0.1, draw=self.random.random)

    # ---- what happens when ----------------------------------------------------------------------

    def at(self, delay_s: float, kind: str, *what: Any) -> None:
        """Let something happen to this life of the server, if it is still the same then."""
        self._at(delay_s, "life", self._lives, kind, what)

    def _at(self, delay_s: float, kind: str, *what: Any) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), kind, what))

    def _ship(self, kind: str, what: Any) -> None:
        super()._ship(kind, (self.identity, self.now, what))

    def _deliver(self, kind: str, what: Any) -> None:
        if self.kill_client_in is not None:
            self.kill_client_in -= 1
            if self.kill_client_in <= 0:
                self.kill_client_in = None
                self._at(0, kind, *what)
                raise ClientKilled
        WIRE.now_s = BEGAN_S + self.now
        getattr(self, "_on_" + kind)(*what)

    def _on_life(self, number: int, kind: str, what: tuple[Any, ...]) -> None:
        life = self.life
        if life is None or number != self._lives:
            return
        getattr(life, kind)(*what)
        if kind == "save" and self._has_steps(self.crashes_with):
            # The journal has still what was done to the stream that had this id before.
            self.crashes_with = None
            self._at(self.random.uniform(0, 0.004), "crash", self._lives)
        if WIRE.is_dead:
            self.num_torn_turns += 1
            self._lose()
        elif life.has_ended:
            self._check_nothing_lost(life)
            self.num_stops += 1
            self._lose()

    def _has_steps(self, stream: bytes | None) -> bool:
        """Tell whether a stream's record has any."""
        record = None if stream is None else self.record(stream)
        return record is not None and np.frombuffer(record, RecordHead.dtype, 1)["last_seq"][0] > 0

    def _on_start(self) -> None:
        if self.life is not None:
            return
        num_shards = self.random.randint(1, len(self.endpoints))
        max_streams = int(self._max_streams) * num_shards
        config = ServerConfig(
            num_shards=num_shards,
            max_streams=max_streams,
            memory_budget_bytes=num_shards * 2**26,
            retry_after_ms=50,
            state_dir=Path("simulated"),
            **self._options,
        )
        store: Any = self._disk
        if self._directory is not None:
            store = StateStore(self._directory, max_bytes=2**26)
        self._lives += 1
        self._told = {}
        endpoints = self.endpoints[:num_shards]
        self._disk.commits_left = self.random.choice([None, None, None, 0, 1, 2])
        args = (store, self._models, self._programs, config, endpoints, self._take_reply)
        try:
            where = (Catalogue(self._catalogue_directory), self._disk, self._journal_directory)
            self.life = Life(self, WIRE, *args, *where)
        except (StoreError, ServerKilled) as failure:
            store.close()
            if "damaged" in str(failure):
                raise
            if isinstance(failure, ServerKilled):
                # It is not the streams' own fault, as the next starts might think.
                (self._journal_directory / replay.UNDER_WAY).unlink(missing_ok=True)
            self.num_broken_starts += 1
            self._at(self.random.uniform(0.01, 1), "start")
            return
        self._disk.commits_left = None
        self._fate()

    def _fate(self) -> None:
        """Draw how this life ends: killed between turns or in the midst of one, or stopped."""
        kind = self.random.choice(["crash", "crash_soon", "stop"])
        self._at(self.random.expovariate(1 / self.crash_s), kind, self._lives)

    def _on_crash(self, number: int) -> None:
        if self.life is not None and number == self._lives:
            self._lose()

    def _on_crash_soon(self, number: int) -> None:
        if number == self._lives:
            WIRE.dies_in = self.random.randint(1, 60)

    def _on_stop(self, number: int) -> None:
        if self.life is not None and number == self._lives:
            self._disk.is_full = False
            self.life.stop()

    def _on_fill(self, is_full: bool) -> None:
        self._disk.is_full = is_full and self.full_s < math.inf
        after_s = 0.5 if is_full else min(self.full_s, _NEVER_S)
        self._at(self.random.expovariate(1 / after_s), "fill", not is_full)

    def heal_the_disk(self) -> None:
        """Let it be full no more."""
        self.full_s = math.inf
        self._disk.is_full = False

    def _lose(self) -> None:
        """The server is gone, with all that was not committed."""
        assert self.life is not None
        if not self.life.has_ended:
            self.life.tear()
        self.num_groups += sum(journal.num_groups for journal in self.life.journals)
        for name, number in total_counters(self.life.control.shards).items():
            self.counters[name] += number
        self.life.store.close()
        self.life.end()
        self.life = None
        self.num_crashes += 1
        self._at(self.random.uniform(0.01, 1), "start")

    # ---- messages -------------------------------------------------------------------------------

    def _on_request(self, identity: bytes, sent_s: float, what: tuple[int, bytes]) -> None:
        shard, payload = what
        if self.life is None or shard >= len(self.life.shards):
            return
        request = protocol.decode_request(payload)
        # A connection keeps the order, so nothing comes after what was sent once it was answered.
        # Numbers make that true of all but these; Python prepares some of them, and meanwhile a
        # close may overtake the copy of one that was answered before (docs/STATE.md says
        # so).
        if request.method in ("snapshot", "close", "import", "fork") and (
            identity != self.identity or request.msgid not in self.exchange._pending
        ):
            return
        if any(self.closed_at_s.get(stream, 0) > sent_s for stream in _streams_of(request)):
            return
        self._asked[identity, request.msgid] = request
        self.life.receive(shard, identity, payload)

    def _take_reply(self, identity: bytes, payload: bytes) -> None:
        """Hold what the server says against what is on disk while it says so."""
        reply = protocol.decode_response(payload)
        request = self._asked[identity, reply.msgid]
        for stream, last_seq, durable_seq in _promises(request, reply):
            if stream in self.closed_at_s:
                continue
            self._told[stream] = max(self._told.get(stream, 0), last_seq)
            if durable_seq > (on_disk := self.seq_on_disk(stream)):
                raise BrokenPromise(
                    f"{stream!r}: {request.method} was answered with durable_seq {durable_seq} "
                    f"when {on_disk} was on disk"
                )
        if identity == self.identity:
            super()._ship("reply", (identity, self.now, payload))

    def _on_reply(self, identity: bytes, sent_s: float, payload: bytes) -> None:
        if identity == self.identity:
            self.exchange.receive(payload)

    def record(self, stream: bytes) -> bytes | None:
        """Return a stream's record on disk; the server is started for it, if it is down."""
        while self.life is None:
            self._disk.is_full = False
            self._on_start()
        found: bytes | None = self.life.store.get(STREAMS, stream)
        return found

    def seq_on_disk(self, stream: bytes) -> int:
        """Return the last step of a stream that would survive a crash now."""
        record = self.record(stream)
        reached, seq = (-1, 0), 0
        if record is not None:
            head = np.frombuffer(record, RecordHead.dtype, 1)[0]
            reached, seq = (int(head["incarnation"]), int(head["num_changes"])), head["last_seq"]
        for segment in read_journal(self._journal_directory):
            for group in segment.groups:
                for entry in entries_of(group, len(self._models)):
                    place = entry.incarnation, entry.num_changes
                    if entry.stream != stream or place <= reached:
                        continue
                    reached = place
                    if entry.kind in (ChangeKind.OPEN, ChangeKind.CLOSE):
                        seq = 0
                    elif entry.kind in (ChangeKind.STEP, ChangeKind.RESET):
                        seq = entry.seq
        return int(seq)

    def _check_nothing_lost(self, life: Life) -> None:
        """A clean stop loses nothing, if the disk lets it."""
        if life.saver.read_only is None:
            for journal in life.journals:
                journal.turn()
                journal.stop()
            if left := segment_paths(self._journal_directory):
                raise BrokenPromise(f"a clean stop left {left} in the journal")
            for stream, last_seq in self._told.items():
                if stream not in self.closed_at_s and self.seq_on_disk(stream) < last_seq:
                    raise BrokenPromise(f"a clean stop lost step {last_seq} of {stream!r}")


def _streams_of(request: protocol.Request) -> list[bytes]:
    call = request.call
    if isinstance(call, protocol.ColdRequest):
        ids = call.params[: 2 if request.method == "fork" else 1]
        ids = [each for each in ids if isinstance(each, str | int)]
    else:
        ids = getattr(call, "streams", None) or [call.stream]  # type: ignore[union-attr]
    return [protocol.canonical_id(each) for each in ids]


def _promises(
    request: protocol.Request, reply: protocol.Response
) -> Iterator[tuple[bytes, int, int]]:
    """Yield stream, last_seq and durable_seq wherever a reply tells them."""
    method, result = request.method, reply.result
    if reply.error is not None:
        return
    streams = _streams_of(request)
    if method in ("step", "reset", "snapshot", "rollback", "import", "fork"):
        yield streams[-1], *result[:2]
    elif method == "sync" and streams:
        yield streams[0], result, result
    elif method == "open" and len(result) == 3 and isinstance(result[0], int):
        yield streams[0], *result[:2]
    elif method == "batch":
        failed, last_seqs, durable_seqs, _ = protocol.decode_batch_result(result, len(streams))
        numbers = zip(streams, last_seqs, durable_seqs, strict=True)
        yield from (each for k, each in enumerate(numbers) if k not in failed)
    elif method == "open":
        for stream, (error, told) in zip(streams, result, strict=True):
            if error is None:
                yield stream, *told[:2]
