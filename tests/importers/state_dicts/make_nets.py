"""Modules of PyTorch in a row, and what --layers says of them. Needs torch."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from streamrnn.model.layers.base import LAYER_ACTIVATIONS

torch: Any = importlib.import_module("torch")

F = torch.nn.functional
SLOPES = {"leaky_relu": 0.2, "elu": 0.7, "at_least": -0.3, "at_most": 0.2}
ABOVE_ZERO = ("log", "sqrt", "reciprocal")
FUNCTIONS = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: F.softmax(x, -1),
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hard_sigmoid_fifth": lambda x: (x / 5 + 0.5).clamp(0, 1),
    "hard_sigmoid_sixth": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "hard_tanh": F.hardtanh,
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "exp": torch.exp,
    "log": lambda x: x.clamp(min=torch.finfo(torch.float32).tiny).log(),
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "at_least": lambda x: x.clamp(min=-0.3),
    "at_most": lambda x: x.clamp(max=0.2),
}
CELLS = ["rnn", "rnn_relu", "gru", "lstm", "lstm_proj"]


class Net(torch.nn.Module):
    """A row of modules and activations; ``names`` is what --layers says of it."""

    def __init__(self, inputs):
        super().__init__()
        self.size, self.inputs = inputs, inputs
        self.names, self.row, self.skip, self.nonlinearity = [], [], None, "tanh"

    def put(self, module, size, note=""):
        name = f"part{len(self.row)}"
        self.add_module(name, module)
        self.names.append(name + note)
        self.row.append(name)
        self.size = size
        return module

    def recurrent(self, cell, hidden, layers, bias):
        kind = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}[cell.split("_")[0]]
        options = {"proj_size": max(1, hidden // 2)} if cell == "lstm_proj" and hidden > 1 else {}
        if cell == "rnn_relu":
            self.nonlinearity = options["nonlinearity"] = "relu"
        module = getattr(torch.nn, kind)(
            self.size, hidden, layers, bias=bias, batch_first=True, **options
        )
        return self.put(module, options.get("proj_size", hidden))

    def linear(self, size, bias=True):
        self.put(torch.nn.Linear(self.size, size, bias=bias), size)

    def activation(self, kind):
        if kind in ABOVE_ZERO:
            self.activation("exp")
        if kind == "prelu":
            self.put(torch.nn.PReLU(self.size, 0.3), self.size)
            self.names[-1] = f"prelu:{self.row[-1]}"
            return
        self.names.append(f"{kind}:{SLOPES[kind]}" if kind in SLOPES else kind)
        self.row.append(FUNCTIONS[kind])

    def convolution(self, size, taps, dilation, groups=1):
        module = torch.nn.Conv1d(self.size, size, taps, dilation=dilation, groups=groups)
        self.put(module, size, f":{dilation}:{groups}")

    def norm(self, epsilon):
        module = torch.nn.LayerNorm(self.size, eps=epsilon)
        torch.nn.init.normal_(module.weight, 1, 0.3)
        torch.nn.init.normal_(module.bias, 0, 0.3)
        self.put(module, self.size, f":{epsilon}")

    def batch_norm(self):
        module = torch.nn.BatchNorm1d(self.size)
        for vector in (module.weight, module.bias, module.running_mean):
            torch.nn.init.normal_(vector, 0.5, 0.3)
        torch.nn.init.uniform_(module.running_var, 0.5, 2)
        self.put(module, self.size)

    def forward(self, x):
        value = x
        for part in self.row:
            module = getattr(self, part) if isinstance(part, str) else part
            if isinstance(module, torch.nn.RNNBase):
                value = module(value, self.first(part, module))[0]
            elif isinstance(module, torch.nn.Conv1d):
                late = (module.kernel_size[0] - 1) * module.dilation[0]
                value = module(F.pad(value.transpose(1, 2), (late, 0))).transpose(1, 2)
            elif isinstance(module, torch.nn.BatchNorm1d | torch.nn.PReLU):
                value = module(value.transpose(1, 2)).transpose(1, 2)
            else:
                value = module(value)
        return value if self.skip is None else value + self.skip * x[..., : self.size]

    def first(self, part, module):
        states = [getattr(self, f"{part}_{state}0", None) for state in "hc"]
        if states[0] is None:
            return None
        return states[0] if states[1] is None else tuple(states)

    def train_first(self, part):
        """Give a recurrent module a first state; return its tensors' names."""
        module, names = getattr(self, part), []
        for state, size in (
            ("h", module.proj_size or module.hidden_size),
            ("c", module.hidden_size),
        ):
            if state == "h" or isinstance(module, torch.nn.LSTM):
                names.append(f"{part}_{state}0")
                vector = torch.randn(module.num_layers, 1, size) * 0.5
                self.register_parameter(names[-1], torch.nn.Parameter(vector))
        return names


def draw_net(rng):
    """Draw everything that a row can have."""

    def odd(most):
        return int(rng.integers(0, most // 2)) * 2 + 1

    kinds = [kind for kind in LAYER_ACTIVATIONS if kind not in ("exp", "identity", *ABOVE_ZERO)]
    net = Net(odd(9))
    if rng.random() < 0.3:
        net.batch_norm()
    if rng.random() < 0.3:
        net.convolution(odd(9), int(rng.integers(1, 5)), int(rng.integers(1, 4)))
    if rng.random() < 0.4:
        net.linear(odd(13))
        net.activation(rng.choice(kinds))
    cells = rng.choice(CELLS, 1 + int(rng.random() < 0.3))
    if "rnn_relu" in cells:
        cells = np.array(["rnn_relu" if cell == "rnn" else cell for cell in cells])
    for cell in cells:
        net.recurrent(str(cell), odd(37), int(rng.integers(1, 4)), bool(rng.random() < 0.8))
        if rng.random() < 0.3:
            net.norm(float(rng.choice([1e-5, 1e-3])))
        if rng.random() < 0.3:
            net.activation(rng.choice(kinds))
        if rng.random() < 0.2:
            net.batch_norm()
    for _ in range(int(rng.integers(0, 3))):
        net.linear(odd(11), bool(rng.random() < 0.8))
        if rng.random() < 0.6:
            net.activation(rng.choice(kinds))
    if net.size <= net.inputs and rng.random() < 0.6:
        net.skip = float(rng.choice([1.0, -0.5]))
    return net
