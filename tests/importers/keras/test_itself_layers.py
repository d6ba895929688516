"""Layers that Keras itself makes and runs, one kind after the other."""

from __future__ import annotations

import pytest

from tests.importers.keras.itself import ACTIVATIONS, MARKS, L, check, keras, row

pytestmark = MARKS

# Of several layers here, which a cell cannot hold.
COMPOSED = ("celu", "log_sigmoid", "mish", "squareplus", "tanh_shrink")
CELL_ACTIVATIONS = (
    *("tanh", "relu", "sigmoid", "linear", "softsign", "hard_tanh", "elu", "softplus"),
)


@pytest.fixture(params=["keras", "h5"])
def path(tmp_path, request):
    return tmp_path / f"m.{request.param}"


# --- one kind after the other ------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_layers_with_every_activation(tmp_path, activation):
    made = row(
        L.Dense(5, activation=activation), L.GRU(4, return_sequences=True), L.Dense(3, activation)
    )
    check(made, tmp_path / "m.keras")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_layers(tmp_path, activation):
    made = row(L.LSTM(4, return_sequences=True), L.Activation(activation), L.Dense(3))
    check(made, tmp_path / "m.keras")


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.ReLU(),
        lambda: L.ReLU(max_value=6.0),
        lambda: L.ReLU(max_value=0.4),
        lambda: L.RMSNormalization(),
        lambda: L.RMSNormalization(epsilon=1e-3),
        lambda: L.UnitNormalization(),
        lambda: L.ReLU(negative_slope=0.1),
        lambda: L.LeakyReLU(),
        lambda: L.LeakyReLU(negative_slope=0.05),
        lambda: L.ELU(),
        lambda: L.ELU(alpha=0.3),
        lambda: L.Softmax(),
        lambda: L.PReLU(shared_axes=[1]),
        lambda: L.Dense(4, activation=L.LeakyReLU(negative_slope=0.2)),
        lambda: L.Activation(keras.activations.gelu),
        lambda: L.LayerNormalization(),
        lambda: L.LayerNormalization(epsilon=1e-5, scale=False),
        lambda: L.LayerNormalization(center=False, axis=-1),
        lambda: L.BatchNormalization(),
        lambda: L.BatchNormalization(scale=False, center=False),
        lambda: L.Rescaling(0.5, offset=1.0),
        lambda: L.Normalization(mean=[1.0, 2.0, 3.0, 0.5], variance=[1.0, 4.0, 9.0, 2.0]),
        lambda: L.Normalization(mean=0.5, variance=4.0, axis=None),
        lambda: L.Normalization(mean=0.5, variance=4.0, axis=None, invert=True),
        lambda: L.TimeDistributed(L.Dense(4, activation="tanh")),
        lambda: L.TimeDistributed(L.LayerNormalization()),
        lambda: L.GaussianNoise(0.1),
        lambda: L.Dropout(0.1),
        lambda: L.SpatialDropout1D(0.1),
        lambda: L.ActivityRegularization(l1=0.1),
        lambda: L.Conv1D(5, 3, padding="causal"),
        lambda: L.Conv1D(6, 2, padding="causal", dilation_rate=3, activation="relu"),
        lambda: L.Conv1D(6, 3, padding="causal", groups=2, use_bias=False),
        lambda: L.Conv1D(6, 1, activation="elu"),
        lambda: L.Conv1D(6, 1, padding="same", groups=2),
        lambda: L.DepthwiseConv1D(1, depth_multiplier=2),
        lambda: L.SeparableConv1D(5, 1, depth_multiplier=2, activation="relu"),
    ],
)
def test_a_layer_between_two_others(path, make):
    """With a number of layers of its kind, so that counting matters."""
    made = row(L.Dense(4), make(), L.LSTM(4, return_sequences=True), make(), L.Dense(2))
    check(made, path)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: L.Rescaling(0.5, offset=1.0),
        lambda: L.BatchNormalization(),
        lambda: L.LayerNormalization(),
    ],
)
def test_a_layer_at_an_end(path, make, first):
    own = [L.GRU(5, return_sequences=True), L.Dense(4)]
    check(row(*([make(), *own] if first else [*own, make()])), path)


@pytest.mark.parametrize("kind", ["Conv1D", "SeparableConv1D", "DepthwiseConv1D"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_zeros_before_a_sequence_make_a_convolution_causal(tmp_path, kind, dilation):
    sizes = () if kind == "DepthwiseConv1D" else (5,)
    layer = getattr(L, kind)(*sizes, 3, dilation_rate=dilation)
    made = row(L.ZeroPadding1D((2 * dilation, 0)), layer, L.GRU(3, return_sequences=True))
    check(made, tmp_path / "m.keras")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("activation", CELL_ACTIVATIONS)
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_cells_with_other_activations(tmp_path, kind, activation, gate):
    cell = getattr(L, kind)(
        6, activation=activation, recurrent_activation=gate, return_sequences=True
    )
    check(row(cell, L.Dense(2)), tmp_path / "m.keras")


@pytest.mark.parametrize("activation", [*(a for a in ACTIVATIONS if a not in COMPOSED), "gelu"])
def test_simple_recurrent_layers_with_every_activation(tmp_path, activation):
    if activation in ("exponential", "log_softmax"):
        pytest.skip("it grows without bound")
    made = row(
        L.SimpleRNN(5, activation=activation, return_sequences=True),
        L.SimpleRNN(4, activation=activation, return_sequences=True, use_bias=False),
        L.Activation("relu"),
    )
    check(made, tmp_path / "m.keras")


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "SimpleRNNCell"])
def test_cells_in_a_layer_of_their_own(tmp_path, cell):
    check(row(L.RNN(getattr(L, cell)(5), return_sequences=True), L.Dense(2)), tmp_path / "m.keras")
