"""The benchmark of the Python client."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server import client as benchmark
from streamrnn_bench.step.cases import Case

CASE = Case("gru", 3, 8)


def test_a_turn_counts_calls_and_collections():
    calls = []

    def call():
        calls.append(1)
        gc.collect(0)

    turn = benchmark.take_turn(call, 0.01)
    assert turn.num_calls == len(calls) == turn.num_collections > 0
    assert turn.processor_us > 0
    assert 0 < turn.p50_us <= turn.p99_us
    assert benchmark.take_turn(call, 0).num_calls == 1


def test_a_wrong_output_is_not_timed():
    right = np.zeros((2, 3), np.float32)
    benchmark._verify(CASE, right.copy(), right)
    wrong = right.copy()
    wrong.view(np.int32)[1, 2] ^= 1
    with pytest.raises(BenchError, match="to the bit"):
        benchmark._verify(CASE, wrong, right)


@pytest.mark.slow
def test_the_client_with_the_real_server():
    found = list(
        benchmark.measure_client([CASE], num_rounds=2, round_s=0.02, num_streams=20, num_tracked=10)
    )
    assert [(each.case, each.unit, each.reference) for each in found] == [
        ("gru 3->8 step processor time float32 cpu", "us", "pyzmq_request"),
        ("gru 3->8 step of a list processor time float32 cpu", "us", "pyzmq_request"),
        ("gru 3->8 step p50 float32 cpu", "us", "pyzmq_request"),
        ("gru 3->8 batch of 20 processor time float32 cpu", "us", "pyzmq_request"),
        ("gru 3->8 batch of 20 p99 float32 cpu", "us", "p50"),
        ("gru 3->8 durable batch of 20 processor time float32 cpu", "us", "pyzmq_request"),
        ("gru 3->8 durable batch of 20 p99 float32 cpu", "us", "p50"),
    ]
    assert all(0 < each.ratio < math.inf for each in found)
