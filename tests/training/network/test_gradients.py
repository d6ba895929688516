"""Gradients against central differences, in float64."""

import numpy as np
import pytest

from streamrnn.errors import TrainingError
from streamrnn.model.spec import CELLS, InputSpec
from streamrnn.training.network.losses import LOSSES, LossSettings, activate, loss_and_gradient
from streamrnn.training.network.network import Chunk
from tests.training.network.gradients import (
    assert_gradient,
    assert_gradient_by_the_features,
    make_case,
)

STACKS = [[(cell, 5)] for cell in CELLS] + [
    [("lstm", 4), ("gru", 6)],
    [("gru", 5), ("rnn_tanh", 3), ("lstm", 4)],
    [("rnn_relu", 4), ("lstm", 6)],
]
HEADS = [
    ("mse", "identity"),
    ("mse", "tanh"),
    ("mse", "sigmoid"),
    ("mse", None),
    ("cross_entropy", "softmax"),
    ("binary_cross_entropy", "sigmoid"),
]


@pytest.mark.parametrize("stack", STACKS, ids=lambda s: "-".join(cell for cell, _ in s))
def test_gradient_of_every_cell(stack):
    rng = np.random.default_rng(len(stack))
    inputs = (InputSpec("a"), InputSpec("b", missing="mask"))
    assert_gradient("mse", make_case(rng, stack, "mse", "identity", inputs))


@pytest.mark.parametrize(("loss", "activation"), HEADS)
def test_gradient_of_every_head_and_loss(loss, activation):
    rng = np.random.default_rng(7)
    inputs = (InputSpec("a"), InputSpec("b"))
    assert_gradient(loss, make_case(rng, [("gru", 4)], loss, activation, inputs))


@pytest.mark.parametrize(
    "inputs",
    [
        (InputSpec("t", kind="token", num_categories=4, embedding_size=3),),
        (
            InputSpec("a"),
            InputSpec("c", kind="categorical", num_categories=3, embedding_size=2),
            InputSpec("d", kind="categorical", num_categories=3),
            InputSpec("e", kind="categorical", num_categories=5, embedding_size=3),
        ),
    ],
    ids=["token", "mixed"],
)
def test_gradient_of_embeddings(inputs):
    rng = np.random.default_rng(3)
    stack = [("lstm", 4), ("rnn_tanh", 3)]
    assert_gradient("cross_entropy", make_case(rng, stack, "cross_entropy", "softmax", inputs))


def test_gradient_by_the_features():
    stack, inputs = [("lstm", 4), ("gru", 3)], (InputSpec("a"), InputSpec("b"))
    case = make_case(np.random.default_rng(5), stack, "mse", "identity", inputs)
    assert_gradient_by_the_features("mse", case)


@pytest.mark.parametrize("cell", list(CELLS))
def test_chunks_carry_the_state(cell):
    rng = np.random.default_rng(11)
    network, chunk, _, state = make_case(
        rng, [(cell, 6), ("gru", 3)], "mse", "identity", (InputSpec("a"),)
    )
    whole, _ = network.outputs(chunk, state)
    parts, _ = network.outputs(chunk, state, max_steps=2)
    single, _ = network.outputs(chunk, state, max_steps=1)
    np.testing.assert_allclose(parts, whole, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(single, whole, rtol=1e-13, atol=1e-14)


def test_smaller_chunks_reuse_the_buffers_correctly():
    rng = np.random.default_rng(13)
    inputs = (InputSpec("c", kind="categorical", num_categories=3, embedding_size=2),)
    network, chunk, target, state = make_case(
        rng, [("lstm", 4), ("gru", 3)], "mse", "identity", inputs
    )
    few = Chunk(chunk.features[:3, :2].copy(), {"c": chunk.codes["c"][:3, :2]})
    few_state = [tuple(s[:2] for s in layer) for layer in state]
    before = network.loss(few, target[:3, :2], few_state, "mse")[0], network.gradient.copy()
    network.loss(chunk, target, state, "mse")
    after = network.loss(few, target[:3, :2], few_state, "mse")[0], network.gradient
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])


def test_missing_targets_have_no_loss_and_no_gradient():
    z = np.array([[[0.3, -0.2]]])
    for loss, activation in LOSSES.items():
        width = 1 if loss == "cross_entropy" else 2
        value, gradient = loss_and_gradient(loss, activation, z, np.full((1, 1, width), np.nan))
        assert value == 0.0
        np.testing.assert_array_equal(gradient, np.zeros_like(z))


def test_losses_by_hand():
    z = np.array([[[0.0, np.log(3.0)]]])
    value, _ = loss_and_gradient("cross_entropy", "softmax", z, np.array([[[1.0]]]))
    assert value == pytest.approx(-np.log(0.75))
    value, _ = loss_and_gradient("binary_cross_entropy", "sigmoid", z, np.array([[[1.0, 0.0]]]))
    assert value == pytest.approx((np.log(2.0) + np.log(4.0)) / 2)
    value, _ = loss_and_gradient("mse", "identity", z, np.array([[[1.0, np.nan]]]))
    assert value == 1.0
    np.testing.assert_allclose(activate(z, "softmax"), [[[0.25, 0.75]]])
    np.testing.assert_allclose(activate(z, "sigmoid"), [[[0.5, 0.75]]])


def test_extreme_values_neither_overflow_nor_pass_as_finite():
    z = np.array([[[800.0, -800.0]]], np.float32)
    assert loss_and_gradient("cross_entropy", "softmax", z, np.array([[[1.0]]]))[0] == 1600.0
    assert np.isfinite(
        loss_and_gradient("binary_cross_entropy", "sigmoid", z, np.array([[[0.0, 1.0]]]))[0]
    )
    with pytest.raises(TrainingError, match="diverged"):
        loss_and_gradient("mse", "identity", z * np.float32(np.inf), np.zeros((1, 1, 2)))
    with pytest.raises(TrainingError, match="does not go with"):
        loss_and_gradient("cross_entropy", "sigmoid", z, np.array([[[1.0]]]))


@pytest.mark.parametrize("num_outputs", [1, 2, 15, 64, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_cross_entropy_by_the_book(num_outputs, dtype, is_weighted):
    rng = np.random.default_rng(num_outputs)
    z = (4.0 * rng.normal(size=(9, 3, num_outputs))).astype(dtype)
    target = rng.integers(0, num_outputs, (9, 3, 1)).astype(dtype)
    target[rng.random(target.shape) < 0.2] = np.nan
    weights = rng.uniform(0.5, 2.0, num_outputs).astype(dtype) if is_weighted else ()
    settings = LossSettings(class_weights=tuple(weights))
    loss, gradient = loss_and_gradient("cross_entropy", "softmax", z, target, settings)
    wide, total, expected = z.astype(np.float64), 0.0, np.zeros(z.shape)
    present = np.argwhere(~np.isnan(target[..., 0]))
    for t, b in present:
        k = int(target[t, b, 0])
        weight = float(weights[k]) if is_weighted else 1.0
        shares = np.exp(wide[t, b]) / np.exp(wide[t, b]).sum()
        total -= weight * np.log(shares[k])
        expected[t, b] = weight * (shares - np.eye(num_outputs)[k])
    limit = 1e-6 if dtype == np.float32 else 1e-14
    assert loss == pytest.approx(total / len(present), rel=limit, abs=limit)
    np.testing.assert_allclose(gradient * len(present), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("bad", [-1.0, 3.0, np.inf])
def test_a_target_that_is_no_class_is_refused(bad):
    z, target = np.zeros((2, 1, 3), np.float32), np.array([[[1.0]], [[bad]]], np.float32)
    with pytest.raises(TrainingError, match="no class of 0 to 2"):
        loss_and_gradient("cross_entropy", "softmax", z, target)
