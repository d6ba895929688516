"""A whole network in training: embeddings, layers, head, and all their gradients.

Parameters and gradients each lie in one flat vector, with a view for every name: so the optimiser,
the clipping and the copy of the best weights are each one operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import CELLS, ModelSpec
from streamrnn.training.network.layers import Array, Scratch, State, make_layer
from streamrnn.training.network.losses import activate, loss_and_gradient

__all__ = ["Chunk", "Network", "flat_views", "initial_parameters"]


@dataclass
class Chunk:
    """Some steps of some rows, as the network sees them."""

    # [T, B, F], of the parameters' type, transforms applied; columns of embeddings hold anything
    features: Array
    codes: dict[str, Array]  # [T, B] of int64 by input that has an embedding: categories or tokens


def flat_views(spec: ModelSpec, dtype: DTypeLike) -> tuple[Array, dict[str, Array]]:
    """Allocate all parameters of a model in one vector of zeros.

    Returns it, [num_parameters], and views of it by the canonical names in their order.
    """
    shapes = parameter_shapes(spec)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    flat = np.zeros(sum(sizes), dtype)
    views, start = {}, 0
    for (name, shape), size in zip(shapes.items(), sizes, strict=True):
        views[name] = flat[start : start + size].reshape(shape)
        start += size
    return flat, views


def initial_parameters(spec: ModelSpec, rng: np.random.Generator) -> dict[str, Array]:
    """Draw the weights that training starts from, as float64.

    Input weights and the head: Glorot and Bengio 2010; recurrent weights: orthogonal, each gate by
    itself (Saxe et al. 2014); forget gates open (Jozefowicz et al. 2015); other biases 0.
    """
    _, views = flat_views(spec, np.float64)
    for name, view in views.items():
        if name.startswith("embedding."):
            view[:] = rng.normal(0.0, 1.0 / np.sqrt(view.shape[1]), view.shape)
        elif name == "head.weight":
            view[:] = _glorot(rng, *view.shape)
    for index, layer in enumerate(spec.chain):
        size = layer.hidden_size
        weight_ih, weight_hh = views[f"weight_ih_l{index}"], views[f"weight_hh_l{index}"]
        for k, gate in enumerate(CELLS[layer.cell].gates):
            rows = slice(k * size, (k + 1) * size)
            weight_ih[rows] = _glorot(rng, size, weight_ih.shape[1])
            weight_hh[rows] = np.linalg.qr(rng.normal(size=(size, size)))[0]
            if gate == "f":
                views[f"bias_ih_l{index}"][rows] = 1.0
    return views


def _glorot(rng: np.random.Generator, num_out: int, num_in: int) -> Array:
    limit = np.sqrt(6.0 / (num_in + num_out))
    return rng.uniform(-limit, limit, (num_out, num_in))


class Network:
    """Parameters, their gradients, and the way forward and backward.

    The given parameters are copied; ``dtype`` is float32 or float64. The transforms of inputs and
    outputs are not applied here, the head's activation is. ``flat`` and ``gradient``
    [num_parameters] hold all parameters and the gradient that `loss` left; ``parameters`` and
    ``gradients`` are views of them by name. A state holds for each layer a tuple of arrays [B, H].
    """

    def __init__(
        self, spec: ModelSpec, parameters: Mapping[str, Any], dtype: DTypeLike = np.float32
    ) -> None:
        self.spec = spec
        self.dtype = np.dtype(dtype)
        self.activation = spec.head.activation if spec.head else "identity"
        self.flat, self.parameters = flat_views(spec, dtype)
        self.gradient, self.gradients = flat_views(spec, dtype)
        for name, view in self.parameters.items():
            view[:] = parameters[name]
        self.layers = [
            make_layer(layer, k, self.parameters, self.gradients)
            for k, layer in enumerate(spec.chain)
        ]
        self._scratch = Scratch(self.dtype)
        self._embedded: list[tuple[str, slice]] = []
        start = 0
        for item in spec.inputs:
            if item.embedding_size:
                self._embedded.append((item.name, slice(start, start + item.num_features)))
            start += item.num_features
        self._codes: dict[str, Array] = {}

    def initial_state(self, num_rows: int) -> list[State]:
        """Return the state of B new streams."""
        return [layer.initial_state(num_rows) for layer in self.layers]

    def forward(self, chunk: Chunk, state: list[State]) -> tuple[Array, list[State]]:
        """Run a chunk up to the head's pre-activations, [T, B, O].

        Returns them and the new state. The chunk is kept by reference until `backward`; the result
        is valid until the next call; the given state is not changed.
        """
        x = chunk.features
        if self._embedded:
            x = self._scratch.get("x", *x.shape)
            x[:] = chunk.features
            self._codes = chunk.codes
            for name, columns in self._embedded:
                x[..., columns] = self.parameters[f"embedding.{name}.weight"][chunk.codes[name]]
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x, layer_state = layer.forward(x, before)
            after.append(layer_state)
        if self.spec.head is None:
            return x, after
        z = self._scratch.get("z", len(x), x.shape[1], self.spec.output_size)
        np.matmul(x, self.parameters["head.weight"].T, out=z)
        z += self.parameters["head.bias"]
        return z, after

    def backward(self, grad_z: Array, need_grad_x: bool = False) -> Array | None:
        """Go back through the last chunk; `gradients` are set, not added to.

        ``grad_z`` [T, B, O] is the loss's gradient by what `forward` returned, and may be
        overwritten. Returns the gradient by the features of the first layer, [T, B, F], if it is
        wanted.
        """
        self.gradient[:] = 0.0
        grad = grad_z
        if self.spec.head is not None:
            num_steps, num_rows, size = grad_z.shape
            hidden = self.layers[-1].h
            flat = grad_z.reshape(-1, size)
            self.gradients["head.weight"] += flat.T @ hidden.reshape(len(flat), -1)
            self.gradients["head.bias"] += flat.sum(axis=0)
            grad = self._scratch.get("grad_h", num_steps, num_rows, hidden.shape[2])
            np.matmul(grad_z, self.parameters["head.weight"], out=grad)
        grad_x: Array | None = None
        for k in range(len(self.layers) - 1, -1, -1):
            grad_x = self.layers[k].backward(grad, k > 0 or need_grad_x or bool(self._embedded))
            if grad_x is not None:
                grad = grad_x
        if grad_x is not None:
            for name, columns in self._embedded:
                np.add.at(
                    self.gradients[f"embedding.{name}.weight"],
                    self._codes[name],
                    grad_x[..., columns],
                )
        return grad_x

    def loss(
        self, chunk: Chunk, target: Array, state: list[State], loss: str
    ) -> tuple[float, list[State]]:
        """Return a chunk's mean loss and the new state; set `gradient`.

        Targets are as in `loss_and_gradient`. The state is carried from the chunk before; its
        gradient is cut here. Raises `TrainingError` if the loss is not finite.
        """
        z, after = self.forward(chunk, state)
        value, grad_z = loss_and_gradient(loss, self.activation, z, target)
        self.backward(grad_z)
        return value, after

    def outputs(
        self, chunk: Chunk, state: list[State], max_steps: int = 512
    ) -> tuple[Array, list[State]]:
        """Return the head's outputs of arbitrarily many steps, in bounded memory.

        They are [T, B, O], after the activation, before the outputs' transforms, and the caller's
        own; with them comes the new state. ``max_steps`` are computed at once.
        """
        num_steps, num_rows, _ = chunk.features.shape
        y = np.empty((num_steps, num_rows, self.spec.output_size), self.dtype)
        for start in range(0, num_steps, max_steps):
            part = slice(start, start + max_steps)
            codes = {name: code[part] for name, code in chunk.codes.items()}
            z, state = self.forward(Chunk(chunk.features[part], codes), state)
            y[part] = activate(z, self.activation)
        return y, state
