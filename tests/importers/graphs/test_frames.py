"""ONNX graphs with layers over frames, over time and beside one another."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.network import GraphOptions
from streamrnn.importers.source import import_file
from streamrnn.reference.activations import gelu
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.onnx import RNG, H, X, draw, graph_file, run, weights
from tests.tolerances import REFERENCE_FLOAT64


def conv(x, weight, bias, *, stride=1, pads=(0, 0), dilation=1):
    """Convolve [C, L] in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), pads))
    reach = (weight.shape[2] - 1) * dilation
    places = range(0, x.shape[1] - reach, stride)
    taps = [x[:, p : p + reach + 1 : dilation] for p in places]
    return np.stack([np.einsum("ck,ock->o", t, weight) for t in taps], axis=1) + bias[:, None]


@pytest.fixture
def importing(tmp_path):
    """Return a function that writes a graph and imports it."""

    def write_and_import(nodes, tensors, **options):
        return import_file(graph_file(tmp_path / "m.onnx", nodes, tensors, **options))

    return write_and_import


@pytest.fixture
def of_frames(tmp_path):
    """Return a function that imports a graph of one step: X [1, 2, 12], and an LSTM after it."""

    def make(nodes, tensors, size, made=(1, 8, 4), **options):
        shape = {"shape": np.array([1, 1, size])}
        tensors = tensors | weights("LSTM", size, 4) | shape
        nodes = [
            *nodes,
            H.make_node("Reshape", ["F", "shape"], ["V"]),
            H.make_node("LSTM", ["V", "W", "R", "B", "", "h", "c"], ["Y", "hn", "cn"]),
        ]
        inputs = {"X": [1, 2, 12], "h": [1, 1, 4], "c": [1, 1, 4]}
        outputs = ("Y", "hn", "cn")
        path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
        return import_file(path, **options), tensors

    return make


FRAMES = RNG.standard_normal((7, 2, 12)).astype(np.float32)


def lstm_over(tensors, frames):
    """Run the LSTM over flattened frames [T, C, L]."""
    return run("LSTM", tensors, np.stack([f.reshape(-1) for f in frames]))


def test_a_convolution_over_the_frame_of_a_step_is_flattened_in_its_order(of_frames):
    tensors = {"K": draw(3, 2, 3), "b": draw(3)}
    attributes = {"pads": [1, 1], "strides": [2], "kernel_shape": [3]}
    nodes = [
        H.make_node("Conv", ["X", "K", "b"], ["A"], **attributes),
        H.make_node("Relu", ["A"], ["F"]),
    ]
    found, tensors = of_frames(nodes, tensors, 18)
    model = found.model
    assert model.spec.inputs[0].shape == (12, 2)
    frames = [
        np.maximum(conv(f, tensors["K"], tensors["b"], stride=2, pads=(1, 1)), 0) for f in FRAMES
    ]
    x = FRAMES.transpose(0, 2, 1).reshape(7, -1)
    wanted = lstm_over(tensors, frames)
    assert np.abs(ReferenceModel(model).steps(x) - wanted).max() <= REFERENCE_FLOAT64


def test_dilation_groups_padding_and_pools_come_out_right(of_frames):
    tensors = {"K": draw(4, 1, 2), "pads": np.array([0, 0, 3, 0, 0, 2])}
    nodes = [
        H.make_node("Pad", ["X", "pads"], ["P"], mode="reflect"),
        H.make_node("Conv", ["P", "K"], ["A"], dilations=[2], group=2),
        H.make_node("MaxPool", ["A"], ["M"], kernel_shape=[3], strides=[2]),
        H.make_node("LeakyRelu", ["M"], ["L"], alpha=0.3),
        H.make_node("GlobalAveragePool", ["L"], ["F"]),
    ]
    found, tensors = of_frames(nodes, tensors, 4)
    full = np.zeros((4, 2, 2))
    full[:2, 0], full[2:, 1] = tensors["K"][:2, 0], tensors["K"][2:, 0]
    frames = []
    for frame in FRAMES:
        wide = np.pad(frame, ((0, 0), (3, 2)), mode="reflect")
        a = conv(wide, full, np.zeros(4), dilation=2)
        m = np.stack([a[:, p : p + 3].max(axis=1) for p in range(0, a.shape[1] - 2, 2)], axis=1)
        frames.append(np.where(m > 0, m, np.float32(0.3) * m).mean(axis=1)[:, None])
    x = FRAMES.transpose(0, 2, 1).reshape(7, -1)
    error = np.abs(ReferenceModel(found.model).steps(x) - lstm_over(tensors, frames))
    assert error.max() <= REFERENCE_FLOAT64


def test_a_magnitude_is_found(of_frames):
    tensors = {"K": draw(6, 2, 4), "two": np.array(2.0, np.float32)}
    tensors |= {name: np.array([value]) for name, value in (("o", 0), ("t", 3), ("e", 6), ("a", 1))}
    nodes = [
        H.make_node("Conv", ["X", "K"], ["A"], strides=[4]),
        H.make_node("Slice", ["A", "o", "t", "a"], ["re"]),
        H.make_node("Slice", ["A", "t", "e", "a"], ["im"]),
        H.make_node("Pow", ["re", "two"], ["re2"]),
        H.make_node("Mul", ["im", "im"], ["im2"]),
        H.make_node("Add", ["re2", "im2"], ["s"]),
        H.make_node("Sqrt", ["s"], ["F"]),
    ]
    found, tensors = of_frames(nodes, tensors, 9)
    assert [layer.describe() for layer in found.model.spec.layers][1] == "magnitude"
    frames = [np.hypot(*np.split(conv(f, tensors["K"], np.zeros(6), stride=4), 2)) for f in FRAMES]
    x = FRAMES.transpose(0, 2, 1).reshape(7, -1)
    error = np.abs(ReferenceModel(found.model).steps(x) - lstm_over(tensors, frames))
    assert error.max() <= REFERENCE_FLOAT64


def test_the_frame_before_stands_in_front_with_context(of_frames):
    tensors = {"K": draw(3, 2, 4)}
    nodes = [H.make_node("Conv", ["X", "K"], ["F"], strides=[4])]
    found, tensors = of_frames(nodes, tensors, 9, graph=GraphOptions(context=4))
    assert found.model.spec.inputs[0].shape == (8, 2)
    news = FRAMES[:, :, 4:]
    before = np.concatenate([np.zeros((1, 2, 4)), news[:-1, :, -4:]])
    wholes = np.concatenate([before, news], axis=2)
    frames = [conv(f, tensors["K"], np.zeros(3), stride=4) for f in wholes]
    x = news.transpose(0, 2, 1).reshape(7, -1)
    error = np.abs(ReferenceModel(found.model).steps(x) - lstm_over(tensors, frames))
    assert error.max() <= REFERENCE_FLOAT64


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (GraphOptions({"Q": 1.0}), "no graph input and no open axis Q"),
        (GraphOptions(context=12), "leaves nothing of 12 places"),
    ],
)
def test_an_option_that_does_not_fit_the_graph_is_refused(of_frames, options, reason):
    nodes = [H.make_node("Conv", ["X", "K"], ["F"], strides=[4])]
    with pytest.raises(ModelError, match=reason):
        of_frames(nodes, {"K": draw(3, 2, 4)}, 9, graph=options)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"pads": [4, 0], "dilations": [2]}, None),
        ({"pads": [2, 2], "dilations": [2]}, r"padding \[2, 2\] and stride 1; causal"),
        ({"pads": [4, 0], "dilations": [2], "strides": [2]}, "stride 2; causal"),
    ],
)
def test_a_convolution_over_time_is_causal_or_refused(importing, attributes, reason):
    """X [T, 1, 3] is brought to [1, 3, T] and back for it."""
    tensors = weights("GRU", 5, 4) | {"K": draw(5, 3, 3), "b": draw(5)}
    nodes = [
        H.make_node("Transpose", ["X"], ["X1"], perm=[1, 2, 0]),
        H.make_node("Conv", ["X1", "K", "b"], ["C"], **attributes),
        H.make_node("Transpose", ["C"], ["X2"], perm=[2, 0, 1]),
        H.make_node("GRU", ["X2", "W", "R", "B"], ["Y"], linear_before_reset=1),
    ]
    if reason is not None:
        with pytest.raises(ModelFileError, match=reason):
            importing(nodes, tensors)
        return
    model = importing(nodes, tensors).model
    inner = conv(X[0].T, tensors["K"], tensors["b"], pads=(4, 0), dilation=2).T
    wanted = run("GRU", tensors, inner, reset_after=True)
    assert np.abs(ReferenceModel(model).steps(X[0]) - wanted).max() <= REFERENCE_FLOAT64


def test_skips_gates_and_heads_side_by_side_come_out_right(importing):
    tensors = weights("LSTM") | {"K": draw(4, 4), "Q": draw(4, 2)}
    nodes = [
        H.make_node("LSTM", list("XWRB"), ["Y"]),
        H.make_node("MatMul", ["Y", "K"], ["k"]),
        H.make_node("Sigmoid", ["k"], ["s"]),
        H.make_node("Mul", ["Y", "s"], ["g"]),
        H.make_node("Sub", ["g", "k"], ["d"]),
        H.make_node("MatMul", ["d", "Q"], ["q"]),
        H.make_node("Concat", ["d", "q"], ["Z"], axis=-1),
    ]
    model = importing(nodes, tensors, outputs=["Z"]).model
    h = run("LSTM", tensors, X[0])
    k = h @ tensors["K"].astype(np.float64)
    d = h / (1 + np.exp(-k)) - k
    wanted = np.concatenate([d, d @ tensors["Q"].astype(np.float64)], axis=1)
    assert np.abs(ReferenceModel(model).steps(X[0]) - wanted).max() <= REFERENCE_FLOAT64


def test_a_branch_that_a_fixed_input_chooses_is_followed(tmp_path):
    """The other branch is of another network; the chosen one has a cell that was written out."""
    tensors = {"W1": draw(3, 5), "W2": draw(5, 5), "K": draw(3, 5), "rate": np.array(16)}

    def branch(name, nodes):
        outputs = [H.make_tensor_value_info(f"{name}.y", 1, [1, 5])]
        return H.make_graph(nodes, name, [], outputs)

    then = branch(
        "then",
        [
            H.make_node("MatMul", ["X", "W1"], ["then.a"]),
            H.make_node("MatMul", ["s", "W2"], ["then.b"]),
            H.make_node("Add", ["then.a", "then.b"], ["then.c"]),
            H.make_node("Tanh", ["then.c"], ["then.y"]),
        ],
    )
    other = branch("else", [H.make_node("MatMul", ["X", "K"], ["else.y"])])
    nodes = [
        H.make_node("Equal", ["sr", "rate"], ["is"]),
        H.make_node("If", ["is"], ["Y"], then_branch=then, else_branch=other),
        H.make_node("Identity", ["Y"], ["s1"]),
    ]
    inputs = {"X": [1, 3], "s": [1, 5], "sr": []}
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, ("Y", "s1"))
    model = import_file(path, graph=GraphOptions({"sr": 16})).model
    h, wanted = np.zeros(5), []
    for row in X[0].astype(np.float64):
        h = np.tanh(row @ tensors["W1"] + h @ tensors["W2"])
        wanted.append(h)
    assert np.abs(ReferenceModel(model).steps(X[0]) - wanted).max() <= REFERENCE_FLOAT64
    plain = import_file(path, graph=GraphOptions({"sr": 8})).model
    assert np.abs(ReferenceModel(plain).steps(X[0]) - X[0] @ tensors["K"]).max() <= 1e-6


def test_the_input_itself_is_joined_sliced_and_activated(importing):
    tensors = weights("LSTM", 6, 4) | {"o": np.array([0]), "t": np.array([2]), "a": np.array([2])}
    tensors |= {"g": draw(3), "s": draw(3)}
    nodes = [
        H.make_node("Tanh", ["X"], ["u"]),
        H.make_node("Slice", ["X", "o", "t", "a"], ["v"]),
        H.make_node("Slice", ["u", "o", "t", "a"], ["w"]),
        H.make_node("LayerNormalization", ["X", "g", "s"], ["n"]),
        H.make_node("Slice", ["n", "o", "t", "a"], ["m"]),
        H.make_node("Concat", ["v", "w", "m"], ["Z"], axis=-1),
        H.make_node("LSTM", ["Z", *"WRB"], ["Y"]),
    ]
    model = importing(nodes, tensors).model
    x = X[0].astype(np.float64)
    mean, power = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    n = (x - mean) / np.sqrt(power + 1e-5) * tensors["g"] + tensors["s"]
    seen = np.concatenate([x[:, :2], np.tanh(x)[:, :2], n[:, :2]], axis=1)
    wanted = run("LSTM", tensors, seen)
    assert np.abs(ReferenceModel(model).steps(X[0]) - wanted).max() <= REFERENCE_FLOAT64


def test_a_join_of_exchanged_axes_is_refused(importing):
    """Of equal sizes, a transposed result has the shape of the other one."""
    tensors = weights("GRU", 9, 9)
    nodes = [
        H.make_node("GRU", list("XWRB"), ["Y"], linear_before_reset=1),
        H.make_node("Transpose", ["X"], ["T"], perm=[2, 1, 0]),
        H.make_node("Squeeze", ["Y", "one"], ["S"]),
        H.make_node("Add", ["S", "T"], ["Z"]),
    ]
    tensors["one"] = np.array([1])
    with pytest.raises(ModelFileError, match="axes are not the same"):
        importing(nodes, tensors, inputs={"X": [9, 1, 9]}, outputs=["Z"])


def test_what_exporters_write_out_becomes_a_layer(importing):
    """GELU with the half behind and in front, a layer normalisation, a clip and slopes."""
    tensors = weights("LSTM") | {"K": draw(4, 4), "Q": draw(4, 4), "slopes": draw(4)}
    tensors |= {name: np.float32(v) for name, v in (("two", 2), ("one", 1), ("half", 0.5))}
    tensors |= {"eps": np.float32(1e-5), "root": np.float32(np.sqrt(2)), "axis": np.array([-1])}
    tensors |= {"gain": draw(4), "shift": draw(4), "zero": np.float32(0), "six": np.float32(6)}
    nodes = [
        H.make_node("LSTM", list("XWRB"), ["Y"]),
        H.make_node("ReduceMean", ["Y"], ["m"], axes=[-1]),
        H.make_node("Sub", ["Y", "m"], ["d"]),
        H.make_node("Pow", ["d", "two"], ["d2"]),
        H.make_node("ReduceMean", ["d2"], ["v"], axes=[-1]),
        H.make_node("Add", ["v", "eps"], ["ve"]),
        H.make_node("Sqrt", ["ve"], ["sd"]),
        H.make_node("Div", ["d", "sd"], ["n"]),
        H.make_node("Mul", ["n", "gain"], ["ng"]),
        H.make_node("Add", ["ng", "shift"], ["ln"]),
        H.make_node("Div", ["ln", "root"], ["a"]),
        H.make_node("Erf", ["a"], ["b"]),
        H.make_node("Add", ["b", "one"], ["c"]),
        H.make_node("Mul", ["ln", "c"], ["e"]),
        H.make_node("Mul", ["e", "half"], ["g1"]),
        H.make_node("MatMul", ["g1", "K"], ["k"]),
        H.make_node("Mul", ["k", "half"], ["kh"]),
        H.make_node("Div", ["k", "root"], ["ka"]),
        H.make_node("Erf", ["ka"], ["kb"]),
        H.make_node("Add", ["kb", "one"], ["kc"]),
        H.make_node("Mul", ["kc", "kh"], ["g2"]),
        H.make_node("PRelu", ["g2", "slopes"], ["p"]),
        H.make_node("MatMul", ["p", "Q"], ["q"]),
        H.make_node("Clip", ["q", "zero", "six"], ["Z"]),
    ]
    model = importing(nodes, tensors, outputs=["Z"]).model
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    h = run("LSTM", tensors, X[0])
    centred = h - h.mean(axis=1, keepdims=True)
    n = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + wide["eps"])
    g = gelu(gelu(n * wide["gain"] + wide["shift"]) @ wide["K"])
    p = np.where(g > 0, g, wide["slopes"] * g)
    wanted = np.clip(p @ wide["Q"], 0, 6)
    assert np.abs(ReferenceModel(model).steps(X[0]) - wanted).max() <= 1e-6


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Erf", ["Y"], {})], "is the function erf, which no layer has"),
        ([("PRelu", ["Y", "c"], {})], "slopes are no constants, one for all"),
    ],
)
def test_a_part_of_what_exporters_write_out_is_refused_by_name(importing, nodes, reason):
    tensors = weights("LSTM") | {"c": draw(3)}
    made = [H.make_node("LSTM", list("XWRB"), ["Y"])]
    made += [H.make_node(op, names, ["Z"], **attributes) for op, names, attributes in nodes]
    with pytest.raises(ModelFileError, match=reason):
        importing(made, tensors, outputs=["Z"])
