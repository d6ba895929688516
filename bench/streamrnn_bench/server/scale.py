"""``streamrnn bench scale``: a million live streams, and their return from disk.

Two servers take turns: one has all streams open and gets steps of them in random order, the other
has a thousand. Both have a thousand steps in flight. Then a server keeps all streams on disk, ends,
and another one goes on with them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import zmq
from numpy.typing import NDArray

from streamrnn.kernels.cpu.program import Program
from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.server.load import make_traffic, stream_names, stream_order
from streamrnn_bench.server.processes import (
    Load,
    Server,
    anonymous_kib,
    load,
    server,
    stopping_cleanly,
    temporary_model,
)
from streamrnn_bench.server.throughput import describe_rounds, verify_outputs
from streamrnn_bench.step.cases import Case
from streamrnn_client import Client
from streamrnn_client.protocol import decode_response, encode_request

__all__ = ["SCALE_CASES", "measure_scale"]

SCALE_CASES = (Case("lstm", 64, 128),)
_NUM_FEW = 1_000  # streams of the other server, and steps in flight
_NUM_FIRST_STEPS = 2  # of every stream, before anything is timed
_NUM_RETURNING = 256
_RATE_TARGET, _MAX_KIB, _MAX_READY_S = 0.6, 1.15, 1.0
_TIMEOUT_S = 120.0
_WARM_UP_S = 0.5


def measure_scale(
    cases: Iterable[Case],
    num_streams: int = 1_000_000,
    num_rounds: int = 12,
    round_s: float = 0.5,
) -> Iterator[Result]:
    """Measure what many streams cost: in speed, in memory, and at a restart.

    ``num_streams`` is a multiple of 1,000; the window is 1. Each of the two servers has
    ``num_rounds`` turns of ``round_s``.

    Yields steps a second against those with 1,000 streams; anonymous memory a stream against its
    row; the start-up of a server with all streams on disk against one with none, and the time of a
    stream's first step after it against the second. Raises a `BenchError` if a reply is wrong or
    missing, or outputs after the restart are not those of the Engine to the bit.
    """
    for case in cases:
        name = f"{case} {num_streams} streams float32 cpu"
        yield from _live(case, name, num_streams, num_rounds, round_s)
        yield from _returning(case, name, num_streams)


def _live(
    case: Case, name: str, num_streams: int, num_rounds: int, round_s: float
) -> Iterator[Result]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping_cleanly())
        model = stack.enter_context(temporary_model(case))
        # Spare slots: the index is sized by this, and a round number must not favour it.
        limits = [f"--max-streams={n + n // 20}" for n in (num_streams, _NUM_FEW)]
        servers = [stack.enter_context(server(model, limit)) for limit in limits]
        loads = [
            stack.enter_context(_load(running, case, n))
            for running, n in zip(servers, (num_streams, _NUM_FEW), strict=True)
        ]
        opened_s = []
        for generator in loads:
            _check_first_steps(generator, case, model.parent)
            opened_s.append(generator.ask(drive_s=_WARM_UP_S)["opened_s"])
        machine_load, rounds = MachineLoad(), []
        for _ in range(num_rounds):
            pair = tuple(
                found["num_replies"] / found["elapsed_s"]
                for found in (generator.ask(drive_s=round_s) for generator in loads)
            )
            rounds.append((machine_load.share(), pair))
        kib = [anonymous_kib(running.pid) for running in servers]
    share, pairs = quieter_half(rounds)
    yield Result(
        benchmark="scale",
        case=name,
        value=median(many for many, _ in pairs),
        unit="steps/s",
        reference=f"{_NUM_FEW}_streams",
        reference_value=median(few for _, few in pairs),
        target=_RATE_TARGET,
        note=describe_rounds(share, [many / few for many, few in pairs]),
        samples=tuple(many for many, _ in pairs),
        reference_samples=tuple(few for _, few in pairs),
    )
    row_kib = Program(case.model()).row_bytes / 1024
    yield Result(
        benchmark="scale",
        case=f"{name} memory a stream",
        value=(kib[0] - kib[1]) / (num_streams - _NUM_FEW),
        unit="KiB",
        reference="row",
        reference_value=row_kib,
        target=row_kib / _MAX_KIB if row_kib == 1 else None,
        note=f"anonymous: {kib[0] / 1024:,.0f} MiB in all, {kib[1] / 1024:,.0f} MiB with "
        f"{_NUM_FEW} streams; opened in {opened_s[0]:.1f} s",
    )


def _returning(case: Case, name: str, num_streams: int) -> Iterator[Result]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping_cleanly())
        model = stack.enter_context(temporary_model(case))
        arguments = (f"--max-streams={num_streams}", "--state-dir")
        with server(model, *arguments, str(model.with_name("none"))) as running:
            empty_s = running.ready_s
        directory = str(model.with_name("state"))
        with (
            server(model, *arguments, directory) as running,
            _load(running, case, num_streams) as generator,
        ):
            outputs = _check_first_steps(generator, case, model.parent)
            with Client(running.endpoint, timeout_s=_TIMEOUT_S) as client:
                began_s = time.monotonic()
                if not client.sync():
                    raise BenchError("the streams could not be written to disk")
                synced_s = time.monotonic() - began_s
        with server(model, *arguments, directory) as running:
            times_us, seen = _next_steps(running, case, num_streams)
        outputs = np.concatenate([outputs[:, : seen.shape[1]], seen])
        verify_outputs(case, outputs)
    yield Result(
        benchmark="scale",
        case=f"{name} on disk: start until ready",
        value=running.ready_s,
        unit="s",
        reference="no_streams_on_disk",
        reference_value=empty_s,
        note=f"{running.ready_s - empty_s:.2f} s more; wanted: ready and back within "
        f"{_MAX_READY_S:.0f} s; the rest of a sync took {synced_s:.1f} s",
    )
    first_us, second_us = times_us
    yield Result(
        benchmark="scale",
        case=f"{name} on disk: first step p50",
        value=float(median(first_us)),
        unit="us",
        reference="second_step",
        reference_value=float(median(second_us)),
        note=f"the very first {first_us[0]:,.0f} us, the slowest {max(first_us):,.0f} us, "
        f"of {len(first_us)} streams one after the other",
    )


def _load(running: Server, case: Case, num_streams: int) -> contextlib.AbstractContextManager[Load]:
    arguments = ("--window", "1", "--under-way", str(_NUM_FEW))
    return load(running.endpoint, case, num_streams, False, *arguments)


def _check_first_steps(generator: Load, case: Case, directory: Path) -> NDArray[np.float32]:
    path = directory / f"outputs-{time.monotonic_ns()}.npy"
    generator.ask(keep=str(path), num_steps=_NUM_FIRST_STEPS)
    outputs: NDArray[np.float32] = np.load(path)
    verify_outputs(case, outputs)
    return outputs


def _next_steps(
    running: Server, case: Case, num_streams: int
) -> tuple[list[list[float]], NDArray[np.float32]]:
    """Time the next two steps of some streams singly; return their outputs too."""
    traffic = make_traffic(0, 1, case.input_size, case.hidden_size)
    names = stream_names(num_streams)
    order = stream_order(num_streams, _NUM_FEW)[:_NUM_RETURNING]
    times_us: list[list[float]] = []
    outputs = np.empty((2, len(order), case.hidden_size), np.float32)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(running.endpoint)
        for step in range(2):
            times_us.append([])
            seq = _NUM_FIRST_STEPS + 1 + step
            for k, number in enumerate(order):
                x = traffic.input_of(k, seq)
                request = encode_request(k, "step", [names[number], seq, x.tobytes()])
                sent_s = time.perf_counter()
                dealer.send(request)
                if not dealer.poll(int(1000 * _TIMEOUT_S)):
                    raise BenchError(f"stream {names[number]} did not come back")
                response = decode_response(dealer.recv())
                times_us[-1].append(1e6 * (time.perf_counter() - sent_s))
                if response.error:
                    raise BenchError(f"a stream did not come back: {response.error[1]}")
                outputs[step, k] = np.frombuffer(response.result[2], np.float32)
    return times_us, outputs
