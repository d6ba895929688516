"""NAM's ConvNet: causal convolutions over steps in a row.

For every dilation a convolution of two taps [C, I / groups, 2], its bias, or a batch normalisation
(mean, variance, weight, bias, epsilon) in its place; then the head's [O, C] and its bias. Source:
``NAM/convnet.cpp`` of https://github.com/sdatkinson/NeuralAmpModelerCore.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamrnn.errors import ModelFileError
from streamrnn.importers.json_text import whole
from streamrnn.importers.nam.weights import (
    MAX_CHANNELS,
    Weights,
    activation_of,
    refuse_keys,
    wholes,
)
from streamrnn.importers.network import Dense, FrameLayer, Network, Scale, zeros
from streamrnn.model.layers.memory import TimeConvSpec

__all__ = ["read_convnet"]

_KNOWN = {
    *("channels", "dilations", "batchnorm", "activation", "groups", "in_channels", "out_channels"),
}
_TAPS = 2


def read_convnet(network: Network, config: dict[str, Any], weights: Weights) -> None:
    """Append the layers of one."""
    path = network.path
    refuse_keys(network, "its config", config, _KNOWN)
    channels, groups, num_inputs, num_outputs = (
        whole(config.get(key, default), f"{path}: {key}", 1, MAX_CHANNELS)
        for key, default in (
            *(("channels", None), ("groups", 1)),
            *(("in_channels", 1), ("out_channels", 1)),
        )
    )
    has_norm = config.get("batchnorm")
    if not isinstance(has_norm, bool):
        raise ModelFileError(f"{path}: batchnorm is {str(has_norm)[:40]}; expected true or false")
    if channels % groups or num_inputs % groups:
        raise ModelFileError(f"{path}: {num_inputs} and {channels} channels in {groups} groups")
    network.num_inputs = size = num_inputs
    for k, dilation in enumerate(wholes(config.get("dilations"), f"{path}: dilations", 1 << 16)):
        name = f"block {k}"
        weight = weights.take(channels, size // groups, _TAPS)
        bias = zeros(channels) if has_norm else weights.take(channels)
        origins = {"weight": f"weights, {name}"} | (
            {} if has_norm else {"bias": f"weights, {name}"}
        )
        spec = TimeConvSpec(channels, _TAPS, dilation, groups)
        network.layers.append(FrameLayer(name, spec, {"weight": weight, "bias": bias}, origins))
        if has_norm:
            mean, variance, gain, shift = weights.take(4, channels).astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):  # the model refuses the NaN
                gain = gain / np.sqrt(variance + float(weights.take(1)[0]))
            network.layers.append(Scale(f"{name}, batch norm", gain, shift - gain * mean))
        activation = activation_of(
            network, config.get("activation"), channels, f"{name}, activation", name
        )
        if activation is not None:
            network.layers.append(activation)
        size = channels
    head = weights.take(num_outputs, channels)
    origins = {"weight": "weights, the head's", "bias": "weights, the last"}
    network.layers.append(Dense("head", head, weights.take(num_outputs), origins))
