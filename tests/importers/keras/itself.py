"""What Keras makes and runs, beside what becomes of its file."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

from streamrnn.importers.source import import_file
from streamrnn.reference.model import ReferenceModel

__all__ = ["ACTIVATIONS", "MARKS", "STEPS", "L", "check", "framed", "keras", "row"]

os.environ.setdefault("KERAS_BACKEND", "torch")
if importlib.util.find_spec("keras") and importlib.util.find_spec("h5py"):
    import keras

    L = keras.layers
else:
    keras = L = None

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(keras is None, reason="the packages keras and h5py are not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]
STEPS = 200
RELATIVE = 1e-5  # of the outputs' scale
ACTIVATIONS = (
    *("linear", "tanh", "sigmoid", "softmax", "relu", "relu6", "leaky_relu", "elu", "selu"),
    *("silu", "gelu", "softplus", "softsign", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("exponential", "log_softmax", "celu", "log_sigmoid", "mish", "squareplus", "tanh_shrink"),
)


def filled(model, seed):
    """Give a model weights that no default has: biases and moving averages too."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" in variable.path:
            continue
        width = variable.shape[0] if len(variable.shape) > 1 else 4
        value = rng.standard_normal(variable.shape) * 0.7 / np.sqrt(width)
        if "variance" in variable.path or "gamma" in variable.path:
            value = np.abs(value) + 0.5
        variable.assign(value)
    return model


def inputs_for(model, rng):
    """Draw one stream; sequences of 200 steps where the length is free."""
    drawn = []
    for tensor in model.inputs:
        shape = (1, tensor.shape[1] or STEPS, *tensor.shape[2:])
        drawn.append((rng.standard_normal(shape) * 0.8).astype(np.float32))
    return drawn


def check(model, path, x=None, seed=0):
    """Compare what a model gives with what its file gives here."""
    filled(model, seed)
    x = inputs_for(model, np.random.default_rng(seed + 1)) if x is None else x
    wanted = model.predict(x if len(x) > 1 else x[0], verbose=0)
    wanted = wanted if isinstance(wanted, list) else [wanted]
    model.save(path)
    found = import_file(path)
    spec = found.model.spec
    rows = np.concatenate([item.reshape(item.shape[1], -1) for item in x], axis=1)
    got = ReferenceModel(found.model).steps(rows)
    is_last = wanted[0].size != wanted[0].shape[-1] * STEPS and wanted[0].ndim == 2
    sides = [
        np.asarray(item, np.float64).reshape(1 if is_last else len(rows), -1) for item in wanted
    ]
    expected = np.concatenate(sides, axis=1)
    if is_last:
        got = got[-1:]
    assert got.shape == expected.shape == (len(got), spec.output_size)
    assert np.isfinite(expected).all()
    assert np.abs(got - expected).max() <= RELATIVE * np.abs(expected).max()
    return found


def row(*layers, inputs=3):
    return keras.Sequential([L.Input((None, inputs)), *layers])


def framed(*layers, inputs=(9, 2)):
    return keras.Sequential([L.Input((STEPS, *inputs)), *layers])
