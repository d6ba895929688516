"""Gates of a model over streams, beside the equations written out for one unit."""

import math

import numpy as np
import pytest

from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.gates import run_gates
from streamrnn.reference.model import ReferenceModel
from tests.support.models import random_inputs, random_model


def sigmoid(a):
    return 1.0 / (1.0 + math.exp(-a))


def one_unit(cell, num_gates):
    weights = np.linspace(-1.0, 1.2, 4 * num_gates).astype(np.float32).reshape(4, num_gates)
    spec = ModelSpec((InputSpec("x"),), (LayerSpec(cell, 1),), (OutputSpec("y"),))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    shapes = ((num_gates, 1), (num_gates, 1), (num_gates,), (num_gates,))
    parameters = {
        name: row.reshape(shape) for name, row, shape in zip(names, weights, shapes, strict=True)
    }
    return Model(spec, parameters), weights.astype(np.float64)


X = np.array([0.5, -1.0, 2.0, 0.25])


def test_gates_of_an_lstm_are_those_of_its_equations():
    model, (w, u, b, d) = one_unit("lstm", 4)
    _, [found] = run_gates(model, X[None, :, None])
    h = c = 0.0
    for t, x in enumerate(X):
        i, f, g, o = (w[k] * x + b[k] + u[k] * h + d[k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * math.tanh(g)
        h = sigmoid(o) * math.tanh(c)
        got = {name: value[0, t, 0] for name, value in (found.gates | found.states).items()}
        wanted = {
            "i": sigmoid(i),
            "f": sigmoid(f),
            "g": math.tanh(g),
            "o": sigmoid(o),
            "h": h,
            "c": c,
        }
        assert got == pytest.approx(wanted, abs=1e-12)
    assert found.keep is found.gates["f"]


def test_gates_of_a_gru_are_those_of_its_equations():
    model, (w, u, b, d) = one_unit("gru", 3)
    _, [found] = run_gates(model, X[None, :, None])
    h = 0.0
    for t, x in enumerate(X):
        r, z = (sigmoid(w[k] * x + b[k] + u[k] * h + d[k]) for k in range(2))
        n = math.tanh(w[2] * x + b[2] + r * (u[2] * h + d[2]))
        h = (1 - z) * n + z * h
        got = {name: value[0, t, 0] for name, value in (found.gates | found.states).items()}
        assert got == pytest.approx({"r": r, "z": z, "n": n, "h": h}, abs=1e-12)
    assert found.keep is found.gates["z"]


def test_every_recurrent_layer_is_seen_and_outputs_are_as_without():
    rng = np.random.default_rng(1)
    model = random_model(rng, (("lstm", 5), ("rnn_tanh", 4), ("gru", 3)))
    x = random_inputs(rng, model.spec, 3, 7)
    y, found = run_gates(model, x)
    np.testing.assert_array_equal(y, ReferenceModel(model).steps(x))
    assert [(each.layer, each.cell) for each in found] == [(0, "lstm"), (1, "rnn_tanh"), (2, "gru")]
    assert found[1].keep is None
    assert not found[1].gates
    assert found[0].gates["f"].shape == found[0].states["c"].shape == (3, 7, 5)
