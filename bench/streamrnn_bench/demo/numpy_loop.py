"""Plain NumPy loop for the same network, as written without StreamRNN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.model.model import Model

__all__ = ["NumpyLoop"]

Floats = NDArray[np.float32]


class NumpyLoop:
    """LSTM layers and a linear head for B streams in lockstep, in float32.

    Inputs are numeric, and may be differenced or hold their last value over missing ones; a
    `ModelError` for any other model. No code is shared with the kernels, so each checks the other.
    """

    def __init__(self, model: Model, num_streams: int) -> None:
        spec = model.spec
        if not (
            all(item.kind == "numeric" and item.missing != "mask" for item in spec.inputs)
            and all(layer.cell == "lstm" for layer in spec.chain)
            and spec.head is not None
            and spec.head.activation == "identity"
        ):
            raise ModelError("the NumPy loop knows numeric inputs, LSTM layers and a linear head")
        parameters = model.parameters
        self.weights = [
            np.hstack([parameters[f"weight_ih_l{k}"], parameters[f"weight_hh_l{k}"]]).T.copy()
            for k in range(len(spec.layers))
        ]
        self.biases = [
            parameters[f"bias_ih_l{k}"] + parameters[f"bias_hh_l{k}"]
            for k in range(len(spec.layers))
        ]
        self.head = parameters["head.weight"].T.copy(), parameters["head.bias"]
        self.center = np.array([item.center for item in spec.inputs], np.float32)
        self.scale = np.array([item.scale for item in spec.inputs], np.float32)
        self.fill = np.array([item.fill for item in spec.inputs], np.float32)
        self.starts_known = np.array([item.starts_known for item in spec.inputs])
        self.is_change = np.array([item.difference for item in spec.inputs])
        self.out_center = np.array([item.center for item in spec.outputs], np.float32)
        self.out_scale = np.array([item.scale for item in spec.outputs], np.float32)
        names = [item.name for item in spec.inputs]
        self.added = [
            (o, names.index(item.difference_of))
            for o, item in enumerate(spec.outputs)
            if item.difference_of is not None
        ]
        self.last = np.full((num_streams, len(names)), np.nan, np.float32)
        self.hidden: list[Floats] = [
            np.zeros((num_streams, n.hidden_size), np.float32) for n in spec.chain
        ]
        self.cells: list[Floats] = [np.zeros_like(h) for h in self.hidden]

    def step(self, x: Floats) -> Floats:
        """Advance all streams by x [B, num_inputs], NaN where missing; return y [B, O]."""
        known = np.where(np.isnan(self.last), self.fill, self.last)
        value = np.where(np.isnan(x), known, x)
        change = np.where(np.isnan(self.last), np.float32(0), value - self.last)
        is_none = self.starts_known & np.isnan(x) & np.isnan(self.last)
        self.last = np.where(is_none, np.float32(np.nan), value)
        z: Floats = (np.where(self.is_change, change, value) - self.center) / self.scale
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            gates = np.concatenate([z, self.hidden[k]], axis=1) @ weight + bias
            i, f, g, o = np.split(gates, 4, axis=1)
            self.cells[k] = _sigmoid(f) * self.cells[k] + _sigmoid(i) * np.tanh(g)
            z = self.hidden[k] = _sigmoid(o) * np.tanh(self.cells[k])
        weight, bias = self.head
        y: Floats = (z @ weight + bias) * self.out_scale + self.out_center
        for output, column in self.added:
            y[:, output] += value[:, column]
        return y


def _sigmoid(a: Floats) -> Floats:
    return np.float32(1) / (np.float32(1) + np.exp(-a))
