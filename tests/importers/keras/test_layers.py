"""Layers of Keras beside recurrent ones, with what the float64 functions give."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.reference.activations import ACTIVATIONS
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.norm import normalised
from tests.importers.files.keras import (
    conv,
    dense,
    draw,
    layer,
    recurrent,
)
from tests.importers.keras.conftest import WIDE, answers, close, product
from tests.tolerances import REFERENCE_FLOAT64


def elu(alpha):
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def leaky(slope):
    return lambda x: np.where(x > 0, x, np.float64(np.float32(slope)) * x)


NAMED = {
    "linear": "identity",
    "exponential": "exp",
    "hard_sigmoid": "hard_sigmoid_sixth",
    "hard_silu": "hard_swish",
    "hard_swish": "hard_swish",
    "swish": "silu",
}
FUNCTIONS = {name: ACTIVATIONS[ours] for name, ours in NAMED.items()} | {
    name: ACTIVATIONS[name]
    for name in (
        *("gelu", "hard_tanh", "log_softmax", "relu", "relu6", "selu", "sigmoid", "silu"),
        *("softmax", "softplus", "softsign", "tanh"),
    )
}
FUNCTIONS |= {"elu": elu(1.0), "leaky_relu": leaky(0.2)}


# --- activations -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", ["name", "function", "layer"])
def test_an_activation_is_the_one_of_its_name(importing, name, form):
    made = dense(3, 4)
    value = {"class_name": "function", "config": name} if form == "function" else name
    if form == "layer":
        found = importing([made, layer("Activation", activation=name)])
    else:
        found = importing([("Dense", made[1] | {"activation": value}, made[2])])
    assert close(answers(found), FUNCTIONS[name](product(made, WIDE)), REFERENCE_FLOAT64)


@pytest.mark.parametrize(
    ("kind", "config", "function"),
    [
        ("ReLU", {}, FUNCTIONS["relu"]),
        ("ReLU", {"max_value": 6.0, "negative_slope": 0.0}, FUNCTIONS["relu6"]),
        ("ReLU", {"negative_slope": 0.25, "max_value": None}, leaky(0.25)),
        ("LeakyReLU", {}, leaky(0.3)),
        ("LeakyReLU", {"negative_slope": 0.125}, leaky(0.125)),
        ("LeakyReLU", {"alpha": 0.0625}, leaky(0.0625)),
        ("LeakyReLU", {"alpha": {"class_name": "__numpy__", "config": {"value": 0.5}}}, leaky(0.5)),
        ("ELU", {"alpha": 1.0}, elu(1.0)),
        ("ELU", {"alpha": 0.5}, elu(0.5)),
        ("Softmax", {"axis": -1}, FUNCTIONS["softmax"]),
        ("Softmax", {"axis": [2]}, FUNCTIONS["softmax"]),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_an_activation_layer_keeps_its_options(importing, kind, config, function, inside):
    made = dense(3, 4)
    if inside and kind != "Softmax":
        value = {"class_name": kind, "config": config}
        found = importing([("Dense", made[1] | {"activation": value}, made[2])])
    else:
        found = importing([made, layer(kind, **config)])
    assert close(answers(found), function(product(made, WIDE)), REFERENCE_FLOAT64)


@pytest.mark.parametrize("shape", [(1, 4), (12, 4), (4,), (1, 1)])
def test_a_prelu_has_one_slope_for_each_channel(importing, shape):
    made, slope = dense(3, 4), draw(shape[-1])
    found = importing([made, layer("PReLU", [np.broadcast_to(slope, shape)], shared_axes=[1])])
    score = product(made, WIDE)
    assert close(answers(found), np.where(score > 0, score, slope * score), REFERENCE_FLOAT64)


@pytest.mark.parametrize(
    "activation", ["relu", "sigmoid", "softsign", "hard_tanh", "elu", "linear"]
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_cell_has_the_activation_that_it_says(importing, kind, activation):
    made, function = recurrent(kind, activation=activation), FUNCTIONS[activation]
    kernel, own, *bias = (a.astype(np.float64) for a in made[2])
    order = {"LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2], "SimpleRNN": [0]}[kind]

    def ours(rows):
        return np.concatenate([np.split(rows, len(order))[k] for k in order])

    biases = np.zeros((2, kernel.shape[1]))
    biases[: np.atleast_2d(bias[0]).shape[0]] = bias[0]
    weights = [ours(a) for a in (kernel.T, own.T, *biases)]
    h = c = np.zeros((1, 4))
    wanted = []
    for x in WIDE[:, None]:
        if kind == "LSTM":
            h, c = lstm_step(x, h, c, *weights, candidate=function, shown_as=function)
        elif kind == "GRU":
            h = gru_step(x, h, *weights, candidate=function)
        else:
            h = function(x @ kernel + h @ own + bias[0])
        wanted.append(h[0])
    assert close(answers(importing([made])), wanted, REFERENCE_FLOAT64)


def test_an_activation_behind_a_linear_cell_does_not_come_back_into_it(importing):
    made = recurrent("SimpleRNN", activation="linear")
    kernel, own, bias = (a.astype(np.float64) for a in made[2])
    h, wanted = np.zeros(4), []
    for x in WIDE:
        h = x @ kernel + h @ own + bias
        wanted.append(np.maximum(h, 0))
    found = importing([made, layer("Activation", activation="relu")])
    assert close(answers(found), wanted, REFERENCE_FLOAT64)


# --- normalisations ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_a_layer_normalisation_goes_over_the_features(importing, scale, center):
    made, gamma, beta = dense(3, 5), draw(5), draw(5)
    arrays = [gamma] * scale + [beta] * center
    config = {"axis": [2], "epsilon": 0.01, "scale": scale, "center": center}
    found = importing([made, layer("LayerNormalization", arrays, **config)])
    wanted = normalised(product(made, WIDE), 0.01) * (gamma if scale else 1)
    assert close(answers(found), wanted + (beta if center else 0))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_normalisation_stands_anywhere(importing, place):
    sizes = [3, 4, 2]
    gamma, beta, mean, variance = (np.abs(draw(sizes[place])) + 0.1 for _ in range(4))
    norm = layer("BatchNormalization", [gamma, beta, mean, variance], axis=-1, epsilon=1e-3)
    first, last = dense(3, 4, activation="relu"), dense(4, 2, activation="tanh")
    layers = [first, last]
    layers.insert(place, norm)

    def normal(x, k):
        scale = np.sqrt(variance.astype(np.float64) + 1e-3)
        return (x - mean) / scale * gamma + beta if k == place else x

    hidden = normal(np.maximum(product(first, normal(WIDE, 0)), 0), 1)
    assert close(answers(importing(layers)), normal(np.tanh(product(last, hidden)), 2))


@pytest.mark.parametrize("invert", [True, False])
def test_given_means_are_taken(importing, invert):
    config = {"mean": [[1.0, 2.0, 3.0]], "variance": [[4.0, 1.0, 9.0]], "invert": invert}
    made = dense(3, 2)
    mean, deviation = np.array([1.0, 2, 3]), np.array([2.0, 1, 3])
    scaled = WIDE * deviation + mean if invert else (WIDE - mean) / deviation
    found = importing([layer("Normalization", axis=[-1], **config), made])
    assert close(answers(found), product(made, scaled))


# --- convolutions over time --------------------------------------------------------------------


def convolved(x, kernel, dilation=1):
    """Correlate [T, C] with [k, C, O], zeros before."""
    num = len(kernel)
    padded = np.concatenate([np.zeros(((num - 1) * dilation, x.shape[1])), x])
    taps = [padded[k * dilation :][: len(x)] @ kernel[k].astype(np.float64) for k in range(num)]
    return np.sum(taps, axis=0)


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("before", [True, False])
def test_a_causal_convolution_sees_steps_before(importing, kernel, dilation, before):
    padding = "valid" if before else "causal"
    made = conv(3, 4, kernel, padding=padding, dilation_rate=[dilation], activation="relu")
    margin = layer("ZeroPadding1D", padding=[(kernel - 1) * dilation, 0])
    found = importing([margin, made] if before else [made])
    wanted = np.maximum(convolved(WIDE, made[2][0], dilation) + made[2][1], 0)
    assert close(answers(found), wanted)


@pytest.mark.parametrize(
    "made",
    [
        layer("PReLU", [np.zeros((1, 0), np.float32)]),
        layer("PReLU", [np.zeros((), np.float32)]),
        layer("Normalization", [np.zeros(0, np.float32)] * 2),
        layer("Normalization", mean=[], variance=[]),
        layer("Rescaling", scale=[]),
        layer("LeakyReLU", alpha={"config": 3}),
        layer("LeakyReLU", alpha=[]),
        layer("ELU", alpha={"config": {"value": {}}}),
    ],
)
def test_arrays_and_options_without_numbers_are_refused(importing, made):
    with pytest.raises(ModelFileError, match=r"no (weights|numbers|mean)|expected a number"):
        importing([dense(3, 4), made])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("padding", ["valid", "causal"])
def test_other_zeros_than_a_convolution_reads_are_refused(importing, steps, padding):
    with pytest.raises(ModelFileError, match="it needs inputs to come"):
        importing([layer("ZeroPadding1D", padding=[steps, 0]), conv(padding=padding)])


def test_groups_of_a_convolution_see_their_own_channels(importing):
    first, made = dense(3, 6), conv(6, 4, 3, groups=2, padding="causal")
    hidden = product(first, WIDE)
    sides = [
        convolved(hidden[:, 3 * g :][:, :3], made[2][0][..., 2 * g :][..., :2]) for g in (0, 1)
    ]
    wanted = np.concatenate(sides, axis=1) + made[2][1]
    assert close(answers(importing([first, made])), wanted)


@pytest.mark.parametrize("pointwise", [True, False])
def test_depthwise_convolutions_have_their_multiplier(importing, pointwise):
    kernel, points, bias = draw(3, 3, 2), draw(1, 6, 5), draw(5 if pointwise else 6)
    kind = "SeparableConv1D" if pointwise else "DepthwiseConv1D"
    arrays = [kernel, points, bias] if pointwise else [kernel, bias]
    more = {"filters": 5} if pointwise else {}
    made = layer(kind, arrays, kernel_size=[3], depth_multiplier=2, padding="causal", **more)
    wide = np.concatenate(
        [convolved(WIDE[:, c : c + 1], kernel[:, c : c + 1]) for c in range(3)], 1
    )
    wanted = (wide @ points[0].astype(np.float64) if pointwise else wide) + bias
    assert close(answers(importing([made])), wanted)
