"""Gradients by lag: how far back, and how strongly, a step's loss reaches into each layer.

Vanishing gradients: Hochreiter 1991; Bengio, Simard and Frasconi, "Learning long-term dependencies
with gradient descent is difficult", IEEE Transactions on Neural Networks 5(2), 1994; Pascanu,
Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013. In
float64, written out for the plain cells, apart from the trainer's own way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.model.graph import Read
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec, ModelSpec
from streamrnn.reference.gates import LayerGates, run_gates
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.memory.rows import choose_rows, windows_before
from streamrnn.training.memory.targets import TargetsOf
from streamrnn.training.network.lags import has_lags
from streamrnn.training.network.losses import gradient_before

__all__ = [
    "Fading",
    "LayerFading",
    "fading_lines",
    "jacobian_by_lag",
    "layers_by_lag",
    "measure_fading",
    "plain_stack",
]

Array = NDArray[np.float64]

MAX_WINDOWS, MAX_STEPS, MAX_OUTPUTS = 32, 256, 16
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
LEFT = 0.01  # of the gradient at lag 0: what is less has faded


@dataclass(frozen=True)
class LayerFading:
    """Root mean square over windows of the norm of a loss's gradient by one layer's states."""

    layer: int
    by_h: tuple[float, ...]  # by lag, from the step of the loss back
    by_c: tuple[float, ...] = ()  # of an LSTM

    @property
    def reach(self) -> int:
        """The farthest lag at which at least a hundredth of the gradient at lag 0 is left."""
        reaches = [0]
        for values in (self.by_h, self.by_c):
            left = [lag for lag, value in enumerate(values) if value >= LEFT * values[0] > 0]
            reaches += left[-1:]
        return max(reaches)


@dataclass(frozen=True)
class Fading:
    """Of all recurrent layers, over windows that end with a step of loss."""

    layers: tuple[LayerFading, ...]
    num_steps: int  # of a window
    num_windows: int
    truncation_steps: int  # 0: gradients are not cut, windows are as long as there is past
    is_of_outputs: bool = False  # of the outputs' Jacobian, not of a loss

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: lags 0, 1, 2, 4, ... and the last."""
        last = self.num_steps - 1
        lags = sorted({0, last, *(1 << k for k in range(16) if 1 << k < last)})
        layers = [
            {
                "layer": each.layer,
                "reach": each.reach,
                "by_h": {str(lag): each.by_h[lag] for lag in lags},
                "by_c": {str(lag): each.by_c[lag] for lag in lags if each.by_c},
            }
            for each in self.layers
        ]
        found = {"num_steps": self.num_steps, "num_windows": self.num_windows, "layers": layers}
        told = {"is_of_outputs": self.is_of_outputs, "truncation_steps": self.truncation_steps}
        return found | told


def measure_fading(
    model: Model, dataset: Dataset, part: str, truncation_steps: int = 0
) -> Fading | None:
    """Go back from the loss of single steps, through windows of `truncation_steps` at most.

    None where the layers are no plain stack, or the part has no targets.
    """
    most = min(truncation_steps or MAX_STEPS, MAX_STEPS)
    rows = choose_rows(dataset, part, MAX_WINDOWS, most - 1)
    if not plain_stack(model.spec) or not len(rows.rows):
        return None
    targets = TargetsOf(dataset, rows)

    y, gates = run_gates(model, windows_before(dataset, rows))
    grad_z = targets.gradient(targets.in_network_units(y[:, -1]))
    found = layers_by_lag(model.parameters, gates, grad_z)
    return Fading(found, rows.history + 1, len(rows.rows), truncation_steps)


def jacobian_by_lag(model: Model, x: NDArray[Any]) -> tuple[LayerFading, ...]:
    """Measure the Jacobian of the outputs of windows' last steps, x [B, T, num_inputs].

    Of a softmax the outputs are the probabilities. Returns root mean squares over the windows of
    the Jacobian's Frobenius norm, by each layer's states; nothing where the layers are no plain
    stack.
    """
    if not plain_stack(model.spec):
        return ()
    assert model.spec.head is not None
    activation, size = model.spec.head.activation, model.spec.output_size
    y, gates = run_gates(model, x)
    y = y[:, -1]
    # Of many outputs chance combinations: the mean of their squares is the same (Hutchinson 1990).
    rng = np.random.default_rng(0)
    drawn = rng.choice([-1.0, 1.0], (MAX_OUTPUTS, size)) / np.sqrt(MAX_OUTPUTS)
    parts = []
    for row in np.eye(size) if size <= MAX_OUTPUTS else drawn:
        grad_z = np.asarray(gradient_before(y, activation, np.tile(row, (len(y), 1))))
        parts.append(layers_by_lag(model.parameters, gates, grad_z))
    joined = []
    for own in zip(*parts, strict=True):
        by_h = np.sqrt(np.sum(np.square([each.by_h for each in own]), axis=0))
        by_c = np.sqrt(np.sum(np.square([each.by_c for each in own]), axis=0))
        joined.append(LayerFading(own[0].layer, tuple(by_h.tolist()), tuple(by_c.tolist())))
    return tuple(joined)


def plain_stack(spec: ModelSpec) -> int:
    """Return the number of recurrent layers, each of which reads the one before, the head the last.

    A linear path beside them may be there. 0: it is no such model, or something is fed back.
    """
    number = sum(isinstance(layer, LayerSpec) for layer in spec.layers)
    if spec.head is None or spec.graph.kept or not number:
        return 0
    is_stack = all(
        isinstance(layer, LayerSpec) and layer.is_plain and spec.graph.reads[k] == (Read(k - 1),)
        for k, layer in enumerate(spec.layers[:number])
    )
    return number if is_stack and (len(spec.layers) == number or has_lags(spec)) else 0


def layers_by_lag(
    parameters: Mapping[str, NDArray[Any]], found: list[LayerGates], grad_z: Array
) -> tuple[LayerFading, ...]:
    """Go back from the last steps of windows that were run through a plain stack.

    ``grad_z`` [B, O] is the gradient by the pre-activations of the outputs of these steps.
    """
    top = found[-1].states["h"]
    grad = np.zeros(top.shape)
    head = np.asarray(parameters["head.weight"], np.float64)
    grad[:, -1] = grad_z @ head[:, : top.shape[2]]
    results = []
    for layer in reversed(found):
        names = ((name, f"{name}_l{layer.layer}") for name in _NAMES)
        own = {name: np.asarray(parameters[key], np.float64) for name, key in names}
        by_h, by_c, grad = back_through(layer, own, grad)
        results.append(LayerFading(layer.layer, _by_lag(by_h), _by_lag(by_c)))
    return tuple(reversed(results))


def _by_lag(grad: Array) -> tuple[float, ...]:
    """Return the root mean square over windows of the norms, the last step first."""
    if not grad.shape[2]:
        return ()
    norms = np.sqrt(np.mean(np.sum(grad**2, axis=2), axis=0))
    return tuple(norms[::-1].tolist())


def back_through(
    layer: LayerGates, weights: Mapping[str, Array], grad: Array
) -> tuple[Array, Array, Array]:
    """Go back through a plain layer.

    ``grad`` [B, T, H] is the gradient by h as far as others read it. Returns those by h and by c
    (no units where there is none), all ways included, and that by what the layer reads.
    """
    num_rows, num_steps, size = grad.shape
    zeros = np.zeros((num_rows, 1, size))
    h_before = np.concatenate([zeros, layer.states["h"][:, :-1]], axis=1)
    c = layer.states.get("c", np.zeros((num_rows, num_steps, 0)))
    c_before = np.concatenate([zeros[:, :, : c.shape[2]], c[:, :-1]], axis=1)
    by_h, by_c = np.zeros(grad.shape), np.zeros(c.shape)
    by_x = np.zeros((num_rows, num_steps, weights["weight_ih"].shape[1]))
    next_h, next_c = np.zeros((num_rows, size)), np.zeros((num_rows, c.shape[2]))
    for t in range(num_steps - 1, -1, -1):
        by_h[:, t] = grad[:, t] + next_h
        gates = {name: value[:, t] for name, value in layer.gates.items()}
        if layer.cell == "lstm":
            tanh_c = np.tanh(c[:, t])
            by_c[:, t] = by_h[:, t] * gates["o"] * (1 - tanh_c**2) + next_c
            sums = _lstm_back(gates, tanh_c, c_before[:, t], by_h[:, t], by_c[:, t])
            next_c, next_h = by_c[:, t] * gates["f"], sums @ weights["weight_hh"]
        elif layer.cell == "gru":
            sums, next_h = _gru_back(gates, weights, h_before[:, t], by_h[:, t])
        else:
            h = layer.states["h"][:, t]
            sums = by_h[:, t] * (1 - h**2 if layer.cell == "rnn_tanh" else h > 0)
            next_h = sums @ weights["weight_hh"]
        by_x[:, t] = sums @ weights["weight_ih"]
    return by_h, by_c, by_x


def _lstm_back(
    gates: Mapping[str, Array], tanh_c: Array, c_before: Array, by_h: Array, by_c: Array
) -> Array:
    """Return the gradient by the sums of i, f, g and o."""
    i, f, g, o = (gates[name] for name in "ifgo")
    parts = (
        by_c * g * i * (1 - i),
        by_c * c_before * f * (1 - f),
        by_c * i * (1 - g**2),
        by_h * tanh_c * o * (1 - o),
    )
    return np.concatenate(parts, axis=1)


def _gru_back(
    gates: Mapping[str, Array], weights: Mapping[str, Array], h_before: Array, by_h: Array
) -> tuple[Array, Array]:
    """Return the gradient by the sums with x of r, z and n, and that by h of the step before."""
    r, z, n = (gates[name] for name in "rzn")
    size = h_before.shape[1]
    weight_hn, bias_hn = weights["weight_hh"][2 * size :], weights["bias_hh"][2 * size :]
    by_n = by_h * (1 - z) * (1 - n**2)
    by_r = by_n * (h_before @ weight_hn.T + bias_hn) * r * (1 - r)
    by_z = by_h * (h_before - n) * z * (1 - z)
    from_h = np.concatenate([by_r, by_z, by_n * r], axis=1)
    before = by_h * z + from_h @ weights["weight_hh"]
    return np.concatenate([by_r, by_z, by_n], axis=1), before


def fading_lines(fading: dict[str, Any]) -> list[str]:
    """Format what `Fading.to_dict` returned as lines of text."""
    num_steps, layers = fading["num_steps"], fading["layers"]
    reach = max(each["reach"] for each in layers)
    of = "y" if fading.get("is_of_outputs") else "L"
    if not any(each[by].get("0") for each in layers for by in ("by_h", "by_c")):
        return ["gradients reach no layer: the outputs do not depend on them"]
    lines = [f"gradients reach {reach + 1} of {counted(num_steps, 'step')}"]
    left = max(
        values[str(num_steps - 1)] / values["0"]
        for each in layers
        for values in (each["by_h"], each["by_c"])
        if values and values["0"] > 0
    )
    if reach + 1 == num_steps and num_steps == fading["truncation_steps"]:
        lines[0] += (
            f", where they are cut by the truncation and {left:.0%} of those at the loss; more may "
            f"be learned with --truncation-steps {2 * num_steps}"
        )
    for each in layers:
        for name, values in (("h", each["by_h"]), ("c", each["by_c"])):
            if values:
                lags = sorted(values, key=int)
                shares = (f"{lag}: {values[lag] / max(values['0'], 1e-300):.2g}" for lag in lags)
                what = f"|d{of}/d{name}| of layer {each['layer'] + 1}"
                listed = "  ".join(shares)
                lines.append(f"  {what} by lag ({values['0']:.2g} at 0): {listed}")
    return lines
