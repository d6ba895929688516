"""Write the golden files of the cells' other forms: what the framework that defines each answers.

The tests need the files and no framework; only this script needs them, in an environment of its
own::

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 keras==3.15.1 onnx==1.23.2 onnxruntime==1.31.1
    KERAS_BACKEND=torch /tmp/golden/bin/python tests/golden/make_forms.py

Every case becomes forms/NAME.npz with x [B, T, I], y [B, T, H] and one layer's parameters under our
names, and an entry of forms.json: the layer, who answered and in what precision.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch.nn import functional

NUM_STREAMS, NUM_STEPS, NUM_INPUTS, NUM_UNITS = 2, 40, 4, 7
GATES = {"gru": 3, "lstm": 4}


def draw(rng, layer):
    """Draw x and the parameters of one layer; wider than PyTorch's, so that gates also clip."""
    cell, rows = layer["cell"], GATES[layer["cell"]] * NUM_UNITS
    outputs = layer.get("projection_size", 0) or NUM_UNITS
    shapes = {
        "weight_ih": (rows, NUM_INPUTS),
        "weight_hh": (rows, outputs),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    if outputs != NUM_UNITS:
        shapes["weight_hr"] = (outputs, NUM_UNITS)
    if layer.get("peepholes"):
        shapes |= {f"weight_c{gate}": (NUM_UNITS,) for gate in "ifo"}
    if layer.get("layer_norm"):
        shapes |= {"norm_weight_ih": (rows,), "norm_weight_hh": (rows,)}
        if cell == "lstm":
            shapes |= {"norm_weight_c": (NUM_UNITS,), "norm_bias_c": (NUM_UNITS,)}
    parameters = {
        name: rng.uniform(-0.9, 0.9, shape).astype(np.float32) for name, shape in shapes.items()
    }
    x = (2 * rng.standard_normal((NUM_STREAMS, NUM_STEPS, NUM_INPUTS))).astype(np.float32)
    return x, parameters


def reordered(matrix, ours, theirs):
    """Put the gates' row blocks into another order."""
    blocks = dict(zip(ours, np.split(matrix, len(ours)), strict=True))
    return np.concatenate([blocks[gate] for gate in theirs])


def answer_of_keras(layer, x, parameters):
    """Ask Keras 3 in float64. One bias stands for both; the reset after the product keeps two.

    With the reset before the product its loop over steps multiplies matrices in float32 all the
    same, so that answer is kept as float32.
    """
    keras.config.set_floatx("float64")
    ours, theirs = ("rzn", "zrn") if layer["cell"] == "gru" else ("ifgo", "ifgo")
    activation = "hard_sigmoid" if "gate_activation" in layer else "sigmoid"
    options = {"recurrent_activation": activation, "return_sequences": True}
    wide = {
        name: reordered(value.astype(np.float64), ours, theirs)
        for name, value in parameters.items()
    }
    bias = wide["bias_ih"] + wide["bias_hh"]
    if layer["cell"] == "gru":
        reset_after = layer.get("reset_after", True)
        cell = keras.layers.GRU(NUM_UNITS, reset_after=reset_after, **options)
        if reset_after:
            bias = np.stack([wide["bias_ih"], wide["bias_hh"]])
    else:
        cell = keras.layers.LSTM(NUM_UNITS, **options)
    cell.build(x.shape)
    cell.set_weights([wide["weight_ih"].T, wide["weight_hh"].T, bias])
    y = keras.ops.convert_to_numpy(cell(x.astype(np.float64)))
    return y.astype(np.float32) if "reset_after" in layer else y


def answer_of_onnx(layer, x, parameters):
    """Ask onnxruntime, which has these operators in float32 only."""
    is_lstm = layer["cell"] == "lstm"
    ours, theirs = ("ifgo", "iofg") if is_lstm else ("rzn", "zrn")
    ordered = {
        name: reordered(value, ours, theirs)
        for name, value in parameters.items()
        if not name.startswith("weight_c")
    }
    inputs = {
        "W": ordered["weight_ih"][None],
        "R": ordered["weight_hh"][None],
        "B": np.concatenate([ordered["bias_ih"], ordered["bias_hh"]])[None],
    }
    names = ["X", "W", "R", "B"]
    if layer.get("peepholes"):
        inputs["P"] = np.concatenate([parameters[f"weight_c{gate}"] for gate in "iof"])[None]
        names += ["", "", "", "P"]
    options = {}
    if "gate_activation" in layer:
        options = {
            "activations": ["HardSigmoid", "Tanh"] + ["Tanh"] * is_lstm,
            "activation_alpha": [0.2],
            "activation_beta": [0.5],
        }
    if not is_lstm:
        options["linear_before_reset"] = int(layer.get("reset_after", True))
    node = helper.make_node(layer["cell"].upper(), names, ["Y"], hidden_size=NUM_UNITS, **options)
    x = x.transpose(1, 0, 2)
    y_shape = [NUM_STEPS, 1, NUM_STREAMS, NUM_UNITS]
    graph = helper.make_graph(
        [node],
        "one_layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, y_shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(["Y"], {"X": x})[0][:, 0].transpose(1, 0, 2)


def answer_of_torch(layer, x, parameters):
    """Compose the papers' equations from PyTorch's own functions, in float64."""
    p = {name: torch.tensor(value, dtype=torch.float64) for name, value in parameters.items()}
    x = torch.tensor(x, dtype=torch.float64)
    gate = functional.hardsigmoid if "gate_activation" in layer else torch.sigmoid
    h = torch.zeros(NUM_STREAMS, p["weight_hh"].shape[1], dtype=torch.float64)
    c = torch.zeros(NUM_STREAMS, NUM_UNITS, dtype=torch.float64)
    ys = []
    for t in range(NUM_STEPS):
        if layer["cell"] == "lstm":
            h, c = lstm_of_papers(layer, p, gate, x[:, t], h, c)
        else:
            h = normalised_gru(p, gate, x[:, t], h)
        ys.append(h)
    return torch.stack(ys, 1).numpy()


def lstm_of_papers(layer, p, gate, x, h, c):
    """Ba et al. 2016 (layer normalisation), Sak et al. 2014 (peepholes and projection)."""

    def sums(name, value, rows):
        product = functional.linear(value, p[f"weight_{name}"][rows])
        if not layer.get("layer_norm"):
            return product + p[f"bias_{name}"][rows]
        gain, shift = p[f"norm_weight_{name}"][rows], p[f"bias_{name}"][rows]
        return functional.layer_norm(product, product.shape[-1:], gain, shift, eps=1e-5)

    everything = slice(None)
    i, f, g, o = (sums("ih", x, everything) + sums("hh", h, everything)).chunk(4, dim=-1)
    if layer.get("peepholes"):
        i, f = i + p["weight_ci"] * c, f + p["weight_cf"] * c
    c = gate(f) * c + gate(i) * torch.tanh(g)
    if layer.get("peepholes"):
        o = o + p["weight_co"] * c
    shown = c
    if layer.get("layer_norm"):
        gain, shift = p["norm_weight_c"], p["norm_bias_c"]
        shown = functional.layer_norm(c, c.shape[-1:], gain, shift, eps=1e-5)
    m = gate(o) * torch.tanh(shown)
    return (functional.linear(m, p["weight_hr"]) if "weight_hr" in p else m), c


def normalised_gru(p, gate, x, h):
    """Ba et al. 2016, in the form of the authors' program: h' = z h + (1 - z) n."""

    def sums(name, value, rows):
        product = functional.linear(value, p[f"weight_{name}"][rows])
        gain, shift = p[f"norm_weight_{name}"][rows], p[f"bias_{name}"][rows]
        return functional.layer_norm(product, product.shape[-1:], gain, shift, eps=1e-5)

    gates, candidate = slice(2 * NUM_UNITS), slice(2 * NUM_UNITS, None)
    r, z = gate(sums("ih", x, gates) + sums("hh", h, gates)).chunk(2, dim=-1)
    n = torch.tanh(sums("ih", x, candidate) + r * sums("hh", h, candidate))
    return z * h + (1 - z) * n


FIFTH: dict[str, Any] = {"gate_activation": "hard_sigmoid_fifth"}
SIXTH: dict[str, Any] = {"gate_activation": "hard_sigmoid_sixth"}
BEFORE: dict[str, Any] = {"reset_after": False}
GRU: dict[str, Any] = {"cell": "gru"}
LSTM: dict[str, Any] = {"cell": "lstm"}
CASES = {
    "keras_gru_reset_before": (answer_of_keras, GRU | BEFORE),
    "keras_gru_reset_before_hard": (answer_of_keras, GRU | BEFORE | SIXTH),
    "keras_gru_hard": (answer_of_keras, GRU | SIXTH),
    "keras_lstm_hard": (answer_of_keras, LSTM | SIXTH),
    "onnx_gru_reset_before": (answer_of_onnx, GRU | BEFORE),
    "onnx_gru_reset_before_hard": (answer_of_onnx, GRU | BEFORE | FIFTH),
    "onnx_gru_hard": (answer_of_onnx, GRU | FIFTH),
    "onnx_lstm_peepholes": (answer_of_onnx, LSTM | {"peepholes": True}),
    "onnx_lstm_peepholes_hard": (answer_of_onnx, LSTM | {"peepholes": True} | FIFTH),
    "onnx_lstm_hard": (answer_of_onnx, LSTM | FIFTH),
    "torch_lstm_hard": (answer_of_torch, LSTM | SIXTH),
    "torch_lstm_normalised": (answer_of_torch, LSTM | {"layer_norm": True}),
    "torch_lstm_peepholes_projected": (
        answer_of_torch,
        LSTM | {"peepholes": True, "projection_size": 3},
    ),
    "torch_gru_normalised": (answer_of_torch, GRU | {"layer_norm": True}),
}


def main():
    """Write all files beside this script."""
    here = Path(__file__).parent
    (here / "forms").mkdir(exist_ok=True)
    described = {}
    for k, (name, (answer, form)) in enumerate(CASES.items()):
        layer = form | {"hidden_size": NUM_UNITS}
        x, parameters = draw(np.random.default_rng(2000 + k), layer)
        y = answer(layer, x, parameters)
        np.savez(here / "forms" / f"{name}.npz", x=x, y=y, **parameters)
        described[name] = {"layer": layer, "dtype": str(y.dtype)}
    versions = {module.__name__: module.__version__ for module in (keras, onnxruntime, torch)}
    text = json.dumps({"versions": versions, "cases": described}, indent=2)
    (here / "forms.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
