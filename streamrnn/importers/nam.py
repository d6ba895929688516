"""Neural Amp Modeler (``.nam``): an LSTM as one list of numbers.

For every layer, [W_ih W_hh] row by row (4 H rows of I + H; gates i, f, g, o as in PyTorch), one
bias of 4 H, h0 and c0; then the head's weights and its bias. Source: ``NAM/lstm.cpp`` of
https://github.com/sdatkinson/NeuralAmpModelerCore.
"""

from __future__ import annotations

from typing import Any

from streamrnn.errors import ModelFileError
from streamrnn.importers.build.model import build_model
from streamrnn.importers.json_text import array_of, whole
from streamrnn.importers.network import (
    Dense,
    ImportedModel,
    Names,
    Network,
    Recurrent,
    note_on_first_state,
    zeros,
)

__all__ = ["import_nam", "is_nam"]

_KNOWN = {"input_size", "hidden_size", "num_layers"}


def is_nam(value: dict[str, Any]) -> bool:
    """Whether a JSON object has the form of one."""
    return {"architecture", "config", "weights"} <= set(value)


def import_nam(
    path: str, value: dict[str, Any], names: Names, *, zero_state: bool = False
) -> ImportedModel:
    """Make a model of a parsed file.

    Parameters
    ----------
    path : str
        For messages.
    value : dict
        The file's JSON.
    names : Names
        Names for inputs and outputs.
    zero_state : bool
        Whether the first state that every such file has is left out.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If it is another architecture, or its numbers are not as many as it asks for.
    """
    architecture, config = value["architecture"], value["config"]
    if architecture != "LSTM":
        raise ModelFileError(
            f"{path} is a NAM model of architecture {str(architecture)[:60]!r}; of them only LSTM "
            "is recurrent (WaveNet and ConvNet need convolutions over time, which no model has)"
        )
    if not isinstance(config, dict) or set(config) != _KNOWN:
        keys = sorted(map(str, config))[:20] if isinstance(config, dict) else config
        raise ModelFileError(f"{path}: its config has {keys}; known are {sorted(_KNOWN)}")
    num_inputs, hidden, num_layers = (
        whole(config[key], f"{path}: {key}", 1, most)
        for key, most in (("input_size", 4096), ("hidden_size", 8192), ("num_layers", 16))
    )
    weights = array_of(value["weights"], f"{path}: weights")
    sizes = [
        4 * hidden * (columns + hidden) for columns in _columns(num_inputs, hidden, num_layers)
    ]
    wanted = sum(sizes) + num_layers * 6 * hidden + hidden + 1
    if weights.shape != (wanted,):
        raise ModelFileError(
            f"{path} has weights of shape {list(weights.shape)}; {num_layers} layers of {hidden} "
            f"units and a head ask for {wanted}"
        )
    version = str(value.get("version", ""))[:20]
    network = Network(path, f"Neural Amp Modeler {version}".strip())
    at = 0
    for k, columns in enumerate(_columns(num_inputs, hidden, num_layers)):
        matrix = weights[at : at + sizes[k]].reshape(4 * hidden, columns + hidden)
        at += sizes[k]
        bias, h0, c0 = (weights[at + a * hidden : at + b * hidden] for a, b in _PARTS)
        at += 6 * hidden
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
    head = weights[at:-1].reshape(1, hidden)
    origins = {"weight": "weights, the head's", "bias": "weights, the last"}
    network.layers.append(Dense("head", head, weights[-1:], origins))
    network.notes.append("players of NAM run half a second of silence through a network first")
    return build_model(network, names)


_PARTS = ((0, 4), (4, 5), (5, 6))  # bias, h0 and c0, in units of H


def _columns(num_inputs: int, hidden: int, num_layers: int) -> list[int]:
    return [num_inputs, *[hidden] * (num_layers - 1)]
