"""The gated recurrent unit, in PyTorch's form, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.cells.activations import sigmoid

__all__ = ["gru_step"]

Array = NDArray[np.float64]


def gru_step(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
) -> Array:
    """Advance a layer by one time step.

    ::

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Source: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation", EMNLP 2014, equations 5 to 8. This is the variant of
    PyTorch's ``nn.GRU`` (and of cuDNN): the reset gate multiplies ``W_hn h + b_hn`` *after* the
    product, with its bias inside, where Cho et al. multiply h before it.

    Parameters
    ----------
    x : ndarray of float64, [B, I]
        Input of the layer.
    h : ndarray of float64, [B, H]
        Hidden state after the previous step.
    weight_ih : ndarray of float64, [3*H, I]
        Input weights; row blocks r, z, n.
    weight_hh : ndarray of float64, [3*H, H]
        Recurrent weights; row blocks r, z, n.
    bias_ih, bias_hh : ndarray of float64, [3*H]
        Biases; blocks r, z, n.

    Returns
    -------
    ndarray of float64, [B, H]
        The new hidden state, which is also the layer's output.
    """
    a_r, a_z, a_n = np.split(x @ weight_ih.T + bias_ih, 3, axis=1)
    b_r, b_z, b_n = np.split(h @ weight_hh.T + bias_hh, 3, axis=1)
    r = sigmoid(a_r + b_r)
    z = sigmoid(a_z + b_z)
    n = np.tanh(a_n + r * b_n)
    return (1.0 - z) * n + z * h
