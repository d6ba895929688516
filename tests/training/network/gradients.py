"""A network with something to learn, and its gradient by central differences in float64."""

import numpy as np

from streamrnn.model.spec import HeadSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.network.losses import loss_and_gradient
from streamrnn.training.network.network import Chunk, Network, initial_parameters
from tests.tolerances import GRADIENT

__all__ = [
    "STEP",
    "assert_gradient",
    "assert_gradient_by_the_features",
    "make_case",
    "numeric_gradient",
]

STEP = 1e-5


def make_case(rng, stack, loss, activation, inputs):
    """Return a network of layers (or pairs of cell and size), a chunk, its target, a state."""
    layers = [each if isinstance(each, LayerSpec) else LayerSpec(*each) for each in stack]
    num_outputs = layers[-1].hidden_size if activation is None else 3
    spec = ModelSpec(
        inputs=inputs,
        layers=tuple(layers),
        outputs=tuple(OutputSpec(f"y{o}") for o in range(num_outputs)),
        head=HeadSpec(activation) if activation else None,
    )
    network = Network(spec, initial_parameters(spec, rng), np.float64)
    network.flat += rng.normal(0.0, 0.3, network.flat.shape)
    shape = (7, 4)
    codes = {
        item.name: rng.integers(0, item.num_categories, shape)
        for item in inputs
        if item.embedding_size
    }
    chunk = Chunk(rng.normal(size=(*shape, spec.num_features)), codes)
    if loss == "cross_entropy":
        target = rng.integers(0, num_outputs, (*shape, 1)).astype(float)
    elif loss == "binary_cross_entropy":
        target = rng.integers(0, 2, (*shape, num_outputs)).astype(float)
    else:
        target = rng.normal(size=(*shape, num_outputs))
    target[rng.random(target.shape) < 0.2] = np.nan
    state = [
        tuple(rng.normal(0.0, 0.5, s.shape) for s in layer)
        for layer in network.initial_state(shape[1])
    ]
    return network, chunk, target, state


def numeric_gradient(network, chunk, target, state, loss, varied=None):
    """Return the gradient by an array, of all parameters unless told, by central differences."""
    varied = network.flat if varied is None else varied
    gradient = np.empty_like(varied)
    for index in np.ndindex(*varied.shape):
        before = varied[index]
        values = []
        for change in (STEP, -STEP):
            varied[index] = before + change
            z, _ = network.forward(chunk, state)
            values.append(loss_and_gradient(loss, network.activation, z, target)[0])
        varied[index] = before
        gradient[index] = (values[0] - values[1]) / (2 * STEP)
    return gradient


def assert_gradient_by_the_features(loss, case):
    """Compare what the backward pass says of the features with the central differences."""
    network, chunk, target, state = case
    z, _ = network.forward(chunk, state)
    grad_z = loss_and_gradient(loss, network.activation, z, target)[1]
    analytic = network.backward(grad_z, need_grad_x=True).copy()
    expected = numeric_gradient(network, chunk, target, state, loss, chunk.features)
    assert np.linalg.norm(analytic - expected) <= GRADIENT * np.linalg.norm(expected)


def assert_gradient(loss, case):
    """Compare a network's gradient of a case with differences, parameter by parameter."""
    network, chunk, target, state = case
    network.loss(chunk, target, state, loss)
    analytic = {name: view.copy() for name, view in network.gradients.items()}
    assert np.linalg.norm(network.gradient) > 1e-3
    expected = numeric_gradient(network, chunk, target, state, loss)
    network.gradient[:] = expected
    for name, view in network.gradients.items():
        scale = float(np.linalg.norm(view))
        assert scale > 1e-5, name
        assert np.linalg.norm(analytic[name] - view) <= GRADIENT * max(scale, 0.01), name
