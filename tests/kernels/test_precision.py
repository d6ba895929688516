"""Weights in bfloat16 and int8: rounding, outputs, bit rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn import Engine, Model
from streamrnn.errors import InputError
from streamrnn.kernels.cpu.pack import pack
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.gates import DENSE, GRU, LSTM, SHAPES
from streamrnn.kernels.precisions import BFLOAT16, INT8, PRECISIONS
from streamrnn.model.spec import CELLS
from streamrnn.reference.model import ReferenceModel
from tests.support.models import random_inputs, random_model
from tests.support.precision import SIGMOID_FACTOR, rounded_to_bfloat16
from tests.tolerances import KERNEL

GATE_FACTORS = {
    "rnn_tanh": [1.0],
    "rnn_relu": [1.0],
    "gru": [SIGMOID_FACTOR, SIGMOID_FACTOR, 1.0],
    "lstm": [SIGMOID_FACTOR, SIGMOID_FACTOR, 1.0, SIGMOID_FACTOR],
}


def quantised(model: Model, precision: str) -> Model:
    """Return a model whose float32 weights are what a precision makes of them."""
    parameters = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    for k, layer in enumerate(model.spec.chain):
        names = (f"weight_ih_l{k}", f"weight_hh_l{k}")
        factors = np.repeat(GATE_FACTORS[layer.cell], layer.hidden_size)[:, None]
        x, h = (parameters[name] * factors for name in names)
        if precision == "bfloat16":
            x, h = rounded_to_bfloat16(x), rounded_to_bfloat16(h)
        else:
            x_scale, h_scale = (
                np.abs(matrix).max(axis=1, keepdims=True) / 127 for matrix in (x, h)
            )
            shared = np.ones(len(x), bool)
            if layer.cell == "gru":  # its candidate's two halves are summed apart
                shared[2 * layer.hidden_size :] = False
            both = np.maximum(x_scale, h_scale)
            x_scale = np.where(shared[:, None], both, x_scale)
            h_scale = np.where(shared[:, None], both, h_scale)
            x, h = np.rint(x / x_scale) * x_scale, np.rint(h / h_scale) * h_scale
        parameters[names[0]], parameters[names[1]] = x / factors, h / factors
    if model.spec.head is not None:
        weights = parameters["head.weight"]
        if precision == "bfloat16":
            weights = rounded_to_bfloat16(weights)
        else:
            scale = np.abs(weights).max(axis=1, keepdims=True) / 127
            weights = np.rint(weights / scale) * scale
        parameters["head.weight"] = weights
    return Model(model.spec, {name: value.astype(np.float32) for name, value in parameters.items()})


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("size", [1, 17, 50])
def test_computes_with_the_rounded_weights(rng, precision, cell, size):
    model = random_model(rng, layers=[(cell, size), (cell, 20)], inputs=5, outputs=3)
    x = random_inputs(rng, model.spec, 7, 60)
    engine = Engine(model, max_streams=8, precision=precision)
    rows = engine.rows(range(7))
    y = np.stack([engine.batch(rows, x[:, t]) for t in range(60)], axis=1)
    expected = ReferenceModel(quantised(model, precision)).steps(x)
    assert np.max(np.abs(y - expected)) < KERNEL
    exact = ReferenceModel(model).steps(x)
    assert KERNEL < np.max(np.abs(y - exact)) < 0.05  # and not with the exact ones


@given(
    st.sampled_from(["bfloat16", "int8"]),
    st.lists(st.tuples(st.sampled_from(sorted(CELLS)), st.integers(1, 40)), min_size=1, max_size=2),
    st.sampled_from([None, "identity", "softmax"]),
    st.integers(1, 25),
    st.integers(0, 2**32 - 1),
)
def test_bits_depend_neither_on_the_batch_nor_on_chunks(precision, layers, head, num_streams, seed):
    rng = np.random.default_rng(seed)
    outputs = 3 if head else layers[-1][1]
    model = random_model(rng, layers=layers, inputs=4, outputs=outputs, head=head)
    x = random_inputs(rng, model.spec, num_streams, 9)
    together = Engine(model, max_streams=32, precision=precision)
    apart = Engine(model, max_streams=32, precision=precision)
    rows = together.rows(range(num_streams))
    y = np.stack([together.batch(rows, x[:, t]) for t in range(9)], axis=1)
    alone = np.stack([apart.steps(s, x[s]) for s in range(num_streams)])
    np.testing.assert_array_equal(alone.view(np.uint32), y.view(np.uint32))


@pytest.mark.parametrize("kind", [DENSE, GRU, LSTM])
def test_a_row_of_int8_keeps_its_largest_weight_exactly(rng, kind):
    shape = SHAPES[kind]
    x = (
        rng.standard_normal((len(shape.x_gates) * 16, 3))
        * np.geomspace(1e-6, 1e6, 16).repeat(len(shape.x_gates))[:, None]
    )
    biases = [np.zeros(16)] * shape.num_accumulators
    packed = pack(kind, biases, x, np.zeros((len(shape.h_gates) * 16, 0)), INT8)
    stored = packed.memory.reshape(-1, packed.panel_bytes)
    weights = stored[:, packed.first_weight : packed.first_h_weight].view(np.int8)
    by_unit = weights.reshape(len(stored), 3, len(shape.x_gates), -1)
    assert (np.abs(by_unit).max(axis=1) == 127).all()


def test_a_row_of_zeros_has_a_scale():
    packed = pack(DENSE, [np.arange(16.0)], np.zeros((16, 2)), np.zeros((16, 0)), INT8)
    assert np.isfinite(packed.memory.view(np.float32)[: packed.first_weight // 4]).all()


def test_weights_take_half_and_a_quarter(rng):
    x = rng.standard_normal((4 * 64, 128))
    biases = [np.zeros(64)] * 4
    whole, half, quarter = (
        pack(LSTM, biases, x, x[:, :64], precision).memory.nbytes for precision in range(3)
    )
    assert half < 0.51 * whole
    assert quarter < 0.27 * whole


def test_bfloat16_ties_go_to_even():
    ties = np.array([1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, 3.0] * 4)[:, None]
    packed = pack(DENSE, [np.zeros(16)], ties, np.zeros((16, 0)), BFLOAT16)
    stored = packed.memory.reshape(-1, packed.panel_bytes)
    halves = stored[:, packed.first_weight : packed.first_h_weight].reshape(-1).view(np.uint16)
    values = (halves.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(values[:4], [1, 1 + 4 / 256, -1, 3])


def test_an_unknown_precision_is_refused(rng):
    model = random_model(rng)
    with pytest.raises(InputError, match=r"'float16'.*bfloat16"):
        Engine(model, precision="float16")


def test_the_arithmetic_is_named():
    model = random_model(np.random.default_rng(0))
    names = {Program(model, name).arithmetic for name in PRECISIONS}
    assert len(names) == len(PRECISIONS)
