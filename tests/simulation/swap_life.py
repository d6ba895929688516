"""Swaps of streams to another version and back, in a `CrashSimulation`, checked to the bit.

``python -m tests.simulation.swap_life FIRST LAST [--actions N] [--break NAME]`` runs the stories of
these seeds in a process of its own, and prints as JSON what has happened, or the seed that failed.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import sys
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from streamrnn.kernels.cpu.program import Program
from streamrnn_client import errors
from streamrnn_client._session import batch as batching
from streamrnn_client._session.exchange import Exchange
from streamrnn_client._session.server_view import ServerView
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.stream_state import StreamState
from streamrnn_server.control.methods.models import ModelMethods
from tests.live.versions import MODELS, NUM_INPUTS, Run
from tests.simulation.crash import HISTORY, CrashSimulation

NAMES = ("m@1", "m@2")
MAX_STEPS = 12  # of one call
STREAMS = ("s0", "s1", "s2", "s3")
TROUBLE = (
    errors.RequestTimeout,
    errors.ConnectionLost,
    errors.ReadOnly,
    errors.Busy,
)
_MODELS = {name: MODELS[name] for name in reversed(NAMES)}  # new streams get the first
_PROGRAMS = {name: Program(model) for name, model in _MODELS.items()}


class Source:
    """What a stream answers: as the version that it has, or from some step on as the other."""

    def __init__(self, policy: str) -> None:
        self.num_done = self.num_swaps = 0
        self._model, self._policy = 0, policy
        self._run = Run(NAMES[0], HISTORY)

    def check(self, x: np.ndarray, y: np.ndarray) -> None:
        before, inputs = self._run.state(), self._run.inputs.copy()
        self.num_done += 1
        if self._run.step(x).tobytes() == y.tobytes():
            return
        # A crash may come between a swap and the step that it was for, and the swap back then: what
        # was carried there and back is as it was, but what was primed is not.
        for _ in range(2 if self._policy == "replay" else 1):
            self._model = 1 - self._model
            self._run.inputs = inputs.copy()
            self._run.swap(NAMES[self._model], self._policy, before)
            self.num_swaps += 1
            if self._run.step(x).tobytes() == y.tobytes():
                return
        raise AssertionError(f"step {self.num_done} is of neither version")


class Story:
    """One client, which is an administrator too."""

    def __init__(self, sim: CrashSimulation, policy: str) -> None:
        self.sim, self._policy = sim, policy
        self.happened: collections.Counter[str] = collections.Counter()
        self.sources = {stream: Source(policy) for stream in STREAMS}
        self.states: dict[str, StreamState] = {}
        self._window = sim.random.choice([1, 2, 4, 16])
        self._to = 1

    def run(self, num_actions: int) -> None:
        """Do so much, and bring it to its end."""
        states, _ = self._until_it_works(
            lambda session, ex: batching.open_streams(
                session, ex, list(STREAMS), "m", self._window, True
            )
        )
        self.states = {state.id: state for state in states}
        for _ in range(num_actions):
            source = self.sim.random.choice(STREAMS)
            action = self.sim.random.choice([self._step, self._steps, self._batch, self._swap])
            action(source)
        self.sim.heal_the_disk()
        for stream in STREAMS:
            self._step(stream)
            source_of = self.sources[stream]
            assert self.states[stream].last_seq == source_of.num_done
            self.happened["swaps seen"] += source_of.num_swaps

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

    def _draw(self, num_steps: int) -> np.ndarray:
        numbers = [self.sim.random.gauss(0, 1) for _ in range(num_steps * NUM_INPUTS)]
        return np.array(numbers, np.float32).reshape(num_steps, NUM_INPUTS)

    def _take(self, stream: str, x: np.ndarray, y: np.ndarray) -> None:
        self.happened["answers"] += 1
        self.sources[stream].check(x, y)

    def _step(self, stream: str) -> None:
        x, state = self._draw(1)[0], self.states[stream]
        y = self._until_it_works(lambda session, ex: session.step(ex, state, x, None))
        self._take(stream, x, y)

    def _steps(self, stream: str) -> None:
        x, state, done = self._draw(self.sim.random.randint(1, MAX_STEPS)), self.states[stream], 0
        while done < len(x):
            try:
                y = self.sim.run(self.sim.session.steps(self.sim.exchange, state, x[done:], None))
            except TROUBLE as trouble:
                y = getattr(trouble, "completed", ())
            for row, answer in zip(x[done:], y, strict=False):
                self._take(stream, row, answer)
            done += len(y)

    def _batch(self, stream: str) -> None:
        left = {each: self._draw(1)[0] for each in STREAMS if self.sim.random.random() < 0.7}
        xs = dict(left)
        while left:
            try:
                operation = batching.step_many(self.sim.session, self.sim.exchange, left, "m")
                done = self.sim.run(operation)
            except errors.PartialFailure as failure:
                if any(not isinstance(error, TROUBLE) for error in failure.errors.values()):
                    raise
                done = failure.results
            except TROUBLE:
                continue
            for each, y in done.items():
                del left[each]
                self._take(each, xs[each], y)

    def _swap(self, stream: str) -> None:
        names = {"name": NAMES[1 - self._to], "to": NAMES[self._to], "streams": self._policy}
        self._to = 1 - self._to
        self.happened["swaps asked"] += 1
        try:
            params = ["swap", names]
            self.sim.run(self.sim.session.request(self.sim.exchange, "model", params))
        except TROUBLE:
            return
        self.happened["swaps done"] += 1


def _sync_nothing() -> None:
    """Let a rule be on disk before the streams are."""

    def sync(methods: ModelMethods) -> Generator[Any, Any, None]:
        yield from ()

    setattr(ModelMethods, "_sync", sync)  # noqa: B010


def _tell_nothing() -> None:
    """Let clients not say which steps they repeat."""
    setattr(ServerView, "has_received", property(lambda _: False))  # noqa: B010


SABOTAGES = {"rule-before-streams": _sync_nothing, "repeats-not-told": _tell_nothing}


def run_story(seed: int, num_actions: int) -> collections.Counter[str]:
    """Run one story and count what happened; whatever fails names the seed."""
    sim = CrashSimulation(seed, _MODELS, _PROGRAMS)
    story = Story(sim, "carry" if seed % 2 else "replay")
    try:
        story.run(num_actions)
    except Exception as failure:
        failure.add_note(f"seed {seed}: python -m tests.simulation.swap_life {seed} {seed + 1}")
        raise
    finally:
        sim.end()
    story.happened.update(sim.counters)
    story.happened.update({"crashes": sim.num_crashes, "torn turns": sim.num_torn_turns})
    return story.happened


def main() -> None:
    """Run the stories that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--actions", type=int, default=60)
    parser.add_argument("--break", dest="broken", choices=SABOTAGES)
    args = parser.parse_args()
    if args.broken:
        SABOTAGES[args.broken]()
    stories = (run_story(seed, args.actions) for seed in range(args.first, args.last))
    happened = functools.reduce(lambda one, other: one + other, stories)
    json.dump(happened, sys.stdout)


if __name__ == "__main__":
    main()
