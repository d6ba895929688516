"""PyTorch state dicts, made without it."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(7)


def draw(*shape):
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def recurrent(prefix="rnn.", gates=4, inputs=3, hidden=5, suffix="_l0"):
    return {
        f"{prefix}weight_ih{suffix}": draw(gates * hidden, inputs),
        f"{prefix}weight_hh{suffix}": draw(gates * hidden, hidden),
        f"{prefix}bias_ih{suffix}": draw(gates * hidden),
        f"{prefix}bias_hh{suffix}": draw(gates * hidden),
    }


def linear(name="fc", outputs=2, inputs=5):
    return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs)}
