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
    """Advance a layer by one time step.

    ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``

    Source: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990), 179-211;
    with two biases, and f = tanh or ReLU, as in PyTorch's ``nn.RNN``.

    Parameters
    ----------
    x : ndarray of float64, [B, I]
        Input of the layer.
    h : ndarray of float64, [B, H]
        Hidden state after the previous step.
    weight_ih : ndarray of float64, [H, I]
        Input weights.
    weight_hh : ndarray of float64, [H, H]
        Recurrent weights.
    bias_ih, bias_hh : ndarray of float64, [H]
        Biases.
    nonlinearity : str
        ``tanh`` or ``relu``.

    Returns
    -------
    ndarray of float64, [B, H]
        The new hidden state, which is also the layer's output.
    """
    a = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
    return relu(a) if nonlinearity == "relu" else np.tanh(a)
