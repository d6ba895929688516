"""Everything that goes wrong at once, from one seed: no socket, no disk, no real time.

The server admits requests, computes them in waves (a chunk takes as many waves as it has steps),
takes checkpoints whose commit returns later, and is killed in between; the network loses, repeats
and reorders; the client is killed too, in the middle of what it does. A `Source` for each stream
knows all inputs and what an uninterrupted run would answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamrnn_client import _batching as batching
from streamrnn_client import _moving as moving
from streamrnn_client import errors, protocol
from streamrnn_client._core import Core, Operation
from streamrnn_client._exchange import Exchange
from streamrnn_client._state import StreamState
from tests.simulation import Simulation, Weather

MAX_STEPS = 12  # of one call
TROUBLE = (errors.RequestTimeout, errors.ConnectionLost)


class ClientKilled(BaseException):
    """The client's process is gone, wherever it was."""


@dataclass
class Running:
    """A request that the server has admitted and not yet answered."""

    streams: frozenset[bytes]
    working: Any


class CrashSimulation(Simulation):
    """A `Simulation` whose server works in waves, writes a disk, and is killed now and then."""

    def __init__(self, seed: int, *, crash_s: float, checkpoint_s: float, **options):
        super().__init__(seed, **options)
        self.exchange = self._new_exchange()
        self.crash_s, self.checkpoint_s = crash_s, checkpoint_s
        self.kill_client_in: int | None = None  # so many events
        self.num_crashes = self.num_waves = self.num_commits = 0
        self._running: list[Running] = []
        self._is_up = True
        self._at(self._exponential(checkpoint_s), "checkpoint", 0)
        self._at(self._exponential(crash_s), "crash", 0)

    def new_client(self) -> None:
        """Start the client again: nothing of the old one is left but its messages on their way."""
        old = self.core
        self.core = Core(self.endpoints[0], self._release, old.max_kept_steps, old.max_kept_bytes)
        self.exchange = self._new_exchange()

    def _new_exchange(self) -> Exchange:
        exchange = Exchange(lambda: self.now, timeout_s=20.0, resend_s=0.1)
        # Answers to the client before must not be taken for answers to this one: on a real network
        # they go to another socket.
        first = self.random.randrange(2**31)
        for _ in range(first % 1000):
            next(exchange._msgids)
        exchange._msgids = iter(range(first, 2**32))  # type: ignore[assignment]
        return exchange

    def _exponential(self, mean_s: float) -> float:
        return self.random.expovariate(1 / mean_s)

    def _at(self, delay_s: float, kind: str, what: Any) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), kind, what))

    def _deliver(self, kind: str, what: Any) -> None:
        if self.kill_client_in is not None:
            self.kill_client_in -= 1
            if self.kill_client_in <= 0:
                self.kill_client_in = None
                self._at(0, kind, what)
                raise ClientKilled
        if kind == "reply":
            self.exchange.receive(what)
        else:
            getattr(self, "_on_" + kind)(what)

    def _on_request(self, what: tuple[int, bytes]) -> None:
        if not self._is_up:
            return
        shard, payload = what
        msgid, method, _ = protocol.decode_request(payload)
        # A connection keeps the order, so nothing comes after what was sent once it was answered.
        # Numbers make that true of all but this.
        if method == "snapshot" and msgid not in self.exchange._pending:
            return
        if not self._running:
            self._at(self.random.uniform(0, 0.002), "wave", self.num_crashes)
        self._running.append(Running(_streams_of(payload), self.server.work(payload, shard)))

    def _on_wave(self, start: int) -> None:
        """Compute one step of everything that no earlier request of the same stream holds up."""
        if start != self.num_crashes:
            return
        self.num_waves += 1
        taken: set[bytes] = set()
        left: list[Running] = []
        for request in self._running:
            if request.streams & taken:
                taken |= request.streams
                left.append(request)
                continue
            taken |= request.streams
            try:
                next(request.working)
                left.append(request)
            except StopIteration as stop:
                if stop.value is not None:
                    self._ship("reply", stop.value)
        self._running = left
        if left:
            self._at(self.random.uniform(0, 0.002), "wave", start)

    def _on_checkpoint(self, _: Any) -> None:
        self._at(self._exponential(self.checkpoint_s), "checkpoint", 0)
        if self._is_up:
            copies = self.server.begin_checkpoint()
            self._at(self._exponential(0.05), "commit", (self.num_crashes, copies))

    def _on_commit(self, what: Any) -> None:
        start, copies = what
        if start == self.num_crashes and self._is_up:
            self.num_commits += 1
            self.server.end_checkpoint(copies)

    def _on_crash(self, _: Any) -> None:
        self.num_crashes += 1
        self._running = []
        self._is_up = False
        self.server.crash(f"start {self.num_crashes}")
        self._at(self.random.uniform(0.01, 1), "start", 0)

    def _on_start(self, _: Any) -> None:
        self._is_up = True
        self._at(self._exponential(self.crash_s), "crash", 0)
        if self.random.random() < 0.3:
            self.server.endpoints = self.endpoints[: self.random.randint(1, len(self.endpoints))]


def _streams_of(payload: bytes) -> frozenset[bytes]:
    _, method, call = protocol.decode_request(payload)
    if method in ("hello", "models", "stats") or call == protocol.ColdRequest([None]):
        return frozenset()
    if isinstance(call, protocol.ColdRequest):
        ids = call.params[:2] if method == "fork" else call.params[:1]
    else:
        ids = getattr(call, "streams", None) or [getattr(call, "stream")]  # noqa: B009
    return frozenset(map(protocol.canonical_id, ids))


@dataclass
class Source:
    """All that was ever sent to a stream, and the state after each of its numbers.

    `ops[k]` has number k + 1: an input, None for a reset, or a state that a rollback brought back.
    """

    id: str
    ops: list[tuple[str, Any]] = field(default_factory=list)
    totals: list[np.ndarray] = field(default_factory=lambda: [np.zeros(2, np.float32)])
    num_done: int = 0  # how far the client is

    def add(self, kind: str, what: Any) -> None:
        self.ops.append((kind, what))
        total = self.totals[-1]
        self.totals.append(
            {"step": lambda: total + what, "reset": lambda: 0 * total}.get(kind, lambda: what)()
        )

    def branch(self, stream: str, num_done: int) -> Source:
        return Source(stream, self.ops[:num_done], self.totals[: num_done + 1], num_done)


class Story:
    """One client's life over a `CrashSimulation`, checked at every answer."""

    def __init__(self, sim: CrashSimulation, num_streams: int, window: int) -> None:
        self.sim = sim
        self.window = window
        self.sources = {f"s{k}": Source(f"s{k}") for k in range(num_streams)}
        self.snapshots: dict[tuple[str, str], int] = {}
        self.states: dict[str, StreamState] = {}
        self.num_answers = self.num_client_kills = self.num_rewinds = 0
        self._num_branches = 0

    def run(self, num_actions: int) -> None:
        for _ in range(num_actions):
            if self.sim.random.random() < 0.15:
                self.sim.kill_client_in = self.sim.random.randint(1, 60)
            try:
                if not self.states:
                    self._open_all()
                self._act()
            except ClientKilled:
                self.num_client_kills += 1
                self.sim.new_client()
                self.states = {}
        self.sim.kill_client_in = None
        if not self.states:
            self._open_all()
        for source in self.sources.values():  # what was begun and killed is brought to its end
            self._catch_up(source)
            self._step(source, 1)
        assert self._until_it_works(lambda core, ex: moving.sync_all(core, ex)) is True
        for source in self.sources.values():
            known = self.sim.server.disk[b"s" + source.id.encode()]
            assert known.last_seq == len(source.ops) == self.states[source.id].durable_seq
            assert known.total.tolist() == source.totals[-1].tolist()

    def _until_it_works(self, make: Callable[[Core, Exchange], Operation[Any]]) -> Any:
        for _ in range(50):
            try:
                return self.sim.run(make(self.sim.core, self.sim.exchange))
            except errors.PartialFailure as failure:
                if any(not isinstance(error, TROUBLE) for error in failure.errors.values()):
                    raise
            except TROUBLE:
                continue
        raise AssertionError("50 calls got no answer")

    def _open_all(self) -> None:
        ids = list(self.sources)
        states, _ = self._until_it_works(
            lambda core, ex: batching.open_streams(core, ex, ids, "sum", self.window, True)
        )
        self.states = {state.id: state for state in states}
        for source in self.sources.values():
            last_seq = self.states[source.id].last_seq
            assert last_seq <= len(source.ops), "it knows of a step that nobody made"
            self.num_rewinds += last_seq < source.num_done
            source.num_done = last_seq

    def _act(self) -> None:
        random = self.sim.random
        source = random.choice(list(self.sources.values()))
        self._catch_up(source)
        actions = [self._step, self._steps, self._reset, self._again, self._branch]
        actions += [self._steps, self._snapshot, self._rollback, self._sync]
        if random.random() < 0.3:
            self._batch()
        else:
            random.choice(actions)(source, random.randint(1, MAX_STEPS))

    def _catch_up(self, source: Source) -> None:
        """Go on after a kill: the source still has what it sent, and sends it again."""
        while source.num_done < len(source.ops):
            kind, what = source.ops[source.num_done]
            if kind == "step":
                self._send_step(source, what)
            elif kind == "reset":
                self._send_reset(source)
            else:
                self._send_rollback(source)

    def _draw(self, *shape: int) -> np.ndarray:
        values = [self.sim.random.randint(0, 9) for _ in range(2 * int(np.prod(shape)))]
        return np.array(values, np.float32).reshape(*shape, 2)

    def _check(self, source: Source, seq: int, y: np.ndarray) -> None:
        self.num_answers += 1
        assert y.tolist() == source.totals[seq].tolist(), f"{source.id} differs at step {seq}"

    # ---- what a client does -----------------------------------------------------------------

    def _step(self, source: Source, _: int) -> None:
        source.add("step", self._draw(1)[0])
        self._send_step(source, source.ops[-1][1])

    def _send_step(self, source: Source, x: np.ndarray) -> None:
        state = self.states[source.id]
        y = self._until_it_works(lambda core, ex: core.step(ex, state, x, None))
        source.num_done += 1
        assert state.last_seq == source.num_done
        self._check(source, source.num_done, y)

    def _steps(self, source: Source, num_steps: int) -> None:
        state, x = self.states[source.id], self._draw(num_steps)
        for row in x:
            source.add("step", row)
        done = 0
        while done < num_steps:
            try:
                rest = x[done:]
                y = self.sim.run(self.sim.core.steps(self.sim.exchange, state, rest, None))
            except TROUBLE as trouble:
                y = trouble.completed
            for row in y:
                source.num_done += 1
                self._check(source, source.num_done, row)
            done += len(y)

    def _batch(self) -> None:
        random = self.sim.random
        chosen = random.sample(list(self.sources.values()), random.randint(1, len(self.sources)))
        for source in chosen:
            self._catch_up(source)
        left = {}
        for source in chosen:
            source.add("step", self._draw(1)[0])
            left[source.id] = source.ops[-1][1]
        while left:
            try:
                operation = batching.step_many(self.sim.core, self.sim.exchange, left, "sum")
                done = self.sim.run(operation)
            except errors.PartialFailure as failure:
                if any(not isinstance(error, TROUBLE) for error in failure.errors.values()):
                    raise
                done = failure.results
            except TROUBLE:
                continue
            for stream, y in done.items():
                del left[stream]
                source = self.sources[stream]
                source.num_done += 1
                self._check(source, source.num_done, y)

    def _again(self, source: Source, _: int) -> None:
        """Ask for the newest step once more, as a client does that lost the answer."""
        if source.num_done and source.ops[source.num_done - 1][0] == "step":
            state, x = self.states[source.id], source.ops[source.num_done - 1][1]
            seq = source.num_done
            y = self._until_it_works(lambda core, ex: core.step(ex, state, x, seq))
            self._check(source, seq, y)

    def _reset(self, source: Source, _: int) -> None:
        source.add("reset", None)
        self._send_reset(source)

    def _send_reset(self, source: Source) -> None:
        state = self.states[source.id]
        self._until_it_works(lambda core, ex: core.reset(ex, state))
        source.num_done += 1

    def _branch(self, source: Source, _: int) -> None:
        """Fork, or export and import, to a stream of another name."""
        state = self.states[source.id]
        self._num_branches += 1
        name = f"{source.id}.{self._num_branches}"
        if self._num_branches > 4:
            return
        at = source.num_done
        assert state.last_seq == at
        if self._num_branches % 2:
            make = lambda core, ex: moving.fork(core, ex, state, name)  # noqa: E731
        else:
            record = self._until_it_works(lambda core, ex: moving.export_stream(core, ex, state))
            make = lambda core, ex: moving.import_stream(  # noqa: E731
                core, ex, name, record, "sum", True
            )
        try:
            self._until_it_works(make)
        except errors.Exists:  # its answer was lost
            self._until_it_works(
                lambda core, ex: batching.open_streams(core, ex, [name], "sum", None, True)
            )
        made = self.sim.core.streams[name]
        assert made.last_seq == at == made.durable_seq
        self.sources[name] = source.branch(name, at)
        self.states[name] = made

    def _snapshot(self, source: Source, number: int) -> None:
        state, name = self.states[source.id], f"n{number % 2}"
        # Until its answer it may be the old one or the new one.
        self.snapshots.pop((source.id, name), None)
        at = self._until_it_works(lambda core, ex: moving.snapshot(core, ex, state, name))
        assert at == source.num_done
        self.snapshots[source.id, name] = at

    def _rollback(self, source: Source, number: int) -> None:
        name = f"n{number % 2}"
        at = self.snapshots.get((source.id, name))
        if at is not None:
            source.add("rollback " + name, source.totals[at])
            self._send_rollback(source)

    def _send_rollback(self, source: Source) -> None:
        state, (kind, _) = self.states[source.id], source.ops[source.num_done]
        name = kind.split()[1]
        seq = self._until_it_works(lambda core, ex: moving.rollback(core, ex, state, name))
        source.num_done += 1
        assert seq == source.num_done

    def _sync(self, source: Source, _: int) -> None:
        state = self.states[source.id]
        assert self._until_it_works(lambda core, ex: core.sync(ex, state)) == source.num_done


def run_story(seed: int, num_actions: int = 60) -> Story:
    """Run one story; whatever fails names the seed that makes it happen again."""
    sim = CrashSimulation(
        seed,
        crash_s=(0.5, 2.0, 8.0)[seed % 3],
        checkpoint_s=(0.1, 1.0)[seed // 3 % 2],
        num_shards=1 + seed % 2,
        weather=Weather(lost=0.1, twice=0.1, slowest_s=0.1) if seed % 5 else Weather(),
        durability=("checkpoint", "always")[seed % 7 == 0],
    )
    if seed % 4 == 0:
        sim.core.max_kept_steps = 5
    story = Story(sim, 4, (1, 2, 4, 16)[seed // 2 % 4])
    try:
        story.run(num_actions)
    except Exception as failure:
        failure.add_note(f"seed {seed}: tests.crash_simulation.run_story({seed})")
        raise
    return story
