"""The benchmark of one update: its check, and its figures."""

from __future__ import annotations

import pytest

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.roofline import FLOPS_A_PEAK_ITERATION
from streamrnn_bench.training import frameworks, update

CASE = Case("gru", 1, 4)


def test_the_trainers_gradient_passes_its_check():
    update.check_updates(CASE, {"ours": update.Ours(CASE).gradient()})


def test_a_wrong_gradient_is_not_timed():
    loss, gradient = update.Ours(CASE).gradient()
    gradient[3] += 0.01
    with pytest.raises(BenchError, match=r"ours is off by .*not timed"):
        update.check_updates(CASE, {"ours": (loss, gradient)})


def test_medians_are_compared():
    peak_s = update._NUM_PEAK_ITERATIONS * FLOPS_A_PEAK_ITERATION / 1e11
    times = {
        "ours": [1.0, 2e-3, 1e-3],
        "PyTorch": [1e-3, 8e-3, 9e-3],
        "jax": [3e-3, 3e-3, 4e-3],
        "peak": [peak_s] * 3,
    }
    case = Case("lstm", 1, 32)
    result = update._result(case, "PyTorch", times, 0.25)
    assert (result.value, result.reference_value, result.target) == (2.0, 8.0, 2.3)
    assert result.ratio == pytest.approx(4.0)
    # 3,200 steps of 2 * 128 * (33 + 33 + 32) operations in 2 ms, of 100 a nanosecond.
    assert result.note == "best 1.00, 1.00; FMA peak 0.40; others 25%"
    other = update._result(case, "jax", times, 0.25)
    assert (other.reference, other.reference_value, other.target) == ("jax", 3.0, 1.0)
    assert other.key != result.key


def test_an_update_changes_every_weight():
    ours = update.Ours(CASE)
    before = ours.network.flat.copy()
    ours.update()
    assert (ours.network.flat != before).all()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_jax_has_our_gradient_and_learns(cell):
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    case = Case(cell, 3, 5)
    jax = frameworks.Jax(update.Ours(case).task())
    update.check_updates(case, {"jax": jax.gradient()})
    losses = [float(jax.update()) for _ in range(20)]
    assert losses[-1] < losses[0]
