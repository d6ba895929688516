"""Layers of every kind: against the float64 reference, and bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn import Engine
from streamrnn.errors import ModelError, SpecError
from streamrnn.model.layers.frame import ConvSpec, DenseSpec, NormSpec, PadSpec, PoolSpec
from streamrnn.model.layers.memory import TimeConvSpec
from streamrnn.model.model import Model
from streamrnn.model.parameters import canonical_spec, parameter_shapes
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.kernels.graphs import GRAPHS, graph_model, head_reading_model
from tests.support.models import random_parameters

# Frames of random convolutions are of order 1, and their errors those of sums of float32.
TOLERANCE = 5e-6


def inputs_of(rng, model, num_streams, num_steps):
    x = rng.normal(0, 1, (num_streams, num_steps, model.spec.num_inputs)).astype(np.float32)
    if model.spec.mask_value is not None:
        x[rng.uniform(size=x.shape[:2]) < 0.3] = model.spec.mask_value
    return x


def by_steps(model, x, batches):
    """Step batch by batch: y [B, T, O]."""
    engine = Engine(model, max_streams=256)
    rows = engine.rows(range(len(x)))
    y = np.empty((*x.shape[:2], model.spec.output_size), np.float32)
    for t in range(x.shape[1]):
        for batch in batches:
            y[batch, t] = engine.batch(rows[batch], x[batch, t])
    return y


@pytest.mark.parametrize("name", GRAPHS)
def test_agrees_with_the_reference(rng, name):
    model = graph_model(rng, name)
    x = inputs_of(rng, model, 5, 40)
    y = by_steps(model, x, [np.arange(5)])
    expected = ReferenceModel(model).steps(x)
    assert np.max(np.abs(y - expected)) < TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", GRAPHS)
def test_bits_depend_on_neither_batch_nor_chunk(rng, name):
    model = graph_model(rng, name)
    x = inputs_of(rng, model, 110, 7)
    y = by_steps(model, x, [np.arange(110)])
    few = by_steps(model, x[:9], [np.arange(3), np.array([5, 4]), np.arange(6, 9), np.array([3])])
    np.testing.assert_array_equal(few, y[:9])
    engine = Engine(model, max_streams=4)
    chunks = np.concatenate([engine.steps("a", x[0, :4]), engine.steps("a", x[0, 4:])])
    np.testing.assert_array_equal(chunks, y[0])


def test_long_chunks_have_the_bits_of_their_steps(rng):
    for name in ("causal", "stft", "masked", "jordan", "depthwise and dilated"):
        model = graph_model(rng, name)
        x = inputs_of(rng, model, 1, 250)
        y = by_steps(model, x, [np.arange(1)])
        np.testing.assert_array_equal(Engine(model, max_streams=1).steps("a", x[0]), y[0])


def test_a_layer_reads_what_the_head_gave_before(rng):
    """What it reads is behind the activation, and neither scaled nor shifted."""
    model = head_reading_model(rng)
    x = inputs_of(rng, model, 3, 20)
    y = by_steps(model, x, [np.arange(3)])
    np.testing.assert_allclose(y, ReferenceModel(model).steps(x), atol=TOLERANCE)
    get = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    h, fed_back, expected = np.zeros(6), np.zeros(2), []
    for row in x[0]:
        sums = get["weight_ih_l0"] @ np.concatenate([row, fed_back]) + get["bias_ih_l0"]
        h = np.tanh(sums + get["weight_hh_l0"] @ h + get["bias_hh_l0"])
        fed_back = get["head.weight"] @ h + get["head.bias"]
        expected.append(fed_back * [0.25, 3.0] + [0.0, 2.0])
    np.testing.assert_allclose(y[0], expected, atol=TOLERANCE)


def test_a_masked_step_leaves_what_the_head_gave_and_repeats_it_scaled(rng):
    model = head_reading_model(rng)
    masked = Model(replace(model.spec, mask_value=-9.0), model.parameters)
    x = inputs_of(rng, model, 3, 20)
    hidden = rng.random((3, 20)) < 0.4
    hidden[:, 0] = False
    x[hidden] = -9.0
    y = by_steps(masked, x, [np.arange(3)])
    np.testing.assert_allclose(y, ReferenceModel(masked).steps(x), atol=TOLERANCE)
    for of_stream, x_of_stream, is_hidden in zip(y, x, hidden, strict=True):
        np.testing.assert_array_equal(of_stream[1:][is_hidden[1:]], of_stream[:-1][is_hidden[1:]])
        seen = Engine(model).steps("a", x_of_stream[~is_hidden])
        np.testing.assert_array_equal(of_stream[~is_hidden], seen)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["stft", "causal", "residual stack"])
def test_other_precisions_are_near(rng, name, precision):
    model = graph_model(rng, name)
    x = inputs_of(rng, model, 2, 20)
    engine = Engine(model, max_streams=2, precision=precision)
    y = np.stack([engine.steps(s, x[s]) for s in range(2)])
    assert np.max(np.abs(y - ReferenceModel(model).steps(x))) < 0.05


@pytest.mark.parametrize("name", GRAPHS)
def test_a_description_comes_back_from_its_file(rng, name):
    spec = graph_model(rng, name).spec
    assert ModelSpec.from_dict(json.loads(canonical_spec(spec))) == spec
    assert ModelSpec.from_dict(spec.to_dict()) == spec


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(GRAPHS)), st.integers(1, 30))
def test_random_models_agree_with_the_reference(seed, name, num_streams):
    rng = np.random.default_rng(seed)
    model = graph_model(rng, name)
    x = inputs_of(rng, model, num_streams, 4)
    y = by_steps(model, x, [np.arange(num_streams)])
    expected = ReferenceModel(model).steps(x)
    assert np.max(np.abs(y - expected)) < TOLERANCE * max(1.0, np.abs(expected).max())


def test_a_jordan_network_is_its_textbooks(rng):
    """M. I. Jordan, "Serial order: a parallel distributed processing approach" (1986).

    The output of the step before is an input: zeros at first.
    """
    model = graph_model(rng, "jordan")
    get = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    x = inputs_of(rng, model, 1, 30)[0]
    h, y, expected = np.zeros(6), np.zeros(3), []
    for row in x:
        seen = np.concatenate([row, y])
        h = np.tanh(
            get["weight_ih_l0"] @ seen
            + get["bias_ih_l0"]
            + get["weight_hh_l0"] @ h
            + get["bias_hh_l0"]
        )
        y = np.tanh(get["weight_l1"] @ h + get["bias_l1"])
        expected.append(y)
    np.testing.assert_allclose(ReferenceModel(model).steps(x), expected, atol=1e-14)
    np.testing.assert_allclose(Engine(model).steps("a", x), expected, atol=TOLERANCE)


def test_a_jordan_network_is_pytorchs(rng):
    torch = pytest.importorskip("torch")
    model = graph_model(rng, "jordan")
    get = {name: torch.tensor(value) for name, value in model.parameters.items()}
    cell, head = torch.nn.RNNCell(5, 6), torch.nn.Linear(6, 3)
    cell.load_state_dict({name[:-3]: get[name] for name in get if name.endswith("_l0")})
    head.load_state_dict({"weight": get["weight_l1"], "bias": get["bias_l1"]})
    x = inputs_of(rng, model, 1, 30)[0]
    h, y, expected = torch.zeros(1, 6), torch.zeros(1, 3), []
    with torch.no_grad():
        for row in torch.tensor(x):
            h = cell(torch.cat([row[None], y], dim=1), h)
            y = torch.tanh(head(h))
            expected.append(y[0].numpy())
    np.testing.assert_allclose(Engine(model).steps("a", x), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((PadSpec((0, 60_000)), *[ConvSpec(1, 1)] * 6), "frames take"),
        ((ConvSpec(3, 20_000, dilation=2),), "would copy 400,040,000 runs"),
        ((TimeConvSpec(1, 60_000, 16, activation="relu"),) * 6, "would keep more than"),
        ((DenseSpec(4096), ConvSpec(4096, 5, 1, (4, 0), groups=2048)), "in 2048 groups"),
    ],
)
def test_a_model_of_few_bytes_that_would_take_gigabytes_is_refused(layers, words):
    length = {"conv": 60_000, "time_conv": 1}.get(layers[0].op, 8)
    inputs = (InputSpec("x", shape=(length, 1)),)
    probe = ModelSpec(inputs, (*layers, PoolSpec("mean"), DenseSpec(1)), (OutputSpec("y"),))
    shapes = parameter_shapes(probe)
    parameters = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ModelError, match=words):
        Engine(Model(probe, parameters), max_streams=1)


def test_what_masks_and_feedback_cannot_mean_is_refused():
    x, lstm = (InputSpec("x"),), (LayerSpec("lstm", 2),)
    change, level = (InputSpec("x", difference=True),), OutputSpec("y", difference_of="x")
    for words, inputs, layers, outputs, mask in (
        ("states alone", change, lstm, level, -9.0),
        ("small numbers as 0", x, lstm, 1.0, 1e-40),
    ):
        outputs = outputs if isinstance(outputs, OutputSpec) else OutputSpec("y", scale=outputs)
        with pytest.raises(SpecError, match=words):
            ModelSpec(inputs, layers, (outputs,), head=HeadSpec(), mask_value=mask)
    tokens = (InputSpec("t", kind="token", num_categories=4, embedding_size=2),)
    for mask in (0.5, -1.0, 4.0):
        with pytest.raises(SpecError, match="a whole number from 0 to 3"):
            ModelSpec(tokens, lstm, (OutputSpec("y"),), head=HeadSpec(), mask_value=mask)


def test_a_mask_is_a_number_and_none_near_it(rng):
    """Steps take subnormal numbers as 0; such an input is a step nevertheless."""
    spec = ModelSpec((InputSpec("x"),), (LayerSpec("gru", 3),), outputs_of(3), mask_value=0.0)
    model = Model(spec, random_parameters(rng, spec))
    x = np.array([[1.0], [1e-40], [-0.0], [0.0], [1.0]], np.float32)
    y = Engine(model).steps("a", x)
    assert (y[1] != y[0]).any()
    np.testing.assert_array_equal(y[2], y[1])
    np.testing.assert_array_equal(y[3], y[1])
    np.testing.assert_allclose(y, ReferenceModel(model).steps(x), atol=TOLERANCE)


def outputs_of(size):
    return tuple(OutputSpec(f"y{k}") for k in range(size))


def test_an_overflow_does_not_stay_behind_the_channels(rng):
    """Inf times a weight of zero is a NaN; whole places are read by a norm and a convolution."""
    spec = ModelSpec(
        (InputSpec("x"),), (DenseSpec(5), LayerSpec("gru", 5), NormSpec()), outputs_of(5)
    )
    parameters = random_parameters(rng, spec)
    parameters["weight_l0"][:] = 10.0
    parameters["weight_ih_l1"] = np.abs(parameters["weight_ih_l1"])  # Inf, and no Inf - Inf
    model = Model(spec, parameters)
    x = np.array([[1.0], [3e38], [1.0], [1.0]], np.float32)
    with np.errstate(all="ignore"):
        expected = ReferenceModel(model).steps(x)
    np.testing.assert_allclose(Engine(model).steps("a", x), expected, atol=1e-4)
