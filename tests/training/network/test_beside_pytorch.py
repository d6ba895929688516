"""A training beside PyTorch's, from its initial weights and on the same batches."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.fit.optimisers import Adam, clip_by_global_norm
from streamrnn.training.network.network import Chunk, Network
from streamrnn_bench.training.frameworks import CLIP_NORM, RATE, PyTorch, Task

NUM_ITERATIONS, NUM_BATCHES = 200, 5
NUM_STEPS, NUM_ROWS, NUM_INPUTS, HIDDEN_SIZE = 40, 8, 3, 16
SPEC = {
    cell: ModelSpec(
        inputs=tuple(InputSpec(f"x{k}") for k in range(NUM_INPUTS)),
        layers=(LayerSpec(cell, HIDDEN_SIZE),),
        outputs=(OutputSpec("y"),),
        head=HeadSpec("identity"),
    )
    for cell in ("lstm", "gru", "rnn_tanh")
}


def pytorch_weights(cell):
    """Draw what `torch.nn` begins with, in float32, by our names in our order."""
    import torch

    torch.manual_seed(0)
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[cell]
    named = dict(kind(NUM_INPUTS, HIDDEN_SIZE).named_parameters())
    head = torch.nn.Linear(HIDDEN_SIZE, 1)
    named |= {f"head.{name}": value for name, value in head.named_parameters()}
    return {name: value.detach().numpy().copy() for name, value in named.items()}


def batches(dtype):
    """Draw inputs, and targets that depend on all of them so far."""
    rng = np.random.default_rng(0)
    for _ in range(NUM_BATCHES):
        x = rng.standard_normal((NUM_STEPS, NUM_ROWS, NUM_INPUTS))
        target = np.zeros((NUM_STEPS, NUM_ROWS, 1))
        for t in range(NUM_STEPS):
            target[t] = 0.7 * target[t - 1] + 0.4 * x[t, :, :1] - 0.2 * x[t, :, 1:2]
        yield x.astype(np.float32).astype(dtype), target.astype(np.float32).astype(dtype)


def our_losses(cell, weights, dtype):
    network = Network(SPEC[cell], weights, dtype)
    adam, state = Adam(network.flat.size, network.dtype), network.initial_state(NUM_ROWS)
    given, losses = list(batches(dtype)), []
    for k in range(NUM_ITERATIONS):
        x, target = given[k % NUM_BATCHES]
        loss, _ = network.loss(Chunk(x, {}), target, state, "mse")
        norm, _ = clip_by_global_norm(network.gradient, np.inf)
        clip_by_global_norm(network.gradient, CLIP_NORM * norm / (norm + 1e-6))  # as PyTorch does
        adam.update(network.flat, network.gradient, 3 * RATE)
        losses.append(loss)
    return np.array(losses)


def pytorch_losses(cell, weights, dtype):
    given, losses = list(batches(dtype)), []
    ours = {name: value.astype(dtype) for name, value in weights.items()}
    network = PyTorch(Task(cell, ours, *given[0]), 3 * RATE)
    for k in range(NUM_ITERATIONS):
        network.take(*given[k % NUM_BATCHES])
        losses.append(float(network.update()))
    return np.array(losses)


@pytest.mark.parametrize("cell", SPEC)
def test_losses_of_200_iterations_are_those_of_pytorch(cell):
    """In float32 they are no further from float64 than PyTorch's own."""
    pytest.importorskip("torch")
    weights = pytorch_weights(cell)
    exact = pytorch_losses(cell, weights, np.float64)
    assert exact[-1] < 0.5 * exact[0]
    np.testing.assert_allclose(our_losses(cell, weights, np.float64), exact, rtol=1e-12)
    theirs = np.abs(pytorch_losses(cell, weights, np.float32) / exact - 1.0)
    ours = np.abs(our_losses(cell, weights, np.float32) / exact - 1.0)
    assert ours.max() <= 1.25 * theirs.max()  # both are rounding, which differs by processor
