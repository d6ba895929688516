"""Write the golden files of networks with feedback: what PyTorch answers, and its gradients.

The tests need the files and no framework; only this script needs PyTorch, in an environment of
its own::

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 numpy
    /tmp/golden/bin/python tests/golden/make_jordan.py

Every case becomes jordan/NAME.npz, computed in float64: parameters under our names, x [T, B, I],
target, y [T, B, O] behind the head's activation, and for both windows of the truncated
backpropagation ``loss``, ``grad1.NAME`` and ``grad2.NAME``. The second window starts from what the
first has ended with, detached. Parameters are float32 numbers. jordan.json describes the cases.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

NUM_STREAMS, NUM_INPUTS, NUM_OUTPUTS = 3, 2, 3
WINDOWS = (7, 5)
CELLS = {"rnn_tanh": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
ACTIVATIONS = {
    "mse": lambda z: z,
    "cross_entropy": lambda z: torch.softmax(z, dim=-1),
    "binary_cross_entropy": torch.sigmoid,
}
# Layers from the input to the output, feedback as `--feedback` takes it, loss.
CASES = {
    "jordan_rnn": ((("rnn_tanh", 4),), ("head",), "mse"),
    "jordan_gru": ((("gru", 4),), ("head",), "cross_entropy"),
    "jordan_lstm": ((("lstm", 4),), ("head",), "binary_cross_entropy"),
    "two_layers": ((("lstm", 4), ("gru", 3)), ("layer2",), "mse"),
    "both": ((("gru", 3), ("rnn_tanh", 4)), ("layer2", "head:layer2"), "cross_entropy"),
}


class Network(nn.Module):
    """Cells and a linear layer; some cells read an output of the step before."""

    def __init__(self, layers, feedback, loss):
        super().__init__()
        names = [*(f"layer{k + 1}" for k in range(len(layers))), "head"]
        sizes = dict(zip(names, [*(size for _, size in layers), NUM_OUTPUTS], strict=True))
        pairs = [text.split(":") if ":" in text else (text, "layer1") for text in feedback]
        self.extra = [[s for s, target in pairs if target == name] for name in names[:-1]]
        self.names, self.sizes, self.activation = names, sizes, ACTIVATIONS[loss]
        self.cells, num_inputs = nn.ModuleList(), NUM_INPUTS
        for (kind, size), extra in zip(layers, self.extra, strict=True):
            width = num_inputs + sum(sizes[source] for source in extra)
            self.cells.append(CELLS[kind](width, size, dtype=torch.float64))
            num_inputs = size
        self.head = nn.Linear(num_inputs, NUM_OUTPUTS, dtype=torch.float64)

    def forward(self, x, state):
        """Run a window x [T, B, I]; return z [T, B, O], y and the state: outputs and c's."""
        given, cs = state
        zs, ys = [], []
        for now in x:
            new, value = {}, now
            for k, (cell, extra) in enumerate(zip(self.cells, self.extra, strict=True)):
                name = self.names[k]
                read = torch.cat([value, *(given[source] for source in extra)], dim=1)
                if isinstance(cell, nn.LSTMCell):
                    new[name], cs[name] = cell(read, (given[name], cs[name]))
                else:
                    new[name] = cell(read, given[name])
                value = new[name]
            zs.append(self.head(value))
            new["head"] = self.activation(zs[-1])
            ys.append(new["head"])
            given = new
        return torch.stack(zs), torch.stack(ys), (given, cs)

    def initial_state(self):
        """Return zeros."""
        given, cs = (
            {name: torch.zeros(NUM_STREAMS, size, dtype=torch.float64) for name, size in items}
            for items in (self.sizes.items(), self.sizes.items())
        )
        return given, cs

    def our_names(self):
        """Return the parameters by our names."""
        ours = {f"head.{name}": value for name, value in self.head.named_parameters()}
        for k, cell in enumerate(self.cells):
            ours |= {f"{name}_l{k}": value for name, value in cell.named_parameters()}
        return ours


def loss_of(loss, z, y, target):
    """Return the mean loss, PyTorch's own."""
    if loss == "cross_entropy":
        return functional.cross_entropy(z.flatten(0, 1), target.long().flatten())
    if loss == "binary_cross_entropy":
        return functional.binary_cross_entropy_with_logits(z, target)
    return functional.mse_loss(y, target)


def draw_target(rng, loss, num_steps):
    """Draw classes, zeros and ones, or numbers."""
    shape = (num_steps, NUM_STREAMS)
    if loss == "cross_entropy":
        return rng.integers(0, NUM_OUTPUTS, (*shape, 1)).astype(float)
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, (*shape, NUM_OUTPUTS)).astype(float)
    return rng.normal(size=(*shape, NUM_OUTPUTS))


def answer(rng, layers, feedback, loss):
    """Return all arrays of a case."""
    network = Network(layers, feedback, loss)
    ours = network.our_names()
    for value in ours.values():
        drawn = rng.uniform(-0.9, 0.9, value.shape).astype(np.float32)
        value.data = torch.tensor(drawn, dtype=torch.float64)
    arrays = {name: value.detach().numpy().astype(np.float32) for name, value in ours.items()}
    x = rng.normal(size=(sum(WINDOWS), NUM_STREAMS, NUM_INPUTS)).astype(np.float32)
    target = draw_target(rng, loss, len(x))
    state, all_y, losses, start = network.initial_state(), [], [], 0
    for k, length in enumerate(WINDOWS):
        window = slice(start, start + length)
        network.zero_grad()
        z, y, state = network(torch.tensor(x[window], dtype=torch.float64), state)
        value = loss_of(loss, z, y, torch.tensor(target[window]))
        value.backward()
        losses.append(value.item())
        all_y.append(y.detach().numpy())
        arrays |= {f"grad{k + 1}.{name}": value.grad.numpy().copy() for name, value in ours.items()}
        state = tuple({name: s.detach() for name, s in part.items()} for part in state)
        start += length
    return arrays | {"x": x, "target": target, "y": np.concatenate(all_y), "loss": losses}


def main():
    """Write all files beside this script."""
    directory = Path(__file__).parent / "jordan"
    directory.mkdir(exist_ok=True)
    for k, (name, case) in enumerate(CASES.items()):
        np.savez(directory / f"{name}.npz", **answer(np.random.default_rng(3000 + k), *case))
    described = {
        name: {
            "layers": [f"{cell}:{size}" for cell, size in layers],
            "feedback": feedback,
            "loss": loss,
        }
        for name, (layers, feedback, loss) in CASES.items()
    }
    text = json.dumps(
        {"torch": torch.__version__, "windows": WINDOWS, "cases": described}, indent=2
    )
    (directory.parent / "jordan.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
