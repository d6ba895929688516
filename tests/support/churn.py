"""Streams that open, step, rest and close for a while: a client as a process of its own.

``python -m tests.support.churn ENDPOINT SECONDS NUM`` goes on for so long and until so many streams
have been closed. At its end it prints one JSON object: how many it has closed, how many steps it
has made, how many streams the server let go of meanwhile, and its own memory as [s, KiB].
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from typing import Any

import numpy as np

from streamrnn_bench.server.processes import anonymous_kib
from streamrnn_client import aio

NUM_TOGETHER, NUM_BATCHES, NUM_RESTING, WINDOW = 1_000, 4, 400, 4
REST_S = 2.5


async def live_and_die(client: aio.Client, first: int, x: np.ndarray) -> np.ndarray:
    """Open streams, step them together and singly, and close them; return their outputs."""
    ids = [f"short-{first + k}-{'long' * (k % 8)}" for k in range(NUM_TOGETHER)]
    rows = await client.rows(ids, window=WINDOW)
    y = [await client.batch(rows, np.tile(step, (NUM_TOGETHER, 1))) for step in x[:NUM_BATCHES]]
    streams = await client.streams(ids, window=WINDOW)
    last = await asyncio.gather(*[stream.steps(x[NUM_BATCHES:]) for stream in streams])
    assert all(await asyncio.gather(*[stream.close() for stream in streams]))
    return np.concatenate([np.stack(y, axis=1), np.stack(last)], axis=1)


async def churn(endpoint: str, duration_s: float, least: int) -> dict[str, Any]:
    """Do so for a while, and let other streams rest for as long as the server spills them."""
    began_s = time.monotonic()
    num_closed = num_steps = 0
    memory = []
    async with aio.Client(endpoint, timeout_s=60) as client:
        (model,) = (await client.models()).values()
        x = np.random.default_rng(1).standard_normal((NUM_BATCHES + 2, model.num_inputs))
        x = x.astype(np.float32)
        resting = await client.rows([f"rests-{k}" for k in range(NUM_RESTING)], window=WINDOW)
        rested_s, expected = 0.0, None
        while time.monotonic() < began_s + duration_s or num_closed < least:
            y = await live_and_die(client, num_closed, x)
            expected = y[0] if expected is None else expected
            assert (y.view(np.int32) == expected.view(np.int32)).all()
            num_closed += NUM_TOGETHER
            num_steps += NUM_TOGETHER * len(x)
            if time.monotonic() - rested_s > REST_S:
                await client.batch(resting, np.zeros((NUM_RESTING, model.num_inputs)))
                rested_s = time.monotonic()
            gc.collect()  # what Python has not looked at yet is no leak
            memory.append((time.monotonic() - began_s, anonymous_kib(os.getpid())))
        stats = await client.stats()
    return {
        "num_closed": num_closed,
        "num_steps": num_steps,
        "num_spilled": stats["num_spilled_idle"],
        "memory": memory,
    }


if __name__ == "__main__":
    endpoint, duration, least = sys.argv[1:]
    print(json.dumps(asyncio.run(churn(endpoint, float(duration), int(least)))))
