"""``streamrnn bench step --peers``: a call of the Engine against other engines.

What is timed is what a Python program waits for: `Engine.batch` with all its checks and with a new
array for the outputs, and `Engine.steps`. The peers are timed in their fastest form (see
`streamrnn_bench.step.other_engines`). All of them take turns in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.engine import Engine
from streamrnn.model.model import Model
from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.report.machine_load import MachineLoad
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.report.timing import interleave
from streamrnn_bench.step.cases import BATCH_SIZES, Case
from streamrnn_bench.step.other_engines import PEERS, Peer, require_peers

__all__ = ["PEER_CASES", "Cell", "EngineCalls", "against_fastest", "check_outputs", "measure_peers"]

PEER_CASES = tuple(
    Case(cell, hidden_size // 2, hidden_size)
    for cell in ("lstm", "gru")
    for hidden_size in (16, 32, 64, 128, 256)
)
CHUNK_STEPS = 100
TOLERANCE = 5e-6  # of float32 against float64, outputs of order 1
_NUM_CHECKED_STEPS = 6
_NUM_CHECKED_CHUNKS = 2

Outputs = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Cell:
    """Cell of the table: B streams, T steps a call.

    A call is `Engine.batch` if T is 1, else `Engine.steps` for one stream.
    """

    case: Case
    num_streams: int = 1
    num_steps: int = 1

    def __str__(self) -> str:
        if self.num_steps > 1:
            return f"{self.case} T={self.num_steps} float32 cpu Engine.steps"
        return f"{self.case} B={self.num_streams} float32 cpu Engine.batch"

    @property
    def target(self) -> float:
        """Wanted ratio of the fastest peer's time to the Engine's."""
        if self.num_streams == self.num_steps == 1 and self.case.hidden_size <= 128:
            return 3.0
        return 1.15 if self.num_streams == 192 else 1.0


class EngineCalls:
    """New streams of an Engine with the methods of a `Peer`; B or T is 1."""

    def __init__(self, model: Model, num_streams: int, num_steps: int) -> None:
        self._engine = Engine(model, max_streams=num_streams)
        self._rows = self._engine.rows(range(num_streams))
        self._is_chunk = num_steps > 1

    def outputs(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Advance by x [T, B, num_inputs], kept as the input of `run`; return y [T, B, H]."""
        self._x = np.ascontiguousarray(x[:, 0] if self._is_chunk else x[0])
        if self._is_chunk:
            return self._engine.steps(0, self._x)[:, None]
        return self._engine.batch(self._rows, self._x)[None]

    def run(self, num_repeats: int) -> None:
        """Advance by many calls, each with the inputs of the last `outputs`."""
        engine, rows, x = self._engine, self._rows, self._x
        if self._is_chunk:
            for _ in range(num_repeats):
                engine.steps(0, x)
        else:
            for _ in range(num_repeats):
                engine.batch(rows, x)


def check_outputs(cell: Cell, model: Model, engines: Mapping[str, Outputs], seed: int = 0) -> None:
    """Raise a `BenchError` if outputs of new streams are off the float64 reference.

    ``engines`` take x [T, B, num_inputs] and return y [T, B, H]; each call goes on from the last
    one.
    """
    rng = np.random.default_rng(seed)
    reference = ReferenceModel(model)
    state = reference.initial_state(cell.num_streams)
    shape = (cell.num_steps, cell.num_streams, cell.case.input_size)
    for _ in range(_NUM_CHECKED_STEPS if cell.num_steps == 1 else _NUM_CHECKED_CHUNKS):
        x = rng.standard_normal(shape, dtype=np.float32)
        steps = []
        for x_t in x:
            y_t, state = reference.step(state, x_t)
            steps.append(y_t)
        expected = np.array(steps)
        for name, outputs in engines.items():
            found = outputs(x)
            error = (
                float(np.max(np.abs(found - expected))) if found.shape == expected.shape else np.inf
            )
            if not error <= TOLERANCE:
                raise BenchError(
                    f"{cell}: {name} is off by {error:g} from the float64 reference, more than "
                    f"{TOLERANCE:g}; a wrong result is not timed"
                )


def against_fastest(
    cell: Cell, ours_s: float, peers_s: Mapping[str, float], others: float
) -> Result:
    """Return a cell's row: the Engine's seconds a call against the fastest peer's.

    ``others`` is the share of the machine that other processes had meanwhile.
    """
    fastest = min(peers_s, key=lambda name: peers_s[name])
    times = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in peers_s.items())
    return Result(
        benchmark="step",
        case=str(cell),
        value=ours_s * 1e6,
        unit="us",
        reference=fastest,
        reference_value=peers_s[fastest] * 1e6,
        target=cell.target,
        note=f"{times}; others {others:.0%}",
    )


def measure_peers(
    cases: Iterable[Case] = PEER_CASES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_rounds: int = 60,
    round_s: float = 0.001,
) -> Iterator[Result]:
    """Measure calls of the Engine against the peers' calls for the same work.

    Cases are LSTM and GRU, each with all batch sizes, then a chunk of one stream. ``round_s`` is
    shorter than the time slices of a busy machine, so that some turns pass undisturbed. Yields
    microseconds of a call against the fastest peer's; the note names all of them. Raises a
    `BenchError` if a peer is not installed or has no such cell, or outputs are wrong.
    """
    require_peers()
    for case in cases:
        if case.cell not in ("lstm", "gru"):
            raise BenchError(f"case '{case}': the peers are compared for lstm and gru only")
        model = case.model()
        cells = [Cell(case, num_streams) for num_streams in batch_sizes]
        for cell in [*cells, Cell(case, num_steps=CHUNK_STEPS)]:
            sizes = (model, cell.num_streams, cell.num_steps)
            peers = {name: make(*sizes) for name, make in PEERS.items()}
            engines: dict[str, Peer | EngineCalls] = {"streamrnn": EngineCalls(*sizes), **peers}
            check_outputs(cell, model, {name: each.outputs for name, each in engines.items()})
            machine_load = MachineLoad()
            best_s = interleave(
                {name: each.run for name, each in engines.items()}, num_rounds, round_s
            )
            others = machine_load.share()
            yield against_fastest(
                cell, best_s["streamrnn"], {name: best_s[name] for name in peers}, others
            )
