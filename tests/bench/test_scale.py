"""The benchmark with many streams."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.server import scale
from streamrnn_bench.server.load import make_traffic, stream_names, stream_order
from streamrnn_bench.server.processes import anonymous_kib
from streamrnn_bench.step.cases import Case
from streamrnn_client.protocol import decode_request

CASE = Case("gru", 3, 8)


def test_a_small_window_steps_streams_in_random_order():
    traffic = make_traffic(0, 1_000, 2, 4, num_under_way=10)
    names = [
        decode_request(head.tobytes() + b"\x07\xc4\x08" + bytes(8) + b"\x06").call[0]
        for head in traffic.heads
    ]
    assert sorted(names) == stream_names(1_000)
    assert names == [stream_names(1_000)[k] for k in stream_order(1_000, 10)]
    assert np.mean(np.diff(stream_order(1_000, 10)) == 1) < 0.02
    assert (stream_order(1_000, 1_000) == np.arange(1_000)).all()
    with pytest.raises(BenchError, match="300 steps under way do not divide 1000 streams"):
        make_traffic(0, 1_000, 2, 4, num_under_way=300)


def test_a_lower_cost_gives_a_higher_ratio():
    result = Result("scale", "c", value=2.0, unit="KiB", reference="row", reference_value=1.0)
    assert result.ratio == 0.5


@pytest.mark.slow
def test_scale_is_measured_with_a_real_server():
    results = list(scale.measure_scale([CASE], num_streams=2_000, num_rounds=2, round_s=0.05))
    name = "gru 3->8 2000 streams float32 cpu"
    assert [(each.benchmark, each.case, each.unit, each.reference) for each in results] == [
        ("scale", name, "steps/s", "1000_streams"),
        ("scale", f"{name} memory a stream", "KiB", "row"),
        ("scale", f"{name} on disk: start until ready", "s", "no_streams_on_disk"),
        ("scale", f"{name} on disk: first step p50", "us", "second_step"),
    ]
    assert all(each.reference_value > 0 for each in results)


@pytest.mark.slow
def test_verification_finds_a_stream_restored_with_other_outputs(monkeypatch):
    real = scale._next_steps

    def other(*args):
        times_us, outputs = real(*args)
        outputs.view(np.int32)[0, 9, 2] ^= 1
        return times_us, outputs

    monkeypatch.setattr(scale, "_next_steps", other)
    with pytest.raises(BenchError, match=r"step 3 of stream 9 \(and of 0 more\)"):
        list(scale._returning(CASE, "name", 1_000))


def test_memory_of_a_process_is_reported_and_a_missing_process_refused():
    before = anonymous_kib(os.getpid())
    # A mapping of its own: an array may lie in memory that an earlier test has given back.
    with mmap.mmap(-1, 8 * 2**20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(bytes(len(memory)))
        assert anonymous_kib(os.getpid()) - before > len(memory) / 1024 / 2
    with pytest.raises(BenchError, match="memory cannot be measured"):
        anonymous_kib(2**30)
