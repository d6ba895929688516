"""Frames within `TimeDistributed`, and masks, with what the float64 functions give."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.reference.norm import normalised
from tests.importers.files.keras import (
    archive,
    conv,
    dense,
    draw,
    functional,
    layer,
    legacy,
    recurrent,
)
from tests.importers.keras.conftest import FRAMES, X, answers, close
from tests.tolerances import REFERENCE_FLOAT64

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
    found = importing(framed(made, layer("Activation", activation="tanh")))
    assert close(answers(found, FRAMES), np.tanh(wanted))


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


@pytest.mark.parametrize(("version", "is_refused"), [("2.15.0", True), ("3.1.0", False)])
def test_a_rescaling_of_keras_2_drops_the_mask(importing, version, is_refused):
    layers = [layer("Masking"), layer("Rescaling", scale=2.0), recurrent("LSTM")]
    if not is_refused:
        assert importing(layers, version=version).model.spec.mask_value == 0
        return
    with pytest.raises(ModelFileError, match="does not reach 'lstm_"):
        importing(layers, version=version)


def test_a_recurrent_layer_beside_the_mask_is_refused(importing):
    layers = [layer("InputLayer"), layer("Masking"), recurrent("LSTM"), recurrent("GRU")]
    layers += [layer("Concatenate")]
    with pytest.raises(ModelFileError, match="joins what is masked with what is not"):
        importing(layers, config=functional(layers, [[], [0], [1], [0], [2, 3]]))
