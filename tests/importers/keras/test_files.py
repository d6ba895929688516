"""`streamrnn import` of files of Keras, made without it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.reference.activations import GATE_FUNCTIONS, softmax
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.model import ReferenceModel
from streamrnn.reference.rnn import rnn_step
from streamrnn_server.cli import main
from tests.importers.files.keras import (
    GATES,
    OURS,
    RNG,
    archive,
    conv,
    dense,
    draw,
    entries,
    fill,
    functional,
    layer,
    legacy,
    nested,
    recurrent,
    sequential,
)
from tests.tolerances import REFERENCE_FLOAT64

h5py = pytest.importorskip("h5py")
X = RNG.standard_normal((9, 3)).astype(np.float32)


def run(made, x, gate="sigmoid"):
    """Run one recurrent layer over x [T, I] in float64."""
    kind, config, arrays = made

    def ours(rows):
        blocks = dict(zip(GATES[kind], np.split(rows, len(GATES[kind])), strict=True))
        return np.concatenate([blocks[name] for name in OURS[kind]]).astype(np.float64)

    rows = arrays[0].shape[1]
    biases = np.zeros((2, rows))
    if len(arrays) > 2:
        biases[: np.atleast_2d(arrays[2]).shape[0]] = arrays[2]
    w = [ours(a) for a in (arrays[0].T, arrays[1].T, *biases)]
    h = c = np.zeros((1, config["units"]))
    steps = []
    for row in np.asarray(x, np.float64):
        if kind == "LSTM":
            h, c = lstm_step(row[None], h, c, *w, gate=GATE_FUNCTIONS[gate])
        elif kind == "GRU":
            reset = config["reset_after"]
            h = gru_step(row[None], h, *w, gate=GATE_FUNCTIONS[gate], reset_after=reset)
        else:
            h = rnn_step(row[None], h, w[0], w[1], w[2], w[3], config.get("activation", "tanh"))
        steps.append(h[0])
    return np.array(steps)


@pytest.fixture
def importing(tmp_path):
    return lambda layers, **more: import_file(archive(tmp_path / "m", layers, **more))


def answers(found, x=X):
    return ReferenceModel(found.model).steps(x)


# --- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("write", [archive, legacy])
def test_gates_and_biases_arrive_in_our_order(tmp_path, kind, bias, reset_after, write):
    made = recurrent(kind, bias=bias, reset_after=reset_after)
    found = import_file(write(tmp_path / "m", [made]))
    assert np.abs(answers(found) - run(made, X)).max() <= REFERENCE_FLOAT64
    assert found.source.startswith("Keras 3" if write is archive else "Keras 2")


@pytest.mark.parametrize(
    ("version", "gate"), [("2.15.0", "hard_sigmoid_fifth"), ("3.1.0", "hard_sigmoid_sixth")]
)
def test_a_hard_sigmoid_has_the_slope_of_its_version(importing, version, gate):
    made = recurrent("LSTM", recurrent_activation="hard_sigmoid")
    found = importing([made], version=version)
    assert np.abs(answers(found) - run(made, X, gate)).max() <= REFERENCE_FLOAT64


def test_stacks_take_their_weights_by_class_and_number(importing):
    layers = [
        recurrent("LSTM"),
        layer("Dropout", rate=0.5),
        recurrent("LSTM", 4, 5),
        recurrent("GRU", 5, 4),
        dense(units=3, activation="softmax"),
    ]
    found = importing(layers)
    hidden = run(layers[3], run(layers[2], run(layers[0], X)))
    kernel, bias = layers[4][2]
    wanted = softmax(hidden @ kernel.astype(np.float64) + bias)
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64
    assert found.became["weight_hh_l1"] == "lstm_42/recurrent_kernel"


@pytest.mark.parametrize("write", [archive, legacy])
@pytest.mark.parametrize("depth", [1, 2])
def test_models_within_the_model_are_flattened(tmp_path, write, depth):
    inner = [recurrent("GRU"), dense(units=3, activation="relu")]
    inner[1][2][:] = [draw(4, 3), draw(3)]
    layers = [nested(inner), recurrent("LSTM"), dense()]
    for _ in range(depth - 1):
        layers = [nested(layers[:2]), dense()]
    found = import_file(write(tmp_path / "m", layers))
    hidden = run(inner[0], X) @ inner[1][2][0].astype(np.float64) + inner[1][2][1]
    own, last = (layers[0][2][1] if depth == 2 else layers[1]), layers[-1]
    hidden = run(own, np.maximum(hidden, 0))
    wanted = hidden @ last[2][0].astype(np.float64) + last[2][1]
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64


@pytest.mark.parametrize("write", [archive, legacy])
def test_models_nested_without_end_are_refused(tmp_path, write):
    layers = [recurrent("LSTM")]
    for _ in range(12):
        layers = [nested(layers)]
    with pytest.raises(ModelFileError, match="nested"):
        import_file(write(tmp_path / "m", layers))


def test_weights_of_a_model_within_that_no_layer_takes_are_refused(tmp_path):
    layers = [nested([recurrent("LSTM")]), dense()]
    path = legacy(tmp_path / "m", layers)
    with h5py.File(path, "a") as root:
        group = root["model_weights/sequential_40"]
        group["more"] = draw(3)
        names = [*map(str, group.attrs["weight_names"].astype("U")), "more"]
        del group.attrs["weight_names"]
        group.attrs["weight_names"] = [name.encode() for name in names]
    with pytest.raises(ModelFileError, match="weights of layers that the configuration"):
        import_file(path)


def test_dense_layers_stand_anywhere(importing):
    layers = [
        layer("Dense", [draw(3, 6), draw(6)], units=6, activation="relu"),
        recurrent("GRU", 6),
        dense(4, 5, activation="tanh"),
        dense(5, 2),
        layer("Activation", activation="sigmoid"),
    ]
    found = importing(layers)
    (k0, b0), (k2, b2), (k3, b3) = (layers[k][2] for k in (0, 2, 3))
    hidden = run(layers[1], np.maximum(X @ k0.astype(np.float64) + b0, 0))
    score = np.tanh(hidden @ k2.astype(np.float64) + b2) @ k3.astype(np.float64) + b3
    assert np.abs(answers(found) - 1 / (1 + np.exp(-score))).max() <= REFERENCE_FLOAT64


def test_normalisations_are_folded(importing):
    mean, variance = np.array([1e4, 2, 3], np.float32), np.array([4, 1, 9], np.float32)
    gamma, beta, m, v = (np.abs(draw(4)) + 0.1 for _ in range(4))
    layers = [
        layer("Normalization", [mean, variance, np.array(7, np.uint32)], axis=[-1]),
        recurrent("LSTM"),
        layer("BatchNormalization", [gamma, beta, m, v], axis=-1, epsilon=1e-3),
        layer("Rescaling", scale=2.0, offset=1.0),
        dense(),
    ]
    x = X * 3 + mean
    hidden = run(layers[1], (x.astype(np.float64) - mean) / np.sqrt(variance))
    scaled = (hidden - m) / np.sqrt(v.astype(np.float64) + 1e-3) * gamma + beta
    kernel, bias = layers[4][2]
    wanted = (scaled * 2 + 1) @ kernel.astype(np.float64) + bias
    assert np.abs(answers(importing(layers), x) - wanted).max() <= 1e-5


def test_a_time_distributed_dense_layer_is_a_dense_layer(importing):
    inner = dense()
    wrapped = {"class_name": "Dense", "config": {"name": "d"} | inner[1]}
    layers = [recurrent("LSTM"), layer("TimeDistributed", inner[2], layer=wrapped)]
    kernel, bias = inner[2]
    wanted = run(layers[0], X) @ kernel.astype(np.float64) + bias
    assert np.abs(answers(importing(layers)) - wanted).max() <= REFERENCE_FLOAT64


def test_an_embedding_takes_tokens(importing):
    table = draw(9, 3)
    made = recurrent("GRU")
    found = importing([layer("Embedding", [table], input_dim=9, output_dim=3), made])
    tokens = np.arange(9)[:, None]
    assert np.abs(answers(found, tokens) - run(made, table)).max() <= REFERENCE_FLOAT64


def test_the_last_step_alone_makes_a_model_of_every_step(importing):
    layers = [recurrent("LSTM", return_sequences=False), dense()]
    found = importing(layers)
    kernel, bias = layers[1][2]
    wanted = run(layers[0], X) @ kernel.astype(np.float64) + bias
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64
    assert "gives the last step alone" in found.notes[0]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (recurrent("LSTM", go_backwards=True), "backwards .*cannot be streamed"),
        (layer("Bidirectional", units=3), "bidirectional: .*cannot be streamed"),
        (recurrent("LSTM", activation="selu"), "activation selu where a LSTM has one of tanh"),
        (recurrent("GRU", activation="mish"), "activation mish, which no model has"),
        (recurrent("GRU", recurrent_activation="relu"), "activation relu at its gates"),
        (recurrent("LSTM", zero_output_for_mask=True), "gives zeros at masked steps"),
        (layer("Attention"), "looks at all of the sequence at every step"),
        (layer("RepeatVector", n=3), "repeats what the end of a sequence gave"),
        (conv(padding="valid"), "padding='valid': it needs inputs to come"),
        (conv(padding="same"), "padding='same': it needs inputs to come"),
        (conv(padding="causal", strides=2), "strides of 2: it answers some steps alone"),
        (layer("MaxPooling1D", pool_size=2), "is a MaxPooling1D over time"),
        (layer("GlobalAveragePooling1D"), "is a GlobalAveragePooling1D over time"),
        (layer("Cropping1D", cropping=[1, 0]), "leaves out steps"),
        (layer("ZeroPadding1D", padding=[0, 1]), "puts zeros behind the sequence"),
        (layer("Flatten"), "one vector of all steps"),
        (layer("Reshape", target_shape=[3]), "makes .* of .3. at every step"),
        (layer("ReLU", max_value=1.0, negative_slope=0.1), "max_value=1.0, .*max_value or neg"),
        (layer("ReLU", threshold=0.5), "threshold=0.5"),
        (layer("Softmax", axis=1), "softmax along axis '1', not the last"),
        (layer("PReLU", [draw(9, 3)]), "slopes of their own for every step"),
        (layer("LayerNormalization", [draw(3)] * 2, axis=1), "along axis '1'"),
        (layer("LayerNormalization", rms_scaling=True), "rms_scaling"),
        (layer("Activation", activation="sparsemax"), "activation sparsemax, which no model"),
        (dense(3, 3, dtype={"config": {"name": "int8_from_float32"}}), "is quantised"),
        (layer("Dense", [draw(3, 3), draw(3)], units=4), r"asks for \[\[3, 4\], \[4\]\]"),
        (layer("Dense", units=4), "has no weights in the file"),
        (layer("Dense", [draw(3, 3), draw(3)], units=-1), "units is '-1'"),
    ],
)
def test_what_a_model_has_not_is_refused_by_name(importing, made, reason):
    rest = [recurrent("LSTM"), dense()]
    with pytest.raises(ModelFileError, match=reason):
        importing([made, *rest] if made[0] not in GATES else [made, dense()])


def test_all_reasons_are_listed_and_own_classes_are_not_made(importing):
    layers = [layer("Conv9D"), recurrent("LSTM", go_backwards=True), layer("Mine")]
    config = sequential(layers)
    config["config"]["layers"][2] |= {"module": "my.module", "registered_name": "my>Mine"}
    with pytest.raises(ModelFileError) as caught:
        importing(layers, config=config)
    for reason in ("Conv9D", "backwards", "is not one of Keras (my.module)"):
        assert reason in str(caught.value)


# --- functional models -------------------------------------------------------------------------


def test_a_functional_chain_is_followed(importing):
    layers = [layer("InputLayer"), recurrent("LSTM"), dense()]
    found = importing(layers, config=functional(layers, [[], [0], [1]]))
    kernel, bias = layers[2][2]
    wanted = run(layers[1], X) @ kernel.astype(np.float64) + bias
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64


def test_a_functional_graph_that_is_none_is_refused(importing):
    layers = [layer("InputLayer"), recurrent("LSTM"), dense(4, 3), layer("Add")]
    with pytest.raises(ModelFileError, match="in a ring"):
        importing(layers, config=functional(layers, [[], [3], [1], [2]]))
    with pytest.raises(ModelFileError, match="a class of its own"):
        importing(layers, config={"class_name": "MyModel", "config": {"layers": entries(layers)}})


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keras", "json", "h5"])
def test_weights_alone_need_a_configuration(tmp_path, kind, capsys):
    layers = [recurrent("GRU"), dense()]
    with h5py.File(tmp_path / "a.weights.h5", "w") as root:
        fill(root, layers)
    with pytest.raises(ModelFileError, match=r"holds weights alone.*--config"):
        import_file(tmp_path / "a.weights.h5")
    config = tmp_path / "config"
    if kind == "json":
        config.write_text(json.dumps(sequential(layers)))
    else:
        (archive if kind == "keras" else legacy)(config, [recurrent("GRU"), dense()])
    output = tmp_path / "m.safetensors"
    arguments = ["import", str(tmp_path / "a.weights.h5"), "-o", str(output)]
    assert main([*arguments, "--config", str(config)]) == 0
    assert "NOT PROVED" in capsys.readouterr().out
    kernel, bias = layers[1][2]
    wanted = run(layers[0], X) @ kernel.astype(np.float64) + bias
    found = import_file(tmp_path / "a.weights.h5", config=config)
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64


def test_weights_that_no_layer_takes_are_refused(importing):
    layers = [recurrent("LSTM"), dense(), recurrent("LSTM")]
    with pytest.raises(ModelFileError, match=r"does not have: .'lstm_1'"):
        importing(layers, config=sequential(layers[:2]))


def test_a_configuration_for_something_else_is_refused(tmp_path):
    with pytest.raises(ModelError, match="leave out --head"):
        import_file(archive(tmp_path / "m", [recurrent("GRU")]), TorchOptions(head="x"))
    (tmp_path / "x").write_bytes(b"\x02" + bytes(50))
    with pytest.raises(ModelError, match="no file of Keras; leave out --config"):
        import_file(tmp_path / "x", config=tmp_path / "m")


def test_links_and_foreign_storage_are_not_followed(tmp_path):
    layers = [recurrent("GRU")]
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(10_000))
    path = legacy(tmp_path / "m", layers)
    place = "model_weights/gru_40/gru_40/w0:0"

    def edited(change):
        with h5py.File(path, "r+") as root:
            del root[place]
            change(root)
        with pytest.raises(ModelFileError) as caught:
            import_file(path)
        return str(caught.value)

    def external(root):
        root[place] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")

    def soft(root):
        root[place] = h5py.SoftLink("/model_weights")

    def foreign(root):
        root.create_dataset(place, (3, 12), "<f4", external=[(str(secret), 0, 144)])

    def squeezed(root):
        root.create_dataset(place, (1 << 14, 1 << 14), "<f4", chunks=True, compression="gzip")

    def huge(root):  # nothing of it is written
        root.create_dataset(place, (1 << 15, 1 << 15), "<f4")

    assert "is a link" in edited(external)
    assert "is a link" in edited(soft)
    assert "in another file" in edited(foreign)
    assert "is compressed" in edited(squeezed)
    assert "claims 4294967296 bytes" in edited(huge)
