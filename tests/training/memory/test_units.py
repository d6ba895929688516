"""Half-lives, saturated gates and dead units, on gates that are given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamrnn.reference.gates import LayerGates
from streamrnn.training.memory.units import _kept_steps, measure_layers, measure_units, unit_lines
from tests.training.memory.made import made


def gates(cell, keep, output):
    """Return two streams of 50 steps, whose units keep the same share at every step."""
    ones = np.ones((2, 50, len(keep)))
    waves = np.sin(np.arange(50.0))[None, :, None] * ones * output
    name = "f" if cell == "lstm" else "z"
    return LayerGates(0, cell, {name: ones * keep}, {"h": waves})


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_half_life_follows_from_the_share_that_is_kept(cell):
    found = measure_units(gates(cell, [0.5, 0.9, 1.0, 0.5**0.1], [1, 1, 1, 1]))
    np.testing.assert_allclose(found.half_lives, [1.0, np.log(0.5) / np.log(0.9), np.inf, 10.0])
    assert found.to_dict()["half_lives"][2] is None
    text = unit_lines(found.to_dict())[0]
    assert "median 8.29; longest: never (unit 2), 10 (unit 3)" in text
    assert ("forget" if cell == "lstm" else "update") in text


def test_a_half_life_is_of_the_mean_of_logarithms():
    keep = np.array([0.25, 1.0] * 25)[None, :, None] * np.ones((2, 50, 1))
    found = measure_units(LayerGates(0, "lstm", {"f": keep}, {"h": keep}))
    assert found.half_lives[0] == pytest.approx(1.0)  # a quarter in two steps


def test_the_longest_stretch_shows_what_the_mean_hides():
    """A unit that keeps all for 30 steps between resets: by the mean it forgets at once."""
    keep = np.ones((2, 50, 2))
    keep[:, ::25, 0] = 1e-6
    keep[1, 25, 0] = 1.0
    keep[..., 1] = 0.5**0.125
    found = measure_units(LayerGates(0, "lstm", {"f": keep}, {"h": keep}))
    assert found.half_lives[0] < 3.0
    np.testing.assert_array_equal(found.kept_steps, [49, 8])
    assert found.open_share[0] == pytest.approx(1.0 - 3 / 100)
    assert found.open_share[1] == 0.0
    text = unit_lines(found.to_dict())[1]
    assert "in their longest stretch units kept half for 49 steps (unit 0), median 28.5" in text
    assert "forget gates are above 0.99 in 48% of all steps, of unit 0 in 97%" in text


@given(
    logs=arrays(np.float64, st.tuples(*[st.integers(1, 12)] * 3), elements=st.floats(-2.0, 0.0)),
)
def test_no_stretch_is_longer_than_the_one_that_is_told(logs):
    found = measure_units(LayerGates(0, "gru", {"z": np.exp(logs)}, {"h": logs}))
    for unit, kept in enumerate(found.kept_steps):
        for length in range(1, logs.shape[1] + 1):
            starts = range(logs.shape[1] - length + 1)
            sums = [row[k : k + length].sum() for row in logs[:, :, unit] for k in starts]
            assert (max(sums) >= np.log(0.5) - 1e-9) == (length <= kept)


def test_gates_that_never_forget_kept_all_that_was_looked_at():
    found = measure_units(gates("gru", [1.0, 0.5], [1, 1]))
    text = unit_lines(found.to_dict())[1]
    assert "kept half for 50 steps (all that were looked at: 1 of 2 units)" in text
    assert "update gates" in text


def test_a_report_of_an_earlier_version_is_told_without_stretches():
    plain = measure_units(gates("lstm", [0.5], [1])).to_dict()
    for name in ("kept_steps", "open_share", "num_steps"):
        del plain[name]
    assert len(unit_lines(plain)) == 1


def test_saturated_gates_and_dead_units_are_named():
    found = measure_units(gates("lstm", [0.995, 0.5, 0.005, 0.98], [1, 1e-4, 1, 1]))
    np.testing.assert_array_equal(found.saturated["f"], [1, 0, 1, 0])
    np.testing.assert_array_equal(found.dead, [False, True, False, False])
    text = "\n".join(unit_lines(found.to_dict()))
    assert "forget gates saturated (below 0.01 or above 0.99) in 50% of all" in text
    assert "stuck: units 0, 2" in text
    assert "dead, an output that never changes: unit 1" in text


def test_a_layer_without_gates_has_none():
    waves = np.sin(np.arange(50.0))[None, :, None] * np.ones((1, 50, 2))
    found = measure_units(LayerGates(0, "rnn_tanh", {}, {"h": waves}))
    assert not len(found.half_lives)
    assert unit_lines(found.to_dict()) == []


def test_all_layers_of_a_model_are_measured(tmp_path):
    dataset, model = made("mixed", tmp_path)
    first, second = measure_layers(model, dataset, "test")
    assert (first.cell, len(first.half_lives), len(first.dead)) == ("rnn_tanh", 0, 3)
    assert (second.cell, len(second.half_lives)) == ("lstm", 4)
    assert (second.half_lives > 0).all()


def test_gates_that_never_open_are_told_without_a_number():
    text = unit_lines(measure_units(gates("lstm", [0.5, 0.9], [1, 1])).to_dict())[1]
    assert text.endswith("forget gates are hardly ever above 0.99")


def test_most_steps_in_a_row_are_those_of_every_start_tried():
    logs = np.log(
        np.random.default_rng(0).uniform(0.3, 1.0, (3, 40, 6)) ** [0.01, 0.1, 0.3, 1, 3, 9]
    )
    logs[0, :, 0] = 0.0  # open to the end
    wanted = [
        max(
            length
            for length in range(41)
            for row in logs[:, :, k]
            for start in range(41 - length)
            if row[start : start + length].sum() >= np.log(0.5) - 1e-9
        )
        for k in range(6)
    ]
    assert wanted[0] == 40 > wanted[2] > wanted[5] > 0
    assert _kept_steps(logs).tolist() == wanted


def test_long_streams_of_open_gates_are_measured_at_once():
    assert _kept_steps(np.zeros((1, 200_000, 1))).tolist() == [200_000]  # its square takes minutes
