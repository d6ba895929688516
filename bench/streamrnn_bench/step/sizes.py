"""``streamrnn bench sizes``: networks of public sizes, by the number of model instances.

The sizes are those of STAC-ML Markets (Inference): LSTM_A, B and C, each with one dense output.
Weights and inputs are random. What is printed is no STAC result: those are audited, and defined by
STAC's rules.

*step*: one step of a stream whose state is carried, as the server does it. *window*: all steps of a
window from the initial state on, which is what an inference is where no state is kept. Every
instance has weights and a thread of its own. Times are taken in the compiled loop.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import step_chunk, step_rows
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, int64_array
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.model import Model
from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import BenchError, Result, environment
from streamrnn_server.shard.libzmq import monotonic_ns

__all__ = ["SIZES", "Instance", "Size", "measure_sizes"]

_TOLERANCES = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.06}  # of outputs of order 1
_MAX_TIMES = 1 << 20
_QUANTILES = (50.0, 90.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True)
class Size:
    """LSTM layers of one width, and a dense output."""

    name: str
    window: int  # steps
    num_inputs: int
    num_layers: int
    hidden_size: int

    def __str__(self) -> str:
        return self.name

    @property
    def flops(self) -> int:
        """Floating-point operations of one step's products, the additions counted too."""
        h, first = self.hidden_size, 4 * self.hidden_size * (self.num_inputs + self.hidden_size)
        return 2 * (first + (self.num_layers - 1) * 8 * h * h + h)

    def model(self, seed: int = 0) -> Model:
        """Make the model with random weights, uniform in +-1/sqrt(H)."""
        layers = [LayerSpec("lstm", self.hidden_size)] * self.num_layers
        inputs = tuple(InputSpec(f"x{i}") for i in range(self.num_inputs))
        spec = ModelSpec(inputs, (*layers, DenseSpec(1)), (OutputSpec("y"),))
        rng = np.random.default_rng(seed)
        bound = 1 / math.sqrt(self.hidden_size)
        parameters = {
            name: rng.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in parameter_shapes(spec).items()
        }
        return Model(spec, parameters)


SIZES = (
    Size("LSTM_A", 50, 100, 2, 100),
    Size("LSTM_B", 100, 250, 3, 200),
    Size("LSTM_C", 100, 500, 4, 1000),
)


class Instance:
    """One model with weights, a stream and a window of inputs of its own."""

    def __init__(self, model: Model, precision: str, x: NDArray[np.float32]) -> None:
        self._program = Program(model, precision)
        self._row = aligned_floats(self._program.row_bytes // 4)
        self._row[:] = self._program.initial_row
        self._x = np.ascontiguousarray(x, np.float32)
        self.y = np.zeros(len(x), np.float32)
        self._times_ns = np.zeros(_MAX_TIMES, np.int64)
        self._scratch = np.zeros(4, np.int64)

    def run(self, by_step: bool, duration_ns: int) -> NDArray[np.int64]:
        """Take steps or windows as long as that, at least one; return their nanoseconds.

        A window is begun anew with each, and the outputs of all its steps are in `y` then.
        """
        arrays = (self._row, self._program.initial_row, self._x, self.y, self._times_ns)
        addresses = [array.ctypes.data for array in (*arrays, self._scratch)]
        of = np.array([*addresses, *self._x.shape, self._program.row_bytes], np.int64)
        num = _run(self._program.plan_address, of.ctypes.data, by_step, duration_ns)
        return self._times_ns[:num].copy()


@jit
def _run(plan_address: int, of_address: int, by_step: bool, duration_ns: int) -> int:
    of = int64_array(of_address, 9)
    row, initial_row, x, y, times, scratch = of[0], of[1], of[2], of[3], of[4], of[5]
    num_steps, num_inputs, row_bytes = of[6], of[7], of[8]
    before = enter_float_mode()
    plan = plan_at(plan_address)
    clock, pointers = scratch, int64_array(scratch + 16, 2)
    times_ns = int64_array(times, _MAX_TIMES)
    num = at = 0
    start = last = monotonic_ns(clock)
    while num == 0 or (last - start < duration_ns and num < _MAX_TIMES):
        if by_step:
            pointers[0], pointers[1] = x + 4 * num_inputs * at, y + 4 * at
            step_rows(plan, of[:1], pointers[:1], pointers[1:], 1)
            at = at + 1 if at + 1 < num_steps else 0
        else:
            copy_bytes(row, initial_row, row_bytes)
            step_chunk(plan, row, x, y, num_steps)
        now = monotonic_ns(clock)
        times_ns[num] = now - last
        last = now
        num += 1
    leave_float_mode(before)
    return num


def check_window(size: Size, precision: str, instance: Instance, expected: Any) -> float:
    """Compare the outputs of a window with the float64 reference; return the error.

    Raises a `BenchError` if it is more than rounding the weights explains.
    """
    instance.run(False, 0)
    error = float(np.max(np.abs(instance.y - expected)))
    if not error <= _TOLERANCES[precision]:
        raise BenchError(
            f"{size} {precision}: off by {error:g} from the float64 reference, more than "
            f"{_TOLERANCES[precision]:g}; a wrong result is not timed"
        )
    return error


def reference_outputs(size: Size, model: Model, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what the float64 reference gives for a window, [T]."""
    reference = ReferenceModel(model)
    state = reference.initial_state(1)
    outputs = np.zeros(size.window)
    for step in range(size.window):
        y, state = reference.step(state, x[step : step + 1])
        outputs[step] = y[0, 0]
    return outputs


def measure_sizes(
    sizes: Iterable[Size] = SIZES,
    instances: Sequence[int] = (),
    num_rounds: int = 6,
    round_s: float = 0.12,
) -> Iterator[Result]:
    """Measure the p99 of steps and of windows, and how many a second all instances do.

    ``instances`` are numbers of them, one and as many as there are cores if left out. Precisions
    take turns of ``round_s``; the p99 of the quieter half. Reduced precisions stand beside float32,
    and that beside what the fused multiply-adds would take at the machine's peak. Raises a
    `BenchError` if outputs are wrong.
    """
    numbers = instances or sorted({1, int(environment()["cores"])})
    for size in sizes:
        model = size.model()
        rng = np.random.default_rng(1)
        x = rng.standard_normal((size.window, size.num_inputs), dtype=np.float32)
        expected = reference_outputs(size, model, x)
        ready = {
            precision: [Instance(model, precision, x) for _ in range(max(numbers))]
            for precision in _TOLERANCES
        }
        errors = {
            precision: max(check_window(size, precision, each, expected) for each in of)
            for precision, of in ready.items()
        }
        for num_instances in numbers:
            of_number = {precision: of[:num_instances] for precision, of in ready.items()}
            for by_step in (True, False):
                yield from _measure(size, of_number, by_step, errors, num_rounds, round_s)


def _measure(
    size: Size,
    instances: dict[str, list[Instance]],
    by_step: bool,
    errors: dict[str, float],
    num_rounds: int,
    round_s: float,
) -> Iterator[Result]:
    for of in instances.values():
        _together(of, by_step, round_s / 4)
    machine_load = MachineLoad()
    rounds = []
    for _ in range(num_rounds):
        found = {name: _together(of, by_step, round_s) for name, of in instances.items()}
        rounds.append((machine_load.share(), found))
    share, quiet = quieter_half(rounds)
    num_flops = size.flops * (1 if by_step else size.window)
    floors = {"float32": ("fma_peak", num_flops / _peak_flops() * 1e6)}
    p99_us: dict[str, float] = {}
    for precision, of in instances.items():
        times_us = np.concatenate([t for each in quiet for t in each[precision]]) / 1e3
        p99_us[precision] = float(np.percentile(times_us, 99))
        reference, value = floors.get(precision, ("float32", p99_us["float32"]))
        # Each instance goes on without a pause.
        per_s = sum(
            float(np.mean([len(each[precision][k]) / each[precision][k].sum() for each in quiet]))
            for k in range(len(of))
        )
        per_s *= 1e9
        what = "step" if by_step else f"window of {size.window}"
        latency = {f"{q:g}": float(np.percentile(times_us, q)) for q in _QUANTILES}
        yield Result(
            benchmark="sizes",
            case=f"{size} {what} p99 {precision}, {len(of)} instance{'s' * (len(of) > 1)}",
            value=p99_us[precision],
            unit="us",
            reference=reference,
            reference_value=value,
            note=f"p50 {latency['50']:.2f}, max {times_us.max():.1f} us of {len(times_us)}; "
            f"{per_s:,.0f} a second in all; off by {errors[precision]:.1g}; "
            f"others took up to {share:.0%}",
            samples=tuple(
                float(np.percentile(np.concatenate(each[precision]), 99)) / 1e3 for each in quiet
            ),
            details={
                "instances": len(of),
                "latency_us": latency,
                "per_s": per_s,
                "error": errors[precision],
            },
        )


def _together(
    instances: Sequence[Instance], by_step: bool, duration_s: float
) -> list[NDArray[np.int64]]:
    """Let all instances run at once, each in its thread."""
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(instances)
    begin = threading.Barrier(len(instances))

    def run(k: int) -> None:
        begin.wait()
        found[k] = instances[k].run(by_step, int(duration_s * 1e9))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(instances))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _peak_flops() -> float:
    """Return operations a second that fused multiply-adds of one core reach."""
    from streamrnn_bench.report.timing import interleave
    from streamrnn_bench.step.roofline import FLOPS_A_PEAK_ITERATION, run_peak

    return FLOPS_A_PEAK_ITERATION / interleave({"peak": run_peak}, 5, 0.005)["peak"]
