"""The weights that training starts from."""

import numpy as np
import pytest

from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.network.network import initial_parameters

SIZE = 200


def drawn(rng, cell, **options):
    spec = ModelSpec(
        (InputSpec("x"),), (LayerSpec(cell, SIZE),), (OutputSpec("y"),), HeadSpec("identity")
    )
    found = initial_parameters(spec, rng, **options)
    assert not found["bias_hh_l0"].any()
    return found["weight_hh_l0"].reshape(-1, SIZE, SIZE), found["bias_ih_l0"].reshape(-1, SIZE)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_recurrent_matrices_are_orthogonal_gate_by_gate(rng, cell):
    for matrix in drawn(rng, cell)[0]:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(SIZE), atol=1e-12)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_uniform_recurrent_matrices_lie_within_one_by_the_root_of_the_size(rng, cell):
    matrices, _ = drawn(rng, cell, initialisation="uniform")
    bound = SIZE**-0.5
    assert 0.99 * bound < np.abs(matrices).max() <= bound
    assert matrices.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)


def test_the_forget_bias_is_that_of_an_lstm_s_forget_gates_alone(rng):
    _, (i, f, g, o) = drawn(rng, "lstm", forget_bias=2.5)
    assert set(f) == {2.5}
    assert not np.concatenate([i, g, o]).any()
    assert not drawn(rng, "gru", forget_bias=2.5)[1].any()


def test_chrono_biases_of_an_lstm_let_units_remember_for_up_to_so_many_steps(rng):
    """Tallec and Ollivier 2018, equation 16: b_f = log U(1, T - 1), b_i = -b_f."""
    _, (i, f, g, o) = drawn(rng, "lstm", chrono_steps=101)
    np.testing.assert_array_equal(i, -f)
    times = np.exp(f)  # f / (1 - f) of the gate: uniform
    assert 1 <= times.min() < 5
    assert 95 < times.max() <= 100
    assert times.mean() == pytest.approx(50.5, abs=6)
    assert not np.concatenate([g, o]).any()


def test_chrono_biases_of_a_gru_keep_by_the_update_gate(rng):
    _, (r, z, n) = drawn(rng, "gru", chrono_steps=101)
    times = np.exp(z)
    assert 1 <= times.min() < 5
    assert 95 < times.max() <= 100
    assert times.mean() == pytest.approx(50.5, abs=6)
    assert not np.concatenate([r, n]).any()


def test_chrono_leaves_a_network_without_gates_as_it_is(rng):
    assert not drawn(rng, "rnn_tanh", chrono_steps=101)[1].any()
