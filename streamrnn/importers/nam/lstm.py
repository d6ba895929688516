"""NAM's LSTM.

For every layer, [W_ih W_hh] row by row (4 H rows of I + H; gates i, f, g, o as in PyTorch), one
bias of 4 H, h0 and c0; then the head's weights and its bias. Source: ``NAM/lstm.cpp`` of
https://github.com/sdatkinson/NeuralAmpModelerCore.
"""

from __future__ import annotations

from typing import Any

from streamrnn.errors import ModelFileError
from streamrnn.importers.json_text import whole
from streamrnn.importers.nam.weights import Weights
from streamrnn.importers.network import (
    Dense,
    Network,
    Recurrent,
    note_on_first_state,
    zeros,
)

__all__ = ["read_lstm"]

_KNOWN = {"input_size", "hidden_size", "num_layers"}


def read_lstm(
    network: Network, config: dict[str, Any], weights: Weights, *, zero_state: bool = False
) -> None:
    """Append the layers of one; ``zero_state`` leaves the first state out, which all have."""
    path = network.path
    if set(config) != _KNOWN:
        keys = sorted(map(str, config))[:20]
        raise ModelFileError(f"{path}: its config has {keys}; known are {sorted(_KNOWN)}")
    num_inputs, hidden, num_layers = (
        whole(config[key], f"{path}: {key}", 1, most)
        for key, most in (("input_size", 4096), ("hidden_size", 8192), ("num_layers", 16))
    )
    for k, columns in enumerate([num_inputs, *[hidden] * (num_layers - 1)]):
        matrix = weights.take(4 * hidden, columns + hidden)
        bias, h0, c0 = weights.take(4 * hidden), weights.take(hidden), weights.take(hidden)
        name = f"layer {k}"
        origins = {
            "weight_ih": f"weights, W of {name}, columns of x",
            "weight_hh": f"weights, W of {name}, columns of h",
            "bias_ih": f"weights, b of {name}",
        }
        has_first = h0.any() or c0.any()
        if has_first and zero_state:
            network.notes.append(note_on_first_state(f"of {name}"))
        if has_first:
            origins |= {"first_h": f"weights, h0 of {name}", "first_c": f"weights, c0 of {name}"}
        network.layers.append(
            Recurrent(
                name,
                "lstm",
                matrix[:, :columns],
                matrix[:, columns:],
                bias,
                zeros(4 * hidden),
                origins,
                first=(h0, c0) if has_first and not zero_state else (),
            )
        )
    head = weights.take(1, hidden)
    origins = {"weight": "weights, the head's", "bias": "weights, the last"}
    network.layers.append(Dense("head", head, weights.take(1), origins))
