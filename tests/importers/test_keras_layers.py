"""Layers of Keras beside recurrent ones, with what the float64 functions give."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.keras import network
from streamrnn.importers.keras.files import KerasFile
from streamrnn.importers.keras.hdf5 import Hdf5Contents
from streamrnn.importers.network import Names
from streamrnn.importers.source import import_file
from streamrnn.reference.activations import ACTIVATIONS, sigmoid
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.model import ReferenceModel
from streamrnn.reference.norm import normalised
from tests.importers.files.keras import (
    archive,
    by_place,
    conv,
    dense,
    draw,
    functional,
    layer,
    legacy,
    recurrent,
    sequential,
)
from tests.tolerances import REFERENCE_FLOAT64

pytest.importorskip("h5py")
RNG = np.random.default_rng(11)
X = RNG.standard_normal((12, 3)).astype(np.float32)
WIDE = X.astype(np.float64)
FRAMES = RNG.standard_normal((5, 8, 2)).astype(np.float32)
FLOAT32 = 3e-7  # what folding and rounding of a parameter cost, of the outputs' scale


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


@pytest.fixture
def importing(monkeypatch):
    """Import layers without the way through a file, which a process of its own reads."""

    def run(layers, config=None, version="3.15.1"):
        contents = Hdf5Contents(by_place=by_place(layers))
        file = KerasFile("m", config or sequential(layers), version, contents)
        monkeypatch.setattr(network, "read_keras_file", lambda path: file)
        return network.import_keras("m", Names())

    return run


def answers(found, x=X):
    return ReferenceModel(found.model).steps(np.reshape(x, (len(x), -1)))


def close(got, wanted, most=FLOAT32):
    wanted = np.reshape(wanted, (len(wanted), -1))
    return got.shape == wanted.shape and np.abs(got - wanted).max() <= most * np.abs(wanted).max()


def product(made, x):
    kernel, *bias = (a.astype(np.float64) for a in made[2])
    return x @ kernel + (bias[0] if bias else 0)


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


# --- frames ------------------------------------------------------------------------------------


def within(made):
    """Wrap a layer so that it works on one step."""
    inner = {"class_name": made[0], "config": {"name": "inner"} | made[1]}
    return layer("TimeDistributed", made[2], layer=inner)


def framed(*layers):
    return [layer("InputLayer", batch_shape=[None, None, 8, 2]), *map(within, layers)]


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (4, 1, 1), (3, 2, 1), (2, 1, 3)]
)
def test_a_convolution_over_a_frame_pads_as_keras(importing, padding, kernel, stride, dilation):
    made = conv(2, 3, kernel, padding=padding, strides=[stride], dilation_rate=[dilation])
    found = importing(framed(made, layer("Flatten")))
    kept = (kernel - 1) * dilation + 1
    before = after = 0
    if padding == "same":
        missing = max((-(-8 // stride) - 1) * stride + kept - 8, 0)
        before, after = missing // 2, missing - missing // 2
    elif padding == "causal":
        before = kept - 1
    x = np.pad(FRAMES.astype(np.float64), ((0, 0), (before, after), (0, 0)))
    places = range(0, x.shape[1] - kept + 1, stride)
    weight = made[2][0].astype(np.float64)
    windows = [x[:, p : p + kept : dilation] for p in places]
    wanted = np.stack([np.einsum("tkc,kco->to", w, weight) + made[2][1] for w in windows], axis=1)
    assert close(answers(found, FRAMES), wanted)
    assert found.model.spec.inputs[0].shape == (8, 2)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (layer("MaxPooling1D", pool_size=[2]), FRAMES.reshape(5, 4, 2, 2).max(axis=2)),
        (layer("AveragePooling1D", pool_size=4), FRAMES.reshape(5, 2, 4, 2).mean(axis=2)),
        (layer("GlobalMaxPooling1D"), FRAMES.max(axis=1)),
        (layer("GlobalAveragePooling1D", keepdims=True), FRAMES.mean(axis=1)),
        (layer("Cropping1D", cropping=[1, 3]), FRAMES[:, 1:5]),
        (layer("ZeroPadding1D", padding=[1, 0]), np.pad(FRAMES, ((0, 0), (1, 0), (0, 0)))),
        (layer("Flatten"), FRAMES),
        (layer("Reshape", target_shape=[16]), FRAMES),
        (
            layer("MaxPooling1D", pool_size=3, strides=3, padding="same"),
            np.stack([FRAMES[:, k:n].max(axis=1) for k, n in ((0, 3), (3, 6), (6, 8))], axis=1),
        ),
    ],
)
def test_what_moves_and_pools_within_a_step(importing, made, wanted):
    found = importing(framed(made, layer("Activation", activation="relu")))
    assert close(answers(found, FRAMES), np.maximum(wanted, 0))


def test_a_flattened_frame_is_a_vector_to_what_follows(importing):
    gamma, beta = draw(16), draw(16)
    layers = framed(layer("Flatten"))
    layers += [layer("LayerNormalization", [gamma, beta], epsilon=1e-3)]
    wanted = normalised(FRAMES.reshape(5, 16).astype(np.float64), 1e-3) * gamma + beta
    assert close(answers(importing(layers), FRAMES), wanted)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (conv(2, 3, 9), "kernel of 9 for 8 places"),
        (layer("AveragePooling1D", pool_size=3, padding="same"), "leaves out what is padded"),
        (layer("Reshape", target_shape=[3, 5]), "makes '.3, 5.' of .8, 2."),
        (recurrent("LSTM"), r"TimeDistributed\(LSTM\), which is not supported"),
    ],
)
def test_what_no_frame_can_be_is_refused(importing, made, reason):
    with pytest.raises(ModelFileError, match=reason):
        importing(framed(made))


# --- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [archive, legacy])
def test_a_masked_step_leaves_the_state_and_repeats_the_output(tmp_path, write):
    layers = [layer("Masking", mask_value=-2.0), recurrent("GRU"), dense(activation="tanh")]
    x = X.copy()
    x[[0, 1, 5, 6, 11]] = -2.0
    x[3, 0] = -2.0  # alone it masks nothing
    seen = (x != -2.0).any(axis=1)
    whole = import_file(write(tmp_path / "w", layers[1:]))
    got = answers(import_file(write(tmp_path / "m", layers)), x)
    unmasked = answers(whole, x[seen])
    first = np.tanh(layers[2][2][1].astype(np.float64))  # of a state of zeros
    wanted = [unmasked[k - 1] if k else first for k in np.cumsum(seen)]
    assert close(got, wanted, REFERENCE_FLOAT64)


def test_token_zero_is_masked_where_the_embedding_says_so(importing):
    table = draw(9, 3)
    layers = [recurrent("LSTM"), layer("Dropout"), recurrent("GRU", 4), dense()]
    masked = layer("Embedding", [table], input_dim=9, output_dim=3, mask_zero=True)
    tokens = np.array([0, 3, 5, 0, 0, 8, 1, 0])[:, None]
    got = answers(importing([masked, *layers]), tokens)
    plain = layer("Embedding", [table], input_dim=9, output_dim=3)
    unmasked = answers(importing([plain, *layers]), tokens[tokens[:, 0] > 0])
    first = layers[3][2][1].astype(np.float64)
    wanted = [first, *unmasked[[0, 1, 1, 1, 2, 3, 3]]]
    assert close(got, wanted, REFERENCE_FLOAT64)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([dense(3, 3), layer("Masking"), recurrent("LSTM")], "masks what the network computes"),
        ([layer("Masking"), conv(padding="causal"), recurrent("LSTM", 4)], "does not reach 'lstm_"),
        ([layer("Masking"), recurrent("LSTM"), conv(4, padding="causal")], "does not follow from"),
        ([layer("Masking"), dense(3, 3)], "does not follow from the states"),
        (
            [layer("Masking"), layer("Masking", mask_value=1.0), recurrent("LSTM")],
            "a model has one mask",
        ),
        (
            [layer("Masking"), recurrent("SimpleRNN", activation="sigmoid")],
            "a masked one has tanh or relu",
        ),
        ([layer("Masking"), recurrent("LSTM"), layer("Softmax")], "takes a mask"),
    ],
)
def test_a_mask_that_no_model_can_follow_is_refused(importing, layers, reason):
    with pytest.raises(ModelFileError, match=reason):
        importing(layers)


def test_a_recurrent_layer_beside_the_mask_is_refused(importing):
    layers = [layer("InputLayer"), layer("Masking"), recurrent("LSTM"), recurrent("GRU")]
    layers += [layer("Concatenate")]
    with pytest.raises(ModelFileError, match="joins what is masked with what is not"):
        importing(layers, config=functional(layers, [[], [0], [1], [0], [2, 3]]))


# --- graphs ------------------------------------------------------------------------------------


def shaped(size=3, **more):
    return layer("InputLayer", batch_shape=[None, None, size], **more)


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Multiply", "Average", "Concatenate"])
def test_several_results_are_joined(importing, kind):
    a, b = dense(3, 4, activation="tanh"), dense(3, 4, activation="relu")
    layers = [shaped(), a, b, layer(kind)]
    left, right = np.tanh(product(a, WIDE)), np.maximum(product(b, WIDE), 0)
    wanted = {
        "Add": left + right,
        "Subtract": left - right,
        "Multiply": left * right,
        "Average": (left + right) / 2,
        "Concatenate": np.concatenate([left, right], axis=1),
    }[kind]
    found = importing(layers, config=functional(layers, [[], [0], [0], [1, 2]]))
    assert close(answers(found), wanted, REFERENCE_FLOAT64)


def test_residuals_and_input_skips_are_followed(importing):
    cell, a, b = recurrent("LSTM"), dense(7, 4, activation="tanh"), dense(4, 2)
    layers = [shaped(), cell, layer("Concatenate", axis=-1), a, layer("Add"), b]
    config = functional(layers, [[], [0], [0, 1], [2], [3, 1], [4]])
    hidden = answers(importing([cell]))
    score = np.tanh(product(a, np.concatenate([WIDE, hidden], axis=1)))
    assert close(answers(importing(layers, config=config)), product(b, score + hidden))


def test_a_gate_of_one_number_is_for_every_channel(importing):
    cell, gate = recurrent("GRU"), dense(3, 1, activation="sigmoid")
    layers = [shaped(), cell, gate, layer("Multiply")]
    found = importing(layers, config=functional(layers, [[], [0], [0], [1, 2]]))
    wanted = answers(importing([cell])) * sigmoid(product(gate, WIDE))
    assert close(answers(found), wanted, REFERENCE_FLOAT64)


def test_several_outputs_are_side_by_side(importing):
    cell, a, b = recurrent("GRU"), dense(4, 2), dense(4, 1, activation="sigmoid")
    layers = [shaped(), cell, a, b]
    found = importing(layers, config=functional(layers, [[], [0], [1], [1]], outputs=2))
    hidden = answers(importing([cell]))
    wanted = np.concatenate([product(a, hidden), sigmoid(product(b, hidden))], axis=1)
    assert close(answers(found), wanted, REFERENCE_FLOAT64)
    assert "the outputs are one, side by side: dense_42 (2), dense_43 (1)" in found.notes


def test_several_inputs_are_side_by_side(importing):
    a, b = dense(3, 4, activation="tanh"), dense(2, 4)
    layers = [shaped(), shaped(2), a, b, layer("Add")]
    config = functional(layers, [[], [], [0], [1], [2, 3]])
    config["config"]["input_layers"] = [["x_41", 0, 0], ["x_40", 0, 0]]
    found = importing(layers, config=config)
    y = RNG.standard_normal((12, 2)).astype(np.float32)
    got = answers(found, np.concatenate([y, X], axis=1))
    assert close(got, np.tanh(product(a, WIDE)) + product(b, y.astype(np.float64)))
    assert "the inputs are one, side by side: x_41 (2), x_40 (3)" in found.notes


def test_a_layer_used_twice_has_a_state_for_each_use(importing):
    a, cell = dense(3, 3, activation="tanh"), recurrent("LSTM")
    layers = [shaped(), a, cell, layer("Subtract")]
    config = functional(layers, [[], [0], [0], [2, 2]])
    made = config["config"]["layers"]
    made[2]["inbound_nodes"] *= 2
    made[2]["inbound_nodes"] = [made[1]["inbound_nodes"][0], _reading("dense_41")]
    made[3]["inbound_nodes"] = [_reading(("lstm_42", 0), ("lstm_42", 1))]
    hidden = np.tanh(product(a, WIDE)).astype(np.float32)
    alone = importing([cell])
    wanted = answers(alone) - answers(alone, hidden)
    assert close(answers(importing(layers, config=config)), wanted, 1e-6)


def _reading(*references):
    pairs = [(ref, 0) if isinstance(ref, str) else ref for ref in references]
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"keras_history": [name, use, 0]}}
        for name, use in pairs
    ]
    return {"args": [tensors] if len(tensors) > 1 else tensors, "kwargs": {"mask": None}}


@pytest.mark.parametrize(
    ("kind", "given", "function"),
    [
        ("Add", [None, 2.0], lambda h: h + 2),
        ("Multiply", [0.5, None], lambda h: h / 2),
        ("Subtract", [1, None], lambda h: 1 - h),
        ("Subtract", [None, 1], lambda h: h - 1),
        ("TrueDivide", [None, 4], lambda h: h / 4),
        ("Negative", [None], lambda h: -h),
        ("Relu", [None], lambda h: np.maximum(h, 0)),
        ("Gelu", [None], ACTIVATIONS["gelu_tanh"]),
        ("Multiply", [None, None], lambda h: h * h),
    ],
)
def test_operations_on_values_are_followed(importing, kind, given, function):
    cell = recurrent("GRU")
    layers = [shaped(), cell, layer(kind)]
    config = functional(layers, [[], [0], [1]])
    entry = config["config"]["layers"][2]
    entry |= {"module": "keras.src.ops.numpy", "registered_name": kind}
    (tensor,) = entry["inbound_nodes"][0]["args"]
    entry["inbound_nodes"][0]["args"] = [tensor if item is None else item for item in given]
    got = answers(importing(layers, config=config))
    assert close(got, function(answers(importing([cell]))), REFERENCE_FLOAT64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kwargs": {"initial_state": [["dense_41", 0, 0]]}}, "takes initial_state from another"),
        ({"args": [[["x_40", 0, 0], ["dense_41", 0, 0]]]}, "a first state that the network comp"),
        ({"args": [["dense_41", 0, 1]]}, "reads the state of 'dense_41'"),
    ],
)
def test_states_that_go_between_layers_are_refused(importing, change, reason):
    layers = [shaped(), dense(3, 3), recurrent("LSTM")]
    config = functional(layers, [[], [0], [0]])
    config["config"]["layers"][2]["inbound_nodes"][0] |= change
    with pytest.raises(ModelFileError, match=reason):
        importing(layers, config=config)


def test_a_state_that_nobody_reads_is_no_obstacle(importing):
    made = recurrent("LSTM", return_state=True)
    plain = answers(importing([(made[0], made[1] | {"return_state": False}, made[2])]))
    assert np.array_equal(answers(importing([made])), plain)


@pytest.mark.parametrize("name", ["input", "head", "a[t-1]", "x/y"])
def test_any_name_of_a_layer_will_do(importing, name):
    a, cell = dense(3, 3, activation="tanh"), recurrent("LSTM")
    layers = [shaped(), ("Dense", a[1] | {"name": name}, a[2]), cell, layer("Concatenate")]
    config = functional(layers, [[], [0], [1], [1, 2]])
    hidden = np.tanh(product(a, WIDE))
    wanted = [hidden, answers(importing([a, cell]))]
    assert close(answers(importing(layers, config=config)), np.concatenate(wanted, axis=1))


def test_a_functional_model_of_keras_2_is_followed(tmp_path):
    import json

    import h5py

    a, b = dense(3, 4, activation="tanh"), dense(3, 4)
    layers = [layer("InputLayer", batch_input_shape=[None, None, 3]), a, b, layer("Add")]
    path = legacy(tmp_path / "m", layers)
    config = sequential(layers)
    made = config["config"]["layers"]
    names = [entry["config"]["name"] for entry in made]
    links: list[list[int]] = [[], [0], [0], [1, 2]]
    for entry, name, read in zip(made, names, links, strict=True):
        entry["name"] = name
        entry["inbound_nodes"] = [[[names[k], 0, 0, {}] for k in read]] if read else []
    config["class_name"] = "Functional"
    config["config"]["output_layers"] = [[names[3], 0, 0]]
    with h5py.File(path, "r+") as root:
        root.attrs["model_config"] = json.dumps(config)
    wanted = np.tanh(product(a, WIDE)) + product(b, WIDE)
    assert close(answers(import_file(path)), wanted, REFERENCE_FLOAT64)
