"""Layers beside the recurrent and linear ones in a state dict, and where they stand."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.torch import TorchOptions, import_torch
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.state_dicts import draw, linear, recurrent
from tests.tolerances import REFERENCE_FLOAT64

X = draw(20, 3)
# What folding two layers into one rounds, of outputs of order 1.
FOLDED = 1e-6


@pytest.fixture
def importing(tmp_path):
    def do(tensors, **options):
        safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors")
        return import_torch(tmp_path / "m.safetensors", TorchOptions(**options))

    return do


def close(found, expected, limit=REFERENCE_FLOAT64, x=X):
    got = ReferenceModel(found.model).steps(x)
    return np.abs(got - expected).max() <= limit


def cell(tensors, x, prefix="rnn.", first=None):
    """Run an LSTM or a GRU in float64."""
    weights = [
        tensors[f"{prefix}{name}_l0"].astype(np.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    hidden = weights[1].shape[1]
    h, c = np.zeros((2, 1, hidden)) if first is None else np.reshape(first, (2, 1, hidden))
    steps = []
    for row in x.astype(np.float64):
        if len(weights[0]) == 4 * hidden:
            h, c = lstm_step(row[None], h, c, *weights)
        else:
            h = gru_step(row[None], h, *weights)
        steps.append(h[0])
    return np.array(steps)


def dense(tensors, x, name="fc"):
    return x @ tensors[f"{name}.weight"].T.astype(np.float64) + tensors[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def norm(tensors, x, name="ln", epsilon=1e-5):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + epsilon)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def batch_norm(tensors, x, name="bn"):
    scaled = (x - tensors[f"{name}.running_mean"]) / np.sqrt(
        tensors[f"{name}.running_var"].astype(np.float64) + 1e-5
    )
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def causal(tensors, x, name="conv", dilation=1):
    weight = tensors[f"{name}.weight"].astype(np.float64)
    taps = weight.shape[2]
    padded = np.concatenate([np.zeros(((taps - 1) * dilation, x.shape[1])), x])
    groups = x.shape[1] // weight.shape[1]
    outputs = []
    for g in range(groups):
        rows = np.split(weight, groups)[g]
        part = np.split(padded, groups, axis=1)[g]
        outputs.append(sum(part[j * dilation :][: len(x)] @ rows[:, :, j].T for j in range(taps)))
    return np.concatenate(outputs, axis=1) + tensors[f"{name}.bias"]


def vector_pair(name, size):
    return {f"{name}.weight": draw(size) + 1, f"{name}.bias": draw(size)}


def statistics(name, size):
    return vector_pair(name, size) | {
        f"{name}.running_mean": draw(size),
        f"{name}.running_var": draw(size) ** 2 + np.float32(0.5),
        f"{name}.num_batches_tracked": np.array(7),
    }


def conv(name="conv", channels=3, columns=3, taps=3):
    return {f"{name}.weight": draw(channels, columns, taps), f"{name}.bias": draw(channels)}


# --- skip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1.0, -0.5])
@pytest.mark.parametrize("outputs", [3, 1])
def test_a_skip_adds_the_first_inputs_times_its_gain(importing, gain, outputs):
    tensors = recurrent() | linear("fc", outputs)
    expected = dense(tensors, cell(tensors, X)) + gain * X[:, :outputs]
    assert close(importing(tensors, skip=gain, head="fc", before="none"), expected)


def test_a_skip_without_a_head_adds_to_the_state(importing):
    tensors = recurrent(hidden=3, gates=3)
    assert close(importing(tensors, skip=1.0), cell(tensors, X) + X)


def test_a_skip_of_too_few_inputs_or_of_a_token_is_refused(importing):
    with pytest.raises(ModelFileError, match="the input is 3 values, which cannot be added to 4"):
        importing(recurrent() | linear("fc", 4), skip=1.0)
    tokens = recurrent() | {"emb.weight": draw(9, 3)} | linear()
    with pytest.raises(ModelFileError, match="the input is a token"):
        importing(tokens, skip=1.0)


# --- activations --------------------------------------------------------------------------------


def test_activations_take_a_slope_after_a_colon(importing):
    tensors = recurrent() | linear("a", 4) | linear("b", 2, 4)
    found = importing(tensors, activation=["leaky_relu:0.2", "elu:0.5"], head_input="silu")
    h = cell(tensors, X)
    hidden = dense(tensors, h / (1 + np.exp(-h)), "a")
    hidden = np.where(hidden > 0, hidden, np.float32(0.2) * hidden)
    out = dense(tensors, hidden, "b")
    assert close(found, np.where(out > 0, out, 0.5 * np.expm1(out)))


@pytest.mark.parametrize("slopes", [1, 4])
def test_a_prelu_has_the_slopes_of_its_module(importing, slopes):
    tensors = recurrent() | linear("a", 4) | linear("b", 2, 4) | {"act.weight": draw(slopes)}
    found = importing(tensors, activation=["prelu:act", "identity"])
    hidden = dense(tensors, cell(tensors, X), "a")
    hidden = np.where(hidden > 0, hidden, hidden * tensors["act.weight"])
    assert close(found, dense(tensors, hidden, "b"))


def test_an_activation_stands_between_two_modules(importing):
    tensors = recurrent("rnn1.") | recurrent("rnn2.", inputs=5) | linear()
    first = relu(cell(tensors, X, "rnn1."))
    expected = dense(tensors, cell(tensors, first, "rnn2."))
    assert close(importing(tensors, between="relu"), expected)
    with pytest.raises(ModelFileError, match="there is room for 1"):
        importing(tensors, between=["relu", "relu"])


@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        ("swoosh", "'swoosh' is no activation; known are identity, tanh"),
        ("relu:0.1", "relu takes no slope"),
        ("elu:x", "'x', which is no number"),
        ("elu:nan", "'nan', which is no number"),
        ("prelu", "write prelu:NAME; no module here has slopes"),
    ],
)
def test_an_activation_that_is_none_is_refused(importing, activation, reason):
    with pytest.raises(ModelError, match=reason):
        importing(recurrent() | linear(), activation=activation)


# --- a first state ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5)])
def test_a_named_first_state_is_kept(importing, shape):
    tensors = recurrent() | linear() | {"h0": draw(*shape), "c0": draw(*shape)}
    first = np.stack([tensors["h0"].reshape(5), tensors["c0"].reshape(5)]).astype(np.float64)
    found = importing(tensors, first_state=["h0", "c0"])
    assert close(found, dense(tensors, cell(tensors, X, first=first)))
    assert found.became["first_h_l0"] == "h0"
    first[1] = 0
    half = {name: value for name, value in tensors.items() if name != "c0"}
    found = importing(half, first_state=["h0", "zeros"])
    assert close(found, dense(tensors, cell(tensors, X, first=first)))


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 5), (5,), (1, 1, 5)])
def test_a_first_state_of_two_layers_has_a_row_for_each_or_one_for_both(importing, shape):
    tensors = recurrent() | recurrent(inputs=5, suffix="_l1") | {"net.h0": draw(*shape)}
    found = importing(tensors, first_state=["h0", "zeros"])
    rows = np.broadcast_to(tensors["net.h0"].reshape(-1, 5), (2, 5))
    for k in range(2):
        assert np.array_equal(found.model.parameters[f"first_h_l{k}"], rows[k])
    below = {name.replace("_l1", "_l0"): value for name, value in tensors.items() if "_l1" in name}
    states = np.stack([rows, np.zeros((2, 5))], axis=1).astype(np.float64)
    expected = cell(below, cell(tensors, X, first=states[0]), first=states[1])
    assert close(found, expected)


def test_first_states_of_several_modules_come_in_their_order(importing):
    tensors = recurrent("a1.", gates=3) | recurrent("a2.", gates=3, inputs=5)
    tensors |= {"h1": draw(1, 1, 5), "h2": draw(1, 1, 5)}
    found = importing(tensors, first_state=["h1", "h2"])
    assert np.array_equal(found.model.parameters["first_h_l0"], tensors["h1"].reshape(5))
    assert np.array_equal(found.model.parameters["first_h_l1"], tensors["h2"].reshape(5))


@pytest.mark.parametrize(
    ("states", "names", "reason"),
    [
        ({"h0": (1, 1, 5)}, ["h0"], "names 1 tensors .h0.; there must be 2: h0 of rnn, c0 of rnn"),
        (
            {"h0": (1, 3, 5)},
            ["h0", "zeros"],
            r"shape \[1, 3, 5\]; .* asks for \[1, 1, 5\] or \[5\]",
        ),
        ({"h0": (1, 1, 4)}, ["h0", "zeros"], r"shape \[1, 1, 4\]"),
        ({}, ["h1", "zeros"], "no tensor is it"),
        ({"h0": (1, 1, 5), "c0": (5,)}, ["h0", "zeros"], "c0 looks like a trained first state"),
    ],
)
def test_a_first_state_that_does_not_fit_is_refused(importing, states, names, reason):
    tensors = recurrent() | {name: draw(*shape) for name, shape in states.items()}
    with pytest.raises(ModelFileError, match=reason):
        importing(tensors, first_state=names)


# --- normalisations and convolutions ------------------------------------------------------------


def test_a_layer_norm_goes_where_alone_it_fits(importing):
    tensors = recurrent() | linear() | vector_pair("ln", 5)
    found = importing(tensors)
    assert close(found, dense(tensors, norm(tensors, cell(tensors, X))))
    assert "took ln for an nn.LayerNorm" in found.notes[0]
    before = recurrent() | linear() | vector_pair("ln", 3)
    expected = dense(before, cell(before, norm(before, X.astype(np.float64))))
    assert close(importing(before), expected)


def test_a_norm_that_fits_in_several_places_is_asked_for(importing):
    tensors = recurrent("a1.") | recurrent("a2.", inputs=5) | linear() | vector_pair("ln", 5)
    with pytest.raises(ModelFileError, match="--layers a1,ln,a2,fc; --layers a1,a2,ln,fc"):
        importing(tensors)
    h = norm(tensors, cell(tensors, X, "a1."), epsilon=1e-3)
    found = importing(tensors, layers=["a1", "ln:0.001", "a2", "fc"])
    assert close(found, dense(tensors, cell(tensors, h, "a2.")))
    relu_too = recurrent() | linear() | vector_pair("ln", 5)
    with pytest.raises(ModelFileError, match="rnn,ln,relu,fc; --layers rnn,relu,ln,fc"):
        importing(relu_too, head_input="relu")
    with pytest.raises(ModelFileError, match=r"ln \[7\].*fits nowhere"):
        importing(recurrent() | linear() | vector_pair("ln", 7))


def test_two_norms_in_one_place_are_asked_for(importing):
    tensors = recurrent() | linear() | vector_pair("ln", 5) | statistics("bn", 5)
    with pytest.raises(ModelFileError, match=r"bn .5.*whose place a state dict does not say"):
        importing(tensors)
    h = norm(tensors, batch_norm(tensors, cell(tensors, X)))
    found = importing(tensors, layers=["rnn", "bn", "ln", "fc"])
    assert close(found, dense(tensors, h), FOLDED)


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_a_batch_norm_is_a_gain_and_a_shift(importing, place):
    size = {"before": 3, "between": 5, "after": 2}[place]
    tensors = recurrent() | linear() | statistics("bn", size)
    x = batch_norm(tensors, X) if place == "before" else X
    h = cell(tensors, x)
    out = dense(tensors, batch_norm(tensors, h) if place == "between" else h)
    out = batch_norm(tensors, out) if place == "after" else out
    assert close(importing(tensors), out, FOLDED)


@pytest.mark.parametrize("dilation", [1, 3])
def test_a_causal_convolution_stands_before(importing, dilation):
    tensors = recurrent(inputs=4) | linear() | conv(channels=4)
    found = importing(tensors, causal_conv=f"conv:{dilation}")
    expected = dense(tensors, cell(tensors, causal(tensors, X, dilation=dilation)))
    assert close(found, expected)
    with pytest.raises(ModelFileError, match=r"a convolution over 1 axes(?s:.*)--causal-conv"):
        importing(tensors)


def test_groups_of_a_convolution_follow_from_what_it_reads(importing):
    tensors = recurrent(hidden=4) | conv(channels=4, columns=2) | linear("fc", 2, 4)
    found = importing(tensors, layers=["rnn", "conv:2", "tanh", "fc"])
    h = np.tanh(causal(tensors, cell(tensors, X), dilation=2))
    assert close(found, dense(tensors, h))
    first = recurrent(inputs=3) | conv(channels=3, columns=1)
    expected = cell(first, causal(first, X))
    assert close(importing(first, causal_conv="conv:1:3"), expected)


# --- everything named ---------------------------------------------------------------------------


def test_layers_name_everything_in_the_order_of_the_data(importing):
    tensors = {"net.prelu.weight": draw(1)} | recurrent("net.lstm.", inputs=6)
    tensors |= linear("net.in", 6, 3) | linear("net.fc", 5, 5) | vector_pair("net.ln", 5)
    found = importing(tensors, layers=["in", "relu", "lstm", "fc", "ln", "prelu"], skip=None)
    h = cell(tensors, relu(dense(tensors, X, "net.in")), "net.lstm.")
    out = norm(tensors, dense(tensors, h, "net.fc"), "net.ln")
    assert close(found, np.where(out > 0, out, out * tensors["net.prelu.weight"]))


def test_layers_may_begin_with_an_embedding_and_leave_tensors_out_with_a_note(importing):
    tensors = recurrent() | {"emb.weight": draw(9, 3)} | linear() | linear("other", 2, 2)
    found = importing(tensors, layers=["emb:embedding", "rnn", "fc"])
    tokens = np.arange(9).reshape(9, 1)
    expected = dense(tensors, cell(tensors, tensors["emb.weight"]))
    assert close(found, expected, x=tokens)
    assert found.notes == ["left out: other.bias, other.weight"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layers": ["rnn", "nothing"]}, "'nothing', which is no module and no activation"),
        ({"layers": ["fc"]}, "names no recurrent module; there is rnn"),
        ({"layers": ["rnn", "fc"], "head": "fc"}, "--layers says everything; leave out --head"),
        ({"layers": ["fc", "rnn"]}, "'rnn' takes 3 values, but what stands before it gives 2"),
        ({"layers": ["rnn", "fc:3"]}, "fc takes nothing after a colon"),
        ({"layers": ["rnn", "scale"]}, "say prelu:scale if it is an nn.PReLU"),
        ({"causal_conv": "fc"}, "--causal-conv names 'fc'; none is there"),
    ],
)
def test_layers_that_do_not_fit_are_refused(importing, options, reason):
    with pytest.raises(ModelError, match=reason):
        importing(recurrent() | linear() | {"scale.weight": draw(5)}, **options)
