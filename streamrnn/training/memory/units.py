"""What the units of a recurrent layer do: half-lives, gates that are stuck, dead units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model
from streamrnn.reference.gates import LayerGates, run_gates
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.memory.rows import choose_rows, windows_before
from streamrnn.training.memory.trace import GATE_NAMES

__all__ = ["LayerUnits", "measure_layers", "measure_units", "unit_lines"]

Doubles = NDArray[np.float64]

LOW, HIGH = 0.01, 0.99  # beyond these a gate is saturated
STUCK = 0.99  # of its steps: a gate that is saturated in so many never decides anything
DEAD = 1e-3  # an output that stays within so much tells nothing
_LEAST = 1e-12
NUM_SHOWN = 5
MAX_WINDOWS, MAX_STEPS = 16, 128


@dataclass(frozen=True)
class LayerUnits:
    """The units of one layer, over streams."""

    layer: int
    cell: str
    # Steps after which half of a unit's state is left if nothing is added, by the mean of ln f (of
    # a GRU ln z); inf: it forgets nothing. Empty for an RNN, which has no such gate.
    half_lives: Doubles
    saturated: dict[str, Doubles]  # by gate, each unit's share of such steps
    dead: NDArray[np.bool_]  # whether a unit's output stays within DEAD

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; None for a half-life that is infinite."""
        return {
            "layer": self.layer,
            "cell": self.cell,
            "half_lives": [x if np.isfinite(x) else None for x in self.half_lives.tolist()],
            "saturated": {name: share.tolist() for name, share in self.saturated.items()},
            "dead": np.flatnonzero(self.dead).tolist(),
        }


def measure_units(found: LayerGates, skip_steps: int = 0) -> LayerUnits:
    """Measure the units of a layer, from the step `skip_steps` of every stream on."""
    keep, h = found.keep, found.states["h"][:, skip_steps:]
    half_lives = np.empty(0)
    if keep is not None:
        logs = np.log(np.clip(keep[:, skip_steps:], _LEAST, 1.0)).mean(axis=(0, 1))
        with np.errstate(divide="ignore"):
            half_lives = np.log(0.5) / logs
        half_lives[logs >= 0.0] = np.inf
    saturated = {}
    for name in GATE_NAMES:
        if name in found.gates:
            gate = found.gates[name][:, skip_steps:]
            saturated[name] = ((gate < LOW) | (gate > HIGH)).mean(axis=(0, 1))
    dead = np.ptp(h, axis=(0, 1)) < DEAD
    return LayerUnits(found.layer, found.cell, half_lives, saturated, dead)


def measure_layers(model: Model, dataset: Dataset, part: str) -> list[LayerUnits]:
    """Measure the units of all recurrent layers, over windows before rows of a part."""
    rows = choose_rows(dataset, part, MAX_WINDOWS, MAX_STEPS - 1)
    if not len(rows.rows):
        return []
    return [measure_units(found) for found in run_gates(model, windows_before(dataset, rows))[1]]


def unit_lines(units: dict[str, Any]) -> list[str]:
    """Format what `LayerUnits.to_dict` returned as lines of text."""
    name = f"layer {units['layer'] + 1} ({units['cell']})"
    lines = []
    if units["half_lives"]:
        known = np.array([np.inf if x is None else x for x in units["half_lives"]])
        order = np.argsort(-known, kind="stable")
        shown = ", ".join(f"{_steps(known[k])} (unit {k})" for k in order[:NUM_SHOWN].tolist())
        gate = "forget" if units["cell"] == "lstm" else "update"
        lines.append(
            f"{name}: half-lives in steps by the {gate} gate, median {_steps(np.median(known))}; "
            f"longest: {shown}"
        )
    for gate, shares in units["saturated"].items():
        share = np.array(shares)
        stuck = np.flatnonzero(share >= STUCK)
        if share.mean() < 0.005 and not len(stuck):
            continue
        text = f"{name}: {GATE_NAMES[gate]}s saturated (below {LOW} or above {HIGH}) in "
        text += f"{share.mean():.0%} of all"
        if len(stuck):
            text += f"; stuck: {_listed(stuck.tolist())}"
        lines.append(text)
    if units["dead"]:
        lines.append(f"{name}: dead, an output that never changes: {_listed(units['dead'])}")
    return lines


def _steps(value: float) -> str:
    return "never" if np.isinf(value) else f"{value:.3g}"


def _listed(units: list[int]) -> str:
    shown = ", ".join(map(str, units[:NUM_SHOWN]))
    more = f" and {len(units) - NUM_SHOWN} more" if len(units) > NUM_SHOWN else ""
    return f"unit{'s' if len(units) > 1 else ''} {shown}{more}"
