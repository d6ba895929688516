"""A network drawn at random, float32 or float64, and its gradient by the way back."""

import numpy as np

from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.network.network import Chunk, Network, initial_parameters

__all__ = ["gradient_of", "make_network"]


def make_network(cells, sizes, dtype=np.float64):
    """Return a network, a chunk and its targets, drawn alike for both types."""
    hidden, num_rows, num_steps, num_inputs, num_outputs = sizes
    spec = ModelSpec(
        inputs=tuple(InputSpec(f"x{k}") for k in range(num_inputs)),
        layers=tuple(LayerSpec(cell, hidden + k) for k, cell in enumerate(cells)),
        outputs=tuple(OutputSpec(f"y{k}") for k in range(num_outputs)),
        head=HeadSpec("identity"),
    )
    rng = np.random.default_rng(3)
    parameters = initial_parameters(spec, rng)
    for value in parameters.values():
        value += rng.normal(0.0, 0.1, value.shape)
    network = Network(spec, parameters, dtype)
    x = rng.normal(size=(num_steps, num_rows, num_inputs)).astype(np.float32)
    target = rng.normal(size=(num_steps, num_rows, num_outputs)).astype(np.float32)
    return network, Chunk(x.astype(dtype), {}), target.astype(dtype)


def gradient_of(network, chunk, target):
    """Return the loss and the gradient, from a new stream's state."""
    state = network.initial_state(chunk.features.shape[1])
    return network.loss(chunk, target, state, "mse")[0], network.gradient.copy()
