"""Graphs over time as exporters write them, for the tests of graphs and of damage."""

from __future__ import annotations

import numpy as np

from tests.importers.files.onnx import H, draw, weights

END = np.iinfo(np.int64).max

NUMBERS = {
    "tiny": np.float32(1e-3),
    "low": np.float32(-0.4),
    "high": np.float32(0.7),
    "two": np.float32(2.0),
    "third": np.float32(0.3),
    "tenth": np.float32(0.1),
    "minus seven": np.array(-7),
    "whole two": np.array(2),
    "some": np.array([1, 2, 4]),
    "root": np.float32(-0.5),
    "cube": np.float32(3.0),
    "zero": np.float32(0.0),
    "far": np.float32(20.0),
    "slope": np.float32(0.2),
    "half": np.float32(0.5),
    "axis": np.array([-1]),
}


def between(nodes, tensors=(), size=6):
    """Put nodes from H to Z between a product and a product."""
    tensors = NUMBERS | {"K": draw(3, 6), "Q": draw(size, 2)} | dict(tensors)
    made = [H.make_node("MatMul", ["X", "K"], ["H"])]
    made += [H.make_node(op, names, [out], **options) for op, names, out, options in nodes]
    return [*made, H.make_node("MatMul", ["Z", "Q"], ["Y"])], tensors


WRITTEN = {
    "abs": [("Abs", ["H"], "Z", {})],
    "log of abs": [
        ("Abs", ["H"], "a", {}),
        ("Add", ["a", "tiny"], "b", {}),
        ("Log", ["b"], "Z", {}),
    ],
    "log sigmoid": [("Sigmoid", ["H"], "a", {}), ("Log", ["a"], "Z", {})],
    "mish": [
        ("Softplus", ["H"], "a", {}),
        ("Tanh", ["a"], "b", {}),
        ("Mul", ["H", "b"], "Z", {}),
    ],
    "celu": [("Celu", ["H"], "Z", {"alpha": 0.7})],
    "clip": [("Clip", ["H", "low", "high"], "Z", {})],
    "least": [("Max", ["H", "low"], "Z", {})],
    "most": [("Min", ["high", "H"], "Z", {})],
    "larger": [("Tanh", ["H"], "a", {}), ("Max", ["a", "H"], "Z", {})],
    "lesser": [("Tanh", ["H"], "a", {}), ("Min", ["a", "H"], "Z", {})],
    "sum": [("Tanh", ["H"], "a", {}), ("Sum", ["a", "H", "a"], "Z", {})],
    "negative": [("Neg", ["H"], "Z", {})],
    "square": [("Pow", ["H", "two"], "Z", {})],
    "cube": [("Pow", ["H", "cube"], "Z", {})],
    "power": [("Abs", ["H"], "a", {}), ("Pow", ["a", "third"], "Z", {})],
    "small power of zeros too": [("Relu", ["H"], "a", {}), ("Pow", ["a", "tenth"], "Z", {})],
    "small power of products": [("Mul", ["H", "H"], "a", {}), ("Pow", ["a", "tenth"], "Z", {})],
    "whole quotient": [
        ("Div", ["minus seven", "whole two"], "a", {}),
        ("Cast", ["a"], "b", {"to": 1}),
        ("Mul", ["H", "b"], "Z", {}),
    ],
    "mean of whole numbers": [
        ("ReduceMean", ["some"], "a", {"keepdims": 0}),
        ("Cast", ["a"], "b", {"to": 1}),
        ("Mul", ["H", "b"], "Z", {}),
    ],
    "root of a whole number": [
        ("Pow", ["whole two", "half"], "a", {}),
        ("Cast", ["a"], "b", {"to": 1}),
        ("Mul", ["H", "b"], "Z", {}),
    ],
    "root": [("Abs", ["H"], "a", {}), ("Add", ["a", "tiny"], "b", {}), ("Sqrt", ["b"], "Z", {})],
    "reciprocal root": [("Exp", ["H"], "a", {}), ("Pow", ["a", "root"], "Z", {})],
    "quotient": [("Exp", ["H"], "a", {}), ("Div", ["H", "a"], "Z", {})],
    "one over": [("Exp", ["H"], "a", {}), ("Div", ["two", "a"], "Z", {})],
    "softplus": [
        ("Softplus", ["H"], "a", {}),
        ("Greater", ["H", "far"], "b", {}),
        ("Where", ["b", "H", "a"], "Z", {}),
    ],
    "softplus of twice": [
        ("Mul", ["H", "two"], "a", {}),
        ("Softplus", ["a"], "b", {}),
        ("Div", ["b", "two"], "c", {}),
        ("Greater", ["a", "far"], "d", {}),
        ("Where", ["d", "H", "c"], "Z", {}),
    ],
    "leaky relu": [
        ("Greater", ["H", "zero"], "a", {}),
        ("Mul", ["H", "slope"], "b", {}),
        ("Where", ["a", "H", "b"], "Z", {}),
    ],
    "leaky relu from below": [
        ("Less", ["H", "zero"], "a", {}),
        ("Mul", ["H", "slope"], "b", {}),
        ("Where", ["a", "b", "H"], "Z", {}),
    ],
    "mean": [("ReduceMean", ["H"], "a", {"axes": [-1]}), ("Sub", ["H", "a"], "Z", {})],
    "mean as a gain": [("ReduceMean", ["H"], "a", {"axes": [-1]}), ("Mul", ["H", "a"], "Z", {})],
    "share": [
        ("Exp", ["H"], "a", {}),
        ("ReduceSum", ["a", "axis"], "b", {}),
        ("Div", ["a", "b"], "Z", {}),
    ],
    "unit norm": [
        ("ReduceL2", ["H"], "a", {"axes": [-1]}),
        ("Clip", ["a", "tiny"], "b", {}),
        ("Shape", ["H"], "s", {}),
        ("Expand", ["b", "s"], "c", {}),
        ("Div", ["H", "c"], "Z", {}),
    ],
    "rms norm": [
        ("Mul", ["H", "H"], "a", {}),
        ("ReduceMean", ["a"], "b", {"axes": [-1]}),
        ("Add", ["b", "tiny"], "c", {}),
        ("Sqrt", ["c"], "d", {}),
        ("Reciprocal", ["d"], "e", {}),
        ("Mul", ["H", "e"], "Z", {}),
    ],
}


WRITTEN |= {
    "features in another order": [("Gather", ["H", "order"], "Z", {"axis": -1})],
    "one feature": [
        ("Gather", ["H", "third place"], "a", {"axis": 2}),
        ("Unsqueeze", ["a", "axis"], "b", {}),
        ("Mul", ["H", "b"], "Z", {}),
    ],
    "features backwards": [("Slice", ["H", "last", "end", "axis", "axis"], "Z", {})],
}


NUMBERS |= {
    "order": np.array([3, -6, 5, 1, 1, 2]),
    "third place": np.array(2),
    "last": np.array([-1]),
    "end": np.array([-100]),
}


ONE = {f"n{k}": np.array([k]) for k in range(5)} | {"last": np.array([-1]), "end": np.array([END])}


def conv_cache(new, kernel=3, dilation=1):
    """Convolve what was kept and the step [1, 3, 1]; ``new`` are nodes that make the state N."""
    nodes = [
        H.make_node("Unsqueeze", ["X", "n2"], ["U"]),
        H.make_node("Concat", ["S", "U"], ["Z"], axis=2),
        H.make_node("Conv", ["Z", "K", "b"], ["A"], dilations=[dilation]),
        H.make_node("Relu", ["A"], ["B"]),
        H.make_node("Squeeze", ["B", "n2"], ["Y"]),
        *new,
    ]
    tensors = ONE | {"K": draw(4, 3, kernel), "b": draw(4)}
    return nodes, tensors, {"S": ("S_out", (1, 3, (kernel - 1) * dilation))}


NEW = {
    "a slice of all": [H.make_node("Slice", ["Z", "n1", "end", "n2"], ["S_out"])],
    "the step behind the rest": [
        H.make_node("Slice", ["S", "n1", "end", "n2"], ["rest"]),
        H.make_node("Concat", ["rest", "U"], ["S_out"], axis=2),
    ],
    "parts of all": [H.make_node("Split", ["Z", "sizes"], ["first", "S_out"], axis=2)],
}


def gru_cell(new):
    """Write a GRUCell out as exporters do; the state comes back as ``new`` says."""
    tensors = {"Wi": draw(12, 3), "Wh": draw(12, 4), "bi": draw(12), "bh": draw(12)}
    nodes = [
        H.make_node("Gemm", ["X", "Wi", "bi"], ["gi"], transB=1),
        H.make_node("Gemm", ["S", "Wh", "bh"], ["gh"], transB=1),
        H.make_node("Split", ["gi"], ["ir", "iz", "in"], axis=1),
        H.make_node("Split", ["gh"], ["hr", "hz", "hn"], axis=1),
        H.make_node("Add", ["hr", "ir"], ["r_"]),
        H.make_node("Sigmoid", ["r_"], ["r"]),
        H.make_node("Add", ["hz", "iz"], ["z_"]),
        H.make_node("Sigmoid", ["z_"], ["z"]),
        H.make_node("Mul", ["hn", "r"], ["m"]),
        H.make_node("Add", ["in", "m"], ["n_"]),
        H.make_node("Tanh", ["n_"], ["n"]),
        H.make_node("Sub", ["S", "n"], ["d"]),
        H.make_node("Mul", ["d", "z"], ["e"]),
        H.make_node("Add", ["e", "n"], ["H"]),
        *new,
    ]
    return nodes, tensors | {"Q": draw(4, 2), "half": np.float32(0.5)}


def cut(source, made, first, end, axis=2):
    """Return a Slice of one axis, and its numbers."""
    names = [f"{made}.{key}" for key in ("first", "end", "axis")]
    numbers = dict(zip(names, (np.array([first]), np.array([end]), np.array([axis])), strict=True))
    return H.make_node("Slice", [source, *names], [made]), numbers


def chomped(kernel, dilation, between=()):
    """Pad both sides by all that the kernel reaches, and cut the end off."""
    reach = (kernel - 1) * dilation
    node, numbers = cut("Z" if between else "A", "Y", 0, -reach)
    options = {"pads": [reach, reach], "dilations": [dilation]}
    nodes = [
        H.make_node("Conv", ["X", "K", "b"], ["A"], **options),
        *(H.make_node(op, names, ["Z"]) for op, names in between),
        node,
    ]
    return nodes, {"K": draw(4, 3, kernel), "b": draw(4)} | numbers


def plane(weight, bias, groups=1, dilations=(1, 1), strides=(1, 1), before=0, after="Relu"):
    """Convolve [1, 1, T, F] along both, after zeros before the first step; then a GRU."""
    reach = (weight.shape[2] - 1) * dilations[0]
    nodes = [
        H.make_node("Unsqueeze", ["X", "one"], ["A"]),
        H.make_node("Conv", ["A", "K0", "b0"], ["B"], kernel_shape=[1, 1]),
        H.make_node("Pad", ["B", "pads"], ["C"]),
        H.make_node(
            "Conv", ["C", "K", "b"], ["D"], dilations=dilations, strides=strides, group=groups
        ),
        H.make_node(after, ["D"], ["E"]),
        H.make_node("Transpose", ["E"], ["F"], perm=[2, 0, 1, 3]),
        H.make_node("Reshape", ["F", "flat"], ["G"]),
        H.make_node("GRU", ["G", "W", "R", "B_"], ["Y4"], linear_before_reset=1, hidden_size=4),
        H.make_node("Squeeze", ["Y4", "one"], ["Y3"]),
        H.make_node("Transpose", ["Y3"], ["Y"], perm=[1, 0, 2]),
    ]
    places = (10 + 2 * before - (weight.shape[3] - 1) * dilations[1] - 1) // strides[1] + 1
    gru = weights("GRU", len(weight) * places, 4)
    tensors = {
        "one": np.array([1]),
        "flat": np.array([0, 0, -1]),
        "pads": np.array([0, 0, reach, before, 0, 0, 0, before]),
        "K0": draw(weight.shape[1] * groups, 1, 1, 1),
        "b0": np.zeros(weight.shape[1] * groups, np.float32),
        "K": weight,
        "b": bias,
        "W": gru["W"],
        "R": gru["R"],
        "B_": gru["B"],
    }
    return nodes, tensors
