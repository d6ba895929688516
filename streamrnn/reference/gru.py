"""The gated recurrent unit and its published forms, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from streamrnn.reference.activations import sigmoid
from streamrnn.reference.norm import CellNorm, normalised

__all__ = ["gru_step"]

Array = NDArray[np.float64]


def gru_step(
    x: Array,
    h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array,
    bias_hh: Array,
    *,
    gate: Callable[[Array], Array] = sigmoid,
    candidate: Callable[[Array], Array] = np.tanh,
    reset_after: bool = True,
    norm: CellNorm | None = None,
    seen: dict[str, Array] | None = None,
) -> Array:
    """Advance a GRU layer by one time step; return the new h, its output.

    ::

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Shapes: x [B, I], h [B, H], weight_ih [3*H, I], weight_hh [3*H, H], biases [3*H]; row blocks
    r, z, n. ``gate`` stands in place of the sigmoid of r and z, ``candidate`` of n's tanh.

    Source: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation", EMNLP 2014, equations 5 to 8. This is the variant of
    PyTorch's ``nn.GRU`` (and of cuDNN): the reset gate multiplies ``W_hn h + b_hn`` *after* the
    product, with its bias inside, where Cho et al. multiply h before it. Theirs is
    ``reset_after=False`` (Keras has the same name for it, ONNX ``linear_before_reset=0``)::

        n  = tanh(W_in x + b_in + W_hn (r * h) + b_hn)

    With ``norm`` (only with ``reset_after``), N being `normalised` over all units of all gates that
    it is applied to, and a a gain::

        (r, z) = sigmoid(a_ih N((W_ir, W_iz) x) + b_ih + a_hh N((W_hr, W_hz) h) + b_hh)
        n      = tanh(a_in N(W_in x) + b_in + r * (a_hn N(W_hn h) + b_hn))

    Source: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450 (2016),
    the layer-normalised GRU of the supplement. r and z are normalised together, n by itself. The
    new h is as above, as in the authors' program; the paper's text exchanges z and 1 - z.

    The gates and the candidate n are put into ``seen``, by their names.
    """
    a, b = x @ weight_ih.T, h @ weight_hh.T
    if norm is not None:
        a = norm.gain_ih * _normalised_by_part(a, norm.epsilon)
        b = norm.gain_hh * _normalised_by_part(b, norm.epsilon)
    a_r, a_z, a_n = np.split(a + bias_ih, 3, axis=1)
    b_r, b_z, b_n = np.split(b + bias_hh, 3, axis=1)
    r = gate(a_r + b_r)
    z = gate(a_z + b_z)
    if reset_after:
        n = candidate(a_n + r * b_n)
    else:
        weight_hn, bias_hn = np.split(weight_hh, 3)[2], np.split(bias_hh, 3)[2]
        n = candidate(a_n + (r * h) @ weight_hn.T + bias_hn)
    if seen is not None:
        seen |= {"r": r, "z": z, "n": n}
    return (1.0 - z) * n + z * h


def _normalised_by_part(a: Array, epsilon: float) -> Array:
    """Normalise the blocks r and z together, and n by itself."""
    num_gate_rows = 2 * a.shape[1] // 3
    parts = (a[:, :num_gate_rows], a[:, num_gate_rows:])
    return np.concatenate([normalised(part, epsilon) for part in parts], axis=1)
