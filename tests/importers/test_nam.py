"""NAM's WaveNet and ConvNet against whole sequences in float64."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.reference.model import ReferenceModel
from tests.tolerances import REFERENCE_FLOAT64

RNG = np.random.default_rng(11)
X = RNG.standard_normal((80, 1)).astype(np.float32)
FUNCTIONS = {
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "Hardtanh": lambda x: np.clip(x, -1, 1),
    "Hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "LeakyReLU": lambda x: np.where(x > 0, x, np.float32(0.2) * x),
}


@pytest.fixture
def importing(tmp_path):
    def do(value):
        path = tmp_path / "m.nam"
        path.write_text(json.dumps(value))
        return import_file(path)

    return do


class Maker:
    """Draws a file's weights in its order, and computes whole sequences with them."""

    def __init__(self):
        self.weights = []

    def take(self, *shape):
        block = (RNG.standard_normal(shape) * 0.4).astype(np.float32)
        self.weights += block.reshape(-1).tolist()
        return block.astype(np.float64)

    def conv(self, x, out, taps, dilation=1, groups=1, bias=True):
        """Convolve x [T, C] with taps that are drawn now: the last one is of this step."""
        weight = self.take(out, x.shape[1] // groups, taps)
        y = np.zeros((len(x), out))
        for o in range(out):
            group = o // (out // groups)
            read = x[:, group * weight.shape[1] :][:, : weight.shape[1]]
            for j in range(taps):
                late = (taps - 1 - j) * dilation
                shifted = np.concatenate([np.zeros((late, read.shape[1])), read])[: len(x)]
                y[:, o] += shifted @ weight[o, :, j]
        return y + self.take(out) if bias else y


def function(form):
    name = form["type"] if isinstance(form, dict) else form
    if name == "PReLU":
        slopes = np.array(form["negative_slopes"], np.float32).astype(np.float64)
        return lambda x: np.where(x > 0, x, slopes * x)
    return FUNCTIONS[name]


def wavenet(arrays, x, **config):
    """Draw a WaveNet; return its file and what it answers."""
    maker, x = Maker(), x.astype(np.float64)
    value, head = x, 0.0
    for array in arrays:
        size, activation = array["channels"], array["activation"]
        value = maker.conv(value, size, 1, bias=False)
        for dilation in array["dilations"]:
            width = size * (2 if array.get("gated") else 1)
            z = maker.conv(value, width, array["kernel_size"], dilation)
            z = z + maker.conv(x, width, 1, bias=False)
            h = function(activation)(z[:, :size])
            if array.get("gated"):
                h = h / (1 + np.exp(-z[:, size:]))
            head = head + h
            value = value + maker.conv(h, size, 1)
        form = array.get("head") or {"out_channels": array["head_size"]}
        head = maker.conv(
            head,
            form["out_channels"],
            form.get("kernel_size", 1),
            form.get("head_dilation", 1),
            bias=form.get("bias", array.get("head_bias")),
        )
    post = config.get("head")
    scaled_from = len(maker.weights)
    if post is None:
        answer = head * maker.take(1)
    else:
        scale = np.float64(np.float32(0.3))
        answer = head * scale
        for k, taps in enumerate(post["kernel_sizes"]):
            out = post["out_channels" if k == len(post["kernel_sizes"]) - 1 else "channels"]
            answer = maker.conv(function(post["activation"])(answer), out, taps)
        maker.weights.append(float(np.float32(0.3)))
    assert len(maker.weights) > scaled_from
    config = {"layers": arrays, "head_scale": 0.02, "head": None, **config}
    file = {"version": "0.5.4", "architecture": "WaveNet", "config": config}
    return file | {"weights": maker.weights}, answer


def array(channels=3, head_size=1, inputs=1, dilations=(1, 2, 4), **options):
    return {
        "input_size": inputs,
        "condition_size": 1,
        "head_size": head_size,
        "channels": channels,
        "kernel_size": 3,
        "dilations": list(dilations),
        "activation": "Tanh",
        "gated": False,
        "head_bias": True,
        **options,
    }


def two_arrays(**options):
    return [array(4, 2, head_bias=False, **options), array(2, 1, 4, (8, 1), **options)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["Tanh", "ReLU"])
def test_a_wavenet_of_two_arrays_comes_out_right(importing, gated, activation):
    file, answer = wavenet(two_arrays(gated=gated, activation=activation), X)
    found = importing(file)
    assert np.abs(ReferenceModel(found.model).steps(X) - answer).max() <= REFERENCE_FLOAT64
    assert found.holds_graph
    y = Engine(found.model).steps("a", X)
    assert np.abs(y - answer).max() <= 1e-5 * np.abs(answer).max()


@pytest.mark.parametrize("activation", [*FUNCTIONS, "PReLU"])
def test_every_activation_of_a_wavenet_comes_out_right(importing, activation):
    form = {"type": activation}
    form |= {"negative_slope": 0.2} if activation == "LeakyReLU" else {}
    form |= {"negative_slopes": [0.1, -0.2, 0.3]} if activation == "PReLU" else {}
    file, answer = wavenet([array(activation=form)], X)
    assert np.abs(ReferenceModel(importing(file).model).steps(X) - answer).max() <= (
        REFERENCE_FLOAT64
    )


@pytest.mark.parametrize(
    "arrays",
    [
        [array(1, dilations=(1,))],
        [array(5, 3, kernel_size=1)],
        [array(2, kernel_size=7, dilations=(3, 11))],
        [array(3, head={"out_channels": 2, "kernel_size": 4, "bias": True, "head_dilation": 3})],
        [array(2, 3, head_bias=False), array(3, 2, 2, head_bias=False), array(2, 2, 3)],
        [array(3, gating_mode="none", layer1x1={"active": True, "groups": 1}, bottleneck=3)],
        [array(3, gated=True, conv_pre_film={"active": False}, head1x1={"active": False})],
    ],
)
def test_forms_of_a_wavenet_come_out_right(importing, arrays):
    file, answer = wavenet(arrays, X)
    found = importing(file)
    assert np.abs(ReferenceModel(found.model).steps(X) - answer).max() <= REFERENCE_FLOAT64
    assert "left out: the 1x1 convolution" in found.notes[0]


def test_convolutions_after_a_wavenet_come_out_right(importing):
    post = {"channels": 3, "out_channels": 2, "kernel_sizes": [3, 1, 2], "activation": "ReLU"}
    file, answer = wavenet([array(4, 2)], X, head=post)
    assert np.abs(ReferenceModel(importing(file).model).steps(X) - answer).max() <= (
        REFERENCE_FLOAT64
    )


def convnet(channels, dilations, activation, batchnorm, groups=1, inputs=1, outputs=1):
    x = RNG.standard_normal((80, inputs)).astype(np.float32)
    maker, value = Maker(), x.astype(np.float64)
    for dilation in dilations:
        value = maker.conv(value, channels, 2, dilation, groups, bias=not batchnorm)
        if batchnorm:
            mean, gain, shift = maker.take(channels), 0, 0
            variance = maker.take(channels)
            maker.weights[-channels:] = np.abs(variance).tolist()
            gain, shift = maker.take(channels), maker.take(channels)
            maker.weights.append(float(np.float32(1e-3)))
            scale = gain / np.sqrt(np.abs(variance) + np.float64(np.float32(1e-3)))
            value = (value - mean) * scale + shift
        value = function(activation)(value)
    answer = value @ maker.take(outputs, channels).T + maker.take(outputs)
    config = {
        "channels": channels,
        "dilations": list(dilations),
        "batchnorm": batchnorm,
        "activation": activation,
        "groups": groups,
        "in_channels": inputs,
        "out_channels": outputs,
    }
    file = {"version": "0.5.4", "architecture": "ConvNet", "config": config}
    return file | {"weights": maker.weights}, x, answer


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize(
    ("channels", "dilations", "groups", "inputs", "outputs"),
    [(4, (1, 2, 4, 8), 1, 1, 1), (3, (5,), 1, 2, 2), (4, (1, 3), 2, 2, 1)],
)
def test_a_convnet_comes_out_right(
    importing, batchnorm, channels, dilations, groups, inputs, outputs
):
    file, x, answer = convnet(channels, dilations, "Tanh", batchnorm, groups, inputs, outputs)
    got = ReferenceModel(importing(file).model).steps(x)
    # A normalisation is a gain and a shift in float32.
    assert np.abs(got - answer).max() <= (1e-5 if batchnorm else REFERENCE_FLOAT64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conv_pre_film": {"active": True}}, "array 0 has conv_pre_film"),
        ({"slimmable": {"method": "x"}}, "array 0 has slimmable"),
        ({"bottleneck": 2}, "array 0 has bottleneck: 2"),
        ({"groups_input": 3}, "array 0 has groups_input: 3"),
        ({"groups_input_mixin": 3}, "array 0 has groups_input_mixin: 3"),
        ({"head1x1": {"active": True}}, "array 0 has head1x1"),
        ({"layer1x1": {"active": False, "groups": 1}}, "array 0 has layer1x1"),
        ({"gating_mode": "blended"}, "array 0 has gating_mode: blended"),
        (
            {"gating_mode": "gated", "secondary_activation": "ReLU"},
            "array 0 has secondary_activation: ReLU",
        ),
        ({"activation": "Fasttanh"}, "array 0, layer 0 has the activation 'Fasttanh'"),
        ({"activation": {"type": "Tanh", "x": 1}}, "its activation has 'x'"),
        ({"condition_size": 2}, "array 0 has a condition of 2 values"),
        ({"swirl": 1}, "array 0 has 'swirl'"),
        ({"bottleneck": [0.5] * 70}, "array 0 has bottleneck"),  # a long list is an array
        ({"layer1x1": [0.5] * 70}, "array 0 has layer1x1"),
        ({"dilations": [0.5] * 9000}, "its config has a list of 9000 numbers"),
        ({"dilations": [0.5] * 70}, "dilations is 0.5; it must be a whole number"),
        ({"channels": 0}, "array 0: channels is 0; it must be a whole number"),
        ({"channels": 1 << 50}, "from 1 to 8192"),
        ({"channels": 8000}, "its config asks for more"),
        ({"dilations": []}, "dilations is no list of 1 to 512"),
        ({"dilations": [1.5]}, "dilations is 1.5"),
        ({"dilations": [1, 2]}, "weights; its config asks for"),
        ({"kernel_sizes": [3, 3]}, "differ in number"),
        ({"head_bias": None}, "its head has no size, or no bias"),
        ({"input_size": 2}, "array 0 does not fit"),
        ({"activation": ["Tanh"]}, "differ in number"),
        ({"activation": {"type": "PReLU", "negative_slopes": [1.0, 2.0]}}, "2 slopes for 3"),
    ],
)
def test_a_wavenet_that_no_model_can_hold_is_refused_by_name(importing, change, reason):
    file, _ = wavenet([array()], X)
    file["config"]["layers"][0] |= change
    with pytest.raises(ModelFileError, match=reason):
        importing(file)


def test_all_that_a_wavenet_has_too_much_is_listed(importing):
    file, _ = wavenet(two_arrays(), X)
    file = copy.deepcopy(file)
    file["config"] |= {"condition_dsp": {"architecture": "WaveNet"}, "other": 1}
    file["config"]["layers"][1] |= {"bottleneck": 1, "slimmable": {"method": "x"}}
    with pytest.raises(ModelFileError) as caught:
        importing(file)
    for part in ("condition_dsp", "'other'", "array 1 has bottleneck", "array 1 has slimmable"):
        assert part in str(caught.value)


def test_of_a_container_the_last_model_is_taken(importing):
    small, (file, answer) = wavenet([array(2)], X)[0], wavenet([array(5)], X)
    models = [{"max_value": 0.5, "model": small}, {"max_value": 1.0, "model": file}]
    box = {"architecture": "SlimmableContainer", "config": {"submodels": models}, "weights": []}
    found = importing(box)
    assert np.abs(ReferenceModel(found.model).steps(X) - answer).max() <= REFERENCE_FLOAT64
    assert found.notes[0] == "took the largest of 2 submodels, the last"
    wrong: list[object] = [[], None, [1], [{"model": {}}], [{"model": box}]]
    for bad in wrong:
        with pytest.raises(ModelFileError, match=r"submodel|architecture 'SlimmableContainer'"):
            importing(box | {"config": {"submodels": bad}})
