"""The whole model in float64: slow, obvious, the oracle of every faster engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import InputError
from streamrnn.model.graph import Read
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.layers.recurrent import CELLS
from streamrnn.model.model import Model
from streamrnn.model.parameters import layer_parameters
from streamrnn.model.spec import LayerSpec
from streamrnn.reference.activations import ACTIVATIONS, GATE_FUNCTIONS
from streamrnn.reference.frame import frame_step, joined_frames, time_conv
from streamrnn.reference.gru import gru_step
from streamrnn.reference.lstm import lstm_step
from streamrnn.reference.norm import CellNorm
from streamrnn.reference.rnn import rnn_step
from streamrnn.reference.transforms import check_inputs, encode_inputs, transform_outputs

__all__ = ["ReferenceModel", "ReferenceState"]

Array = NDArray[np.float64]
_States = tuple[Array, ...]


@dataclass(frozen=True)
class ReferenceState:
    """State of B streams between two steps."""

    # Of every layer what it keeps: a recurrent one its vectors [B, H] in the order of `CELLS`, (h,)
    # or (h, c), an h that is a projection being [B, R]; a memory its places [B, N, C]; a causal
    # convolution its inputs [B, kept, C], the oldest first; any other nothing.
    layers: tuple[_States, ...]
    memory: Array  # [B, num_inputs]: the last value of every input that has a memory, else NaN
    # The output of the step before of every layer that is read so, in the order of `Graph.kept`.
    before: tuple[Array, ...] = ()


class ReferenceModel:
    """A model computed in float64, step by step.

    Its float32 parameters are widened; nothing is folded or rounded.
    """

    def __init__(self, model: Model) -> None:
        self.spec = model.spec
        self.parameters = {
            name: value.astype(np.float64) for name, value in model.parameters.items()
        }
        # By layer, the gates of the step before by their names, [B, H]: of layers that are entered.
        self.seen: dict[int, dict[str, Array]] = {}

    def initial_state(self, num_streams: int) -> ReferenceState:
        """Return the state of new streams: zeros or what was trained, and an empty memory."""
        graph = self.spec.graph
        layers: list[_States] = []
        for k, layer in enumerate(self.spec.layers):
            if isinstance(layer, LayerSpec):
                states = zip(CELLS[layer.cell].states, layer.state_sizes, strict=True)
                firsts = [
                    self.parameters[f"first_{name}_l{k}"] if layer.first_state else np.zeros(size)
                    for name, size in states
                ]
                layers.append(tuple(np.tile(first, (num_streams, 1)) for first in firsts))
                continue
            length, channels = graph.shape_of_joined(k)
            kept: _States = ()
            if isinstance(layer, MemorySpec):
                kept = (np.zeros((num_streams, layer.places, channels)),)
            elif isinstance(layer, TimeConvSpec):
                kept = (np.zeros((num_streams, layer.num_kept, length * channels)),)
            layers.append(kept)
        return ReferenceState(
            layers=tuple(layers),
            memory=np.full((num_streams, self.spec.num_inputs), np.nan),
            before=tuple(
                np.zeros((num_streams, *graph.shape_of(Read(k, is_before=True))))
                for k in graph.kept
            ),
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
        x = check_inputs(self.spec, x)
        new_y, new_state = self._step(state, x)
        if self.spec.mask_value is None:
            return new_y, new_state
        # A masked stream keeps its state, and its output follows from that once more.
        masked = (x == self.spec.mask_value).all(axis=1)
        old_y, _ = self._step(state, x, is_held=True)

        def chosen(old: Array, new: Array) -> Array:
            return np.where(masked.reshape(-1, *[1] * (new.ndim - 1)), old, new)

        layers = tuple(
            tuple(chosen(old, new) for old, new in zip(olds, news, strict=True))
            for olds, news in zip(state.layers, new_state.layers, strict=True)
        )
        memory = chosen(state.memory, new_state.memory)
        before = tuple(map(chosen, state.before, new_state.before))
        return chosen(old_y, new_y), replace(new_state, layers=layers, memory=memory, before=before)

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

    def _step(
        self, state: ReferenceState, x: Array, *, is_held: bool = False
    ) -> tuple[Array, ReferenceState]:
        """Step all streams, or (held) compute the output from their states once more."""
        spec, graph = self.spec, self.spec.graph
        features, memory, values = encode_inputs(spec, self.parameters, state.memory, x)
        before = dict(zip(graph.kept, state.before, strict=True))
        frames: dict[int, Array] = {-1: features.reshape(len(x), *spec.input_shape)}
        states = []
        for k, layer in enumerate(spec.layers):
            reads = [
                before[read.layer] if read.is_before else frames[read.layer]
                for read in graph.reads[k]
            ]
            if isinstance(layer, LayerSpec):
                new = state.layers[k]
                if not is_held:
                    flat = joined_frames(reads).reshape(len(x), -1)
                    new = self._recurrent_step(k, layer, flat, new)
                frames[k] = new[0][:, None]
            elif isinstance(layer, MemorySpec):
                frame = joined_frames(reads)
                frames[k] = np.concatenate([state.layers[k][0], frame], axis=1)
                new = (frame[:, -layer.places :],)
            elif isinstance(layer, TimeConvSpec):
                now = joined_frames(reads).reshape(len(x), 1, -1)
                history = np.concatenate([state.layers[k][0], now], axis=1)
                taps = history[:, :: layer.dilation]
                frames[k] = time_conv(layer, taps, layer_parameters(self.parameters, k))
                new = (history[:, 1:],)
            else:
                frames[k], new = frame_step(layer, reads, layer_parameters(self.parameters, k)), ()
            states.append(new)
        last = frames[len(spec.layers) - 1].reshape(len(x), -1)
        frames[len(spec.layers)] = self._head(last)[:, None]
        y = transform_outputs(spec, frames[len(spec.layers)][:, 0], values)
        kept = tuple(frames[k] for k in graph.kept)
        return y, ReferenceState(tuple(states), memory, kept)

    def _recurrent_step(self, k: int, layer: LayerSpec, x: Array, state: _States) -> _States:
        def get(name: str) -> Array:
            return self.parameters[f"{name}_l{k}"]

        weights = (get("weight_ih"), get("weight_hh"), get("bias_ih"), get("bias_hh"))
        if layer.cell.startswith("rnn_"):
            return (rnn_step(x, state[0], *weights, layer.cell.removeprefix("rnn_")),)
        is_lstm = layer.cell == "lstm"
        gate = GATE_FUNCTIONS[layer.gate_activation]
        candidate = ACTIVATIONS[layer.cell_activation]
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
            new_h = gru_step(
                x,
                state[0],
                *weights,
                gate=gate,
                candidate=candidate,
                reset_after=reset,
                norm=norm,
                seen=self.seen.get(k),
            )
            return (new_h,)
        return lstm_step(
            x,
            state[0],
            state[1],
            *weights,
            gate=gate,
            candidate=candidate,
            shown_as=ACTIVATIONS[layer.output_activation],
            weight_hr=get("weight_hr") if layer.projection_size else None,
            peepholes=(
                (get("weight_ci"), get("weight_cf"), get("weight_co")) if layer.peepholes else None
            ),
            norm=norm,
            seen=self.seen.get(k),
        )

    def _head(self, hidden: Array) -> Array:
        if self.spec.head is None:
            return hidden
        scores = hidden @ self.parameters["head.weight"].T + self.parameters["head.bias"]
        return ACTIVATIONS[self.spec.head.activation](scores)
