"""A network with a linear path beside it: a causal convolution from its features to its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from streamrnn.model.layers.frame import ActivationSpec
from streamrnn.model.layers.memory import TimeConvSpec
from streamrnn.model.spec import LayerSpec, ModelSpec
from streamrnn.training.network.layers import Array, State
from streamrnn.training.network.losses import LossSettings, loss_and_gradient
from streamrnn.training.network.network import Chunk, Network

__all__ = ["NetworkWithLags", "has_lags", "network_of", "with_lags"]

LAGS = "lags"  # the convolution's name
_RECURRENT = "recurrent"  # the last recurrent layer's, if it has none


def with_lags(
    spec: ModelSpec, parameters: Mapping[str, Array], weight: Array, bias: Array, gain: float
) -> tuple[ModelSpec, dict[str, Array]]:
    """Add to a network's outputs, times ``gain``, those of a convolution.

    ``weight`` is [O, F, lags], the newest step last, and ``bias`` [O]. Returns the model's
    description and its parameters.
    """
    last = spec.layers[-1]
    last = replace(last, name=last.name or _RECURRENT)
    num_outputs, _, lags = weight.shape
    number = len(spec.layers)
    layers = (
        *spec.layers[:-1],
        last,
        TimeConvSpec(num_outputs, lags, name=LAGS, reads=("input",)),
        ActivationSpec("identity", reads=(last.name, LAGS)),
    )
    head = [parameters["head.weight"] * gain, np.eye(num_outputs)]
    own = {
        f"weight_l{number}": weight,
        f"bias_l{number}": bias,
        "head.weight": np.concatenate(head, axis=1),
        "head.bias": parameters["head.bias"] * gain,
    }
    whole = {
        name: np.asarray(value, np.float32) for name, value in (*parameters.items(), *own.items())
    }
    return replace(spec, layers=layers), whole


def network_of(
    spec: ModelSpec, parameters: Mapping[str, Any], dtype: DTypeLike = np.float32
) -> Network:
    """Return the network of a model that was trained here."""
    kind = NetworkWithLags if has_lags(spec) else Network
    return kind(spec, parameters, dtype)


def has_lags(spec: ModelSpec) -> bool:
    """Tell whether a model is a stack of recurrent layers with such a path beside it."""
    if len(spec.layers) < 3 or spec.head is None:
        return False
    recurrent, path, join = spec.layers[-3:]
    return (
        isinstance(path, TimeConvSpec)
        and (path.name, path.reads, path.dilation, path.groups) == (LAGS, ("input",), 1, 1)
        and path.activation == "identity"
        and isinstance(join, ActivationSpec)
        and join.activation == "identity"
        and join.reads == (recurrent.name, LAGS)
        and all(isinstance(layer, LayerSpec) for layer in spec.layers[:-2])
    )


class NetworkWithLags(Network):
    """The network that `with_lags` describes; what trains is without the path.

    Its state has one entry more: the features of the last steps, [B, lags - 1, F].
    """

    def __init__(
        self, spec: ModelSpec, parameters: Mapping[str, Any], dtype: DTypeLike = np.float32
    ) -> None:
        number = len(spec.layers) - 2
        weight = np.asarray(parameters["head.weight"])
        num_paths = len(parameters[f"bias_l{number}"])
        inner = {**parameters, "head.weight": weight[:, :-num_paths]}
        super().__init__(replace(spec, layers=spec.layers[:number]), inner, dtype)
        self.spec = spec
        self.parameters = {
            name: np.asarray(value, self.dtype) for name, value in parameters.items()
        }
        # [lags, F, O]: the matrix of the newest step last.
        path = self.parameters[f"weight_l{number}"].transpose(2, 1, 0)
        join = self.parameters["head.weight"][:, -num_paths:].T
        self._path = np.ascontiguousarray(path @ join)
        self._shift = self.parameters[f"bias_l{number}"] @ join

    def initial_state(self, num_rows: int) -> list[State]:
        """Return the state of B new streams."""
        lags, num_features, _ = self._path.shape
        kept = np.zeros((num_rows, lags - 1, num_features), self.dtype)
        return [*super().initial_state(num_rows), (kept,)]

    def _run(self, chunk: Chunk, state: list[State], keeps: bool = True) -> list[State]:
        after = super()._run(chunk, state[:-1], keeps)
        (kept,) = state[-1]
        features = chunk.features.astype(self.dtype, copy=False)
        self._seen = seen = np.concatenate([kept.transpose(1, 0, 2), features])
        return [*after, (seen[len(features) :].transpose(1, 0, 2).copy(),)]

    def _z(self) -> Array:
        total = super()._z() + self._shift
        for k, matrix in enumerate(self._path):
            total += self._seen[k : k + len(total)] @ matrix
        return np.asarray(total)

    def _loss(
        self, loss: str, target: Array, settings: LossSettings, num_targets: int | None
    ) -> tuple[float, Array]:
        return loss_and_gradient(loss, self.activation, self._z(), target, settings, num_targets)

    def _back(
        self, grad_z: Array, need_grad_x: bool = False, grad_after: Sequence[State] = ()
    ) -> Array | None:
        """Go back through the last chunk; the path's own weights get no gradient."""
        along = grad_z.copy()
        grad_x = super()._back(grad_z, need_grad_x, grad_after)
        if not need_grad_x or grad_x is None:
            return grad_x
        grad_x = grad_x.copy()
        lags, num_steps = len(self._path), len(grad_x)
        for back in range(min(lags, num_steps)):
            grad_x[: num_steps - back] += along[back:] @ self._path[lags - 1 - back].T
        return grad_x
