"""The adding problem over 400 steps: who solves it, and what is said of who does not.

Of 400 numbers two are marked, one in each half; the target is their sum (a form of experiment 4 of
Hochreiter and Schmidhuber, "Long short-term memory", 1997).
"""

from typing import Any

import numpy as np
import pytest

import streamrnn

NUM_SEQUENCES, NUM_STEPS = 3000, 400


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    numbers = rng.uniform(size=(NUM_SEQUENCES, NUM_STEPS))
    marks = np.zeros_like(numbers)
    every, half = np.arange(NUM_SEQUENCES), NUM_STEPS // 2
    marks[every, rng.integers(0, half, NUM_SEQUENCES)] = 1.0
    marks[every, rng.integers(half, NUM_STEPS, NUM_SEQUENCES)] = 1.0
    return list(np.stack([numbers, marks], axis=2)), (numbers * marks).sum(axis=1)


def report_of(sequences: Any, layer: str, updates: int, **settings: Any) -> Any:
    """Train; the error of a constant would be 0.41."""
    settings |= {"layers": [layer], "updates": updates, "batch_size": 32}
    return streamrnn.train(sequences, **settings).report


@pytest.mark.soak
def test_an_lstm_with_chrono_initialisation_solves_it_at_once(sequences):
    settings = {"learning_rate": 0.01, "chrono_steps": NUM_STEPS}
    report = report_of(sequences, "lstm:32", 300, **settings)
    assert report["errors"]["test"]["y"]["rmse"] < 0.05
    [layer] = report["memory"]["gradients"]["layers"]
    assert layer["reach"] == 255
    assert report["memory"]["history"]["uses_steps"] >= 256


@pytest.mark.soak
def test_a_gru_solves_it(sequences):
    report = report_of(sequences, "gru:32", 1500, learning_rate=0.005)
    assert report["errors"]["test"]["y"]["rmse"] < 0.05


@pytest.mark.soak
def test_a_simple_rnn_fails_and_its_gradients_are_said_not_to_reach(sequences):
    report = report_of(sequences, "rnn_tanh:32", 1500, learning_rate=0.005)
    assert report["errors"]["test"]["y"]["rmse"] > 0.38
    memory = report["memory"]
    assert not memory["history"]["has_skill"]
    [layer] = memory["gradients"]["layers"]
    assert layer["reach"] < 50
    assert layer["by_h"]["128"] < 1e-6 * layer["by_h"]["0"]
