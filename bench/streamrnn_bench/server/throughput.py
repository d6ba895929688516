"""``streamrnn bench throughput`` and ``roundtrip``: messages, against an echo.

Three kinds of processes: the server, as users start it; a bare libzmq echo that takes requests and
returns replies of the same sizes; and for each of them the same compiled load generator. Where the
server has several shards, each has an echo and generators of its own. They take turns on the
machine, and the others wait for a message meanwhile. Machines are shared: the half of all rounds
with the least load of other processes counts.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.engine import Engine
from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.report.timing import interleave
from streamrnn_bench.server.load import NUM_X, make_traffic
from streamrnn_bench.server.processes import (
    Load,
    echo,
    load,
    server,
    stopping_cleanly,
    temporary_model,
)
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.cpu import Streams
from streamrnn_client import Client, Stream

__all__ = [
    "ROUNDTRIP_CASES",
    "THROUGHPUT_CASES",
    "describe_rounds",
    "measure_roundtrips",
    "measure_throughput",
    "verify_outputs",
    "verify_server",
]

THROUGHPUT_CASES = (Case("gru", 16, 32), Case("lstm", 64, 128))
ROUNDTRIP_CASES = (Case("lstm", 64, 128),)
_THROUGHPUT_TARGETS = {"gru 16->32": 0.75, "lstm 64->128": 0.55}
_ROUNDTRIP_TARGET = 0.87
_MAX_INSIDE_US = 6.0
_NUM_CHECKED_STEPS = 8
_MAX_ROUND_TRIPS = 1_000_000
_WARM_UP_S = 0.2

Found = dict[str, Any]


def verify_outputs(case: Case, outputs: NDArray[np.float32], device: str = "cpu") -> None:
    """Raise a `BenchError` if outputs [T, N, output_size] are not the Engine's.

    They are those of steps 1 to T of every stream, and must be equal to the bit.
    """
    num_steps, num_streams, _size = outputs.shape
    model = case.model()
    engine = Engine(model, device, max_streams=num_streams)
    rows = engine.rows(range(num_streams))
    x = make_traffic(0, 1, case.input_size, case.hidden_size).x
    for step in range(num_steps):
        # Inputs as in `Traffic`.
        used = (np.arange(num_streams) + 7 * (step + 1)) % NUM_X
        expected = engine.batch(rows, x[used])
        wrong = np.flatnonzero((expected.view(np.int32) != outputs[step].view(np.int32)).any(1))
        if len(wrong):
            raise BenchError(
                f"{case}: step {step + 1} of stream {wrong[0]} (and of {len(wrong) - 1} more) is "
                "not to the bit what the Engine computes; a wrong result is not timed"
            )


def verify_server(generator: Load, case: Case, directory: Path, device: str = "cpu") -> None:
    """Verify the first steps of a new generator with `verify_outputs`.

    Its outputs pass through a file in ``directory``.
    """
    path = directory / f"outputs-{time.monotonic_ns()}.npy"
    generator.ask(keep=str(path), num_steps=_NUM_CHECKED_STEPS)
    verify_outputs(case, np.load(path), device)


@contextlib.contextmanager
def _loads(
    case: Case, num_streams: int, device: str = "cpu", num_shards: int = 1
) -> Iterator[tuple[str, list[Load], list[Load]]]:
    """Start server, echo, and a generator for each, of each shard; verify the server's outputs."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping_cleanly())
        model = stack.enter_context(temporary_model(case))
        options = ["--shards", str(num_shards)]
        if device != "cpu":
            options += ["--device", device, "--max-streams", str(num_streams + 1)]
        endpoints = stack.enter_context(server(model, *options)).endpoints
        ours, theirs = [], []
        for shard, endpoint in enumerate(endpoints):
            part = ("--shard", str(shard), str(num_shards))
            ours.append(stack.enter_context(load(endpoint, case, num_streams, False, *part)))
            echo_endpoint = stack.enter_context(echo(case, model.parent))
            theirs.append(stack.enter_context(load(echo_endpoint, case, num_streams, True, *part)))
        for generator in ours:
            verify_server(generator, case, model.parent, device)
        for generators in (ours, theirs):
            _messages_per_s(generators, _WARM_UP_S)
        yield endpoints[0], ours, theirs


def _messages_per_s(generators: Sequence[Load], drive_s: float) -> float:
    """Let generators drive their streams, all of them at once."""
    for generator in generators:
        generator.begin(drive_s=drive_s)
    found = [generator.end() for generator in generators]
    return sum(float(each["num_replies"] / each["elapsed_s"]) for each in found)


def measure_throughput(
    cases: Iterable[Case],
    num_rounds: int = 16,
    round_s: float = 0.5,
    num_streams: int = 1_000,
    device: str = "cpu",
    shards: Sequence[int] = (1,),
) -> Iterator[Result]:
    """Measure steps a second with one step a message, against messages of the echo.

    Each stream sends its next step when it has the reply to the one before. Server and echo have
    ``num_rounds`` turns of ``round_s``; medians of the quieter half. ``shards`` are numbers of
    shards, of which each has a server of its own, and as many echoes. Raises a `BenchError` if a
    reply is wrong or missing.
    """
    for case, num_shards in itertools.product(cases, shards):
        rounds = []
        with _loads(case, num_streams, device, num_shards) as (_endpoint, to_server, to_echo):
            machine_load = MachineLoad()
            for _ in range(num_rounds):
                pair = _messages_per_s(to_server, round_s), _messages_per_s(to_echo, round_s)
                rounds.append((machine_load.share(), pair))
        share, pairs = quieter_half(rounds)
        of_shards = f", {num_shards} shards" * (num_shards > 1)
        has_target = device == "cpu" and num_shards == 1
        yield Result(
            benchmark="throughput",
            case=f"{case} {num_streams} streams float32 {device}{of_shards}",
            value=median(our for our, _ in pairs),
            unit="messages/s",
            reference="libzmq_echo",
            reference_value=median(their for _, their in pairs),
            target=_THROUGHPUT_TARGETS.get(str(case)) if has_target else None,
            note=describe_rounds(share, [our / their for our, their in pairs]),
            samples=tuple(our for our, _ in pairs),
            reference_samples=tuple(their for _, their in pairs),
            details={"streams": num_streams, "series": f"{case} float32 {device}{of_shards}"},
        )


def describe_rounds(share: float, ratios: Sequence[float]) -> str:
    """Format a table note: the largest load of other processes, the spread of ratios."""
    return (
        f"{len(ratios)} rounds, {min(ratios):.2f} to {max(ratios):.2f}; "
        f"others took up to {share:.0%} of the machine"
    )


def measure_roundtrips(
    cases: Iterable[Case], num_rounds: int = 16, round_s: float = 0.3
) -> Iterator[Result]:
    """Measure the round trip of one message at a time.

    Yields p50 and p99 against those of the echo; the Python client's p50; and the server's own time
    from receive to send against the step that is done in it. Server, echo and client have
    ``num_rounds`` turns of ``round_s``; medians of the quieter half. Raises a `BenchError` if a
    reply is wrong or missing.
    """
    command = {"drive_s": round_s, "num_round_trips": _MAX_ROUND_TRIPS}
    for case in cases:
        compiled, python = [], []
        with _loads(case, 1) as (endpoint, [to_server], [to_echo]):
            machine_load = MachineLoad()
            for _ in range(num_rounds):
                pair = to_server.ask(**command), to_echo.ask(**command)
                compiled.append((machine_load.share(), pair))
            with Client(endpoint) as client:
                inside_us = client.stats()["latency_us"]
                stream = client.stream("python")
                for _ in range(num_rounds):
                    pair = _python_round_trips(stream, case, round_s), to_echo.ask(**command)
                    python.append((machine_load.share(), pair))
        yield _roundtrip(f"{case} p50", "p50_us", compiled, _ROUNDTRIP_TARGET)
        yield _roundtrip(f"{case} p99", "p99_us", compiled, None)
        yield _roundtrip(f"{case} p50 Python client", "p50_us", python, None)
        yield _inside(case, inside_us)


def _roundtrip(
    case: str, name: str, rounds: Sequence[tuple[float, tuple[Found, Found]]], target: float | None
) -> Result:
    share, pairs = quieter_half(rounds)
    return Result(
        benchmark="roundtrip",
        case=f"{case} float32 cpu",
        value=median(our[name] for our, _ in pairs),
        unit="us",
        reference="libzmq_echo",
        reference_value=median(their[name] for _, their in pairs),
        target=target,
        note=describe_rounds(share, [their[name] / our[name] for our, their in pairs]),
        samples=tuple(our[name] for our, _ in pairs),
        reference_samples=tuple(their[name] for _, their in pairs),
        details={"latency_us": _latency(pairs)} if case.endswith("p50") else {},
    )


def _latency(pairs: Sequence[tuple[Found, Found]]) -> dict[str, float]:
    quantiles = ("50", "99", "99.9")
    return {q: median(our[f"p{q}_us"] for our, _ in pairs) for q in quantiles}


def _python_round_trips(stream: Stream, case: Case, duration_s: float) -> Found:
    """Step one stream from Python, as users do."""
    x = np.random.default_rng(0).standard_normal((NUM_X, case.input_size)).astype(np.float32)
    times_us: list[float] = []
    now = time.perf_counter()
    until = now + duration_s
    while now < until:
        sent = now
        stream.step(x[len(times_us) % NUM_X])
        now = time.perf_counter()
        times_us.append((now - sent) * 1e6)
    return {"p50_us": float(np.percentile(times_us, 50))}


def _inside(case: Case, inside_us: Found) -> Result:
    """Compare the server's own time from receive to send with the step done in it."""
    streams = Streams(case.model(), 1)
    step_us = interleave({"step": streams.run}, num_rounds=15, round_s=0.005)["step"] * 1e6
    return Result(
        benchmark="roundtrip",
        case=f"{case} receive to send p50 float32 cpu",
        value=inside_us["p50"],
        unit="us",
        reference="step_in_loop",
        reference_value=step_us,
        note=f"p99 {inside_us['p99']:.1f} us, in the server, to an eighth; wanted: at most "
        f"{_MAX_INSIDE_US:.0f} us",
    )
