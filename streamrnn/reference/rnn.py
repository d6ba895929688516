"""The simple recurrent network of Elman, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.reference.activations import relu

__all__ = ["rnn_step"]

Array = NDArray[np.float64]


def rnn_step(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
    nonlinearity: str,
) -> Array:
    """Advance a simple recurrent layer by one time step; return the new h, its output.

    ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``

    Shapes: x [B, I], h [B, H], weight_ih [H, I], weight_hh [H, H], biases [H].

    Source: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990), 179-211;
    with two biases, and f = tanh or ReLU, as in PyTorch's ``nn.RNN``.
    """
    a = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
    return relu(a) if nonlinearity == "relu" else np.tanh(a)
