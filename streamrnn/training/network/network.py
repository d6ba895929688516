"""A whole network in training: embeddings, layers, head, and all their gradients.

Parameters and gradients each lie in one flat vector, with a view for every name: so the optimiser,
the clipping and the copy of the best weights are each one operation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from streamrnn.gradients.node import Node
from streamrnn.gradients.scratch import Array, Scratch, State
from streamrnn.model.graph import Read
from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import CELLS, LayerSpec, ModelSpec
from streamrnn.training.network.head import Head
from streamrnn.training.network.layers import make_layer
from streamrnn.training.network.losses import (
    PLAIN,
    LossSettings,
    activate,
    loss_and_gradient,
    set_gradient,
)
from streamrnn.training.network.order import Group, Source, groups_of, sources_of

__all__ = ["Chunk", "Network", "flat_views", "initial_parameters"]

# What a chunk's steps may take until they are gone back through: of a longer one so many are kept,
# and of those before them states alone, of spans that should stay in a cache. The count is of what
# a stack may need at most; an LSTM and its head take four fifths of it.
MAX_KEPT_BYTES = 128 << 20
SPAN_BYTES = 16 << 20


class Mask(NamedTuple):
    """What is left of values [T, B, N] that others read: dropout (Srivastava et al. 2014)."""

    kept: Array  # [T, B, N] of bool
    gain: float  # of what is kept

    def apply(self, values: Array, steps: slice | int = slice(None)) -> Array:
        """Set to 0 what is dropped of values, or of gradients by them, of some steps."""
        return np.asarray(values * (self.kept[steps] * values.dtype.type(self.gain)))


@dataclass
class Chunk:
    """Some steps of some rows, as the network sees them."""

    # [T, B, F], of the parameters' type, transforms applied; columns of embeddings hold anything
    features: Array
    codes: dict[str, Array]  # [T, B] of int64 by input that has an embedding: categories or tokens
    # By layer, -1 for the features: of what is read at the same step, not of states.
    masks: dict[int, Mask] = field(default_factory=dict)

    def steps(self, span: slice) -> Chunk:
        """Return some of the steps."""
        codes = {name: code[span] for name, code in self.codes.items()}
        masks = {k: mask._replace(kept=mask.kept[span]) for k, mask in self.masks.items()}
        return Chunk(self.features[span], codes, masks)


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


def initial_parameters(
    spec: ModelSpec,
    rng: np.random.Generator,
    initialisation: str = "orthogonal",
    forget_bias: float = 1.0,
    chrono_steps: int = 0,
) -> dict[str, Array]:
    """Draw the weights that training starts from, as float64.

    Input weights and the head: Glorot and Bengio 2010; recurrent weights: orthogonal, each gate by
    itself (Saxe et al. 2014), or uniform within 1/sqrt(H); forget gates open (Jozefowicz et al.
    2015), or so that units remember for 1 to ``chrono_steps`` steps (Tallec and Ollivier, "Can
    recurrent neural networks warp time?", ICLR 2018); other biases 0.
    """
    _, views = flat_views(spec, np.float64)
    for name, view in views.items():
        if name.startswith("embedding."):
            view[:] = rng.normal(0.0, 1.0 / np.sqrt(view.shape[1]), view.shape)
        elif name == "head.weight":
            view[:] = _glorot(rng, *view.shape)
    for index, layer in enumerate(spec.layers):
        if not isinstance(layer, LayerSpec):
            continue
        size = layer.hidden_size
        weight_ih, weight_hh = views[f"weight_ih_l{index}"], views[f"weight_hh_l{index}"]
        gates = CELLS[layer.cell].gates
        bias = dict(zip(gates, views[f"bias_ih_l{index}"].reshape(len(gates), size), strict=True))
        for k in range(len(gates)):
            rows = slice(k * size, (k + 1) * size)
            weight_ih[rows] = _glorot(rng, size, weight_ih.shape[1])
            if initialisation == "uniform":
                weight_hh[rows] = rng.uniform(-1.0, 1.0, (size, size)) / np.sqrt(size)
            else:
                weight_hh[rows] = np.linalg.qr(rng.normal(size=(size, size)))[0]
        if "f" in bias:
            bias["f"][:] = forget_bias
        if chrono_steps and len(gates) > 1:
            drawn = np.log(rng.uniform(1.0, max(1.0, chrono_steps - 1.0), size))
            bias["f" if "f" in bias else "z"][:] = drawn
            if "f" in bias:
                bias["i"][:] = -drawn
    return views


def _glorot(rng: np.random.Generator, num_out: int, num_in: int) -> Array:
    limit = np.sqrt(6.0 / (num_in + num_out))
    return rng.uniform(-limit, limit, (num_out, num_in))


class Network:
    """Parameters, their gradients, and the way forward and backward.

    The given parameters are copied; ``dtype`` is float32 or float64. The transforms of inputs and
    outputs are not applied here, the head's activation is. ``flat`` and ``gradient``
    [num_parameters] hold all parameters and the gradient that `loss` left; ``parameters`` and
    ``gradients`` are views of them by name. A state holds for each layer a tuple of arrays [B, H],
    and last for the head its output [B, O] if layers read it at the next step.
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
        self.nodes: list[Node] = [
            make_layer(layer, k, self.parameters, self.gradients)
            for k, layer in enumerate(spec.layers)
        ]
        if spec.head is not None:
            is_read = len(spec.layers) in spec.graph.kept
            self.nodes.append(Head(self.activation, is_read, self.parameters, self.gradients))
        self.sources = sources_of(spec.graph, len(self.nodes))
        self.groups = groups_of(self.sources)
        self._bytes_a_step = sum(node.bytes_a_step for node in self.nodes)
        self._scratch = Scratch(self.dtype)
        self._embedded: list[tuple[str, slice]] = []
        start = 0
        for item in spec.inputs:
            if item.embedding_size:
                self._embedded.append((item.name, slice(start, start + item.num_features)))
            start += item.num_features
        self._codes: dict[str, Array] = {}
        self._masks: dict[int, Mask] = {}

    def initial_state(self, num_rows: int) -> list[State]:
        """Return the state of B new streams."""
        return [node.initial_state(num_rows) for node in self.nodes]

    def forward(self, chunk: Chunk, state: list[State]) -> tuple[Array, list[State]]:
        """Run a chunk up to the head's pre-activations, [T, B, O].

        Returns them and the new state. The chunk is kept by reference until `backward`; the result
        is valid until the next call; the given state is not changed.
        """
        self._read_parameters()
        after = self._run(chunk, state)
        return self._z(), after

    def _z(self) -> Array:
        last = self.nodes[-1]
        return last.z if isinstance(last, Head) else last.h

    def _read_parameters(self) -> None:
        for node in self.nodes:
            node.read_parameters()

    def _run(self, chunk: Chunk, state: list[State], keeps: bool = True) -> list[State]:
        """Run a chunk and return the new state; without ``keeps`` there is no way back."""
        self._features, self._masks = chunk.features, chunk.masks
        if self._embedded:
            self._features = x = self._scratch.get("x", *chunk.features.shape)
            x[:] = chunk.features
            self._codes = chunk.codes
            for name, columns in self._embedded:
                x[..., columns] = self.parameters[f"embedding.{name}.weight"][chunk.codes[name]]
        after: list[State] = []
        for group in self.groups:
            if group.is_stepwise:
                self._run_by_steps(group, state, keeps)
            else:
                (k,) = group.nodes
                self._begin(k, state, self.sources[k])
                self.nodes[k].run(0, len(self._features), keeps)
            after += [self.nodes[k].end() for k in group.nodes]
        return after

    def _output_of(self, read: Read, step: int | None = None) -> Array:
        """Return what a node reads, [T, B, ...], or [B, ...] of one step."""
        if read.is_before:
            values, mask = self.nodes[read.layer].h_before, None
        else:
            values = self._features if read.layer < 0 else self.nodes[read.layer].h
            mask = self._masks.get(read.layer)
        if step is None:
            return mask.apply(values) if mask else values
        return mask.apply(values[step], step) if mask else values[step]

    def _begin(self, k: int, state: list[State], sources: Sequence[Source]) -> None:
        """Make a node ready, with what it reads of sources that have gone through the chunk."""
        num_steps, num_rows, _ = self._features.shape
        self.nodes[k].begin(num_steps, num_rows, state[k])
        self.nodes[k].take([(each.columns, self._output_of(each.read)) for each in sources])

    def _run_by_steps(self, group: Group, state: list[State], keeps: bool) -> None:
        """Run nodes of which some read what later ones gave at the step before."""
        inner: dict[int, list[Source]] = {}
        for k in group.nodes:
            inner[k] = [each for each in self.sources[k] if each.read.layer in group.nodes]
            self._begin(k, state, [each for each in self.sources[k] if each not in inner[k]])
        for t in range(len(self._features)):
            for k in group.nodes:
                node = self.nodes[k]
                for source in inner[k]:
                    node.x[t][:, source.columns] = self._output_of(source.read, t)
                node.run(t, t + 1, keeps)

    def backward(self, grad_z: Array, need_grad_x: bool = False) -> Array | None:
        """Go back through the last chunk; `gradients` are set, not added to.

        ``grad_z`` [T, B, O] is the loss's gradient by what `forward` returned, and may be
        overwritten. Returns the gradient by the features, [T, B, F], if it is wanted.
        """
        grad_x = self._back(grad_z, need_grad_x)
        self._set_gradients()
        return grad_x

    def _set_gradients(self) -> None:
        for node in self.nodes:
            node.set_gradients()

    def _back(
        self, grad_z: Array, need_grad_x: bool = False, grad_after: Sequence[State] = ()
    ) -> Array | None:
        """Go back through the last chunk, the last one or that before the one gone back through.

        ``grad_after`` is the gradient by the state after it, from `_grad_before`.
        """
        self._is_last = not grad_after
        self._grad_after: Sequence[State | None] = grad_after or [None] * len(self.nodes)
        self._read_before: dict[int, Array] = {}
        least = -1 if need_grad_x or self._embedded else 0
        grads = {len(self.nodes) - 1: grad_z}  # by what each node has given
        for group in reversed(self.groups):
            if group.is_stepwise:
                self._backward_by_steps(group, grads)
                continue
            (k,) = group.nodes
            node, num_steps = self.nodes[k], len(self._features)
            node.begin_back(grads.pop(k, None), self._grad_after[k])
            node.run_back(0, num_steps)
            node.end_back(self._is_last)
            if any(source.read.layer >= least for source in self.sources[k]):
                self._pass_back(self.sources[k], node.grad_x(0, num_steps), grads)
        grad_features = grads.get(-1)
        if grad_features is not None and self._embedded:
            from streamrnn.gradients.losses import add_rows  # loads Numba

            for name, columns in self._embedded:
                gradient = self.gradients[f"embedding.{name}.weight"]
                if self._is_last:
                    gradient[:] = 0.0
                rows = np.ascontiguousarray(grad_features[..., columns])
                codes = np.ascontiguousarray(self._codes[name], np.int64)
                add_rows(gradient, codes.ravel(), rows.reshape(codes.size, -1))
        return grad_features

    def _pass_back(self, sources: Sequence[Source], grad_x: Array, grads: dict[int, Array]) -> None:
        """Add a node's gradient by x to those by what its sources have given."""
        for read, columns in sources:
            is_all = columns == slice(0, grad_x.shape[2])
            grad = grad_x if is_all else grad_x[..., columns]
            if read.is_before:
                shifted = np.zeros_like(grad)
                shifted[:-1] = grad[1:]
                self._add_before(read, grad[0])
                grad = shifted
            elif read.layer in self._masks:
                grad = self._masks[read.layer].apply(grad)
            grads[read.layer] = grads[read.layer] + grad if read.layer in grads else grad

    def _backward_by_steps(self, group: Group, grads: dict[int, Array]) -> None:
        """Go back through nodes of which some read what later ones gave at the step before."""
        num_steps = len(self._features)
        grad_x = {}
        for k in group.nodes:
            self.nodes[k].begin_back(grads.pop(k, None), self._grad_after[k])
        for t in range(num_steps - 1, -1, -1):
            for k in reversed(group.nodes):
                self.nodes[k].run_back(t, t + 1)
                grad_x[k] = self.nodes[k].grad_x(t, t + 1)
                for read, columns in self.sources[k]:
                    if read.layer not in group.nodes:
                        continue
                    given, grad = t - read.is_before, grad_x[k][t][:, columns]
                    if read.layer in self._masks and not read.is_before:
                        grad = self._masks[read.layer].apply(grad, t)
                    if given >= 0:
                        self.nodes[read.layer].grad_h[given] += grad
                    else:
                        self._add_before(read, grad)
        for k in group.nodes:
            self.nodes[k].end_back(self._is_last)
            outer = [each for each in self.sources[k] if each.read.layer not in group.nodes]
            self._pass_back(outer, grad_x[k], grads)

    def _add_before(self, read: Read, grad: Array) -> None:
        """Note the gradient by what was read of before step 0, [B, H]."""
        before = self._read_before
        before[read.layer] = before[read.layer] + grad if read.layer in before else grad.copy()

    def _grad_before(self) -> list[State]:
        """Return the gradient by the state before the chunk that was last gone back through."""
        grads = [node.grad_before() for node in self.nodes]
        for k, grad in self._read_before.items():
            by_h = grads[k][0]
            by_h += grad
        return grads

    def loss(
        self,
        chunk: Chunk,
        target: Array,
        state: list[State],
        loss: str,
        settings: LossSettings = PLAIN,
    ) -> tuple[float, list[State]]:
        """Return a chunk's mean loss and the new state; set `gradient`.

        Targets are as in `loss_and_gradient`. The state is carried from the chunk before; its
        gradient is cut here. Raises `TrainingError` if the loss is not finite.

        Of a long chunk the states at the beginnings of its spans are kept, and each span is
        computed again before it is gone back through (Chen, Xu, Zhang and Guestrin, "Training deep
        nets with sublinear memory cost", 2016).
        """
        self._read_parameters()
        spans = self._spans(*chunk.features.shape[:2])
        states = self._states(chunk, state, spans[:-1])
        num_targets = int(np.count_nonzero(~np.isnan(target))) if len(spans) > 1 else None
        total, grad_after = 0.0, list[State]()
        for span, before in zip(reversed(spans), reversed(states), strict=True):
            end = self._run(chunk.steps(span), before)
            part, grad_z = self._loss(loss, target[span], settings, num_targets)
            total += part
            self._back(grad_z, grad_after=grad_after)
            if span is spans[-1]:
                after = end
            if span is not spans[0]:
                grad_after = self._grad_before()
        self._set_gradients()
        self._forget()
        return total, after

    def _loss(
        self, loss: str, target: Array, settings: LossSettings, num_targets: int | None
    ) -> tuple[float, Array]:
        """Return the mean loss of what was run last, and its gradient by z."""
        last = self.nodes[-1]
        if not isinstance(last, Head):
            return loss_and_gradient(
                loss, self.activation, self._z(), target, settings, num_targets
            )
        value = set_gradient(loss, self.activation, last.outputs, target, settings, num_targets)
        return value, last.grad_z

    def advance(self, chunk: Chunk, state: list[State]) -> list[State]:
        """Return the state after a chunk, to which there is no way back."""
        self._read_parameters()
        after = self._states(chunk, state, self._spans(*chunk.features.shape[:2]))[-1]
        self._forget()
        return after

    def _forget(self) -> None:
        """Let go of the last chunk, before the next one is made."""
        self._features, self._codes = np.empty((0, 0, 0), self.dtype), {}

    def _states(
        self, chunk: Chunk, state: list[State], spans: Sequence[slice]
    ) -> list[list[State]]:
        """Return the states before a chunk and after each of some spans."""
        states = [state]
        for span in spans:
            states.append(self._run(chunk.steps(span), states[-1], keeps=False))
        return states

    def _spans(self, num_steps: int, num_rows: int) -> list[slice]:
        """Cut a chunk's steps so that what is kept of one span, and all states, take little.

        The last is as long as may be kept: it alone is computed once.
        """
        step_bytes = num_rows * self._bytes_a_step
        most = max(math.isqrt(num_steps), SPAN_BYTES // step_bytes, 1)
        last = max(0, num_steps - max(MAX_KEPT_BYTES // step_bytes, most))
        length = -(-last // max(1, -(-last // most))) or 1
        return [slice(*ends) for ends in pairwise([*range(0, last, length), last, num_steps])]

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
            z, state = self.forward(chunk.steps(part), state)
            y[part] = activate(z, self.activation)
        return y, state
