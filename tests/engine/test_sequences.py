"""`Sequences`: an engine's bits, for many sequences of different lengths at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn import Engine
from streamrnn.engine.sequences import Sequences, in_batches
from streamrnn.errors import InputError
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.layers.memory import TimeConvSpec
from streamrnn.model.spec import InputSpec, LayerSpec, OutputSpec
from streamrnn.training.layer_list import parse_layers
from tests.support.engines import assert_same_bits
from tests.support.models import (
    EVERY_KIND_OF_INPUT,
    random_graph,
    random_inputs,
    random_model,
    text_model,
)

LENGTHS = st.lists(st.integers(0, 40), max_size=12) | st.lists(
    st.integers(0, 3), min_size=90, max_size=200
)


def made(kind, rng):
    """Make a model of a kind."""
    if kind == "every kind of input":
        outputs = [OutputSpec("y", center=0.5, scale=2.0, difference_of="change")]
        return random_model(rng, [("gru", 20), ("lstm", 7)], EVERY_KIND_OF_INPUT, outputs)
    if kind == "memory":
        return random_graph((DenseSpec(4), TimeConvSpec(5, kernel=3), LayerSpec("rnn_tanh", 6)))
    if kind == "feedback":
        layers = parse_layers(("gru:9", "lstm:5"), ("head", "layer2:layer1"))
        return random_model(rng, layers, 2, 3, "softmax")
    if kind == "masked":
        return random_model(rng, [("lstm", 9)], 1, 2, None, mask_value=0.0)
    return text_model("char", list("abcdefg"))


KINDS = ["every kind of input", "memory", "feedback", "masked", "tokens"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_sequences_have_the_bits_of_streams_that_are_stepped_alone(kind, lengths, seed):
    rng = np.random.default_rng(seed)
    model = made(kind, rng)
    x = random_inputs(rng, model.spec, 1, 60)[0]
    if kind == "masked":
        x[rng.random(len(x)) < 0.3] = 0.0
    sizes = np.array(lengths, np.int64)
    starts = np.array([rng.integers(0, 61 - size) for size in lengths], np.int64)
    found = Sequences(model, x).run(starts, sizes)
    engine = Engine(model)
    expected = [
        engine.steps(k, x[start : start + size])
        for k, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    assert_same_bits(found, np.concatenate([found[:0], *expected]))


def test_sequences_go_on_from_the_states_they_ended_in(rng):
    model = made("every kind of input", rng)
    x = random_inputs(rng, model.spec, 1, 300)[0]
    sequences = Sequences(model, x)
    starts, sizes = np.array([0, 100, 150]), np.array([90, 40, 120])
    whole = sequences.run(starts, sizes)
    states = sequences.new_states(3)
    first = sequences.run(starts, sizes // 3, states)
    second = sequences.run(starts + sizes // 3, sizes - sizes // 3, states)
    ends = [np.cumsum(part)[:-1] for part in (sizes // 3, sizes - sizes // 3)]
    parts = zip(np.split(first, ends[0]), np.split(second, ends[1]), strict=True)
    assert_same_bits(np.concatenate([half for both in parts for half in both]), whole)


def test_origins_are_taken_off_and_put_back_in_float64(rng):
    inputs, outputs = [InputSpec("a", origin=1e9)], [OutputSpec("b", origin=-1e9)]
    model = random_model(rng, inputs=inputs, outputs=outputs)
    x = 1e9 + rng.normal(size=(30, 1))
    found = Sequences(model, x).run(np.array([0]), np.array([30]))
    np.testing.assert_array_equal(found, Engine(model).steps("a", x))
    assert found.dtype == np.float64


def test_a_step_that_the_model_does_not_take_is_refused(rng):
    x = np.ones((9, 3), np.float32)
    x[7, 1] = np.inf
    with pytest.raises(InputError, match="'x1' at index 7 of x is inf; expected a finite number"):
        Sequences(random_model(rng), x)


@pytest.mark.parametrize(
    ("start", "size"), [(0, 11), (-1, 2), (3, -1), (11, 0), (2**62, 2**62), (1, 2**63 - 1)]
)
def test_a_sequence_that_is_not_within_x_is_refused(rng, start, size):
    sequences = Sequences(random_model(rng), np.ones((10, 3), np.float32))
    with pytest.raises(ValueError, match="must lie in x"):
        sequences.run(np.array([0, start]), np.array([10, size]))


def test_states_of_another_number_or_place_are_refused(rng):
    sequences = Sequences(random_model(rng), np.ones((10, 3), np.float32))
    starts, sizes = np.array([0, 5]), np.array([5, 5])
    for states in (sequences.new_states(3), sequences.new_states(3)[:, 1:]):
        with pytest.raises(ValueError, match="each have a row"):
            sequences.run(starts, sizes, states)


@given(lengths=st.lists(st.integers(0, 50), max_size=30), most=st.integers(1, 100))
def test_batches_hold_every_sequence_once_within_the_bound(lengths, most):
    sizes = np.array(lengths, np.int64)
    batches = [batch.tolist() for batch in in_batches(sizes, most)]
    assert sorted(k for batch in batches for k in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or sizes[batch].sum() <= most for batch in batches)
    drawn = [sizes[k] for batch in batches for k in batch]
    assert drawn == sorted(drawn, reverse=True)
