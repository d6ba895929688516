"""What the gates of a model do over streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.layers.recurrent import CELLS
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec
from streamrnn.reference.model import ReferenceModel, ReferenceState

__all__ = ["LayerGates", "run_gates"]

Array = NDArray[np.float64]

# What a unit keeps of its state from step to step is the state times this gate.
_KEEPS = {"lstm": "f", "gru": "z"}


@dataclass(frozen=True)
class LayerGates:
    """Gates and states of one recurrent layer, over B streams of T steps each."""

    layer: int  # its place among the model's layers
    cell: str
    gates: dict[str, Array]  # [B, T, H] by name, and the candidate; none of an RNN
    states: dict[str, Array]  # [B, T, H] after each step: h, and c of an LSTM

    @property
    def keep(self) -> Array | None:
        """The share of each unit's state that a step keeps, [B, T, H]; None for an RNN."""
        name = _KEEPS.get(self.cell)
        return self.gates[name] if name else None


def run_gates(
    model: Model, x: NDArray[Any], state: ReferenceState | None = None
) -> tuple[Array, list[LayerGates]]:
    """Run streams x, [B, T, num_inputs], in float64: new ones, or from a state on.

    Returns the outputs, [B, T, O] in the user's units, and the gates of every recurrent layer.
    Raises `InputError` if the model does not take such an input.
    """
    reference = ReferenceModel(model)
    cells = {
        k: each.cell for k, each in enumerate(model.spec.layers) if isinstance(each, LayerSpec)
    }
    reference.seen = {k: {} for k in cells}
    gates: dict[int, list[dict[str, Array]]] = {k: [] for k in cells}
    states: dict[int, list[dict[str, Array]]] = {k: [] for k in cells}
    state = reference.initial_state(len(x)) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        y, state = reference.step(state, x[:, t])
        outputs.append(y)
        for k, cell in cells.items():
            gates[k].append(dict(reference.seen[k]))
            states[k].append(dict(zip(CELLS[cell].states, state.layers[k], strict=True)))
    found = [LayerGates(k, cells[k], _joined(gates[k]), _joined(states[k])) for k in cells]
    return np.stack(outputs, axis=1), found


def _joined(steps: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}
