"""A row that the engine has computed goes on in the reference."""

import numpy as np
import pytest

from streamrnn.engine.sequences import Sequences
from streamrnn.errors import RecordError
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.spec import InputSpec, LayerSpec, OutputSpec
from streamrnn.reference.gates import run_gates
from streamrnn.state.reference_row import reference_state
from tests.support.models import (
    EVERY_KIND_OF_INPUT,
    random_graph,
    random_inputs,
    random_model,
)

TOKENS = (InputSpec("token", kind="token", num_categories=11, embedding_size=5),)
RESIDUAL = (OutputSpec("y", center=0.5, scale=2.0, difference_of="change"),)
MODELS = {
    "lstm stack": lambda rng: random_model(rng, [("lstm", 20), ("lstm", 7)]),
    "projection": lambda rng: random_model(rng, [LayerSpec("lstm", 12, projection_size=5)]),
    "first state": lambda rng: random_model(rng, [LayerSpec("gru", 12, first_state=True)]),
    "every input": lambda rng: random_model(rng, [("gru", 20)], EVERY_KIND_OF_INPUT, RESIDUAL),
    "tokens": lambda rng: random_model(rng, [("lstm", 9)], TOKENS),
    "masked": lambda rng: random_model(rng, [("lstm", 9)], mask_value=3.0),
    "memory": lambda rng: random_graph(
        (DenseSpec(4), MemorySpec(1), DenseSpec(3), LayerSpec("rnn_tanh", 5))
    ),
    "convolution": lambda rng: random_graph(
        (TimeConvSpec(4, kernel=3, dilation=2), LayerSpec("lstm", 5))
    ),
    "feedback": lambda rng: random_graph(
        (DenseSpec(3, reads=("input", "b[t-1]")), LayerSpec("gru", 4), DenseSpec(2, name="b"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_goes_on_from_any_step_of_the_engine(name):
    rng = np.random.default_rng(3)
    model = MODELS[name](rng)
    x = random_inputs(rng, model.spec, 1, 31)[0]
    sequences = Sequences(model, x)
    whole = sequences.run(np.array([0]), np.array([31]))
    for step in (0, 1, 2, 17):
        states = sequences.new_states(1)
        sequences.run(np.array([0]), np.array([step]), states)
        y, _ = run_gates(model, x[None, step:], reference_state(model.spec, states[0]))
        np.testing.assert_allclose(y[0], whole[step:], rtol=1e-4, atol=1e-5)


def test_a_row_of_another_model_is_refused():
    rng = np.random.default_rng(3)
    with pytest.raises(RecordError, match=r"16 numbers; the model's have 64"):
        reference_state(random_model(rng, [("lstm", 20)], 1).spec, np.zeros(16, np.float32))
