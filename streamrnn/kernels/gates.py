"""The gates of each cell as both devices compute them: sums a unit, their order, their factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DeviceError
from streamrnn.kernels.activations import IDENTITY, RELU, TANH
from streamrnn.model.spec import LayerSpec, ModelSpec

__all__ = [
    "DENSE",
    "GATE_FACTOR",
    "GATE_FORMS",
    "GRU",
    "LSTM",
    "SHAPES",
    "Shape",
    "gate_biases",
    "head_matrices",
    "is_staged",
    "layer_kind",
    "layer_matrices",
    "padded",
    "scaled_x_weights",
]

DENSE, GRU, LSTM = range(3)
GATE_FACTOR = -math.log2(math.e)  # of the weights of gates that end in a sigmoid
# A gate's sum is brought to the form that its function takes, by a factor and an addend: a sigmoid
# wants a power of two, a hard sigmoid is a clip of a x + b.
GATE_FORMS = {
    "sigmoid": (GATE_FACTOR, 0.0),
    "hard_sigmoid_fifth": (1.0 / 5.0, 0.5),
    "hard_sigmoid_sixth": (1.0 / 6.0, 0.5),
}
_UNIT_MULTIPLE = 16  # of every padded size, whatever the vector width: rows look alike everywhere


@dataclass(frozen=True)
class Shape:
    """The sums of one unit of a cell.

    Attributes
    ----------
    num_accumulators : int
        Sums a unit.
    x_gates, h_gates : tuple of int
        Which sum each row of weights for x, or for h, is added to.
    factors : tuple of float
        What the weights and biases of each sum are multiplied by.
    """

    num_accumulators: int
    x_gates: tuple[int, ...]
    h_gates: tuple[int, ...]
    factors: tuple[float, ...]


# GRU keeps the two halves of its candidate apart: the reset gate scales only the one from h.
SHAPES = {
    DENSE: Shape(1, (0,), (0,), (1.0,)),
    GRU: Shape(4, (0, 1, 2), (0, 1, 3), (GATE_FACTOR, GATE_FACTOR, 1.0, 1.0)),
    LSTM: Shape(4, (0, 1, 2, 3), (0, 1, 2, 3), (GATE_FACTOR, GATE_FACTOR, 1.0, GATE_FACTOR)),
}
_CELLS = {
    "rnn_tanh": (DENSE, TANH),
    "rnn_relu": (DENSE, RELU),
    "gru": (GRU, IDENTITY),
    "lstm": (LSTM, IDENTITY),
}


def padded(size: int) -> int:
    """Return the floats that a vector of ``size`` takes in a row: a multiple of 16."""
    return -(-size // _UNIT_MULTIPLE) * _UNIT_MULTIPLE


def is_staged(layer: LayerSpec) -> bool:
    """Return whether a layer takes the staged path, because no fused tile knows its form."""
    return not layer.is_plain


def layer_kind(layer: LayerSpec) -> tuple[int, int]:
    """Return the kind of a fused layer's tile, and the activation that follows it."""
    return _CELLS[layer.cell]


def scaled_x_weights(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]], index: int
) -> NDArray[np.float64]:
    """Return a layer's ``weight_ih``, with the inputs' scales folded into the first one's."""
    weights = parameters[f"weight_ih_l{index}"]
    if index or not spec.folds_input_scales:
        return weights
    return weights / spec.feature_scales


def layer_matrices(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]], index: int
) -> tuple[int, int, list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Return what a fused layer computes with, for any device to pack.

    Returns
    -------
    kind, activation : int
        Of the tile, and what follows it.
    biases : list of ndarray of float64, shape (H,)
        One for each accumulator.
    x_weights, h_weights : ndarray of float64, shape (G * H, I) and (G * H, H)
        The inputs' scales are folded into the first layer's ``x_weights``.

    Raises
    ------
    DeviceError
        If the layer has another form than PyTorch's.
    """
    layer = spec.layers[index]
    assert isinstance(layer, LayerSpec)
    if is_staged(layer):
        raise DeviceError(
            f'layer {index} is {layer.describe()}; this form runs on the CPU only, use device="cpu"'
        )
    kind, activation = layer_kind(layer)
    x_bias, h_bias = parameters[f"bias_ih_l{index}"], parameters[f"bias_hh_l{index}"]
    biases = gate_biases(kind, layer.hidden_size, x_bias, h_bias)
    x_weights = scaled_x_weights(spec, parameters, index)
    return kind, activation, biases, x_weights, parameters[f"weight_hh_l{index}"]


def head_matrices(
    spec: ModelSpec, parameters: Mapping[str, NDArray[np.float64]]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Return bias [O], weights [O, H_last] and empty h weights of a model's head.

    They are scaled where the outputs' scales are folded in.
    """
    scales = np.ones(spec.output_size)
    if spec.folds_output_scales:
        scales = np.array([output.scale for output in spec.outputs])
    weights = parameters["head.weight"] * scales[:, None]
    return [parameters["head.bias"] * scales], weights, np.zeros((spec.output_size, 0))


def gate_biases(
    kind: int, hidden_size: int, x_bias: NDArray[np.float64], h_bias: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return one bias for each accumulator of a tile."""
    if kind != GRU:
        return list((x_bias + h_bias).reshape(-1, hidden_size))
    x, h = x_bias.reshape(3, hidden_size), h_bias.reshape(3, hidden_size)
    return [x[0] + h[0], x[1] + h[1], x[2], h[2]]
