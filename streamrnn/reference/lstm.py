"""Long short-term memory with a forget gate and its published forms, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from streamrnn.reference.activations import sigmoid
from streamrnn.reference.norm import CellNorm, normalised

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
    *,
    gate: Callable[[Array], Array] = sigmoid,
    candidate: Callable[[Array], Array] = np.tanh,
    shown_as: Callable[[Array], Array] = np.tanh,
    weight_hr: Array | None = None,
    peepholes: tuple[Array, Array, Array] | None = None,
    norm: CellNorm | None = None,
    seen: dict[str, Array] | None = None,
) -> tuple[Array, Array]:
    """Advance an LSTM layer by one time step; return the new h, its output, and c.

    ::

        i  = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f  = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    Shapes: x [B, I], h [B, H] (with a projection [B, R]), c [B, H], weight_ih [4*H, I], weight_hh
    [4*H, H] (or [4*H, R]), biases [4*H]; row blocks i, f, g, o. ``gate`` stands in place of the
    sigmoid of i, f and o, ``candidate`` of g's tanh, ``shown_as`` of that of c'.

    Source: S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9
    (1997), 1735-1780, with the forget gate of F. A. Gers, J. Schmidhuber and F. Cummins,
    "Learning to forget: continual prediction with LSTM", Neural Computation 12 (2000),
    2451-2471; two biases, as in PyTorch's ``nn.LSTM``.

    With ``peepholes`` (w_ci, w_cf, w_co, each [H]) the gates see the cell state, o the new one::

        i = sigmoid(... + w_ci * c),  f = sigmoid(... + w_cf * c),  o = sigmoid(... + w_co * c')

    Source: F. A. Gers and J. Schmidhuber, "Recurrent nets that time and count", IJCNN 2000; the
    input P of ONNX's LSTM.

    With ``weight_hr`` [R, H] h is R wide, a projection: ``h' = W_hr (o * tanh(c'))``. Source: H.
    Sak, A. Senior and F. Beaufays, "Long short-term memory recurrent neural network architectures
    for large scale acoustic modeling", Interspeech 2014; ``proj_size`` of PyTorch's ``nn.LSTM``.

    With ``norm``, N being `normalised`, over the 4 H sums of all gates together, and a a gain::

        sums of i, f, g, o = a_ih N(W_ih x) + b_ih + a_hh N(W_hh h) + b_hh
        h'                 = o * tanh(a_c N(c') + b_c)

    and c' itself goes on as it is. Source: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer
    normalization", arXiv:1607.06450 (2016), the layer-normalised LSTM of the supplement, whose
    three constants beta_1, beta_2 and b are the two biases here.

    The gates and the candidate g are put into ``seen``, by their names.
    """
    a, b = x @ weight_ih.T, h @ weight_hh.T
    if norm is not None:
        a = norm.gain_ih * normalised(a, norm.epsilon)
        b = norm.gain_hh * normalised(b, norm.epsilon)
    a_i, a_f, a_g, a_o = np.split(a + bias_ih + b + bias_hh, 4, axis=1)
    w_ci, w_cf, w_co = np.zeros((3, 1)) if peepholes is None else peepholes
    f, i, g = gate(a_f + w_cf * c), gate(a_i + w_ci * c), candidate(a_g)
    c = f * c + i * g
    shown = c
    if norm is not None:
        shown = norm.gain_c * normalised(c, norm.epsilon) + norm.shift_c
    o = gate(a_o + w_co * c)
    m = o * shown_as(shown)
    if seen is not None:
        seen |= {"i": i, "f": f, "g": g, "o": o}
    return (m if weight_hr is None else m @ weight_hr.T), c
