"""The kernels' error over many steps: 30,000, and in `make soak` 100,000."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn import Engine, Model
from streamrnn.model.spec import CELLS
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.rnn import rnn_step
from tests.support.models import random_model

NUM_UNITS, NUM_INPUTS, NUM_WINDOWS = 8, 2, 10
ROUNDING = 2.0**-24  # what rounding to float32 may change a number by, relative to it

# Measured over three seeds a cell: the kernels' largest error is 1.1 to 2.1 times the reference's,
# for a step rounds more often than once.
MOST_TIMES_THE_REFERENCE = 4.0
# From the first three tenths to the last: a walk at random would grow by 2.4, a drift by 5.7.
MOST_GROWTH = 1.5


def long_memory(rng, cell):
    """Make a model that forgets slowly, so that an error has time to grow."""
    model = random_model(rng, [(cell, NUM_UNITS)], NUM_INPUTS, head=None)
    parameters = {name: value.copy() for name, value in model.parameters.items()}
    if cell == "rnn_tanh":
        parameters["weight_hh_l0"] *= np.float32(1.6)
    else:
        parameters["bias_hh_l0"][NUM_UNITS : 2 * NUM_UNITS] += 3  # z of a GRU, f of an LSTM
    return Model(model.spec, parameters)


def rounded(rng, values):
    """Change numbers as much as a rounding to float32 may."""
    return values * (1 + ROUNDING * rng.uniform(-1, 1, values.shape))


def side_by_side(a, b, num_gates):
    """Join the parameters of two networks into those of one that computes both."""
    num_columns = a.shape[1] if a.ndim == 2 else 0
    a, b = (item.reshape(num_gates, NUM_UNITS, -1) for item in (a, b))
    if not num_columns:
        return np.concatenate([a, b], axis=1).reshape(-1)
    zeros = np.zeros_like(a)
    upper, lower = np.concatenate([a, zeros], axis=2), np.concatenate([zeros, b], axis=2)
    return np.concatenate([upper, lower], axis=1).reshape(-1, 2 * num_columns)


def reference_and_its_rounding(rng, model, x):
    """Run float64 twice at once: as it is, and with x, parameters and states rounded.

    Returns y and its rounded twin, [T, H] each.
    """
    cell = model.spec.layers[0].cell
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    exact = [model.parameters[name].astype(np.float64) for name in names]
    num_gates = len(CELLS[cell].gates)
    weights = [side_by_side(w, rounded(rng, w), num_gates) for w in exact]
    wide = x.astype(np.float64)
    wide = np.concatenate([wide, rounded(rng, wide)], axis=1)[:, None]
    noise = rounded(rng, np.ones((len(x), 2, NUM_UNITS)))
    h, c = np.zeros((2, 1, 2 * NUM_UNITS))
    y = np.empty((len(x), 2 * NUM_UNITS))
    for t in range(len(x)):
        h[:, NUM_UNITS:] *= noise[t, 0]
        c[:, NUM_UNITS:] *= noise[t, 1]
        if cell == "lstm":
            h, c = lstm_step(wide[t], h, c, *weights)
        elif cell == "gru":
            h = gru_step(wide[t], h, *weights)
        else:
            h = rnn_step(wide[t], h, weights[0], weights[1], weights[2], weights[3], "tanh")
        y[t] = h[0]
    return y[:, :NUM_UNITS], y[:, NUM_UNITS:]


@pytest.mark.parametrize(
    "num_steps",
    [
        pytest.param(30_000, marks=pytest.mark.slow),
        pytest.param(100_000, marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_the_error_does_not_grow(rng, cell, num_steps):
    model = long_memory(rng, cell)
    x = rng.standard_normal((num_steps, NUM_INPUTS)).astype(np.float32)
    engine = Engine(model, max_streams=1)
    y = np.concatenate([engine.steps("a", chunk) for chunk in np.array_split(x, 97)])
    exact, twin = reference_and_its_rounding(rng, model, x)
    error, allowed = (
        np.abs(item - exact).reshape(NUM_WINDOWS, -1).max(axis=1) for item in (y, twin)
    )
    assert allowed.max() < 1e-6, "the reference itself must be well-conditioned"
    assert error.max() <= MOST_TIMES_THE_REFERENCE * allowed.max()
    assert error[-3:].mean() <= MOST_GROWTH * error[:3].mean()
    assert exact.std() > 0.1
