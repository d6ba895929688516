"""The long short-term memory with a forget gate, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.cells.activations import sigmoid

__all__ = ["lstm_step"]

Array = NDArray[np.float64]


def lstm_step(
    x: Array,
    h: Array,
    c: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
) -> tuple[Array, Array]:
    """Advance a layer by one time step.

    ::

        i  = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f  = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    Source: S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9
    (1997), 1735-1780, with the forget gate of F. A. Gers, J. Schmidhuber and F. Cummins,
    "Learning to forget: continual prediction with LSTM", Neural Computation 12 (2000),
    2451-2471; no peepholes; two biases, as in PyTorch's ``nn.LSTM``.

    Parameters
    ----------
    x : ndarray of float64, [B, I]
        Input of the layer.
    h, c : ndarray of float64, [B, H]
        Hidden and cell state after the previous step.
    weight_ih : ndarray of float64, [4*H, I]
        Input weights; row blocks i, f, g, o.
    weight_hh : ndarray of float64, [4*H, H]
        Recurrent weights; row blocks i, f, g, o.
    bias_ih, bias_hh : ndarray of float64, [4*H]
        Biases; blocks i, f, g, o.

    Returns
    -------
    h : ndarray of float64, [B, H]
        The new hidden state, which is also the layer's output.
    c : ndarray of float64, [B, H]
        The new cell state.
    """
    a = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    c = sigmoid(a_f) * c + sigmoid(a_i) * np.tanh(a_g)
    return sigmoid(a_o) * np.tanh(c), c
