"""Networks in JSON: NAM, RTNeural, AIDA-X, GuitarML."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(11)


def draw(*shape):
    return (RNG.standard_normal(shape) * 0.6).astype(np.float32)


def plain(value):
    """Turn arrays into lists, as a file has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.astype(float).tolist() if isinstance(value, np.ndarray) else value


def nam(hidden=3, num_layers=2, num_inputs=2, first=0.0):
    """Make a file, and its layers as (W_ih, W_hh, b, 0), head and bias."""
    numbers, layers = [], []
    for k in range(num_layers):
        columns = hidden if k else num_inputs
        matrix, bias = draw(4 * hidden, columns + hidden), draw(4 * hidden)
        numbers += [matrix.ravel(), bias, np.full(2 * hidden, first, np.float32)]
        layers.append((matrix[:, :columns], matrix[:, columns:], bias, np.zeros(4 * hidden)))
    head, bias = draw(hidden), draw(1)
    value = {
        "version": "0.5.4",
        "architecture": "LSTM",
        "config": {"input_size": num_inputs, "hidden_size": hidden, "num_layers": num_layers},
        "weights": np.concatenate([*numbers, head, bias]),
    }
    return value, layers, head, bias


def rtneural(**more):
    """Make an LSTM of 3, a GRU of 4 and two dense layers; Keras's order of gates and axes."""
    layers = [
        {"type": "lstm", "activation": "tanh", "shape": [None, None, 3]},
        {"type": "gru", "activation": "tanh", "shape": [None, None, 4]},
        {"type": "time-distributed-dense", "activation": "relu", "shape": [None, None, 5]},
        {"type": "dense", "activation": "", "shape": [None, None, 1]},
    ]
    arrays = [
        [draw(2, 12), draw(3, 12), draw(12)],
        [draw(3, 12), draw(4, 12), draw(2, 12)],
        [draw(4, 5), draw(5)],
        [draw(5, 1), draw(1)],
    ]
    for layer, weights in zip(layers, arrays, strict=True):
        layer["weights"] = weights
    return {"in_shape": [None, None, 2], "layers": layers} | more


def guitarml(**data):
    tensors = {
        "rec.weight_ih_l0": draw(16, 2),
        "rec.weight_hh_l0": draw(16, 4),
        "rec.bias_ih_l0": draw(16),
        "rec.bias_hh_l0": draw(16),
        "lin.weight": draw(1, 4),
        "lin.bias": draw(1),
    }
    known = {"model": "SimpleRNN", "unit_type": "LSTM", "hidden_size": 4, "num_layers": 1}
    known |= {"input_size": 2, "output_size": 1, "skip": 0, "bias_fl": True}
    return {"model_data": known | data, "state_dict": tensors}


def wavenet():
    """Make a small WaveNet of Neural Amp Modeler."""
    array = {
        "input_size": 1,
        "condition_size": 1,
        "head_size": 1,
        "channels": 2,
        "kernel_size": 3,
        "dilations": [1, 2],
        "activation": "Tanh",
        "gated": False,
        "head_bias": True,
    }
    config = {"layers": [array], "head_scale": 0.02, "head": None}
    weights = draw(50)  # 2, then 22 a dilation, 3 of the head and its scale
    return {"version": "0.5.4", "architecture": "WaveNet", "config": config, "weights": weights}


def convnet():
    """Make a small ConvNet of Neural Amp Modeler."""
    config = {
        "channels": 2,
        "dilations": [1, 2],
        "batchnorm": False,
        "activation": "Tanh",
        "groups": 1,
        "in_channels": 1,
        "out_channels": 1,
    }
    weights = draw(19)  # two taps of 1 and of 2 channels with biases, and the head
    return {"version": "0.5.4", "architecture": "ConvNet", "config": config, "weights": weights}
