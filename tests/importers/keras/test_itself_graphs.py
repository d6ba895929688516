"""Graphs, frames and masks that Keras itself makes and runs."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from tests.importers.keras.itself import ACTIVATIONS, MARKS, STEPS, L, check, framed, keras, row

pytestmark = MARKS


@pytest.fixture(params=["keras", "h5"])
def path(tmp_path, request):
    return tmp_path / f"m.{request.param}"


# --- graphs ------------------------------------------------------------------------------------


def graph(name):
    x = keras.Input((None, 3))
    h = L.LSTM(4, return_sequences=True)(x)
    a, b = L.Dense(4, activation="tanh")(h), L.Dense(4)(x)
    match name:
        case "add":
            y = L.Add()([a, b, h])
        case "subtract":
            y = L.Subtract()([a, b])
        case "multiply":
            y = L.Multiply()([a, b])
        case "average":
            y = L.Average()([a, b, h])
        case "concatenate":
            y = L.Concatenate()([a, x, h])
        case "concatenated inputs":
            y = L.GRU(3, return_sequences=True)(L.Concatenate()([a, x]))
        case "sum of what is joined":
            y = L.Add()([L.Concatenate()([a, b]), L.Concatenate()([h, b])])
        case "a residual":
            y = L.Dense(2)(L.Add()([h, L.GRU(4, return_sequences=True)(h)]))
        case "a gate for all":
            y = L.Multiply()([h, L.Dense(1, activation="sigmoid")(x)])
        case "the input twice":
            y = L.Add()([x, x])
        case "operations":
            y = 1 - keras.ops.relu(h * 2.0 + a) * b / 3.0
        case "softplus":
            y = keras.ops.gelu(keras.ops.softplus(-h), approximate=True)
        case "bounds":
            y = keras.ops.clip(h, -0.3, 0.2) + keras.ops.maximum(b, 0.1) - keras.ops.minimum(a, 0.4)
        case "logarithms":
            y = keras.ops.log(keras.ops.abs(b) + 1e-3) * keras.ops.sqrt(keras.ops.square(a) + 0.1)
        case "functions":
            y = keras.ops.silu(a) + keras.ops.celu(b) - keras.ops.log_sigmoid(h)
        case "some features":
            y = L.Concatenate()([x, L.GRU(3, return_sequences=True)(h[:, :, 1:3]), a[:, :, -2:]])
        case "a shared layer":
            shared = L.Dense(4, activation="relu")
            y = L.Concatenate()([shared(a), shared(b)])
        case "a shared cell":
            shared = L.GRU(4, return_sequences=True)
            y = L.Add()([shared(a), shared(b)])
        case "batch norms":
            y = L.Add()([L.BatchNormalization()(h), L.Rescaling(0.5)(b)])
        case "heads":
            y = [L.Dense(2)(h), L.Dense(1, activation="sigmoid")(h), a]
        case "last steps":
            last = L.LSTM(4)(h)
            y = L.Concatenate()([last, L.GRU(2)(a)])
        case "last step by index":
            y = L.Dense(2)(h[:, -1, :])
        case "a state nobody reads":
            y = L.GRU(4, return_sequences=True, return_state=True)(h)[0]
        case "two inputs":
            other = keras.Input((None, 2))
            y = L.Concatenate()([h, L.LSTM(3, return_sequences=True)(other)])
            return keras.Model([x, other], L.Dense(2)(y))
        case "causal blocks":
            c = L.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu")(h)
            c = L.Conv1D(4, 2, padding="causal")(c)
            y = L.Dense(1)(L.LayerNormalization()(L.Add()([h, c])))
    return keras.Model(x, y)


@pytest.mark.parametrize(
    "name",
    [
        *("add", "subtract", "multiply", "average", "concatenate", "concatenated inputs"),
        *("sum of what is joined", "a residual", "a gate for all", "the input twice"),
        *("operations", "softplus", "a shared layer", "a shared cell", "batch norms", "heads"),
        *("last steps", "last step by index", "a state nobody reads", "two inputs"),
        *("causal blocks", "bounds", "logarithms", "functions", "some features"),
    ],
)
def test_a_graph(tmp_path, name):
    check(graph(name), tmp_path / "m.keras")


# --- frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers",
    [
        lambda t: [t(L.Conv1D(4, 3)), t(L.Flatten())],
        lambda t: [t(L.Conv1D(4, 3, strides=2, padding="same", activation="relu")), t(L.Flatten())],
        lambda t: [t(L.Conv1D(4, 4, padding="same")), t(L.GlobalAveragePooling1D())],
        lambda t: [t(L.Conv1D(4, 2, padding="causal", dilation_rate=2)), t(L.GlobalMaxPooling1D())],
        lambda t: [
            t(L.Conv1D(4, 3, groups=2, use_bias=False)),
            t(L.MaxPooling1D()),
            t(L.Flatten()),
        ],
        lambda t: [t(L.MaxPooling1D(3, padding="same")), t(L.Flatten())],
        lambda t: [t(L.MaxPooling1D(4, strides=2, padding="same")), t(L.Flatten())],
        lambda t: [t(L.AveragePooling1D(3, strides=2)), t(L.Flatten())],
        lambda t: [
            t(L.ZeroPadding1D((1, 2))),
            t(L.Conv1D(3, 4)),
            t(L.Cropping1D(2)),
            t(L.Flatten()),
        ],
        lambda t: [t(L.SeparableConv1D(5, 3, depth_multiplier=2)), t(L.Flatten())],
        lambda t: [t(L.DepthwiseConv1D(3, padding="same")), t(L.Flatten())],
        lambda t: [t(L.Conv1D(4, 3)), t(L.BatchNormalization()), t(L.ReLU()), t(L.Flatten())],
        lambda t: [t(L.Conv1D(4, 3)), t(L.LayerNormalization()), t(L.Reshape((28,)))],
        lambda t: [t(L.Conv1D(4, 3)), L.Reshape((STEPS, 28)), L.LayerNormalization()],
        lambda t: [t(L.Conv1D(4, 3)), L.Reshape((-1, 28)), L.Softmax()],
        lambda t: [L.Dense(3, activation="softmax"), t(L.Flatten())],
        lambda t: [t(L.Dense(3)), t(L.Flatten()), t(L.PReLU(shared_axes=[])), L.Dense(4)][:2],
        lambda t: [t(L.PReLU(shared_axes=[1])), t(L.Flatten()), t(L.Dropout(0.2))],
        lambda t: [L.Dropout(0.1), t(L.Flatten()), L.BatchNormalization()],
    ],
)
@pytest.mark.parametrize("rest", [True, False])
def test_layers_over_the_frame_of_a_step(tmp_path, layers, rest):
    own = layers(L.TimeDistributed)
    model = framed(*own, *([L.GRU(4, return_sequences=True), L.Dense(2)] if rest else []))
    check(model, tmp_path / "m.keras")


def test_a_frame_goes_out_as_it_is(tmp_path):
    found = check(framed(L.TimeDistributed(L.Conv1D(4, 3))), tmp_path / "m.keras")
    assert found.model.spec.outputs[0].shape == (7, 4)
    assert found.model.spec.inputs[0].shape == (9, 2)


def test_an_input_of_vectors_becomes_frames(tmp_path):
    t = L.TimeDistributed
    made = keras.Sequential(
        [L.Input((STEPS, 18)), L.Reshape((STEPS, 9, 2)), t(L.Conv1D(3, 2)), t(L.Flatten())]
    )
    check(made, tmp_path / "m.keras")


def test_models_within_the_model_are_taken_apart(path):
    inner = keras.Sequential([L.Input((None, 4)), L.GRU(5, return_sequences=True), L.Dense(4)])
    x = keras.Input((None, 4))
    other = keras.Model(x, L.Add()([x, L.Dense(4, activation="tanh")(x)]))
    check(row(L.Dense(4), inner, other, L.LSTM(3, return_sequences=True)), path)


def test_a_model_within_works_on_the_frame_of_a_step(tmp_path):
    inner = keras.Sequential([L.Input((9, 2)), L.Conv1D(4, 3, activation="relu"), L.Flatten()])
    check(framed(L.TimeDistributed(inner), L.GRU(4, return_sequences=True)), tmp_path / "m.keras")


# --- masks -------------------------------------------------------------------------------------


def masked(seed, value, width=3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, STEPS, width)).astype(np.float32)
    x[0, rng.random(STEPS) < 0.3] = value
    x[0, :2] = value
    return [x]


@pytest.mark.parametrize("value", [0.0, -1.5])
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [L.LSTM(4, return_sequences=True), L.Dense(2, activation="tanh")],
        lambda: [L.GRU(4, return_sequences=True), L.Dropout(0.1), L.LSTM(3, return_sequences=True)],
        lambda: [L.Dense(4), L.SimpleRNN(4, return_sequences=True), L.LayerNormalization()],
        lambda: [L.BatchNormalization(), L.GRU(4, activation="relu", return_sequences=True)],
        lambda: [L.LSTM(4, return_sequences=True), L.TimeDistributed(L.Dense(3)), L.Softmax()][:2],
        lambda: [L.LSTM(4), L.Dense(2)],
    ],
)
def test_a_masked_step_repeats_the_output(path, layers, value):
    check(row(L.Masking(value), *layers()), path, masked(1, value))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_masked_token_repeats_the_output(path, kind):
    layers = [L.Embedding(9, 3, mask_zero=True), getattr(L, kind)(4, return_sequences=True)]
    made = keras.Sequential([L.Input((None,), dtype="int32"), *layers, L.Dense(9, "softmax")])
    check(made, path, [np.random.default_rng(2).integers(0, 9, (1, STEPS)).astype(np.int32)])


# --- at random ---------------------------------------------------------------------------------


def drawn(seed):
    """Make a network of one to three recurrent layers with others between, in odd sizes."""
    rng = np.random.default_rng(seed)

    def pick(*items):
        return items[rng.integers(len(items))]

    def size():
        return int(pick(1, 2, 3, 5, 7, 11))

    x = keras.Input((None, size()))
    values = [x]
    for _ in range(rng.integers(1, 4)):
        value = values[-1]
        for _ in range(rng.integers(0, 3)):
            value = pick(
                lambda: L.Dense(size(), activation=str(pick(*ACTIVATIONS[:-2]))),
                lambda: L.LayerNormalization(),
                lambda: L.BatchNormalization(),
                lambda: L.Conv1D(
                    size(), int(pick(1, 2, 3)), padding="causal", dilation_rate=size()
                ),
                lambda: L.Activation(str(pick(*ACTIVATIONS[:-2]))),
                lambda: L.Dropout(0.2),
                lambda: L.PReLU(shared_axes=[1]),
                lambda: L.Rescaling(0.7, offset=0.1),
            )()(value)
        kind = pick(L.LSTM, L.GRU, L.SimpleRNN)
        more: dict[str, bool | str] = {"use_bias": bool(pick(True, False))}
        if kind is not L.SimpleRNN:
            more["activation"] = str(pick("tanh", "tanh", "softsign", "sigmoid"))
            more["recurrent_activation"] = str(pick("sigmoid", "hard_sigmoid"))
        if kind is L.GRU:
            more["reset_after"] = bool(pick(True, False))
        value = kind(size(), return_sequences=True, **more)(value)
        other = values[rng.integers(len(values))]
        join = rng.integers(3)
        if join == 1:
            value = L.Concatenate()([value, other])
        elif join == 2:
            value = pick(L.Add, L.Multiply, L.Average)()([value, L.Dense(value.shape[-1])(other)])
        values.append(value)
    y = L.Dense(size(), activation=str(pick(*ACTIVATIONS[:-2])))(values[-1])
    return keras.Model(x, y)


@pytest.mark.parametrize("seed", range(40))
def test_a_network_at_random(tmp_path, seed):
    check(drawn(seed), tmp_path / f"m.{'h5' if seed % 3 == 0 else 'keras'}", seed=seed)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (lambda: [L.Bidirectional(L.LSTM(3, return_sequences=True))], "is bidirectional"),
        (lambda: [L.LSTM(3, go_backwards=True, return_sequences=True)], "runs backwards"),
        (lambda: [L.LSTM(3), L.RepeatVector(4), L.LSTM(3)], "RepeatVector"),
        (lambda: [L.Conv1D(3, 3)], "padding='valid': it needs inputs to come"),
        (lambda: [L.Conv1D(3, 3, padding="same")], "padding='same': it needs inputs to come"),
        (lambda: [L.Conv1D(3, 3, padding="causal", strides=2)], "has strides of 2"),
        (lambda: [L.MaxPooling1D(2)], "is a MaxPooling1D over time"),
        (lambda: [L.GlobalAveragePooling1D()], "GlobalAveragePooling1D over time"),
        (lambda: [L.ReLU(threshold=0.5)], "threshold=0.5"),
        (lambda: [L.GRU(3, recurrent_activation="relu")], "activation relu at its gates"),
        (lambda: [L.GRU(3, activation="gelu")], "activation gelu where a GRU"),
        (
            lambda: [
                L.Masking(),
                L.LSTM(3, return_sequences=True),
                L.Conv1D(3, 2, padding="causal"),
            ],
            "does not follow from the states",
        ),
        (
            lambda: [L.Masking(), L.Conv1D(3, 2, padding="causal"), L.LSTM(3)],
            "does not reach 'lstm",
        ),
        (lambda: [L.Dense(3), L.Masking(), L.LSTM(3)], "masks what the network computes"),
        (lambda: [L.LSTM(3), L.Reshape((3, 1)), L.LSTM(3)], "Reshape"),
    ],
)
def test_what_cannot_stream_is_refused_by_name(tmp_path, layers, reason):
    model = row(*layers())
    model.save(tmp_path / "m.keras")
    with pytest.raises(ModelFileError, match=reason):
        import_file(tmp_path / "m.keras")


def test_a_first_state_from_the_network_is_refused(tmp_path):
    x, h = keras.Input((None, 3)), keras.Input((4,))
    y = L.GRU(4, return_sequences=True)(x, initial_state=h)
    keras.Model([x, h], y).save(tmp_path / "m.keras")
    with pytest.raises(ModelFileError, match="initial_state"):
        import_file(tmp_path / "m.keras")


def test_attention_is_refused_by_name(tmp_path):
    x = keras.Input((None, 3))
    keras.Model(x, L.Attention()([x, x])).save(tmp_path / "m.keras")
    with pytest.raises(ModelFileError, match="looks at all of the sequence at every step"):
        import_file(tmp_path / "m.keras")
