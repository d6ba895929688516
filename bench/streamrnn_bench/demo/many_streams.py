"""Part three: a thousand streams, against NumPy and against one message a step."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn import Engine
from streamrnn.errors import StreamRNNError
from streamrnn_bench.demo.learn import Learned
from streamrnn_bench.demo.numpy_loop import NumpyLoop
from streamrnn_bench.demo.output import Output, duration
from streamrnn_client import Client

__all__ = ["Crowd", "Timed", "check_bits", "compare", "gather"]

Floats = NDArray[np.float32]
LEVEL_PPMV, NOISE_PPMV = 5.0, 0.3  # how the copies differ
NUM_SLOW_STEPS = 10_000  # of ways with one step a call: enough to measure
# NumPy and the kernels round differently; an output near 370 ppmv has a resolution of 0.00003.
MAX_ULPS = 16


@dataclass(frozen=True)
class Timed:
    """Seconds of each call of one way of stepping, and the steps in a call."""

    calls_s: NDArray[np.float64]
    steps_a_call: int

    def cells(self) -> tuple[str, str, str]:
        """Return table cells: steps a second, and two percentiles of a call."""
        p50, p99 = np.percentile(self.calls_s, [50, 99])
        # Of the median call: a mean would include the load of other processes.
        return f"{self.steps_a_call / p50:,.0f}", duration(p50), duration(p99)


def _timed(call: Callable[[int], Floats], num_calls: int, out: Floats, width: int) -> Timed:
    """Call for 0, 1, ...; keep the outputs, one row of `out` a call, and the times."""
    calls_s = np.empty(num_calls)
    for k in range(num_calls):
        began = time.perf_counter()
        out[k] = call(k)
        calls_s[k] = time.perf_counter() - began
    return Timed(calls_s, width)


@dataclass(frozen=True)
class Crowd:
    """Perturbed copies of the series for B streams, and the outputs expected of them.

    ``x`` [T, B, 1] is first a history to warm up with, then the test part. ``y`` [T, B, 1] are the
    outputs of uninterrupted streams of an Engine in this process; ``engine`` is how long it took.
    """

    names: list[str]
    x: Floats
    y: Floats
    engine: Timed


def gather(learned: Learned, num_streams: int) -> Crowd:
    """Make the copies, and step them in an Engine."""
    rng = np.random.default_rng(1958)
    num_history = min(max(learned.model.spec.warmup_steps, 1), learned.first)
    series = learned.x[learned.first - num_history : -1, None]
    shape = (len(series), num_streams, 1)
    level = rng.normal(0, LEVEL_PPMV, (1, num_streams, 1))
    x = (series + level + rng.normal(0, NOISE_PPMV, shape)).astype(np.float32)
    names = [f"sensor-{k:04}" for k in range(num_streams)]
    engine = Engine(learned.model)
    rows = engine.rows(names)
    y = np.empty_like(x)
    timed = _timed(lambda t: engine.batch(rows, x[t]), len(x), y, num_streams)
    return Crowd(names, x, y, timed)


def compare(client: Client, learned: Learned, crowd: Crowd, stop: int, output: Output) -> None:
    """Step all streams in four ways, check every output, and print the times.

    The server has stepped them to row ``stop`` of ``crowd.x`` afterwards. Raises a `StreamRNNError`
    if an output is wrong.
    """
    x, num_streams = crowd.x, len(crowd.names)
    output.heading(f"{num_streams:,} streams at once")

    # A client's process holds no compiler and no training for the garbage collector to go through.
    gc.collect()
    gc.freeze()

    # Streams of the server: the first rows one message a step, the rest one message a row.
    streams = client.streams(crowd.names)
    num_single = max(1, min(stop // 4, NUM_SLOW_STEPS // num_streams))
    served = np.empty((stop, num_streams, 1), np.float32)
    single = _timed(
        lambda k: streams[k % num_streams].step(x[k // num_streams, k % num_streams]),
        num_single * num_streams,
        served[:num_single].reshape(-1, 1),
        1,
    )
    rows = client.rows(crowd.names)
    together = _timed(
        lambda k: client.batch(rows, x[num_single + k]),
        stop - num_single,
        served[num_single:],
        num_streams,
    )

    # NumPy: all streams as one matrix; and the naive loop, a stream a call.
    matrix = NumpyLoop(learned.model, num_streams)
    numpy_y = np.empty_like(served)
    in_matrix = _timed(lambda k: matrix.step(x[k]), stop, numpy_y, num_streams)
    loops = [NumpyLoop(learned.model, 1) for _ in crowd.names]
    loop_y = np.empty((num_single, num_streams, 1, 1), np.float32)
    in_loop = _timed(
        lambda k: loops[k % num_streams].step(x[k // num_streams, k % num_streams][None]),
        num_single * num_streams,
        loop_y.reshape(-1, 1, 1),
        1,
    )

    check_bits(served, crowd.y[:stop])
    worst = max(_difference(numpy_y, served), _difference(loop_y[..., 0], served[:num_single]))
    output.say(
        f"Copies of the series with other levels and noise, {stop} weeks of each, through one "
        f"client. All {served.size:,} outputs equal an Engine's in this process to the bit, and "
        f"NumPy's but for rounding: at most {worst:.5f} ppmv."
    )
    output.line()
    output.table(
        ("time of a call, and steps/s at its median", "steps/s", "p50", "p99"),
        [
            ("NumPy in this process, one stream a call", *in_loop.cells()),
            (f"NumPy in this process, {num_streams:,} streams a call", *in_matrix.cells()),
            (f"Engine in this process, {num_streams:,} streams a call", *crowd.engine.cells()),
            ("server, one step a message, one after the other", *single.cells()),
            (f"server, {num_streams:,} steps a message", *together.cells()),
        ],
    )
    output.line()
    output.say(
        "Who has every stream's input at hand, in one process, needs no server; it is for streams "
        "that come from elsewhere, each in its own time. A call to it is a round trip with this "
        "Python client; `streamrnn bench throughput` measures it with a compiled one."
    )


def check_bits(got: Floats, expected: Floats) -> None:
    """Raise a `StreamRNNError` if a bit differs from the engine's outputs."""
    if not np.array_equal(got.view(np.uint32), expected.view(np.uint32)):
        count = int(np.count_nonzero(got.view(np.uint32) != expected.view(np.uint32)))
        raise StreamRNNError(
            f"{count} of {got.size} outputs of the server differ from the engine's: a defect of "
            "StreamRNN, please report it"
        )


def _difference(got: Floats, expected: Floats) -> float:
    """Return the largest difference, in ppmv, or raise if it is more than rounding."""
    difference = np.abs(got.astype(np.float64) - expected)
    if not np.all(difference <= MAX_ULPS * np.spacing(np.abs(expected))):
        raise StreamRNNError(
            f"the server's outputs differ from NumPy's by {difference.max():.3g} ppmv: a defect of "
            "StreamRNN, please report it"
        )
    return float(difference.max())
