"""Half-lives, saturated gates and dead units, on gates that are given."""

import numpy as np
import pytest

from streamrnn.reference.gates import LayerGates
from streamrnn.training.memory.units import measure_layers, measure_units, unit_lines
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
