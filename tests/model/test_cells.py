"""The float64 reference against PyTorch's recorded outputs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from streamrnn.errors import InputError
from streamrnn.importers.torch import TorchOptions, import_torch
from streamrnn.model.model import Model
from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import ACTIVATIONS, HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.activations import ACTIVATIONS as FUNCTIONS
from streamrnn.reference.activations import relu, sigmoid, softmax
from streamrnn.reference.model import ReferenceModel
from tests.support.models import EVERY_KIND_OF_INPUT, random_inputs, random_model
from tests.tolerances import REFERENCE_FLOAT32, REFERENCE_FLOAT64

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
NAN = math.nan


@pytest.mark.parametrize("case", CASES)
def test_the_reference_agrees_with_pytorch(case):
    model = import_torch(GOLDEN / f"{case}.safetensors", TorchOptions(**CASES[case])).model
    with np.load(GOLDEN / f"{case}.npz") as golden:
        y = ReferenceModel(model).steps(golden["x"])
        assert np.abs(y - golden["y_float64"]).max() <= REFERENCE_FLOAT64
        assert np.abs(y - golden["y_float32"]).max() <= REFERENCE_FLOAT32
        assert y.std() > 1e-3, "outputs that are all alike would prove nothing"


def test_every_cell_and_activation_has_a_golden_case():
    models = [
        import_torch(GOLDEN / f"{case}.safetensors", TorchOptions(**options)).model
        for case, options in CASES.items()
    ]
    assert {layer.cell for m in models for layer in m.spec.chain} == {
        "rnn_tanh",
        "rnn_relu",
        "gru",
        "lstm",
    }
    assert {m.spec.head.activation for m in models if m.spec.head} == set(ACTIVATIONS)
    assert {len(m.spec.chain) for m in models} >= {1, 2, 3}
    assert {bool(m.spec.chain[-1].projection_size) for m in models} == {False, True}


# --- activations -------------------------------------------------------------------------------


def test_activations_neither_overflow_nor_swallow_nan():
    x = np.array([[-1e4, -745.0, 0.0, 745.0, 1e4]])
    assert sigmoid(x).tolist()[0] == [0.0, pytest.approx(math.exp(-745)), 0.5, 1.0, 1.0]
    assert softmax(x).tolist() == [[0, 0, 0, 0, 1]]
    assert relu(x).tolist() == [[0, 0, 0, 745, 1e4]]
    for name, activation in FUNCTIONS.items():
        assert np.isnan(activation(np.array([[NAN]]))).all(), name
    assert np.isnan(relu(np.array([NAN]))).all()


def test_softmax_is_one_distribution_a_row(rng):
    y = softmax(rng.standard_normal((5, 7)))
    assert np.allclose(y.sum(axis=1), 1, rtol=0, atol=1e-15)
    scores = np.log([1.0, 2.0, 5.0])
    assert softmax(scores + 3) == pytest.approx([0.125, 0.25, 0.625])


# --- transforms --------------------------------------------------------------------------------


def _features(item, values):
    """Return what one input becomes: the features of every step, through the whole model.

    A relu layer without recurrence whose rows are +1 and -1 for every feature, and a head that
    subtracts them, hands the features through unchanged.
    """
    size = item.num_features
    spec = ModelSpec(
        inputs=(item,),
        layers=(LayerSpec("rnn_relu", 2 * size),),
        outputs=tuple(OutputSpec(f"y{o}") for o in range(size)),
        head=HeadSpec(),
    )
    parameters = {name: np.zeros(s, np.float32) for name, s in parameter_shapes(spec).items()}
    parameters["weight_ih_l0"][:] = np.vstack([np.eye(size), -np.eye(size)])
    parameters["head.weight"][:] = np.hstack([np.eye(size), -np.eye(size)])
    if item.embedding_size:
        rows = np.arange(item.num_categories * size).reshape(item.num_categories, size)
        parameters[f"embedding.{item.name}.weight"][:] = rows
    dtype = np.uint32 if item.kind == "token" else np.float32
    x = np.array(values, dtype).reshape(-1, 1)
    return ReferenceModel(Model(spec, parameters)).steps(x).tolist()


@pytest.mark.parametrize(
    ("options", "values", "features"),
    [
        ({}, [1, 5], [[1], [5]]),
        ({"center": 1, "scale": 2}, [1, 5], [[0], [2]]),
        # The first difference is 0, for there is nothing to differ from.
        ({"difference": True}, [7, 9, 8], [[0], [2], [-1]]),
        ({"difference": True, "center": 1, "scale": 0.5}, [7, 9, 8], [[-2], [2], [-4]]),
        ({"missing": "hold", "fill": 3}, [NAN, 5, NAN, NAN, 6], [[3], [5], [5], [5], [6]]),
        ({"missing": "hold", "fill": 3, "center": 1, "scale": 2}, [NAN, 5], [[1], [2]]),
        # What was filled in is remembered, as if it had come.
        (
            {"missing": "hold", "fill": 3, "difference": True},
            [NAN, 5, NAN, 8],
            [[0], [2], [0], [3]],
        ),
        ({"missing": "mean", "fill": 3, "center": 1}, [NAN, 5, NAN], [[2], [4], [2]]),
        # Only the value is scaled, not the feature that tells that it is missing.
        (
            {"missing": "mask", "fill": 3, "center": 1, "scale": 4},
            [5, NAN, 9],
            [[1, 0], [0.5, 1], [2, 0]],
        ),
        (
            {"missing": "mask", "fill": 3, "difference": True},
            [NAN, 5, NAN, 9],
            [[0, 1], [2, 0], [0, 1], [4, 0]],
        ),
        ({"kind": "categorical", "num_categories": 3}, [2, 0], [[0, 0, 1], [1, 0, 0]]),
        (
            {"kind": "categorical", "num_categories": 3, "embedding_size": 2},
            [2, 0],
            [[4, 5], [0, 1]],
        ),
        ({"kind": "token", "num_categories": 3, "embedding_size": 2}, [1, 2], [[2, 3], [4, 5]]),
    ],
)
def test_an_input_becomes_its_features(options, values, features):
    assert _features(InputSpec("a", **options), values) == features


def test_features_stand_in_the_order_of_the_inputs(rng):
    model = random_model(rng, [("rnn_tanh", 5)], EVERY_KIND_OF_INPUT, head=None)
    assert model.parameters["weight_ih_l0"].shape == (5, 5 + 2 + 2 + 3 + 4 + 1 + 2)
    x = random_inputs(rng, model.spec, 1, 1, missing_share=1.0)
    y = ReferenceModel(model).steps(x)[0, 0]
    colour, place = int(x[0, 0, 7]), int(x[0, 0, 8])
    plain = (float(x[0, 0, 0]) - 0.5) / 2.0
    features = [plain, -0.1 / 0.5, 0.75 / 1.5, -0.75, 0.5 / 3.0, 1, 0, 0, 1]
    features[1] = (0 - float(np.float32(0.1))) / 0.5
    features += np.eye(3)[colour].tolist()
    features += model.parameters["embedding.place.weight"][place].tolist()
    features += [0, -float(np.float32(0.2)), 1]
    p = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    expected = np.tanh(p["weight_ih_l0"] @ features + p["bias_ih_l0"] + p["bias_hh_l0"])
    assert y == pytest.approx(expected, abs=REFERENCE_FLOAT64)


def test_outputs_are_scaled_and_added_to_the_level_of_their_input(rng):
    inputs = [
        InputSpec("a"),
        InputSpec("b", difference=True, missing="hold", fill=2.0, center=0.25, scale=0.5),
    ]
    plain = [OutputSpec("p"), OutputSpec("q")]
    dressed = [
        OutputSpec("p", scale=3.0, center=-1.0),
        OutputSpec("q", scale=0.5, center=0.25, difference_of="b"),
    ]
    model = random_model(rng, inputs=inputs, outputs=plain)
    other = random_model(rng, inputs=inputs, outputs=dressed)
    other = Model(other.spec, model.parameters)
    x = np.array([[0.5, NAN], [1.0, 8.0], [0.25, NAN]], np.float32)
    y = ReferenceModel(model).steps(x)
    z = ReferenceModel(other).steps(x)
    assert z[:, 0] == pytest.approx(y[:, 0] * 3 - 1, abs=REFERENCE_FLOAT64)
    assert z[:, 1] == pytest.approx(y[:, 1] * 0.5 + 0.25 + [2, 8, 8], abs=REFERENCE_FLOAT64)


# --- streams -----------------------------------------------------------------------------------


def test_streams_are_independent_and_steps_are_a_chunk(rng):
    layers = [("lstm", 5), ("gru", 4), ("rnn_relu", 3), ("rnn_tanh", 6)]
    reference = ReferenceModel(random_model(rng, layers, EVERY_KIND_OF_INPUT))
    x = random_inputs(rng, reference.spec, 3, 9)
    together = reference.steps(x)
    for b in range(3):
        assert np.abs(reference.steps(x[b]) - together[b]).max() <= REFERENCE_FLOAT64
    state = reference.initial_state(3)
    for t in range(9):
        y, state = reference.step(state, x[:, t])
        assert np.array_equal(y, together[:, t])


def test_a_step_leaves_the_given_state_alone(rng):
    reference = ReferenceModel(random_model(rng, [("lstm", 4)], EVERY_KIND_OF_INPUT))
    x = random_inputs(rng, reference.spec, 2, 2)
    # Not the initial state: only with a memory does the second step differ from the first.
    _, state = reference.step(reference.initial_state(2), x[:, 0])
    first, _ = reference.step(state, x[:, 1])
    again, _ = reference.step(state, x[:, 1])
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, math.inf, "step 1: input 'plain' of stream 1 is inf; expected a finite number"),
        (0, NAN, "input 'plain' of stream 1 is nan"),
        (2, -math.inf, "input 'held' of stream 1 is -inf.*or NaN where it is missing"),
        (7, 3, "input 'colour' of stream 1 is 3; expected a whole number from 0 to 2"),
        (7, -1, "input 'colour' of stream 1 is -1"),
        (7, 0.5, "input 'colour' of stream 1 is 0.5"),
        (8, NAN, "input 'place' of stream 1 is nan"),
        (8, math.inf, "input 'place' of stream 1 is inf"),
    ],
)
def test_a_bad_value_is_refused_by_name(rng, position, value, message):
    reference = ReferenceModel(random_model(rng, inputs=EVERY_KIND_OF_INPUT))
    x = random_inputs(rng, reference.spec, 3, 2)
    x[1, 1, position] = value
    with pytest.raises(InputError, match=message):
        reference.steps(x)


def test_tokens_are_whole_numbers_that_the_model_knows(rng):
    token = InputSpec("t", kind="token", num_categories=5, embedding_size=3)
    reference = ReferenceModel(random_model(rng, inputs=[token]))
    assert reference.steps(random_inputs(rng, reference.spec, 2, 4)).shape == (2, 4, 2)
    with pytest.raises(
        InputError, match="'t' of stream 0 is 5; expected a whole number from 0 to 4"
    ):
        reference.steps(np.array([[5]], np.uint32))
    with pytest.raises(InputError, match="float32; a token model takes whole numbers"):
        reference.steps(np.zeros((1, 1), np.float32))


def test_a_wrong_shape_is_refused(rng):
    reference = ReferenceModel(random_model(rng))
    with pytest.raises(InputError, match=r"\[4, 2\]; expected \[B, 3\]"):
        reference.step(reference.initial_state(4), np.zeros((4, 2)))
    with pytest.raises(InputError, match=r"\[3\]; expected \[T, 3\] or \[B, T, 3\]"):
        reference.steps(np.zeros(3))
