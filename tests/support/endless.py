"""Sequences without an end, and clients that step through them and check every bit.

A `Cycle` repeats its inputs with a reset in between, so its outputs repeat too: an uninterrupted
run of an `Engine` over one round says what each of its numbers must answer. As a program it is a
client to be killed: ``python -m tests.support.endless ADDRESS OUTPUTS STREAM``.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from streamrnn_client import Client, aio
from streamrnn_client.stream import Stream

ROUND = 100  # numbers of a round; the last one is the reset
MAX_CHUNK = 30
TIMEOUT_S = 120.0  # longer than any restart of the server on a slow machine
RESEND_S = 0.1


def draw_inputs(seed: int, num_inputs: int) -> np.ndarray:
    """Return one round of inputs, float32[ROUND - 1, num_inputs]."""
    shape = (ROUND - 1, num_inputs)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Cycle:
    """What stream number `seed` is fed, and, where a model is given, what it must answer."""

    def __init__(self, seed: int, num_inputs: int, model=None) -> None:
        self.x = draw_inputs(seed, num_inputs)
        self.random = random.Random(seed)
        self.y = np.empty(0, np.float32)
        if model is not None:
            from streamrnn import Engine

            self.y = Engine(model).steps("s", self.x)

    def part(self, seq: int, max_steps: int) -> slice:
        """Return which inputs come from a number on; empty if it is that of a reset."""
        start = (seq - 1) % ROUND
        return slice(start, min(start + max_steps, ROUND - 1))

    def check(self, seq: int, y: np.ndarray) -> None:
        expected = self.y[self.part(seq, len(y))]
        if not np.array_equal(y.view(np.uint32), expected.view(np.uint32)):
            raise AssertionError(f"the outputs from step {seq} on differ: {y} != {expected}")


def walk(stream: Stream, cycle: Cycle, goes_on: Callable[[], bool]) -> int:
    """Step, in steps and chunks and resets, and check every output; return the last number.

    However soon it is told to end, it has stepped: also where its first call outlasts all kills.
    """
    while stream.last_seq == 0 or goes_on():
        seq = stream.last_seq + 1
        part = cycle.part(seq, cycle.random.randint(1, MAX_CHUNK))
        if part.start == part.stop:
            stream.reset()
        elif cycle.random.random() < 0.5:
            cycle.check(seq, stream.step(cycle.x[part.start])[np.newaxis])
        else:
            cycle.check(seq, stream.steps(cycle.x[part]))
    return stream.last_seq


async def walk_async(stream: aio.Stream, cycle: Cycle, goes_on: Callable[[], bool]) -> int:
    """Do what `walk` does, among other tasks."""
    while stream.last_seq == 0 or goes_on():
        seq = stream.last_seq + 1
        part = cycle.part(seq, cycle.random.randint(1, MAX_CHUNK))
        if part.start == part.stop:
            await stream.reset()
        else:
            cycle.check(seq, await stream.steps(cycle.x[part]))
    return stream.last_seq


def walk_many(address: str, cycles: list[Cycle], goes_on: Callable[[], bool]) -> int:
    """Step many streams together, one step of each a call."""
    with Client(address, timeout_s=TIMEOUT_S, resend_s=RESEND_S) as client:
        rows = client.rows([f"many-{k}" for k in range(len(cycles))])
        streams = client.streams(rows.ids)
        while rows.last_seqs[0] == 0 or goes_on():
            seq = rows.last_seqs[0] + 1
            part = cycles[0].part(seq, 1)
            if part.start == part.stop:
                for stream in streams:
                    stream.reset()
                continue
            outputs = client.batch(rows, np.concatenate([cycle.x[part] for cycle in cycles]))
            for cycle, y in zip(cycles, outputs, strict=True):
                cycle.check(seq, y[np.newaxis])
        assert len(set(rows.last_seqs)) == 1
        return rows.last_seqs[0]


def walk_tasks(address: str, cycles: list[Cycle], goes_on: Callable[[], bool]) -> int:
    """Step several streams, each in a task of one event loop."""

    async def main() -> list[int]:
        async with aio.Client(address, timeout_s=TIMEOUT_S, resend_s=RESEND_S) as client:
            streams = [await client.stream(f"task-{k}") for k in range(len(cycles))]
            pairs = zip(streams, cycles, strict=True)
            return await asyncio.gather(*(walk_async(*pair, goes_on) for pair in pairs))

    return min(asyncio.run(main()))


RECORD = struct.Struct("<q")


def write(file: int, seq: int, y: np.ndarray) -> None:
    """Append outputs with one system call, so that a kill leaves all of it or nothing."""
    last_seq = RECORD.pack(seq + len(y) - 1)
    os.write(file, RECORD.pack(seq) + RECORD.pack(len(y)) + y.tobytes() + last_seq)


def last_written(path: Path) -> int:
    """Return the number of the output that was written last; 0 if there is none."""
    if not path.exists() or not path.stat().st_size:
        return 0
    with path.open("rb") as file:
        file.seek(-RECORD.size, os.SEEK_END)
        return RECORD.unpack(file.read())[0]


def read(path: Path, output_size: int) -> dict[int, bytes]:
    """Return the outputs by number; if one was written twice they must be equal."""
    data = path.read_bytes() if path.exists() else b""
    outputs: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        (seq,), (num_steps,) = RECORD.unpack_from(data, at), RECORD.unpack_from(data, at + 8)
        at += 16
        for k in range(num_steps):
            y = data[at : at + 4 * output_size]
            assert outputs.setdefault(seq + k, y) == y, f"step {seq + k} was answered twice"
            at += 4 * output_size
        at += RECORD.size
    return outputs


def main(address: str, outputs_path: str, name: str) -> None:
    """Be a client that remembers only what it wrote; ends where there is a file OUTPUTS.stop."""
    path, seed = Path(outputs_path), int(name.split("-")[1])
    with Client(address, timeout_s=TIMEOUT_S, resend_s=RESEND_S) as client:
        stream = client.stream(name, window=64)
        cycle = Cycle(seed, len(stream.input_names))
        cycle.random.seed()
        written = last_written(path)
        written += written % ROUND == ROUND - 1  # a reset has no output
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        # What was applied, but not yet written when the end came: its outputs are asked for again.
        # A reset among them was the last, for every call's outputs are written before the next.
        while written < stream.last_seq:
            part = cycle.part(written + 1, stream.last_seq - written)
            if part.start < part.stop:
                write(file, written + 1, stream.steps(cycle.x[part], seq=written + 1))
            written += max(1, part.stop - part.start)
        stop = path.with_suffix(".stop")
        while not stop.exists():
            seq = stream.last_seq + 1
            part = cycle.part(seq, cycle.random.randint(1, MAX_CHUNK))
            if part.start == part.stop:
                stream.reset()
            elif cycle.random.random() < 0.5:
                write(file, seq, stream.step(cycle.x[part.start])[np.newaxis])
            else:
                write(file, seq, stream.steps(cycle.x[part]))


if __name__ == "__main__":
    main(*sys.argv[1:4])
