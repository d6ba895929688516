"""Write the golden files: what PyTorch itself answers.

The tests need the files and no framework; only this script needs PyTorch, in an environment of
its own::

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.13.0 numpy safetensors
    /tmp/golden/bin/python tests/golden/make_golden.py

Every case becomes NAME.safetensors, the state dict under the names that PyTorch gives it, and
NAME.npz with x, y_float64 (the stored weights, computed in float64) and y_float32 (in float32).
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

NUM_STREAMS, NUM_STEPS = 2, 40


class Network(nn.Module):
    """An optional embedding, a recurrent network, an optional linear layer and activation."""

    def __init__(self, rnn, head=None, embedding=None, activation=None):
        super().__init__()
        if embedding is not None:
            self.embed = embedding
        self.rnn = rnn
        if head is not None:
            self.fc = head
        self.activation = activation

    def forward(self, x):
        if hasattr(self, "embed"):
            x = self.embed(x)
        y, _ = self.rnn(x)
        if hasattr(self, "fc"):
            y = self.fc(y)
        return y if self.activation is None else self.activation(y)


class Wrapped(nn.Module):
    """The same one level deeper, as trainers and wrappers leave it."""

    def __init__(self, network):
        super().__init__()
        self.module = network

    def forward(self, x):
        return self.module(x)


class Bare(nn.Module):
    """Only the recurrent network, so that the names have no prefix."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]

    def state_dict(self, **options):
        return self.rnn.state_dict(**options)


def cases():
    """List (name, module, options of the importer, number of token ids or None)."""
    options = {"batch_first": True}
    yield "rnn_tanh", Bare(nn.RNN(3, 8, **options)), {}, None
    yield (
        "rnn_relu_2_linear",
        Network(nn.RNN(4, 7, 2, nonlinearity="relu", **options), nn.Linear(7, 3)),
        {"nonlinearity": "relu"},
        None,
    )
    yield "gru", Bare(nn.GRU(5, 6, **options)), {}, None
    yield (
        "gru_3_linear",
        Wrapped(Network(nn.GRU(3, 9, 3, **options), nn.Linear(9, 2))),
        {},
        None,
    )
    yield "lstm", Bare(nn.LSTM(4, 8, **options)), {}, None
    yield (
        "lstm_2_linear",
        Network(nn.LSTM(6, 10, 2, **options), nn.Linear(10, 4)),
        {},
        None,
    )
    yield (
        "lstm_no_bias_tanh",
        Network(
            nn.LSTM(2, 5, bias=False, **options), nn.Linear(5, 2, bias=False), activation=torch.tanh
        ),
        {"activation": "tanh"},
        None,
    )
    yield (
        "gru_no_bias_2_sigmoid",
        Network(nn.GRU(3, 4, 2, bias=False, **options), nn.Linear(4, 1), activation=torch.sigmoid),
        {"activation": "sigmoid"},
        None,
    )
    yield (
        "token_lstm_softmax",
        # E == H, and V == O: only the biases tell the embedding from the linear layer.
        Network(
            nn.LSTM(8, 8, **options), nn.Linear(8, 11), nn.Embedding(11, 8), nn.Softmax(dim=-1)
        ),
        {"activation": "softmax"},
        11,
    )
    yield (
        "lstm_bfloat16",
        Network(nn.LSTM(3, 6, **options), nn.Linear(6, 2)).bfloat16(),
        {},
        None,
    )
    yield "gru_float16", Network(nn.GRU(3, 6, **options), nn.Linear(6, 2)).half(), {}, None
    yield "rnn_float64", Network(nn.RNN(3, 6, **options), nn.Linear(6, 2)).double(), {}, None
    yield "lstm_projected", Bare(nn.LSTM(4, 9, proj_size=3, **options)), {}, None
    yield (
        "lstm_projected_2_linear",
        Network(nn.LSTM(5, 8, 2, proj_size=4, bias=False, **options), nn.Linear(4, 2)),
        {},
        None,
    )


def main():
    """Write all files beside this script, and cases.json with the importer's options."""
    here = Path(__file__).parent
    options_of = {}
    for k, (name, module, options, num_tokens) in enumerate(cases()):
        generator = torch.Generator().manual_seed(1000 + k)
        with torch.no_grad():
            for parameter in module.parameters():
                size = parameter.shape[-1]
                values = torch.rand(parameter.shape, generator=generator) * 2 - 1
                parameter.copy_(values * size**-0.5)
            if num_tokens is None:
                # Wider than training data would be, so that gates also saturate.
                x = (
                    torch.randn(NUM_STREAMS, NUM_STEPS, _num_inputs(module), generator=generator)
                    * 2
                )
            else:
                x = torch.randint(num_tokens, (NUM_STREAMS, NUM_STEPS), generator=generator)
            # The importer keeps float32: what float64 weights lose there is none of our errors.
            rounded = copy.deepcopy(module).float()
            y_float32 = rounded(x)
            y_float64 = copy.deepcopy(rounded).double()(x if num_tokens else x.double())
        save_file(
            {key: value.contiguous() for key, value in module.state_dict().items()},
            here / f"{name}.safetensors",
        )
        np.savez(
            here / f"{name}.npz",
            x=x.numpy().astype(np.uint32)[..., None] if num_tokens else x.numpy(),
            y_float32=y_float32.numpy(),
            y_float64=y_float64.numpy(),
        )
        options_of[name] = options
    text = json.dumps({"torch": torch.__version__, "cases": options_of}, indent=2)
    (here / "cases.json").write_text(text + "\n")


def _num_inputs(module):
    return next(m for m in module.modules() if isinstance(m, nn.RNNBase)).input_size


if __name__ == "__main__":
    main()
