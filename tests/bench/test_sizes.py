"""The benchmark of public sizes: outputs, carried states, what is told."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.step.sizes import (
    SIZES,
    Instance,
    Size,
    check_window,
    measure_sizes,
    reference_outputs,
)

SMALL = Size("small", window=6, num_inputs=5, num_layers=2, hidden_size=8)


@pytest.fixture(scope="module")
def small():
    model = SMALL.model()
    x = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    return model, x, reference_outputs(SMALL, model, x)


def test_sizes_are_the_public_ones():
    sizes = [(s.window, s.num_inputs, s.num_layers, s.hidden_size) for s in SIZES]
    assert sizes == [(50, 100, 2, 100), (100, 250, 3, 200), (100, 500, 4, 1000)]


@pytest.mark.parametrize("size", [SMALL, SIZES[0]], ids=str)
def test_flops_are_those_of_the_matrices(size):
    matrices = [p for p in size.model().parameters.values() if p.ndim == 2]
    assert size.flops == 2 * sum(matrix.size for matrix in matrices)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_window_begins_anew_each_time(small, precision):
    model, x, expected = small
    instance = Instance(model, precision, x)
    for _ in range(2):
        assert check_window(SMALL, precision, instance, expected) < 0.06
    assert len(instance.run(False, 0)) == 1


def test_steps_carry_the_state_on_through_the_window_and_around(small):
    model, x, _expected = small
    instance = Instance(model, "float32", x)
    num_steps = len(instance.run(True, 200_000))
    reference = ReferenceModel(model)
    state = reference.initial_state(1)
    expected = np.zeros(6)
    for step in range(num_steps):
        y, state = reference.step(state, x[step % 6 : step % 6 + 1])
        expected[step % 6] = y[0, 0]
    np.testing.assert_allclose(instance.y, expected, atol=1e-6)


def test_wrong_outputs_are_not_timed(small):
    model, x, expected = small
    with pytest.raises(BenchError, match=r"small float32: off by 0.5.* is not timed"):
        check_window(SMALL, "float32", Instance(model, "float32", x), expected + 0.5)


def test_every_precision_and_number_of_instances_is_told():
    results = list(measure_sizes([SMALL], (1, 2), 2, 0.002))
    assert [result.case for result in results] == [
        f"small {what} p99 {precision}, {instances}"
        for instances in ("1 instance", "2 instances")
        for what in ("step", "window of 6")
        for precision in ("float32", "bfloat16", "int8")
    ]
    for result in results:
        assert result.value >= result.details["latency_us"]["50"] > 0
        assert result.details["per_s"] > 0
        assert result.details["error"] < 0.06
        assert len(result.samples) == 1
    assert {r.reference for r in results} == {"fma_peak", "float32"}
