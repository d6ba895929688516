"""The kernels against the float64 reference, and bit for bit."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn import Engine
from streamrnn.engine.cpu import CpuDevice
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS
from streamrnn.model.spec import CELLS, InputSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.support.engines import stepped
from tests.support.models import EVERY_KIND_OF_INPUT, random_inputs, random_model

# float32 rounds each sum to 6e-8; what a well-conditioned cell forgets keeps that from growing.
REFERENCE_TOLERANCE = 2e-6

cells = st.sampled_from(sorted(CELLS))
sizes = st.one_of(st.integers(1, 70), st.sampled_from([1, 3, 15, 16, 17, 50, 100, 127, 128]))
stacks = st.lists(st.tuples(cells, sizes), min_size=1, max_size=3)
heads = st.sampled_from([None, "identity", "tanh", "sigmoid", "softmax"])


def draw_model(rng, layers, head, num_inputs=5, num_outputs=3):
    outputs = num_outputs if head else layers[-1][1]
    return random_model(rng, layers=layers, inputs=num_inputs, outputs=outputs, head=head)


@pytest.mark.parametrize(
    "layers",
    [
        [("rnn_tanh", 33)],
        [("rnn_relu", 9)],
        [("gru", 50)],
        [("lstm", 128)],
        [("lstm", 40), ("gru", 17), ("rnn_tanh", 3), ("lstm", 1)],
    ],
)
@pytest.mark.parametrize("head", [None, "identity", "softmax"])
def test_agrees_with_the_reference_after_1000_steps(rng, layers, head):
    model = draw_model(rng, layers, head)
    x = random_inputs(rng, model.spec, 7, 1000)
    expected = ReferenceModel(model).steps(x)
    y = stepped(Engine(model, max_streams=8), x, [np.arange(7)])
    assert np.max(np.abs(y - expected)) < REFERENCE_TOLERANCE


@given(stacks, heads, st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_agrees_with_the_reference_on_random_stacks(layers, head, num_streams, seed):
    rng = np.random.default_rng(seed)
    model = draw_model(rng, layers, head)
    x = random_inputs(rng, model.spec, num_streams, 5)
    y = stepped(Engine(model, max_streams=32), x, [np.arange(num_streams)])
    assert np.max(np.abs(y - ReferenceModel(model).steps(x))) < REFERENCE_TOLERANCE


@given(st.sets(st.sampled_from(EVERY_KIND_OF_INPUT), min_size=1), st.integers(0, 2**32 - 1))
def test_transforms_agree_with_the_reference(inputs, seed):
    rng = np.random.default_rng(seed)
    inputs = sorted(inputs, key=lambda item: item.name)
    outputs = [OutputSpec("plain"), OutputSpec("scaled", center=3.0, scale=2.5)]
    outputs += [
        OutputSpec(f"next {item.name}", scale=0.5, difference_of=item.name)
        for item in inputs
        if item.difference
    ]
    model = random_model(rng, layers=[("gru", 12)], inputs=inputs, outputs=outputs)
    x = random_inputs(rng, model.spec, 4, 30)
    y = stepped(Engine(model, max_streams=8), x, [np.arange(4)])
    np.testing.assert_allclose(y, ReferenceModel(model).steps(x), rtol=1e-6, atol=3e-6)


def test_a_large_centre_costs_no_accuracy(rng):
    """The centre is subtracted from x, not folded into a bias where it would drown the weights."""
    inputs = [InputSpec("pressure", center=101325.0, scale=2.0)]
    outputs = [OutputSpec("next", center=101325.0, scale=2.0)]
    model = random_model(rng, layers=[("lstm", 20)], inputs=inputs, outputs=outputs)
    x = (101325 + 2 * rng.standard_normal((3, 50, 1))).astype(np.float32)
    y = stepped(Engine(model, max_streams=4), x, [np.arange(3)])
    spacing = np.spacing(np.float32(101325))
    assert np.max(np.abs(y - ReferenceModel(model).steps(x))) <= spacing


def test_tokens_agree_with_the_reference(rng):
    token = InputSpec("word", kind="token", num_categories=50, embedding_size=9)
    model = random_model(rng, layers=[("lstm", 20)], inputs=[token], outputs=50, head="softmax")
    x = random_inputs(rng, model.spec, 6, 40)
    assert x.dtype == np.uint32
    y = stepped(Engine(model, max_streams=8), x, [np.arange(6)])
    assert np.max(np.abs(y - ReferenceModel(model).steps(x))) < REFERENCE_TOLERANCE


@given(stacks, heads, st.integers(1, 2 * MAX_BATCH_ROWS + 5), st.data())
def test_bits_do_not_depend_on_the_other_streams_of_the_batch(layers, head, num_streams, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    model = draw_model(rng, layers, head)
    x = random_inputs(rng, model.spec, num_streams, 3)
    order = rng.permutation(num_streams)
    cuts = sorted(data.draw(st.sets(st.integers(1, num_streams), max_size=9)))
    batches = [batch for batch in np.split(order, cuts) if len(batch)]
    engine = Engine(model, max_streams=256)
    together = stepped(Engine(model, max_streams=256), x, [np.arange(num_streams)])
    np.testing.assert_array_equal(
        stepped(engine, x, batches).view(np.uint32), together.view(np.uint32)
    )


@given(
    stacks,
    heads,
    st.one_of(st.just(5), st.just(EVERY_KIND_OF_INPUT)),
    st.integers(1, MAX_BATCH_ROWS + 9),
    st.data(),
)
def test_a_chunk_is_its_steps_to_the_bit(layers, head, inputs, num_steps, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    outputs = 3 if head else layers[-1][1]
    if head == "identity" and inputs != 5:
        outputs = [OutputSpec("a", center=2.0), OutputSpec("b", difference_of="held_change")]
    model = random_model(rng, layers=layers, inputs=inputs, outputs=outputs, head=head)
    x = random_inputs(rng, model.spec, 1, num_steps)[0]
    cut = data.draw(st.integers(0, num_steps))
    engine = Engine(model, max_streams=4)
    singly = np.stack([engine.step({"a": row})["a"] for row in x])
    chunks = np.concatenate([engine.steps("b", x[:cut]), engine.steps("b", x[cut:])])
    np.testing.assert_array_equal(chunks.view(np.uint32), singly.view(np.uint32))


@pytest.mark.parametrize(("cell", "state"), [("gru", 0), ("rnn_tanh", 0), ("lstm", 0), ("lstm", 1)])
@pytest.mark.parametrize("num_streams", [1, 5, 13])
def test_a_nan_in_the_state_stays_in_its_own_stream(rng, cell, state, num_streams):
    model = draw_model(rng, [(cell, 20)], None)
    engine, clean = Engine(model, max_streams=16), Engine(model, max_streams=16)
    x = random_inputs(rng, model.spec, num_streams, 1)[:, 0]
    rows = engine.rows(range(num_streams))
    unit = 7
    assert isinstance(engine._device, CpuDevice)
    engine._device.slab[0, 32 * state + unit] = np.frombuffer(b"\x01\x00\xc0\x7f", np.float32)[0]
    y = engine.batch(rows, x)
    assert np.isnan(y[0, unit])
    assert state == 1 or np.isnan(y[0]).all()  # every unit reads h, only its own reads c
    np.testing.assert_array_equal(y[1:], clean.batch(clean.rows(range(num_streams)), x)[1:])


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_nan_in_any_gate_comes_out(rng, cell):
    model = draw_model(rng, [(cell, 20)], None)
    for gate in range(len(CELLS[cell].gates)):
        parameters = {name: value.copy() for name, value in model.parameters.items()}
        parameters["bias_ih_l0"][gate * 20 + 3] = np.nan
        engine = Engine(model, max_streams=2)
        # A Model refuses such parameters, so the device is made without one.
        fake: Any = SimpleNamespace(spec=model.spec, parameters=parameters)
        engine._device = CpuDevice(fake, engine._streams.marks)
        y = engine.step({"a": np.ones(5)})["a"]
        assert np.flatnonzero(np.isnan(y)).tolist() == [3], CELLS[cell].gates[gate]


def test_a_large_finite_input_keeps_the_state_finite(rng):
    for cell in ("rnn_tanh", "gru", "lstm"):
        model = draw_model(rng, [(cell, 20)], None)
        engine = Engine(model, max_streams=2)
        for value in (1e30, -1e30, 3e38):
            assert np.isfinite(engine.step({"a": np.full(5, value)})["a"]).all()


def test_subnormal_numbers_count_as_zero_and_the_callers_mode_is_put_back(rng):
    model = draw_model(rng, [("lstm", 20)], None)
    engine = Engine(model, max_streams=4)
    tiny = np.full(5, 1e-40)
    np.testing.assert_array_equal(
        engine.step({"a": tiny})["a"], engine.step({"b": np.zeros(5)})["b"]
    )
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_bad_calls_change_nothing(rng):
    model = draw_model(rng, [("gru", 20)], "identity")
    engine, twin = Engine(model, max_streams=4), Engine(model, max_streams=4)
    x = random_inputs(rng, model.spec, 3, 2)
    for each in (engine, twin):
        each.batch(each.rows("abc"), x[:, 0])
    rows = engine.rows("abc")
    for bad in (np.nan, np.inf, -np.inf, 1e39):
        spoiled = x[:, 1].astype(np.float64)
        spoiled[1, 2] = bad
        with pytest.raises(ValueError, match=r"'x2' at index 1"):
            engine.batch(rows, spoiled)
    with pytest.raises(ValueError, match="already"):
        engine.batch(rows[[0, 1, 0]], x[:, 1])
    with pytest.raises(ValueError, match="2 rows but 3"):
        engine.batch(rows[:2], x[:, 1])
    with pytest.raises(ValueError, match="shape"):
        engine.steps("a", x[0, :, :4])
    with pytest.raises(ValueError, match="dtype"):
        engine.step({"a": ["1"] * 5})
    with pytest.raises(KeyError, match="no stream"):
        engine.batch(rows + 1000, x[:, 1])
    with pytest.raises(ValueError, match="nan"):
        engine.step({"new": [math.nan] * 5})
    assert "new" not in engine
    np.testing.assert_array_equal(
        engine.batch(rows, x[:, 1]), twin.batch(twin.rows("abc"), x[:, 1])
    )


def test_slots_of_closed_streams_are_reused(rng):
    model = draw_model(rng, [("lstm", 20)], "identity")
    engine = Engine(model, max_streams=2)
    x = random_inputs(rng, model.spec, 1, 2)[0]
    first = engine.step({"a": x[0]})["a"]
    engine.step({"b": x[1]})
    with pytest.raises(KeyError, match="no room"):
        engine.step({"c": x[0]})
    rows = engine.rows(["a"])
    engine.close("a")
    assert "a" not in engine
    assert len(engine) == 1
    np.testing.assert_array_equal(engine.step({"c": x[0]})["c"], first)  # the slot starts anew
    with pytest.raises(KeyError, match="belongs to no stream"):
        engine.batch(rows, x[:1])
    engine.reset("b")
    np.testing.assert_array_equal(engine.step({"b": x[0]})["b"], first)
    with pytest.raises(KeyError, match="unknown"):
        engine.close("a")
