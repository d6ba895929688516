"""Other forms in ``streamrnn bench step``: reduced precision, and odd sizes.

Reduced weights are compared with float32, a size that is no multiple of 16 with the next one that
is. They run in the compiled loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from streamrnn.kernels.gates import padded
from streamrnn_bench.report.results import Result
from streamrnn_bench.report.timing import interleave
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.cpu import TOLERANCE, Streams, verify

__all__ = [
    "ODD_BATCH_SIZES",
    "ODD_CASES",
    "PRECISION_CASES",
    "measure_forms",
    "measure_odd_sizes",
    "measure_precisions",
]

PRECISION_CASES = tuple(
    Case(cell, input_size, hidden_size)
    for cell in ("lstm", "gru")
    for input_size, hidden_size in ((128, 256), (256, 512))
)
# What rounding the weights may move an output of order 1; a wrong scale moves it by more.
_PRECISION_TOLERANCES = {"bfloat16": 0.02, "int8": 0.05}
_INT8_TARGET = 1.8

ODD_CASES = tuple(
    Case(cell, hidden_size // 2, hidden_size)
    for cell in ("lstm", "gru")
    for hidden_size in (50, 100, 127)
)
ODD_BATCH_SIZES = (1, 12, 48)
_ODD_TARGET = 1 / 1.25


def measure_precisions(
    cases: Iterable[Case] = PRECISION_CASES, num_rounds: int = 15, round_s: float = 0.005
) -> Iterator[Result]:
    """Measure steps of one stream in microseconds, against those with float32.

    Each precision has ``num_rounds`` turns of about ``round_s``. A `BenchError` if outputs are
    wrong.
    """
    for case in cases:
        model = case.model()
        tolerances = {"float32": TOLERANCE, **_PRECISION_TOLERANCES}
        streams = {name: Streams(model, 1, name) for name in tolerances}
        for name, each in streams.items():
            verify(each, tolerance=tolerances[name])
        best_s = interleave({name: each.run for name, each in streams.items()}, num_rounds, round_s)
        for name in _PRECISION_TOLERANCES:
            yield Result(
                benchmark="step",
                case=f"{case} B=1 {name} cpu",
                value=best_s[name] * 1e6,
                unit="us",
                reference="float32",
                reference_value=best_s["float32"] * 1e6,
                target=_INT8_TARGET if name == "int8" else None,
            )


def measure_odd_sizes(
    cases: Iterable[Case] = ODD_CASES,
    batch_sizes: Sequence[int] = ODD_BATCH_SIZES,
    num_rounds: int = 15,
    round_s: float = 0.005,
) -> Iterator[Result]:
    """Measure steps of models whose size is no multiple of a vector.

    Yields microseconds a step of all streams, against a model with the same inputs and as many
    units as the next multiple of 16. Turns and errors as of `measure_precisions`.
    """
    for case in cases:
        even = Case(case.cell, case.input_size, padded(case.hidden_size))
        for num_streams in batch_sizes:
            sizes = {"odd": case, "even": even}
            streams = {name: Streams(each.model(), num_streams) for name, each in sizes.items()}
            for each in streams.values():
                verify(each)
            best_s = interleave(
                {name: each.run for name, each in streams.items()}, num_rounds, round_s
            )
            yield Result(
                benchmark="step",
                case=f"{case} B={num_streams} float32 cpu",
                value=best_s["odd"] * 1e6,
                unit="us",
                reference=f"{even.hidden_size}_units",
                reference_value=best_s["even"] * 1e6,
                target=_ODD_TARGET,
            )


def measure_forms(num_rounds: int = 15, round_s: float = 0.005) -> Iterator[Result]:
    """Measure both: `measure_precisions`, then `measure_odd_sizes`."""
    yield from measure_precisions(num_rounds=num_rounds, round_s=round_s)
    yield from measure_odd_sizes(num_rounds=num_rounds, round_s=round_s)
