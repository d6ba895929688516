"""``streamrnn bench client``: what the Python client costs beside a bare pyzmq request.

The bare request is sent and received through pyzmq alone, and answered by an echo with as many
bytes as the server's reply has. Processor time is that of the calling thread. A long list of
objects stands for a program that has loaded much, as PyTorch does: a collection of garbage looks at
all of it, so a call that makes the collector run shows in the tail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

from streamrnn.engine.engine import Engine
from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.server.processes import echo, serving, stopping_cleanly, temporary_model
from streamrnn_bench.step.cases import Case
from streamrnn_client import Client
from streamrnn_client.protocol import MAX_MSGID, encode_request

__all__ = ["CLIENT_CASES", "Turn", "measure_client", "take_turn"]

CLIENT_CASES = (Case("gru", 16, 32),)
_STEP_TARGET, _ROUND_TRIP_TARGET, _TAIL_TARGET = 0.4, 1 / 1.35, 0.5
_MAX_BATCH_US = 800
_NUM_TRACKED = 2_000_000
_WARM_UP_S = 0.1
_SEQ_BYTES = 16  # of the numbers of one stream in a batch's reply
_TIMEOUT_MS = 5_000

Call = Callable[[], object]


class Turn(NamedTuple):
    """Calls of one kind, one after the other: microseconds a call."""

    processor_us: float
    p50_us: float
    p99_us: float
    num_calls: int
    num_collections: int


Round = dict[str, Turn]


def take_turn(call: Call, duration_s: float) -> Turn:
    """Call for a while, at least once."""
    times_s: list[float] = []
    collections = _num_collections()
    processor_s = time.thread_time()
    now = time.perf_counter()
    until = now + duration_s
    while not times_s or now < until:
        began = now
        call()
        now = time.perf_counter()
        times_s.append(now - began)
    processor_s = time.thread_time() - processor_s
    num_collections = _num_collections() - collections
    p50, p99 = np.percentile(times_s, (50, 99)) * 1e6
    num_calls = len(times_s)
    return Turn(processor_s / num_calls * 1e6, float(p50), float(p99), num_calls, num_collections)


def _num_collections() -> int:
    return sum(each["collections"] for each in gc.get_stats())


def measure_client(
    cases: Iterable[Case],
    num_rounds: int = 16,
    round_s: float = 0.3,
    num_streams: int = 1_000,
    num_tracked: int = _NUM_TRACKED,
) -> Iterator[Result]:
    """Measure ``step`` and ``batch`` of the blocking client.

    Yields the processor time of a step, of an array and of a list, and its round trip, each against
    a bare request; then, for a server that keeps nothing and for one with a disk, the processor
    time of a batch against a bare request of its size, and its p99 against its p50. All have
    ``num_rounds`` turns of ``round_s``; medians of the quieter half. Raises a `BenchError` if an
    output is wrong, or an echo does not answer.
    """
    tracked = [[None] for _ in range(num_tracked)]
    for case in cases:
        with contextlib.ExitStack() as stack:
            calls = _prepare(stack, case, num_streams)
            for call in calls.values():
                take_turn(call, _WARM_UP_S)
            rounds = []
            machine_load = MachineLoad()
            for _ in range(num_rounds):
                found = {name: take_turn(call, round_s) for name, call in calls.items()}
                rounds.append((machine_load.share(), found))
        share, chosen = quieter_half(rounds)
        others = f"others took up to {share:.0%} of the machine"
        yield from _step_results(case, chosen, others)
        for name in ("batch", "durable batch"):
            yield from _batch_results(f"{case} {name} of {num_streams}", name, chosen, others)
    del tracked


def _prepare(stack: contextlib.ExitStack, case: Case, num_streams: int) -> Mapping[str, Call]:
    """Start servers and echoes; return what to call, whose first outputs are verified."""
    stack.enter_context(stopping_cleanly())
    model = stack.enter_context(temporary_model(case))
    x = np.random.default_rng(0).standard_normal((num_streams, case.input_size), np.float32)
    batch_reply = dataclasses.replace(
        case, hidden_size=num_streams * (case.hidden_size + _SEQ_BYTES // 4)
    )
    calls: dict[str, Call] = {
        "request": _bare(stack, stack.enter_context(echo(case, model.parent)), x[:1]),
        "long request": _bare(stack, stack.enter_context(echo(batch_reply, model.parent)), x),
    }
    plain = stack.enter_context(serving(model))
    durable = stack.enter_context(serving(model, "--state-dir", str(model.parent / "state")))
    client = stack.enter_context(Client(plain))
    stream, listed = client.stream("array"), client.stream("list")
    one, values = x[0], x[0].tolist()
    calls["step"] = functools.partial(stream.step, one)
    calls["step of a list"] = functools.partial(listed.step, values)
    engine = Engine(case.model(), max_streams=num_streams)
    expected = engine.batch(engine.rows(range(num_streams)), x)
    _verify(case, np.array([stream.step(one), listed.step(values)]), expected[[0, 0]])
    for name, endpoint in (("batch", plain), ("durable batch", durable)):
        caller = stack.enter_context(Client(endpoint))
        rows = caller.rows(range(num_streams))
        _verify(case, caller.batch(rows, x), expected)
        calls[name] = functools.partial(caller.batch, rows, x)
    return calls


def _bare(stack: contextlib.ExitStack, endpoint: str, x: NDArray[np.float32]) -> Call:
    """Return a request with inputs, and the wait for its reply, through pyzmq alone."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket = stack.enter_context(context.socket(zmq.DEALER))
    socket.linger = 0
    socket.connect(endpoint)
    payload = encode_request(MAX_MSGID, "step", ["bare", 100_000, x.tobytes()])
    socket.send(payload)
    if not socket.poll(_TIMEOUT_MS):
        raise BenchError("an echo did not answer within 5 s")
    socket.recv()

    def call() -> None:
        socket.send(payload)
        socket.recv()

    return call


def _verify(case: Case, outputs: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    if outputs.tobytes() != expected.tobytes():
        raise BenchError(
            f"{case}: an output is not to the bit what the Engine computes; "
            "a wrong result is not timed"
        )


def _step_results(case: Case, rounds: Sequence[Round], others: str) -> Iterator[Result]:
    for name in ("step", "step of a list"):
        yield _result(f"{case} {name} processor time", rounds, name, "request", _STEP_TARGET)
    yield Result(
        benchmark="client",
        case=f"{case} step p50 float32 cpu",
        value=median(each["step"].p50_us for each in rounds),
        unit="us",
        reference="pyzmq_request",
        reference_value=median(each["request"].p50_us for each in rounds),
        target=_ROUND_TRIP_TARGET,
        note=others,
        samples=tuple(each["step"].p50_us for each in rounds),
        reference_samples=tuple(each["request"].p50_us for each in rounds),
    )


def _batch_results(case: str, name: str, rounds: Sequence[Round], others: str) -> Iterator[Result]:
    turns = [each[name] for each in rounds]
    collections = sum(turn.num_collections for turn in turns)
    yield _result(
        f"{case} processor time",
        rounds,
        name,
        "long request",
        note=f"wanted: at most {_MAX_BATCH_US} us of 1,000 streams; {collections} collections in "
        f"{sum(turn.num_calls for turn in turns)} calls",
    )
    yield Result(
        benchmark="client",
        case=f"{case} p99 float32 cpu",
        value=median(turn.p99_us for turn in turns),
        unit="us",
        reference="p50",
        reference_value=median(turn.p50_us for turn in turns),
        target=_TAIL_TARGET,
        note=others,
    )


def _result(
    case: str,
    rounds: Sequence[Round],
    name: str,
    reference: str,
    target: float | None = None,
    note: str = "",
) -> Result:
    return Result(
        benchmark="client",
        case=f"{case} float32 cpu",
        value=median(each[name].processor_us for each in rounds),
        unit="us",
        reference="pyzmq_request",
        reference_value=median(each[reference].processor_us for each in rounds),
        target=target,
        note=note,
        samples=tuple(each[name].processor_us for each in rounds),
        reference_samples=tuple(each[reference].processor_us for each in rounds),
    )
