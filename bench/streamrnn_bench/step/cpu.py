"""``streamrnn bench step``: one time step of B streams, against machine limits.

The step runs in a compiled loop, as the server's does, with no Python in between. From four
streams on its limit is the rate of fused multiply-adds; for one stream it is the rate at which the
weights, which are used once each, come out of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from streamrnn.engine.engine import Engine
from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import step_rows
from streamrnn.kernels.cpu.tiles import VECTOR_BYTES
from streamrnn.kernels.gates import SHAPES
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array
from streamrnn.kernels.virtual_memory import reserve
from streamrnn.model.model import Model
from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.report.timing import interleave
from streamrnn_bench.step.cases import BATCH_SIZES, Case
from streamrnn_bench.step.roofline import (
    FLOPS_A_PEAK_ITERATION,
    READ_BLOCK_BYTES,
    READS,
    read_memory,
    run_peak,
)

__all__ = ["CASES", "Streams", "measure_steps", "verify"]

CASES = tuple(
    Case(*sizes)
    for sizes in (
        ("lstm", 64, 128),
        ("lstm", 256, 256),
        ("lstm", 16, 64),
        ("gru", 64, 128),
        ("gru", 16, 32),
        ("dense", 64, 64),
        ("dense", 256, 256),
        ("conv", 64, 64),
        ("conv", 128, 128),
    )
)
TARGETS = {
    ("lstm 64->128", 48): 0.70,
    ("lstm 64->128", 1): 0.60,
    **{
        (case, num_streams): 0.60
        for case in ("dense 64->64", "dense 256->256", "conv 64->64", "conv 128->128")
        for num_streams in (12, 48)
    },
}
TOLERANCE = 2e-6  # of float32 against float64, of the largest output or of 1
_ENGINE_BATCH_SIZES = (1, 48)
_NUM_CHECKED_STEPS = 16


class Streams:
    """Rows, one input each and outputs of B streams of a model."""

    def __init__(self, model: Model, num_streams: int, precision: str = "float32") -> None:
        self.model = model
        self.program = Program(model, precision)
        self.rows = aligned_floats(num_streams * self.program.row_bytes // 4)
        self.x = np.zeros((num_streams, model.spec.num_inputs), dtype=np.float32)
        self.y = np.zeros((num_streams, model.spec.output_size), dtype=np.float32)
        self.rows.reshape(num_streams, -1)[:] = self.program.initial_row
        row_numbers = np.arange(num_streams)
        self._addresses = tuple(
            array.ctypes.data + row_numbers * num_bytes
            for array, num_bytes in (
                (self.rows, self.program.row_bytes),
                (self.x, self.x.strides[0]),
                (self.y, self.y.strides[0]),
            )
        )

    def run(self, num_repeats: int) -> None:
        """Step every stream ``num_repeats`` times, each with the same inputs."""
        rows, xs, ys = (addresses.ctypes.data for addresses in self._addresses)
        plan = self.program.plan_address
        _step_repeatedly(plan, rows, xs, ys, len(self._addresses[0]), num_repeats)


@jit
def _step_repeatedly(
    plan_address: int, rows: int, xs: int, ys: int, num_rows: int, num_repeats: int
) -> None:
    """Step as the server's loop does, from addresses.

    With arrays numba would count references; its counts are atomic, and took about 0.1 us a step.
    """
    before = enter_float_mode()
    plan = plan_at(plan_address)
    for _ in range(num_repeats):
        for first in range(0, num_rows, MAX_BATCH_ROWS):
            size = min(MAX_BATCH_ROWS, num_rows - first)
            step_rows(
                plan,
                int64_array(rows + 8 * first, size),
                int64_array(xs + 8 * first, size),
                int64_array(ys + 8 * first, size),
                size,
            )
    leave_float_mode(before)


def verify(
    streams: Streams,
    seed: int = 0,
    num_steps: int = _NUM_CHECKED_STEPS,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise a `BenchError` if outputs of new streams are off the float64 reference.

    Steps them from the initial state on, with inputs from ``seed``.
    """
    rng = np.random.default_rng(seed)
    reference = ReferenceModel(streams.model)
    state = reference.initial_state(len(streams.x))
    for step in range(num_steps):
        streams.x[:] = rng.standard_normal(streams.x.shape)
        expected, state = reference.step(state, streams.x)
        streams.run(1)
        error = float(np.max(np.abs(streams.y - expected)))
        if not error <= tolerance * max(1.0, float(np.abs(expected).max())):
            raise BenchError(
                f"step {step} of {len(streams.x)} streams is off by {error:g} from the float64 "
                f"reference, more than {tolerance:g}; a wrong result is not timed"
            )


def measure_steps(
    cases: Iterable[Case],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_rounds: int = 15,
    round_s: float = 0.005,
) -> Iterator[Result]:
    """Measure steps in the loop, and calls of `Engine.batch` from Python.

    Yields GFLOP/s against the peak; for fewer than four streams GB/s of weights against a plain
    read of them; for the Engine the time of a call against that of its step in the loop. Each has
    ``num_rounds`` turns of about ``round_s``, between those of its reference. Raises a `BenchError`
    if outputs are wrong.
    """
    for case in cases:
        model = case.model()
        for num_streams in batch_sizes:
            streams = Streams(model, num_streams)
            verify(streams)
            if num_streams < 4 and streams.program.layers:
                yield _against_read(case, streams, num_rounds, round_s)
            else:
                yield _against_peak(case, streams, num_rounds, round_s)
        for num_streams in _ENGINE_BATCH_SIZES:
            if num_streams in batch_sizes:
                yield _engine_batch(case, model, num_streams, num_rounds, round_s)


def _against_peak(case: Case, streams: Streams, num_rounds: int, round_s: float) -> Result:
    best_s = interleave({"peak": run_peak, "step": streams.run}, num_rounds, round_s)
    num_streams = len(streams.x)
    return Result(
        benchmark="step",
        case=f"{case} B={num_streams} float32 cpu",
        value=case.flops * num_streams / best_s["step"] / 1e9,
        unit="GFLOP/s",
        reference="fma_peak",
        reference_value=FLOPS_A_PEAK_ITERATION / best_s["peak"] / 1e9,
        target=TARGETS.get((str(case), num_streams)),
        note=f"{best_s['step'] * 1e6:.2f} us a step of all, "
        f"{best_s['step'] / num_streams * 1e9:.0f} ns a stream",
    )


def _weights(program: Program) -> tuple[int, int]:
    """Return address and bytes of the packed weights of the only layer."""
    layer = program.layers[0]
    shape = SHAPES[int(layer["kind"])]
    num_vectors = (
        shape.num_accumulators
        + len(shape.x_gates) * layer["num_x"]
        + len(shape.h_gates) * layer["hidden_size"]
    )
    num_bytes = num_vectors * layer["num_panels"] * VECTOR_BYTES
    return int(layer["weights"]["panels"]), int(num_bytes)


def _against_read(case: Case, streams: Streams, num_rounds: int, round_s: float) -> Result:
    """Measure a step of few streams against the fastest read of as many bytes."""
    address, num_bytes = _weights(streams.program)
    num_read = max(num_bytes // READ_BLOCK_BYTES, 1) * READ_BLOCK_BYTES
    copy = reserve(num_read, huge_pages=True)
    copy[:] = 1
    # Where the weights themselves lie, and where the pages are as large as the machine has them.
    places = [copy.ctypes.data] + [address] * (num_read <= num_bytes)
    ways = [(way, place) for place in places for way in range(len(READS))]
    promising = sorted(ways, key=lambda way: _read_s(way, num_read, round_s / 4))[:3]

    runs = {str(way): _reader(way, num_read) for way in promising}
    best_s = interleave({**runs, "step": streams.run}, num_rounds, round_s)
    fastest = min(promising, key=lambda way: best_s[str(way)])
    read_s = best_s[str(fastest)]
    num_streams, num_vectors, ahead_bytes = READS[fastest[0]]
    return Result(
        benchmark="step",
        case=f"{case} B={len(streams.x)} float32 cpu",
        value=num_bytes / best_s["step"] / 1e9,
        unit="GB/s",
        reference="cache_bandwidth",
        reference_value=num_read / read_s / 1e9,
        target=TARGETS.get((str(case), len(streams.x))),
        note=f"{best_s['step'] * 1e6:.2f} us a step; {num_bytes / 1024:.0f} KiB of weights, best "
        f"read {num_streams}x{num_vectors} vectors, prefetch {ahead_bytes}",
    )


def _reader(way: tuple[int, int], num_bytes: int) -> Callable[[int], object]:
    """Return a function that reads so many bytes: a way of `READS`, and an address."""

    def run(num_repeats: int) -> None:
        read_memory(*way, num_bytes, num_repeats)

    return run


def _read_s(way: tuple[int, int], num_bytes: int, round_s: float) -> float:
    return interleave({"read": _reader(way, num_bytes)}, 2, round_s)["read"]


def _engine_batch(
    case: Case, model: Model, num_streams: int, num_rounds: int, round_s: float
) -> Result:
    """Measure what a call from Python adds to the step."""
    streams = Streams(model, num_streams)
    engine = Engine(model, max_streams=num_streams)
    rows = engine.rows(range(num_streams))
    rng = np.random.default_rng(1)
    streams.x[:] = rng.standard_normal(streams.x.shape)
    streams.run(1)
    if not np.array_equal(engine.batch(rows, streams.x), streams.y):
        raise BenchError(f"{case}: the Engine's output differs from that of the loop")

    def call(num_repeats: int) -> None:
        for _ in range(num_repeats):
            engine.batch(rows, streams.x)

    best_s = interleave({"loop": streams.run, "engine": call}, num_rounds, round_s)
    return Result(
        benchmark="step",
        case=f"{case} B={num_streams} float32 cpu Engine.batch",
        value=best_s["engine"] * 1e6,
        unit="us",
        reference="step_in_loop",
        reference_value=best_s["loop"] * 1e6,
        note=f"a call adds {(best_s['engine'] - best_s['loop']) * 1e6:.2f} us",
    )
