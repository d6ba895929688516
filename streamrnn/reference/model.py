"""The whole model in float64: slow, obvious, the oracle of every faster engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import InputError
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec
from streamrnn.reference.activations import GATE_FUNCTIONS, HEAD_ACTIVATIONS
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.norm import CellNorm
from streamrnn.reference.rnn import rnn_step
from streamrnn.reference.transforms import check_inputs, encode_inputs, transform_outputs

__all__ = ["ReferenceModel", "ReferenceState"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceState:
    """State of B streams between two steps."""

    # Of every layer its state vectors, [B, H], in the order of `CELLS`: (h,) or (h, c); an h that
    # is a projection is [B, R].
    layers: tuple[tuple[Array, ...], ...]
    memory: Array  # [B, num_inputs]: the last value of every input that has a memory, else NaN


class ReferenceModel:
    """A model computed in float64, step by step.

    Its float32 parameters are widened; nothing is folded or rounded.
    """

    def __init__(self, model: Model) -> None:
        self.spec = model.spec
        self.parameters = {
            name: value.astype(np.float64) for name, value in model.parameters.items()
        }

    def initial_state(self, num_streams: int) -> ReferenceState:
        """Return the state of new streams: zeros, and an empty memory."""
        return ReferenceState(
            layers=tuple(
                tuple(np.zeros((num_streams, size)) for size in layer.state_sizes)
                for layer in self.spec.layers
            ),
            memory=np.full((num_streams, self.spec.num_inputs), np.nan),
        )

    def step(self, state: ReferenceState, x: NDArray[Any]) -> tuple[Array, ReferenceState]:
        """Advance B streams by one time step; ``state`` is not changed.

        Parameters
        ----------
        state : ReferenceState
            Before the step.
        x : ndarray, [B, num_inputs]
            Raw inputs: float32, or whole numbers for a token model.

        Returns
        -------
        y : ndarray of float64, [B, O]
            Outputs in the user's units.
        state : ReferenceState
            The new state.

        Raises
        ------
        InputError
            If the model does not take such an input.
        """
        features, memory, values = encode_inputs(
            self.spec, self.parameters, state.memory, check_inputs(self.spec, x)
        )
        layers = []
        hidden = features
        for k, layer in enumerate(self.spec.layers):
            layers.append(self._layer_step(k, layer, hidden, state.layers[k]))
            hidden = layers[-1][0]
        y = transform_outputs(self.spec, self._head(hidden), values)
        return y, ReferenceState(tuple(layers), memory)

    def steps(self, x: NDArray[Any]) -> Array:
        """Run new streams through many steps: x [B, T, I] to y [B, T, O], or without B.

        Raises `InputError` if the model does not take such an input.
        """
        x = np.asarray(x)
        if x.ndim == 2:
            y: Array = self.steps(x[None])[0]
            return y
        if x.ndim != 3 or x.shape[2] != self.spec.num_inputs:
            raise InputError(
                f"x has shape {list(x.shape)}; expected [T, {self.spec.num_inputs}] or "
                f"[B, T, {self.spec.num_inputs}]"
            )
        state = self.initial_state(x.shape[0])
        outputs = np.empty((x.shape[0], x.shape[1], self.spec.output_size))
        for t in range(x.shape[1]):
            try:
                outputs[:, t], state = self.step(state, x[:, t])
            except InputError as error:
                raise InputError(f"step {t}: {error}") from error
        return outputs

    def _layer_step(
        self, k: int, layer: LayerSpec, x: Array, state: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        def get(name: str) -> Array:
            return self.parameters[f"{name}_l{k}"]

        weights = (get("weight_ih"), get("weight_hh"), get("bias_ih"), get("bias_hh"))
        if layer.cell.startswith("rnn_"):
            return (rnn_step(x, state[0], *weights, layer.cell.removeprefix("rnn_")),)
        is_lstm = layer.cell == "lstm"
        gate = GATE_FUNCTIONS[layer.gate_activation]
        norm = None
        if layer.layer_norm:
            norm = CellNorm(
                get("norm_weight_ih"),
                get("norm_weight_hh"),
                get("norm_weight_c") if is_lstm else np.empty(0),
                get("norm_bias_c") if is_lstm else np.empty(0),
                layer.norm_epsilon,
            )
        if not is_lstm:
            reset = layer.reset_after
            return (gru_step(x, state[0], *weights, gate=gate, reset_after=reset, norm=norm),)
        return lstm_step(
            x,
            state[0],
            state[1],
            *weights,
            gate=gate,
            weight_hr=get("weight_hr") if layer.projection_size else None,
            peepholes=(
                (get("weight_ci"), get("weight_cf"), get("weight_co")) if layer.peepholes else None
            ),
            norm=norm,
        )

    def _head(self, hidden: Array) -> Array:
        if self.spec.head is None:
            return hidden
        scores = hidden @ self.parameters["head.weight"].T + self.parameters["head.bias"]
        return HEAD_ACTIVATIONS[self.spec.head.activation](scores)
