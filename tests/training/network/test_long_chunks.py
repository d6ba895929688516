"""Long chunks: states kept at the beginnings of spans, which are computed again."""

from __future__ import annotations

import tracemalloc
import weakref

import numpy as np
import pytest

from streamrnn.model.spec import CELLS, InputSpec, LayerSpec
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.network import network as network_module
from tests.training.network.drawn import gradient_of, make_network
from tests.training.network.gradients import make_case

INPUTS = (InputSpec("a"), InputSpec("c", kind="categorical", num_categories=3, embedding_size=2))
STACKS = [
    *((LayerSpec(cell, 5),) for cell in CELLS),
    (LayerSpec("lstm", 4), LayerSpec("gru", 6), LayerSpec("rnn_tanh", 3)),
    parse_layers(("gru:4", "lstm:3"), ("head", "layer2")),
    parse_layers(("lstm:3",), ("head",)),
    (LayerSpec("gru", 3, name="a"), LayerSpec("lstm", 4, reads=("a[t-1]", "input"))),
    (LayerSpec("rnn_tanh", 3, name="a", reads=("a[t-1]", "input")), LayerSpec("gru", 4)),
]


def cut(monkeypatch, most_steps):
    """Let every chunk be cut into spans of so many steps, or the root of its own."""
    monkeypatch.setattr(network_module, "MAX_KEPT_BYTES", 0)
    monkeypatch.setattr(network_module, "SPAN_BYTES", 0)
    monkeypatch.setattr("math.isqrt", lambda num_steps: most_steps)


@pytest.mark.parametrize("most_steps", [1, 3])
@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_spans_have_the_loss_gradient_and_state_of_the_whole(monkeypatch, stack, most_steps):
    case = make_case(np.random.default_rng(2), stack, "mse", "tanh", INPUTS)
    network, chunk, target, state = case
    loss, after = network.loss(chunk, target, state, "mse")
    whole = network.gradient.copy()
    cut(monkeypatch, most_steps)
    assert len(network._spans(7, 4)) == -(-7 // most_steps)
    cut_loss, cut_after = network.loss(chunk, target, state, "mse")
    assert cut_loss == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(network.gradient, whole, rtol=0, atol=1e-12)
    for one, other in zip(after, cut_after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_what_is_advanced_alone_has_the_states_of_what_is_kept(monkeypatch, stack):
    network, chunk, _, state = make_case(np.random.default_rng(2), stack, "mse", "tanh", INPUTS)
    _, after = network.forward(chunk, state)
    cut(monkeypatch, 3)
    for one, other in zip(after, network.advance(chunk, state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_target_at_the_end_reaches_the_beginning(monkeypatch):
    network, chunk, target = make_network(["lstm"], (8, 3, 50, 2, 1))
    target[:-1] = np.nan
    _, whole = gradient_of(network, chunk, target)
    cut(monkeypatch, 7)
    _, spans = gradient_of(network, chunk, target)
    assert np.linalg.norm(whole) > 0.01
    np.testing.assert_allclose(spans, whole, rtol=0, atol=1e-12)


def test_spans_are_about_as_many_as_their_steps():
    network = make_network(["lstm"], (128, 1, 1, 64, 1), np.float32)[0]
    assert network._spans(100, 32) == [slice(0, 100)]
    *spans, last = network._spans(10_000, 32)
    lengths = [len(range(*span.indices(10_000))) for span in spans]
    assert sum(lengths) == last.start
    assert lengths == sorted(lengths, reverse=True)
    assert 90 <= lengths[0] <= 110


def test_as_much_is_computed_once_as_may_be_kept():
    network = make_network(["lstm"], (128, 1, 1, 64, 1), np.float32)[0]
    most = network_module.MAX_KEPT_BYTES // (32 * network._bytes_a_step)
    assert most > 600
    assert network._spans(most, 32) == [slice(0, most)]
    assert network._spans(most + 1, 32) == [slice(0, 1), slice(1, most + 1)]
    assert network._spans(10_000, 32)[-1] == slice(10_000 - most, 10_000)


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_no_chunk_is_kept_when_its_update_is_made(stack):
    network, chunk, target, state = make_case(
        np.random.default_rng(2), stack, "mse", "tanh", INPUTS
    )
    network.loss(chunk, target, state, "mse")
    features = weakref.ref(chunk.features)
    del chunk
    assert features() is None


def test_a_long_chunk_takes_little_memory():
    """Kept whole, its steps would take more than twice as much."""
    network, chunk, target = make_network(["lstm"], (64, 32, 4000, 1, 1), np.float32)
    kept = 32 * 4000 * sum(node.bytes_a_step for node in network.nodes)
    few = slice(0, 2)  # what is compiled is not what is measured
    gradient_of(network, chunk.steps(few), target[few])
    network.advance(chunk.steps(few), network.initial_state(32))
    tracemalloc.start()
    try:
        gradient_of(network, chunk, target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept > 2 * network_module.MAX_KEPT_BYTES
    assert peak < network_module.MAX_KEPT_BYTES
