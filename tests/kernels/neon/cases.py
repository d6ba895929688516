"""Models and inputs that `test_neon` steps, on ARM and on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec
from tests.support.forms import FORMS, form_of
from tests.support.models import random_inputs, random_model

__all__ = ["CASES", "IN_BLOCKS", "NUM_STEPS", "NUM_STREAMS", "model_of"]

NUM_STREAMS, NUM_STEPS = 9, 6  # a tile of five rows and one of four; one of six, and single rows
CASES: dict[str, Sequence[tuple[str, int] | LayerSpec]] = {
    "lstm": [("lstm", 37), ("lstm", 20)],
    "gru": [("gru", 37), ("gru", 20)],
    "gru in blocks": [("gru", 37), ("lstm", 70)],
    "rnn": [("rnn_tanh", 19), ("rnn_relu", 33)],
    **{name: [form_of(name, 21)] for name in FORMS},
}
IN_BLOCKS = {"gru in blocks": 512}  # whose weights are covered in blocks, of so many bytes


def model_of(case: str) -> tuple[Model, NDArray[np.float32]]:
    """Return a model, and inputs [streams, steps, inputs], the same at every call."""
    rng = np.random.default_rng(5)
    model = random_model(rng, CASES[case], inputs=5, head="softmax", outputs=9)
    return model, random_inputs(rng, model.spec, NUM_STREAMS, NUM_STEPS)
