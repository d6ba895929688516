"""A well-behaved client as a process: steps its streams and compares every output to the bit.

``python -m tests.fuzz.victim '{"endpoint": ..., "model": ..., "seed": ...}'`` goes on until its
standard input ends, and prints one JSON object: outputs compared, wrong ones, calls that failed, by
error, and the longest `hello`.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np

from streamrnn import Engine, Model
from streamrnn_client import Client, errors

_NUM_STREAMS = 12
_TIMEOUT_S = 20.0


class _Victim:
    def __init__(self, told: dict[str, Any]) -> None:
        model = Model.load(told["model"])
        self.rng = random.Random(told["seed"])
        self.noise = np.random.default_rng(told["seed"])
        self.engine = Engine(model, max_streams=_NUM_STREAMS)
        self.client = Client(told["endpoint"], timeout_s=_TIMEOUT_S, **told.get("options", {}))
        names = [f"victim-{told['seed']}-{k}" for k in range(_NUM_STREAMS)]
        self.streams = {name: self.client.stream(name) for name in names}
        self.num_inputs = model.spec.num_inputs
        self.counts: Counter[str] = Counter()
        self.slowest_hello_ms = 0.0
        self.has_ended = threading.Event()
        self.done = dict.fromkeys(names, 0)

    def act(self) -> None:
        """Make a step, a chunk or a `hello`, and look at what comes back."""
        chance = self.rng.random()
        if chance < 0.02:
            began_s = time.monotonic()
            self._call(self.client.hello)
            took_ms = 1e3 * (time.monotonic() - began_s)
            self.slowest_hello_ms = max(self.slowest_hello_ms, took_ms)
            return
        name = self.rng.choice(list(self.streams))
        num_steps = 1 if chance < 0.8 else self.rng.randrange(2, 9)
        x = self.noise.standard_normal((num_steps, self.num_inputs)).astype(np.float32)
        # With its number a step that is sent again counts once, whatever became of the first.
        stream, seq = self.streams[name], self.done[name] + 1
        y = None
        while y is None:
            y = self._call(lambda: stream.steps(x, seq=seq))
            if self.has_ended.is_set():
                return
        self.done[name] += num_steps
        expected = self.engine.steps(name, x)
        self.counts["outputs"] += num_steps
        self.counts["wrong"] += int((y.view(np.int32) != expected.view(np.int32)).any(axis=1).sum())

    def _call(self, function: Any) -> Any:
        try:
            return function()
        except (errors.Busy, errors.RequestTimeout, errors.ConnectionLost) as error:
            self.counts[type(error).__name__] += 1
            return None


def main() -> None:
    """Go on until standard input ends."""
    victim = _Victim(json.loads(sys.argv[1]))

    def wait_for_end() -> None:
        sys.stdin.read()
        victim.has_ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    print("ready", flush=True)
    while not victim.has_ended.is_set():
        victim.act()
    print(
        json.dumps({**victim.counts, "slowest_hello_ms": round(victim.slowest_hello_ms, 1)}),
        flush=True,
    )
    victim.client.close()


if __name__ == "__main__":
    main()
