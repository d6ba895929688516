"""Layers of Keras that need no file, for tests."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.importers.keras import network
from streamrnn.importers.keras.files import KerasFile
from streamrnn.importers.keras.hdf5 import Hdf5Contents
from streamrnn.importers.network import Names
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.keras import by_place, layer, sequential

RNG = np.random.default_rng(11)
X = RNG.standard_normal((12, 3)).astype(np.float32)
WIDE = X.astype(np.float64)
FRAMES = RNG.standard_normal((5, 8, 2)).astype(np.float32)
FLOAT32 = 3e-7  # what folding and rounding of a parameter cost, of the outputs' scale


@pytest.fixture
def importing(monkeypatch):
    """Import layers without the way through a file, which a process of its own reads."""

    def run(layers, config=None, version="3.15.1"):
        contents = Hdf5Contents(by_place=by_place(layers))
        file = KerasFile("m", config or sequential(layers), version, contents)
        monkeypatch.setattr(network, "read_keras_file", lambda path: file)
        return network.import_keras("m", Names())

    return run


def answers(found, x=X):
    return ReferenceModel(found.model).steps(np.reshape(x, (len(x), -1)))


def close(got, wanted, most=FLOAT32):
    wanted = np.reshape(wanted, (len(wanted), -1))
    return got.shape == wanted.shape and np.abs(got - wanted).max() <= most * np.abs(wanted).max()


def product(made, x):
    kernel, *bias = (a.astype(np.float64) for a in made[2])
    return x @ kernel + (bias[0] if bias else 0)


def shaped(size=3, **more):
    return layer("InputLayer", batch_shape=[None, None, size], **more)
