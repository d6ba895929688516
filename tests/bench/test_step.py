"""The benchmark of a step, and the limits that it is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS
from streamrnn.kernels.vector_width import WIDTH
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.report.timing import interleave, repeats_for
from streamrnn_bench.step import cpu as step
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.roofline import (
    FLOPS_A_PEAK_ITERATION,
    READ_BLOCK_BYTES,
    READS,
    read_memory,
    run_peak,
)


@pytest.mark.parametrize("way", range(len(READS)))
def test_every_way_of_reading_reads_all_of_it(way):
    num_bytes = 3 * READ_BLOCK_BYTES
    memory = aligned_floats(num_bytes // 4)
    numbers = memory.view(np.int32)
    numbers[:] = np.random.default_rng(way).integers(-(2**31), 2**31, numbers.size)
    expected = int(numbers.sum(dtype=np.int64)) % 2**32
    assert read_memory(way, memory.ctypes.data, num_bytes, 1) == expected
    assert read_memory(way, memory.ctypes.data, num_bytes, 5) == 5 * expected


@pytest.mark.parametrize("num_iterations", [0, 1, 2, 3])
def test_the_peak_does_as_much_as_it_says(num_iterations):
    num_sums, num_rounds = (12 if WIDTH == 8 else 24), 4
    assert 2 * WIDTH * num_sums * num_rounds == FLOPS_A_PEAK_ITERATION
    sums = np.arange(num_sums, dtype=np.float64)
    for _ in range(num_iterations * num_rounds):
        sums = sums * 0.5 + 1.0
    assert run_peak(num_iterations) == pytest.approx(sums.sum(), rel=1e-6)


def test_verify_passes_what_is_right():
    step.verify(step.Streams(Case("lstm", 5, 19).model(), 7))


def test_verify_finds_a_wrong_weight():
    streams = step.Streams(Case("lstm", 5, 19).model(), 7)
    streams.model = Case("lstm", 5, 19).model(seed=1)
    with pytest.raises(BenchError, match="not timed"):
        step.verify(streams)


def test_verify_finds_one_nan():
    streams = step.Streams(Case("gru", 5, 19).model(), 7)
    streams.rows[-streams.program.row_bytes // 4] = np.nan
    with pytest.raises(BenchError, match="nan"):
        step.verify(streams)


def test_verify_finds_a_stream_that_was_left_out():
    streams = step.Streams(Case("gru", 5, 19).model(), 7)
    streams._addresses = tuple(addresses[:-1] for addresses in streams._addresses)
    with pytest.raises(BenchError, match="not timed"):
        step.verify(streams)


def test_more_streams_than_one_batch_are_split():
    step.verify(step.Streams(Case("gru", 3, 8).model(), MAX_BATCH_ROWS + 5))


def test_weights_are_all_that_a_step_reads():
    case = Case("gru", 3, 16)
    streams = step.Streams(case.model(), 1)
    address, num_bytes = step._weights(streams.program)
    packed = next(each for each in streams.program._owned if each.ctypes.data == address)
    assert num_bytes == packed.nbytes


def test_rows_of_a_tiny_run():
    results = list(step.measure_steps([Case("gru", 3, 8)], (1, 4), num_rounds=1, round_s=1e-5))
    assert [(each.case, each.unit, each.reference) for each in results] == [
        ("gru 3->8 B=1 float32 cpu", "GB/s", "cache_bandwidth"),
        ("gru 3->8 B=4 float32 cpu", "GFLOP/s", "fma_peak"),
        ("gru 3->8 B=1 float32 cpu Engine.batch", "us", "step_in_loop"),
    ]
    assert all(each.value > 0 and each.reference_value > 0 for each in results)


def test_the_fastest_round_counts(monkeypatch):
    now = iter(range(1_000_000))
    monkeypatch.setattr("streamrnn_bench.report.timing.time.perf_counter", lambda: float(next(now)))
    calls: list[int] = []
    best_s = interleave({"a": calls.append, "b": calls.append}, num_rounds=3, round_s=4.0)
    # Every call takes one second on this clock, so four repeats a turn come out.
    assert best_s == {"a": 0.25, "b": 0.25}
    assert calls[-6:] == [4] * 6


def test_repeats_fill_a_round(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("streamrnn_bench.report.timing.time.perf_counter", lambda: clock[0])

    def run(num_repeats):
        clock[0] += 0.001 * num_repeats

    assert repeats_for(run, 0.5) == 500
