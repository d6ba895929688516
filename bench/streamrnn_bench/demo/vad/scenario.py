"""Sequence of the demonstration: bring the detector, serve it, compare, and listen in real time."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamrnn import Engine
from streamrnn.errors import StreamRNNError
from streamrnn.model.model import Model
from streamrnn_bench.demo.output import Output, duration, sparkline
from streamrnn_bench.demo.server_process import ServerProcess
from streamrnn_bench.demo.vad.audio import FRAME, RATE_HZ, Microphones, record
from streamrnn_bench.demo.vad.peer import Original
from streamrnn_bench.demo.vad.source import bring, find
from streamrnn_client import Client

__all__ = ["Options", "run_scenario"]

Floats = NDArray[np.float32]

FRAME_S = FRAME / RATE_HZ
TOLERANCE = 1e-5  # of a probability
CLIP_S = 24.0
NUM_CHECKED = 96  # frames of every stream that are compared with the original
BATCHES = (8, 32, 128)  # of onnxruntime; the best one is taken
NUM_TRIES = 5  # of each way: the fastest round is taken, of all ways alike
ONE_STREAM_FRAMES = 400
WIDTH = 72  # of the picture


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    silero: Path | None
    port: int
    num_streams: int
    seconds: float  # in real time


def run_scenario(options: Options, scratch: Path, output: Output) -> None:
    """Import, serve, compare and listen; every number is measured in this run."""
    output.line(
        "Silero's voice activity detector, from its ONNX file. Every number is of this run."
    )
    path = find(options.silero, scratch)
    imported = bring(path)
    model_path = scratch / "vad.safetensors"
    imported.model.save(model_path)
    output.heading("Bring it")
    _introduce(imported.model, output)
    room = record(CLIP_S)
    microphones = Microphones(room, options.num_streams)
    output.heading("Serve, on one core")
    with ServerProcess(model_path, options.port) as server:
        ready_s = server.start(lambda: output.say("The first start on a machine compiles."))
        output.say(f"Process {server.pid} at {server.address}, ready after {duration(ready_s)}.")
        with Client(server.address) as client, _cores_apart(server.pid):
            output.heading(f"{options.num_streams:,} streams, as fast as they go")
            _compare(client, imported.model, path, microphones, output)
            output.heading(f"{options.num_streams:,} streams in real time")
            heard = _listen(client, server.pid, microphones, options.seconds, output)
    output.heading("What one of them heard")
    _draw(heard, microphones, room.speaker, output)


def _introduce(model: Model, output: Output) -> None:
    spec = model.spec
    layers = " -> ".join(layer.summary() for layer in spec.layers)
    output.say(f"A frame of {FRAME} samples a step ({duration(FRAME_S)}): {layers}.")
    output.say(
        f"{model.num_parameters:,} parameters. The state of the LSTM and the last samples of the "
        "frame before are kept by the stream."
    )


@contextmanager
def _cores_apart(pid: int) -> Iterator[None]:
    """Give the server a core of its own and this process another, where there are two."""
    mine = os.sched_getaffinity(0)
    if len(mine) > 1:
        first, second, *_ = sorted(mine)
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                os.sched_setaffinity(int(task), {second})
        os.sched_setaffinity(0, {first})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def _compare(
    client: Client, model: Model, path: Path, microphones: Microphones, output: Output
) -> None:
    """Let all ways compute the same frames; check every output, and print the times."""
    num_streams = len(microphones.frame(0))
    frames = [microphones.frame(t) for t in range(NUM_CHECKED)]
    original = Original(path, num_streams)
    expected = np.stack([original.step(x) for x in frames])
    rows = client.rows([f"microphone-{k:04}" for k in range(num_streams)])
    served = np.stack([client.batch(rows, x) for x in frames])
    worst = float(np.abs(served - expected).max())
    if not worst <= TOLERANCE:
        raise StreamRNNError(
            f"a probability differs from onnxruntime's by {worst:.2g}: a defect of StreamRNN, "
            "please report it"
        )
    output.say(
        f"{expected.size:,} probabilities of {num_streams:,} streams, from "
        f"{expected.min():.4f} to {expected.max():.4f}, differ from onnxruntime's by at most "
        f"{worst:.1e}."
    )
    single = Original(path, 1)
    one = Engine(model)
    mine = one.rows(["alone"])
    together = Engine(model)
    all_rows = together.rows(range(num_streams))
    alone = client.stream("alone")
    lonely = [x[:1] for x in frames]
    few = frames[:4]
    batches = {
        size: (Original(path, size), [x[:size] for x in frames[: max(4, NUM_CHECKED // size)]])
        for size in BATCHES
        if size <= num_streams
    }
    ways: dict[str, tuple[Callable[[Floats], object], list[Floats]]] = {
        "onnxruntime, a frame a call": (single.step, lonely),
        **{
            f"onnxruntime, {size} frames a call": (peer.step, given)
            for size, (peer, given) in batches.items()
        },
        "Engine in this process, a frame a call": (lambda x: one.batch(mine, x), lonely),
        f"Engine in this process, {num_streams:,} frames a call": (
            lambda x: together.batch(all_rows, x),
            few,
        ),
        "server, a frame a message": (lambda x: alone.step(x[0]), lonely),
        f"server, {num_streams:,} frames a message": (lambda x: client.batch(rows, x), few),
    }
    took_s = _best_times(ways)
    best = min(s for name, s in took_s.items() if name.startswith("onnxruntime"))
    rows_of_table = [
        (
            name,
            duration(seconds),
            f"{1 / seconds:,.0f}",
            f"{FRAME_S / seconds:,.0f}",
            f"{best / seconds:.2f}",
        )
        for name, seconds in took_s.items()
    ]
    output.line()
    header = ("one core each", "a frame", "frames/s", "streams", "speed")
    output.table(header, rows_of_table)
    output.line()
    many = took_s[f"server, {num_streams:,} frames a message"]
    call = took_s["onnxruntime, a frame a call"]
    output.say(
        f"Streams: how many a core can hear in real time. Speed: against onnxruntime's best batch. "
        f"Served in batches it is {best / many:.1f} times that, and {call / many:.1f} times one "
        "call a frame."
    )


def _best_times(
    ways: dict[str, tuple[Callable[[Floats], object], list[Floats]]],
) -> dict[str, float]:
    """Return seconds a frame of each way: the best of some rounds, in each of which all run."""
    best = dict.fromkeys(ways, float("inf"))
    for round_ in range(NUM_TRIES + 1):
        for name, (step, frames) in ways.items():
            began = time.perf_counter()
            for x in frames:
                step(x)
            took_s = (time.perf_counter() - began) / sum(map(len, frames))
            if round_:  # the first one warms up
                best[name] = min(best[name], took_s)
    return best


def _listen(
    client: Client, pid: int, microphones: Microphones, seconds: float, output: Output
) -> Floats:
    """Send a frame of every stream each 32 ms; return the first one's probabilities."""
    num_streams = len(microphones.frame(0))
    rows = client.rows([f"live-{k:04}" for k in range(num_streams)])
    num_frames = max(WIDTH, int(seconds / FRAME_S))
    calls_s = np.empty(num_frames)
    heard = np.empty(num_frames, np.float32)
    num_late = 0
    x = microphones.frame(0)
    cpu_before, began = _cpu_s(pid), time.perf_counter()
    for t in range(num_frames):
        due = began + t * FRAME_S
        time.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        heard[t] = client.batch(rows, x)[0, 0]
        calls_s[t] = time.perf_counter() - sent
        num_late += time.perf_counter() > due + FRAME_S
        x = microphones.frame(t + 1)
    share = (_cpu_s(pid) - cpu_before) / (time.perf_counter() - began)
    p50, p99 = np.percentile(calls_s, [50, 99])
    output.say(
        f"{num_frames} frames of each, one every {duration(FRAME_S)}: from the end of a frame to "
        f"the probabilities of all {num_streams:,} streams p50 {duration(p50)}, p99 "
        f"{duration(p99)}; {num_late} of {num_frames} came after the next frame was due. The "
        f"server used {share:.0%} of a core."
    )
    return heard


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _draw(heard: Floats, microphones: Microphones, speaker: str, output: Output) -> None:
    """Draw loudness and probability of the first stream over time."""
    loud = np.array([np.abs(microphones.frame(t)[0]).max() for t in range(len(heard))])
    edges = np.linspace(0, len(heard), WIDTH + 1).astype(int)
    spans = list(itertools.pairwise(edges))
    loudness = np.array([loud[a:b].max() for a, b in spans])
    probability = np.array([heard[a:b].max() for a, b in spans])
    output.line(f"  loudness    {sparkline(loudness, 0.0, float(loudness.max()))}")
    output.line(f"  probability {sparkline(probability, 0.0, 1.0)}")
    seconds = len(heard) * FRAME_S
    output.line(f"              0 to {seconds:.1f} s; speech by {speaker}", style="dim")
