"""``streamrnn bench step --device cuda``: GPU steps, against limits and cuDNN.

Three kinds of measurement. Steps whose inputs are on the GPU already, against the larger of two
bounds: operations over the measured rate of fused multiply-adds, bytes over the measured rate of
copies. A call of the Engine, copies included, against the same step without them. And, where
PyTorch with CUDA is installed, cuDNN's ``nn.LSTM`` and ``nn.GRU`` for the same work: with TF32 off,
except against TF32 of the Engine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.engine import Engine
from streamrnn.kernels.cuda.compiler import require_gpu
from streamrnn.kernels.cuda.launches import first_input
from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.report.results import ERROR_UNIT, Result
from streamrnn_bench.report.timing import interleave
from streamrnn_bench.step.cases import Case

__all__ = ["GPU_CASES", "GpuCase", "measure_gpu_steps"]

# Against float64, outputs of order 1.
TOLERANCES = {"float32": 5e-6, "tf32": 1e-3, "bfloat16": 1e-2}
_WANTED_BATCH_US = 15.0  # of launches, copies and waiting
_NUM_CHECKED_STREAMS, _NUM_CHECKED_STEPS = 16, 3
_WORST = 1e9  # an error as JSON can say it


@dataclass(frozen=True)
class GpuCase:
    """Case of B streams stepped together, T steps of each in a call."""

    case: Case
    num_streams: int
    num_steps: int = 1
    target: float | None = None  # wanted ratio to the GPU's limits
    wanted_us: float | None = None  # the most that a step should take
    precision: str = "float32"  # of the products

    def __str__(self) -> str:
        return f"{self.case} B={self.num_streams} T={self.num_steps} {self.precision} cuda"


GPU_CASES = (
    GpuCase(Case("lstm", 1024, 1024), 4096, target=0.72),
    GpuCase(Case("lstm", 64, 128), 100_000, target=0.62),
    GpuCase(Case("gru", 64, 128), 100_000),
    GpuCase(Case("lstm", 256, 256), 48),
    GpuCase(Case("lstm", 64, 512), 1, 1000, wanted_us=3.0),
    GpuCase(Case("lstm", 1024, 1024), 4096, precision="tf32"),
    GpuCase(Case("lstm", 1024, 1024), 4096, precision="bfloat16"),
    GpuCase(Case("rnn_tanh", 1, 1), 1),  # all of it is launches, copies and waiting
)


def measure_gpu_steps(
    cases: Iterable[GpuCase] = GPU_CASES, num_rounds: int = 15, round_s: float = 0.05
) -> Iterator[Result]:
    """Measure steps on a GPU: times in us of one step of all streams.

    Chunks (T above 1) are of one stream. Each measurement has ``num_rounds`` turns of about
    ``round_s``, between those of its references. Of a case whose outputs are wrong, their error is
    all that comes. Raises a `DeviceError` if there is no GPU.
    """
    require_gpu()
    from streamrnn_bench.step.gpu_rates import CopyRate, FmaRate, ResidentStreams

    rate = FmaRate()
    for item in cases:
        model = item.case.model()
        engine = Engine(model, "cuda", item.num_streams, item.precision)
        wrong = _verify(item, engine)
        if wrong is not None:
            yield wrong
            continue
        rng = np.random.default_rng(1)
        shape = (item.num_streams, item.num_steps, item.case.input_size)
        x = rng.standard_normal(shape, dtype=np.float32)
        resident = ResidentStreams(model, x, item.precision)
        copy_bytes = _moved_bytes(item)
        runs: dict[str, Callable[[int], object]] = {
            "fma": rate.run,
            "copy": CopyRate(copy_bytes).run,
            "resident": resident.run,
            "engine": _engine_runner(item, engine, x),
            "wave": _batch_runner(engine),
        }
        runs.update(_torch_runs(item))
        best_s = interleave(runs, num_rounds, round_s)
        step_s = {name: best_s[name] / item.num_steps for name in runs}
        flops_s = item.case.flops * item.num_streams * best_s["fma"] / rate.flops
        # A copy reads and writes each byte.
        bound, bound_s = max(
            ("fma_rate", flops_s), ("copy_bandwidth", best_s["copy"] / 2), key=lambda pair: pair[1]
        )
        result = Result(
            benchmark="step",
            case=str(item),
            value=step_s["resident"] * 1e6,
            unit="us",
            reference=bound,
            reference_value=bound_s * 1e6,
            target=item.target,
            note=f"{rate.flops / best_s['fma'] / 1e12:.1f} TFLOP/s, "
            f"{2 * copy_bytes / best_s['copy'] / 1e9:.0f} GB/s measured",
        )
        yield result
        yield dataclasses.replace(
            result,
            case=f"{item} Engine",
            value=step_s["engine"] * 1e6,
            reference="resident",
            reference_value=step_s["resident"] * 1e6,
            target=None,
            note=f"copies and the host add {(step_s['engine'] - step_s['resident']) * 1e6:.1f} us",
        )
        if item.wanted_us is not None:
            yield dataclasses.replace(
                result, reference="wanted", reference_value=item.wanted_us, target=1.0, note=""
            )
        if item.num_streams == item.num_steps == 1:
            yield dataclasses.replace(
                result,
                case=f"{item} wave",
                value=best_s["wave"] * 1e6,
                reference="wanted",
                reference_value=_WANTED_BATCH_US,
                target=1.0,
                note="launches, copies and waiting, as the server calls for them",
            )
        for name in runs:
            if name.startswith("pytorch"):
                yield dataclasses.replace(
                    result,
                    reference=name,
                    reference_value=step_s[name] * 1e6,
                    target=1.0,
                    note="without copies, both",
                )


def _moved_bytes(item: GpuCase) -> int:
    """Return bytes that a step must move: weights once, each stream's x, y, state."""
    case = item.case
    model = case.model()
    weights = sum(value.nbytes for value in model.parameters.values())
    num_states = 2 if case.cell == "lstm" else 1
    stream = 4 * (case.input_size + case.hidden_size + 2 * num_states * case.hidden_size)
    return weights + item.num_streams * stream


def _verify(item: GpuCase, engine: Engine) -> Result | None:
    """Compare some streams of a few batches with the float64 reference: what is off, or None."""
    rng = np.random.default_rng(0)
    some = np.linspace(0, item.num_streams - 1, _NUM_CHECKED_STREAMS).astype(int)
    reference = ReferenceModel(engine.model)
    state = reference.initial_state(len(some))
    rows = engine.rows(range(item.num_streams))
    for step in range(_NUM_CHECKED_STEPS):
        shape = (item.num_streams, item.case.input_size)
        x = rng.standard_normal(shape, dtype=np.float32)
        expected, state = reference.step(state, x[some])
        error = float(np.max(np.abs(engine.batch(rows, x)[some] - expected)))
        tolerance = TOLERANCES[item.precision]
        if not error <= tolerance:
            return Result(
                benchmark="step",
                case=f"{item} outputs",
                value=min(np.nan_to_num(error, nan=_WORST), _WORST),
                unit=ERROR_UNIT,
                reference="tolerance",
                reference_value=tolerance,
                target=1.0,
                note=f"off from the float64 reference in step {step}; a wrong result is not timed",
            )
    return None


def _engine_runner(
    item: GpuCase, engine: Engine, x: NDArray[np.float32]
) -> Callable[[int], object]:
    """Return a function that calls the Engine from Python, copies included."""
    rows = engine.rows(range(item.num_streams))
    first_step = np.ascontiguousarray(x[:, 0])

    def call(num_repeats: int) -> None:
        for _ in range(num_repeats):
            if item.num_steps == 1:
                engine.batch(rows, first_step)
            else:
                engine.steps(0, x[0])

    return call


def _batch_runner(engine: Engine) -> Callable[[int], object]:
    """Return a function that copies and steps one stream's batch without the Engine."""
    device: Any = engine._device
    device.batch_x[: first_input(1) + engine.model.spec.num_inputs] = 0

    def run(num_repeats: int) -> None:
        for _ in range(num_repeats):
            device.batch_x[0] = 0  # the slot
            device.begin_batch(1)
            device.end_batch()

    return run


def _torch_runs(item: GpuCase) -> dict[str, Callable[[int], object]]:
    """Return cuDNN's ways to do the same, if PyTorch with CUDA is there."""
    if item.precision == "bfloat16" or item.case.cell not in ("lstm", "gru"):
        return {}
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    torch.backends.cuda.matmul.allow_tf32 = item.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = item.precision == "tf32"
    is_lstm = item.case.cell == "lstm"
    sizes = (item.case.input_size, item.case.hidden_size)
    network = (torch.nn.LSTM if is_lstm else torch.nn.GRU)(*sizes).cuda().eval()
    x = torch.randn(item.num_steps, item.num_streams, sizes[0], device="cuda")
    runs: dict[str, Callable[[int], object]] = {}

    def run_network(num_repeats: int) -> None:
        state = None
        with torch.inference_mode():
            for _ in range(num_repeats):
                _, state = network(x, state)
        torch.cuda.synchronize()

    runs["pytorch_cudnn"] = run_network
    if item.num_steps > 1:
        return runs

    cell = (torch.nn.LSTMCell if is_lstm else torch.nn.GRUCell)(*sizes).cuda().eval()
    states = [torch.zeros(item.num_streams, sizes[1], device="cuda") for _ in range(1 + is_lstm)]

    def step() -> None:
        new = cell(x[0], tuple(states) if is_lstm else states[0])
        for state, value in zip(states, new if is_lstm else (new,), strict=True):
            state.copy_(value)

    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            step()

    def run_graph(num_repeats: int) -> None:
        for _ in range(num_repeats):
            graph.replay()
        torch.cuda.synchronize()

    runs["pytorch_cell_graph"] = run_graph
    return runs
