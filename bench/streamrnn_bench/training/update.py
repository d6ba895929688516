"""``streamrnn bench train``: one update of a network, against PyTorch's and jax's.

An update is what a training does with a batch: forward over T steps of B rows, the loss (mean of
squares at every step), backward, clipping by the global norm, Adam. All start from the same
weights, are compared before they are timed, and take turns on one thread of one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.spec import CELLS, HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.fit.optimisers import Adam, clip_by_global_norm
from streamrnn.training.network.network import Chunk, Network, initial_parameters
from streamrnn_bench.report.machine_load import MachineLoad
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.roofline import FLOPS_A_PEAK_ITERATION, run_peak
from streamrnn_bench.training.frameworks import (
    CLIP_NORM,
    RATE,
    Framework,
    Jax,
    PyTorch,
    Task,
    has_jax,
)

__all__ = ["UPDATE_CASES", "Ours", "check_updates", "measure_updates"]

NUM_STEPS, NUM_ROWS = 100, 32
SIZES = ((1, 32), (16, 64), (64, 128))
UPDATE_CASES = tuple(Case(cell, *sizes) for cell in ("lstm", "gru", "rnn_tanh") for sizes in SIZES)
TARGETS = {
    "lstm 1->32": 2.3,
    "lstm 16->64": 1.5,
    "lstm 64->128": 1.2,
    "gru 1->32": 12.0,
    "gru 16->64": 5.0,
    "gru 64->128": 2.0,
    "rnn_tanh 1->32": 12.0,
    "rnn_tanh 16->64": 5.0,
    "rnn_tanh 64->128": 2.4,
}
TOLERANCE = 2e-5  # of gradients, float32 against float64: the norm of the difference to its own
_NUM_PEAK_ITERATIONS = 20_000

Floats = NDArray[np.float32]


def _batch(case: Case) -> tuple[Floats, Floats]:
    """Draw x [T, B, I] and targets [T, B, 1]."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((NUM_STEPS, NUM_ROWS, case.input_size), np.float32)
    return x, rng.standard_normal((NUM_STEPS, NUM_ROWS, 1), np.float32)


class Ours:
    """A layer and a head of one output, with the trainer's own update."""

    def __init__(self, case: Case, dtype: Any = np.float32) -> None:
        self.cell = case.cell
        spec = ModelSpec(
            inputs=tuple(InputSpec(f"x{k}") for k in range(case.input_size)),
            layers=(LayerSpec(case.cell, case.hidden_size),),
            outputs=(OutputSpec("y"),),
            head=HeadSpec("identity"),
        )
        self.network = Network(spec, initial_parameters(spec, np.random.default_rng(0)), dtype)
        self.adam = Adam(self.network.flat.size, self.network.dtype)
        x, target = _batch(case)
        self.chunk, self.target = Chunk(x.astype(dtype), {}), target.astype(dtype)
        self.state = self.network.initial_state(NUM_ROWS)

    def task(self) -> Task:
        """Return what others start from."""
        return Task(self.cell, self.network.parameters, self.chunk.features, self.target)

    def gradient(self) -> tuple[float, NDArray[Any]]:
        """Return the loss and the gradient by all parameters."""
        loss, _ = self.network.loss(self.chunk, self.target, self.state, "mse")
        return loss, self.network.gradient

    def update(self) -> None:
        """Make one update."""
        self.network.loss(self.chunk, self.target, self.state, "mse")
        clip_by_global_norm(self.network.gradient, CLIP_NORM)
        self.adam.update(self.network.flat, self.network.gradient, RATE)


def check_updates(case: Case, found: Mapping[str, tuple[float, NDArray[Any]]]) -> None:
    """Raise a `BenchError` if a loss or a gradient is off that in float64."""
    loss, gradient = Ours(case, np.float64).gradient()
    for name, (own_loss, own) in found.items():
        error = float(np.linalg.norm(own - gradient) / np.linalg.norm(gradient))
        error = max(error, abs(own_loss / loss - 1.0))
        if not error <= TOLERANCE:
            raise BenchError(
                f"{case}: the update of {name} is off by {error:g} from float64, more than "
                f"{TOLERANCE:g}; a wrong result is not timed"
            )


def _seconds(call: Callable[[], object], num_repeats: int) -> float:
    """Return wall-clock seconds a call, behind one that fills the caches."""
    call()
    started = time.perf_counter()
    for _ in range(num_repeats):
        call()
    return (time.perf_counter() - started) / num_repeats


def measure_updates(
    cases: Iterable[Case] = UPDATE_CASES, num_rounds: int = 40, round_s: float = 0.01
) -> Iterator[Result]:
    """Measure updates of 32 rows over 100 steps, ours, PyTorch's and jax's, in turns.

    Yields medians of milliseconds, beside PyTorch's and, where jax and optax are installed, beside
    theirs; the note has the best of both, and the share of the peak of fused multiply-adds,
    measured in the same turns, that the layer's products would take of our time. Raises a
    `BenchError` if PyTorch is not installed, or a gradient is wrong.
    """
    if find_spec("torch") is None:
        raise BenchError("not installed: torch; pip install 'streamrnn[peers]'")
    for case in cases:
        if case.cell not in ("lstm", "gru", "rnn_tanh"):
            raise BenchError(f"case '{case}': updates are compared for lstm, gru and rnn_tanh only")
        all_of: dict[str, Framework] = {"ours": Ours(case), "PyTorch": PyTorch(Ours(case).task())}
        if has_jax():
            all_of["jax"] = Jax(Ours(case).task())
        check_updates(case, {name: each.gradient() for name, each in all_of.items()})
        calls: dict[str, Callable[[], object]] = {
            **{name: each.update for name, each in all_of.items()},
            "peak": lambda: run_peak(_NUM_PEAK_ITERATIONS),
        }
        repeats = {name: max(1, int(round_s / _seconds(call, 1))) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        machine_load = MachineLoad()
        for _ in range(num_rounds):
            for name, call in calls.items():
                times[name].append(_seconds(call, repeats[name]))
        others = machine_load.share()
        for name in all_of:
            if name != "ours":
                yield _result(case, name, times, others)


def _result(case: Case, peer: str, times: Mapping[str, list[float]], others: float) -> Result:
    median_s = {name: statistics.median(each) for name, each in times.items()}
    rows = NUM_STEPS * NUM_ROWS
    gates = len(CELLS[case.cell].gates) * case.hidden_size
    # Forward and gradients of weights multiply x and h, the way back h alone.
    flops = rows * (2 * case.flops + 2 * gates * case.hidden_size)
    peak = FLOPS_A_PEAK_ITERATION * _NUM_PEAK_ITERATIONS / median_s["peak"]
    best = ", ".join(f"{min(times[name]) * 1e3:.2f}" for name in ("ours", peer))
    share = flops / median_s["ours"] / peak
    beside = "" if peer == "PyTorch" else f" beside {peer}"
    return Result(
        benchmark="train",
        case=f"{case} B={NUM_ROWS} T={NUM_STEPS}{beside}",
        value=median_s["ours"] * 1e3,
        unit="ms",
        reference=peer,
        reference_value=median_s[peer] * 1e3,
        target=1.0 if beside else TARGETS.get(str(case)),
        note=f"best {best}; FMA peak {share:.2f}; others {others:.0%}",
    )
