"""A small weight file, and what loading a damaged one answers."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn import Model
from streamrnn.errors import ModelFileError
from tests.support.models import random_model


@pytest.fixture(scope="session")
def small_model():
    """Return a model whose metadata holds every kind of JSON value, in less than 3 KB."""
    model = random_model(
        np.random.default_rng(5),
        [("lstm", 2), ("gru", 2)],
        2,
        1,
        training={"größe": [1, 0.1, None, "x"], "seed": 3},
    )
    return Model(model.spec, model.parameters, {"compared_with": "ü.npy", "error": 1e-7})


@pytest.fixture(scope="module")
def good_bytes(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    small_model.save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def refusal(tmp_path_factory):
    """Return a function that writes bytes to a file, loads it, and returns the error's message."""
    path = tmp_path_factory.mktemp("bad") / "bad.safetensors"

    def refuse(data):
        path.write_bytes(data)
        with pytest.raises(ModelFileError) as caught:
            Model.load(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return refuse
