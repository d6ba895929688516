"""`streamrnn import` of networks in JSON: NAM, RTNeural, AIDA-X, GuitarML, state dicts."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.json import RNG, draw, guitarml, nam, plain, rtneural
from tests.tolerances import REFERENCE_FLOAT64

X = RNG.standard_normal((15, 2)).astype(np.float32)


@pytest.fixture
def importing(tmp_path):
    def do(value, **options):
        path = tmp_path / "m.json"
        path.write_text(json.dumps(plain(value)))
        return import_file(path, TorchOptions(**options))

    return do


def answers(found, x=X):
    return ReferenceModel(found.model).steps(x)


def run_lstm(w, x):
    w = [np.asarray(a, np.float64) for a in w]
    h = c = np.zeros((1, w[1].shape[1]))
    steps = []
    for row in np.asarray(x, np.float64):
        h, c = lstm_step(row[None], h, c, *w)
        steps.append(h[0])
    return np.array(steps)


# --- Neural Amp Modeler ------------------------------------------------------------------------


def test_a_nam_list_is_taken_apart(importing):
    value, layers, head, bias = nam()
    found = importing(value)
    hidden = run_lstm(layers[1], run_lstm(layers[0], X))
    wanted = (hidden @ head.astype(np.float64) + bias)[:, None]
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64
    assert found.became["weight_hh_l1"] == "weights, W of layer 1, columns of h"


def test_a_nam_first_state_is_kept_or_left_out(importing):
    value, *_ = nam(first=0.5)
    found = importing(value)
    for k in (0, 1):
        for state in "hc":
            assert (found.model.parameters[f"first_{state}_l{k}"] == 0.5).all()
            assert found.became[f"first_{state}_l{k}"] == f"weights, {state}0 of layer {k}"
    assert "left out the first state of layer 0" in importing(value, first_state="zeros").notes[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": [0.5] * 70}, "read are LSTM, WaveNet, ConvNet"),
        ({"architecture": "Linear"}, "architecture 'Linear'; read are LSTM, WaveNet, ConvNet"),
        ({"weights": [1.0, 2.0]}, "has 2 weights; its config asks for more"),
        ({"weights": [0.5] * 173}, "has 173 weights; its config asks for 172"),
        ({"weights": "x"}, "is no list of numbers"),
        ({"weights": [[1.0], 2.0]}, "holds something else than numbers"),
        ({"config": {"hidden_size": 3}}, "known are"),
        ({"config": {"input_size": 2, "hidden_size": 1 << 40, "num_layers": 2}}, "from 1 to 8192"),
        ({"config": {"input_size": 2, "hidden_size": True, "num_layers": 2}}, "a whole number"),
    ],
)
def test_a_nam_file_that_is_another_is_refused(importing, change, reason):
    with pytest.raises(ModelFileError, match=reason):
        importing(nam()[0] | change)


# --- RTNeural and AIDA-X -----------------------------------------------------------------------


def rtneural_answer(value, x):
    lstm, gru, first, last = (layer["weights"] for layer in value["layers"])
    hidden = run_lstm((lstm[0].T, lstm[1].T, lstm[2], np.zeros(12)), x)

    def rzn(rows):
        z, r, n = np.split(rows, 3)
        return np.concatenate([r, z, n]).astype(np.float64)

    w = [rzn(a) for a in (gru[0].T, gru[1].T, gru[2][0], gru[2][1])]
    h, steps = np.zeros((1, 4)), []
    for row in hidden:
        h = gru_step(row[None], h, *w)
        steps.append(h[0])
    score = np.maximum(np.array(steps) @ first[0].astype(np.float64) + first[1], 0)
    return score @ last[0].astype(np.float64) + last[1]


def test_rtneural_layers_have_the_layout_of_keras(importing):
    value = rtneural()
    found = importing(value)
    assert np.abs(answers(found) - rtneural_answer(value, X)).max() <= REFERENCE_FLOAT64
    assert found.holds_graph


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("skip", [0, 1, 1.0])
def test_aida_x_scales_the_sound_alone_and_adds_it(importing, inputs, skip):
    value = one_dense(inputs, in_gain=6.0, out_gain=-20.0, in_skip=skip, samplerate=48000)
    kernel, bias = (part.astype(np.float64) for part in value["layers"][0]["weights"])
    x = X[:, :inputs].astype(np.float64)
    x[:, 0] *= 10**0.3
    wanted = (np.tanh(x @ kernel + bias) + skip * x[:, :1]) / 10
    got = answers(importing(value), X[:, :inputs])
    assert np.abs(got - wanted).max() <= 1e-6


def test_an_aida_x_skip_without_gains_adds_the_input(importing):
    value = rtneural(in_skip=1)
    wanted = rtneural_answer(value, X) + X[:, :1].astype(np.float64)
    assert np.abs(answers(importing(value)) - wanted).max() <= REFERENCE_FLOAT64
    assert np.abs(answers(importing(rtneural(out_gain=-90.0)))).max() == 0


def one_dense(inputs, **rest):
    weights = [draw(inputs, 1), draw(1)]
    layer = {"type": "dense", "activation": "tanh", "shape": [None, None, 1], "weights": weights}
    return {"in_shape": [None, None, inputs], "layers": [layer], **rest}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dilation", "slopes"), [(1, 4), (3, 1)])
def test_an_rtneural_convolution_is_causal(importing, groups, dilation, slopes):
    kernel, bias, slopes = draw(3, 2 // groups, 4), draw(4), draw(1, slopes)
    layers = [
        {"type": "conv1d", "activation": "elu", "shape": [None, None, 4], "groups": groups}
        | {"kernel_size": [3], "dilation": [dilation], "weights": [kernel, bias]},
        {"type": "prelu", "activation": "", "shape": [None, None, 4], "weights": [slopes]},
    ]
    found = importing({"in_shape": [None, None, 2], "layers": layers})
    padded = np.concatenate([np.zeros((2 * dilation, 2)), X]).astype(np.float64)
    y = np.tile(bias.astype(np.float64), (len(X), 1))
    for o in range(4):
        first = (2 // groups) * (o // (4 // groups))
        for tap in range(3):
            for column in range(2 // groups):
                read = padded[tap * dilation :, first + column][: len(X)]
                y[:, o] += read * kernel[tap, column, o]
    y = np.where(y > 0, y, np.expm1(y))
    wanted = np.where(y > 0, y, y * slopes.astype(np.float64))
    assert np.abs(answers(found) - wanted).max() <= REFERENCE_FLOAT64


def test_all_that_rtneural_has_too_much_is_listed(importing):
    value = rtneural(in_skip=2)
    value["layers"][2]["activation"] = "mish"
    value["layers"].append({"type": "conv2d", "shape": [None, 4, 4, 2], "weights": []})
    with pytest.raises(ModelFileError) as caught:
        importing(value)
    for part in ("in_skip is 2", "the activation 'mish', which is unknown", "(conv2d) is not"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.update(in_skip=3), "in_skip is 3, with 1 outputs"),
        (lambda v: v["layers"][0].update(activation=[0.5] * 70), "its activation is no text"),
        (lambda v: v.update(in_gain="loud"), "in_gain is loud; expected decibels"),
        (lambda v: v["layers"][0].update(type="conv2d"), r"layer 0 \(conv2d\) is not supported"),
        (lambda v: v["layers"][0].update(type="conv1d"), "kernel_size is no list"),
        (lambda v: v["layers"][0].update(activation="relu"), "activation relu where it has tanh"),
        (lambda v: v["layers"][0].update(shape=[3, -1]), "must be a whole number from 1"),
        (lambda v: v["layers"][1]["weights"].pop(), "has 2 arrays; expected kernel, recurrent"),
        (lambda v: v["layers"][3]["weights"].pop(0), r"expected \[5, 1\]"),
        (lambda v: v.update(in_shape=None), "in_shape is no list"),
        (lambda v: v.update(layers=[]), "has 0 layers"),
    ],
)
def test_what_a_model_has_not_is_refused_by_name(importing, change, reason):
    value = copy.deepcopy(rtneural())
    change(value)
    with pytest.raises(ModelFileError, match=reason):
        importing(value)


# --- state dicts -------------------------------------------------------------------------------


def guitarml_answer(value, x):
    tensors = list(value["state_dict"].values())
    weight, bias = tensors[4].astype(np.float64), tensors[5]
    return run_lstm(tensors[:4], x) @ weight.T + bias


def test_a_guitarml_file_says_its_graph(importing):
    value = guitarml()
    found = importing(value)
    assert np.abs(answers(found) - guitarml_answer(value, X)).max() <= REFERENCE_FLOAT64
    assert found.holds_graph
    assert found.source == "GuitarML"


def test_a_guitarml_skip_adds_the_first_inputs(importing):
    value = guitarml(skip=1)
    expected = guitarml_answer(value, X) + X[:, :1].astype(np.float64)
    assert np.abs(answers(importing(value)) - expected).max() <= REFERENCE_FLOAT64


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"skip": 2}, "the first 2 inputs are added"),
        ({"model": [0.5] * 70}, "its class is "),
        ({"skip": 1, "output_size": [0.5] * 70}, "the first 1 inputs are added"),
        ({"skip": 1.5}, "skip is 1.5; it must be a whole number"),
        ({"model": "ConvSimpleRNN"}, "its class is 'ConvSimpleRNN'"),
        ({"unit_type": "GRU"}, "says GRU with a linear layer; its tensors are another"),
        ({"hidden_size": 5}, "says hidden_size 5; its tensors say .4."),
        ({"num_layers": 2}, "says num_layers 2"),
        ({"output_size": None}, "says output_size None"),
        ({"output_size": [1]}, r"says output_size \[1\]"),
        ({"unit_type": ["LSTM"]}, "with units .*LSTM"),
    ],
)
def test_a_guitarml_file_that_is_another_is_refused(importing, data, reason):
    with pytest.raises(ModelFileError, match=reason):
        importing(guitarml(**data))


def test_a_state_dict_in_json_has_the_options_of_one(importing):
    value = guitarml()["state_dict"]
    found = importing(value, head_input="relu")
    assert not found.holds_graph
    assert [layer.summary() for layer in found.model.spec.layers][1:] == ["relu", "dense 1"]
    with pytest.raises(ModelError, match="leave out --head-input"):
        importing(guitarml(), head_input="relu")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no JSON"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1, "a": 2}', "a name is there twice"),
        ("{" + '"a": [' * 5000, "is no JSON that can be read"),
        ('{"a": {}}', "JSON of no known kind"),
        ('{"a": [[[[1.0]]]]}', "holds something else than numbers"),
        ('{"a": [true]}', "holds something else than numbers"),
        ('{"rnn.weight_hh_l0": [[1], [1, 2]]}', "not of one length"),
        ('{"rnn.weight_hh_l0": [[1e999]], "rnn.weight_ih_l0": [[1]]}', "weight_hh_l0.* is inf"),
        ('{"rnn.weight_hh_l0": [[' + "9" * 400 + ']], "rnn.weight_ih_l0": [[1]]}', "too large"),
        ('{"rnn.weight_hh_l0": [[' + "9" * 5000 + "]]}", "is no JSON that can be read"),
    ],
)
def test_hostile_json_is_refused(tmp_path, text, reason):
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ModelFileError, match=reason):
        import_file(path)
