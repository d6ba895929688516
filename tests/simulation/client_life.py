"""The life of a client in a `CrashSimulation`, in which every output is checked to the bit.

``python -m tests.simulation.client_life FIRST LAST [--actions N] [--break NAME]`` runs the stories
of these seeds (a process of its own, for the simulation takes libzmq's place in it) and prints as
JSON what has happened in them, or the seed of the story that failed.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamrnn import Engine
from streamrnn.state.record import decode_record
from streamrnn_client import errors, protocol
from streamrnn_client._session import batch as batching
from streamrnn_client._session import transfer as moving
from streamrnn_client._session.exchange import Exchange
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.stream_state import StreamState
from tests.simulation.crash import MODELS, NUM_INPUTS, ClientKilled, CrashSimulation
from tests.simulation.sabotage import SABOTAGES

MAX_STEPS = 12  # of one call
MAX_BRANCHES = 4
TROUBLE = (errors.RequestTimeout, errors.ConnectionLost, errors.ReadOnly, errors.Busy)
ENGINES = {name: Engine(model) for name, model in MODELS.items()}
_numbers = iter(range(2**62))


@dataclass
class Source:
    """All that was ever sent to a stream, and what an uninterrupted run answers to it.

    `ops[k]` has number k + 1: an input, None for a reset, or the record that a rollback brought
    back; `outputs[k]` is what it answers. The run itself is an `Engine`'s, under the name `run`.
    """

    id: str
    model: str
    ops: list[tuple[str, Any]] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    num_done: int = 0  # how far the client is
    run: int = field(default_factory=lambda: next(_numbers))

    @property
    def engine(self) -> Engine:
        return ENGINES[self.model]

    def __post_init__(self) -> None:
        self.engine.rows([self.run])

    def step(self, x: np.ndarray) -> None:
        self.ops.append(("step", x))
        self.outputs.append(self.engine.steps(self.run, x[np.newaxis]).tobytes())

    def reset(self) -> None:
        self.ops.append(("reset", None))
        self.outputs.append(b"")
        self.engine.reset(self.run)

    def roll_back(self, name: str, record: bytes) -> None:
        self.ops.append(("rollback " + name, record))
        self.outputs.append(b"")
        self.engine.close(self.run)
        self.engine.import_state(self.run, record)

    def state(self) -> bytes:
        return self.engine.export_state(self.run)

    def branch(self, stream: str) -> Source:
        assert self.num_done == len(self.ops)
        made = Source(stream, self.model, list(self.ops), list(self.outputs), self.num_done)
        made.engine.close(made.run)
        made.engine.import_state(made.run, self.state())
        return made


class Story:
    """One client's life over a `CrashSimulation`, checked at every answer."""

    def __init__(self, sim: CrashSimulation) -> None:
        self.sim = sim
        self.window = sim.random.choice([1, 2, 4, 16])
        self.sources = {
            name: Source(name, model)
            for name, model in [("s0", "m"), ("s1", "m"), ("s2", "m"), ("s3", "other")]
        }
        self.snapshots: dict[tuple[str, str], bytes] = {}
        self.states: dict[str, StreamState] = {}
        self.at_risk: set[str] = set()  # what was not on disk when this client opened it
        self.happened: collections.Counter[str] = collections.Counter()
        self._num_branches = self._num_closable = 0

    def run(self, num_actions: int) -> None:
        """Do so much, bring all of it to its end, and look at what is on disk."""
        for _ in range(num_actions):
            if self.sim.random.random() < 0.15:
                self.sim.kill_client_in = self.sim.random.randint(1, 60)
            try:
                if not self.states:
                    self._open_all()
                self._act()
            except ClientKilled:
                self.happened["client kills"] += 1
                self._begin_again()
            except (errors.StateLost, errors.PartialFailure) as loss:
                # Steps of its own former life, which could not be written when it began again
                # because the disk was full: then it is told, and sends the rows once more.
                lost = getattr(loss, "errors", {getattr(loss, "stream", ""): loss})
                is_told = all(isinstance(error, errors.StateLost) for error in lost.values())
                if not is_told or not set(lost) <= self.at_risk:
                    raise
                self.happened["losses told"] += 1
                self._begin_again()
        self.sim.kill_client_in = None
        self.sim.heal_the_disk()
        self._begin_again()
        self._open_all()
        for source in self.sources.values():  # what was begun and killed is brought to its end
            self._catch_up(source)
            self._step(source)
        while self._until_it_works(lambda session, ex: moving.sync_all(session, ex)) is not True:
            pass  # a commit had failed before the disk was healed
        for source in self.sources.values():
            self._check_disk(source)

    def _begin_again(self) -> None:
        self.sim.new_client()
        self.states = {}

    def _check_disk(self, source: Source) -> None:
        data = self.sim.record(protocol.canonical_id(source.id))
        assert data is not None, f"{source.id} is not on disk"
        record = decode_record(data)
        assert record.last_seq == len(source.ops) == self.states[source.id].durable_seq
        expected = decode_record(ENGINES[source.model].export_state(source.run))
        assert record.row == expected.row, f"the state of {source.id} differs"

    def _until_it_works(self, make: Callable[[Session, Exchange], Operation[Any]]) -> Any:
        for _ in range(200):
            try:
                return self.sim.run(make(self.sim.session, self.sim.exchange))
            except errors.PartialFailure as failure:
                if any(not isinstance(error, TROUBLE) for error in failure.errors.values()):
                    raise
            except TROUBLE:
                continue
        raise AssertionError("200 calls got no answer")

    def _open_all(self) -> None:
        self.at_risk = set()
        for model in MODELS:
            ids = [source.id for source in self.sources.values() if source.model == model]
            self._open(ids, model)

    def _open(self, ids: list[str], model: str) -> None:
        states, _ = self._until_it_works(
            lambda session, ex: batching.open_streams(session, ex, ids, model, self.window, True)
        )
        for state in states:
            self.states[state.id] = state
            source = self.sources[state.id]
            assert state.last_seq <= len(source.ops), "it knows of a step that nobody made"
            self.happened["rewinds"] += state.last_seq < source.num_done
            if state.durable_seq < state.last_seq:
                self.at_risk.add(state.id)
            source.num_done = state.last_seq

    def _act(self) -> None:
        random = self.sim.random
        source = random.choice(list(self.sources.values()))
        self._catch_up(source)
        actions = [self._step, self._steps, self._steps, self._reset, self._again, self._branch]
        actions += [self._snapshot, self._rollback, self._sync, self._close]
        if random.random() < 0.3:
            self._batch([each for each in self.sources.values() if each.model == source.model])
        else:
            random.choice(actions)(source)

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

    def _draw(self, num_steps: int) -> np.ndarray:
        numbers = [self.sim.random.gauss(0, 1) for _ in range(num_steps * NUM_INPUTS)]
        return np.array(numbers, np.float32).reshape(num_steps, NUM_INPUTS)

    def _check(self, source: Source, seq: int, y: np.ndarray) -> None:
        self.happened["answers"] += 1
        assert y.tobytes() == source.outputs[seq - 1], f"{source.id} differs at step {seq}"

    # ---- what a client does ---------------------------------------------------------------------

    def _step(self, source: Source) -> None:
        source.step(self._draw(1)[0])
        self._send_step(source, source.ops[-1][1])

    def _send_step(self, source: Source, x: np.ndarray) -> None:
        state = self.states[source.id]
        y = self._until_it_works(lambda session, ex: session.step(ex, state, x, None))
        source.num_done += 1
        assert state.last_seq == source.num_done
        self._check(source, source.num_done, y)

    def _steps(self, source: Source) -> None:
        x = self._draw(self.sim.random.randint(1, MAX_STEPS))
        state = self.states[source.id]
        for row in x:
            source.step(row)
        done = 0
        while done < len(x):
            try:
                y = self.sim.run(self.sim.session.steps(self.sim.exchange, state, x[done:], None))
            except TROUBLE as trouble:
                y = getattr(trouble, "completed", ())
            for row in y:
                source.num_done += 1
                self._check(source, source.num_done, row)
            done += len(y)

    def _batch(self, sources: list[Source]) -> None:
        random = self.sim.random
        chosen = random.sample(sources, random.randint(1, len(sources)))
        for source in chosen:
            self._catch_up(source)
        left = {}
        for source in chosen:
            source.step(self._draw(1)[0])
            left[source.id] = source.ops[-1][1]
        model = chosen[0].model
        while left:
            try:
                operation = batching.step_many(self.sim.session, self.sim.exchange, left, model)
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

    def _again(self, source: Source) -> None:
        """Ask for the newest step once more, as a client does that lost the answer."""
        seq = source.num_done
        if not seq or source.ops[seq - 1][0] != "step":
            return
        state, x = self.states[source.id], source.ops[seq - 1][1]
        y = self._until_it_works(lambda session, ex: session.step(ex, state, x, seq))
        self._check(source, seq, y)
        if state.durable_seq < seq:
            return  # a crash may make it unmade, and then another is as good
        try:  # as another client would that makes a step of its own
            self._until_it_works(lambda session, ex: session.step(ex, state, x + 1, seq))
        except errors.Conflict:
            self.happened["conflicts"] += 1
        else:
            raise AssertionError(f"{source.id} answers other input at step {seq}")

    def _reset(self, source: Source) -> None:
        source.reset()
        self._send_reset(source)

    def _send_reset(self, source: Source) -> None:
        state = self.states[source.id]
        self._until_it_works(lambda session, ex: session.reset(ex, state))
        source.num_done += 1

    def _branch(self, source: Source) -> None:
        """Fork, or export and import, to a stream of another name."""
        state = self.states[source.id]
        self._num_branches += 1
        name = f"{source.id}.{self._num_branches}"
        if self._num_branches > MAX_BRANCHES:
            return
        at = source.num_done
        assert state.last_seq == at
        if self._num_branches % 2:
            make = lambda session, ex: moving.fork(session, ex, state, name)  # noqa: E731
        else:
            record = self._until_it_works(
                lambda session, ex: moving.export_stream(session, ex, state)
            )
            make = lambda session, ex: moving.import_stream(  # noqa: E731
                session, ex, name, record, source.model, True
            )
        branch = source.branch(name)
        try:
            self._until_it_works(make)
        except errors.Exists:  # its answer was lost
            self._until_it_works(
                lambda session, ex: batching.open_streams(
                    session, ex, [name], branch.model, None, True
                )
            )
        made = self.sim.session.streams[name]
        assert made.last_seq == at == made.durable_seq
        self.sources[name] = branch
        self.states[name] = made
        self.happened["branches"] += 1

    def _snapshot(self, source: Source) -> None:
        state, name = self.states[source.id], f"n{self.sim.random.randint(0, 1)}"
        # Until its answer it may be the old one or the new one.
        self.snapshots.pop((source.id, name), None)
        at = self._until_it_works(lambda session, ex: moving.snapshot(session, ex, state, name))
        assert at == source.num_done
        self.snapshots[source.id, name] = source.state()

    def _rollback(self, source: Source) -> None:
        name = f"n{self.sim.random.randint(0, 1)}"
        record = self.snapshots.get((source.id, name))
        if record is not None:
            source.roll_back(name, record)
            self._send_rollback(source)
            self.happened["rollbacks"] += 1

    def _send_rollback(self, source: Source) -> None:
        state, (kind, _) = self.states[source.id], source.ops[source.num_done]
        name = kind.split()[1]
        seq = self._until_it_works(lambda session, ex: moving.rollback(session, ex, state, name))
        source.num_done += 1
        assert seq == source.num_done

    def _sync(self, source: Source) -> None:
        state = self.states[source.id]
        assert self._until_it_works(lambda session, ex: session.sync(ex, state)) <= source.num_done

    def _one_to_close(self) -> Source:
        """Return a stream that is closed and opened anew again and again, with some steps."""
        names = [name for name in self.sources if name.startswith("again.")]
        if not names:
            self._num_closable += 1
            names = [f"again.{self._num_closable}"]
            self.sources[names[0]] = Source(names[0], "m")
            self._open(names, "m")
        source = self.sources[names[0]]
        self._catch_up(source)
        self._steps(source)
        return source

    def _close(self, source: Source) -> None:
        """Close a branch, and open it anew: nothing of it may come back."""
        if "." not in source.id:
            source = self._one_to_close()
        if source.id not in self.states:
            return
        state = self.states.pop(source.id)
        del self.sources[source.id]  # a client that is killed now never asks for it again
        for name in ("n0", "n1"):
            self.snapshots.pop((source.id, name), None)
        key = protocol.canonical_id(source.id)
        self.sim.closed_at_s[key] = self.sim.now
        self._until_it_works(lambda session, ex: session.close(ex, state))
        self.sim.closed_at_s[key] = self.sim.now
        self.sim.crashes_with = key
        self.sources[source.id] = Source(source.id, source.model)
        self._open([source.id], source.model)
        self._step(self.sources[source.id])
        self.happened["closed"] += 1


def run_story(seed: int, num_actions: int = 40) -> collections.Counter[str]:
    """Run one story and count what happened; whatever fails names the seed."""
    sim = CrashSimulation(seed)
    if seed % 4 == 0:
        sim.session.max_kept_steps = 5
    story = Story(sim)
    try:
        story.run(num_actions)
    except Exception as failure:
        failure.add_note(f"seed {seed}: python -m tests.simulation.client_life {seed} {seed + 1}")
        raise
    finally:
        sim.end()
    story.happened.update(sim.counters)
    story.happened.update(
        {
            "crashes": sim.num_crashes,
            "torn turns": sim.num_torn_turns,
            "clean stops": sim.num_stops,
            "broken starts": sim.num_broken_starts,
            "groups": sim.num_groups,
        }
    )
    return story.happened


def main() -> None:
    """Run the stories that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--actions", type=int, default=40)
    parser.add_argument("--break", dest="broken", choices=SABOTAGES)
    args = parser.parse_args()
    if args.broken:
        SABOTAGES[args.broken]()
    stories = (run_story(seed, args.actions) for seed in range(args.first, args.last))
    happened = functools.reduce(lambda one, other: one + other, stories)
    json.dump(happened, sys.stdout)


if __name__ == "__main__":
    main()
