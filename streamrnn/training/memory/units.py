"""What the units of a recurrent layer do: half-lives, gates that are stuck, dead units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
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
    # Of the same gates, for the mean of ln f is short wherever a gate resets now and then: each
    # unit's share of steps above HIGH, and the most steps in a row after which half was left.
    open_share: Doubles = field(default_factory=lambda: np.empty(0))
    kept_steps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    num_steps: int = 0  # of a stream: no more could be kept

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; None for a half-life that is infinite."""
        return {
            "layer": self.layer,
            "cell": self.cell,
            "half_lives": [x if np.isfinite(x) else None for x in self.half_lives.tolist()],
            "saturated": {name: share.tolist() for name, share in self.saturated.items()},
            "dead": np.flatnonzero(self.dead).tolist(),
            "open_share": self.open_share.tolist(),
            "kept_steps": self.kept_steps.tolist(),
            "num_steps": self.num_steps,
        }


def measure_units(found: LayerGates, skip_steps: int = 0) -> LayerUnits:
    """Measure the units of a layer, from the step `skip_steps` of every stream on."""
    keep, h = found.keep, found.states["h"][:, skip_steps:]
    half_lives, open_share, kept_steps = np.empty(0), np.empty(0), np.empty(0, np.int64)
    if keep is not None:
        keep = keep[:, skip_steps:]
        logs = np.log(np.clip(keep, _LEAST, 1.0))
        kept_steps, open_share = _kept_steps(logs), (keep > HIGH).mean(axis=(0, 1))
        logs = logs.mean(axis=(0, 1))
        with np.errstate(divide="ignore"):
            half_lives = np.log(0.5) / logs
        half_lives[logs >= 0.0] = np.inf
    saturated = {}
    for name in GATE_NAMES:
        if name in found.gates:
            gate = found.gates[name][:, skip_steps:]
            saturated[name] = ((gate < LOW) | (gate > HIGH)).mean(axis=(0, 1))
    dead = np.ptp(h, axis=(0, 1)) < DEAD
    facts = (half_lives, saturated, dead, open_share, kept_steps, h.shape[1])
    return LayerUnits(found.layer, found.cell, *facts)


def _kept_steps(logs: Doubles) -> NDArray[np.int64]:
    """Return the most steps in a row over which a unit keeps half, from ln f <= 0, [B, T, H].

    Where so many steps keep half, so do fewer: each unit's number is found bit by bit.
    """
    num_rows, num_steps, size = logs.shape
    sums = np.concatenate([np.zeros((num_rows, 1, size)), np.cumsum(logs, axis=1)], axis=1)
    starts = np.arange(num_steps + 1)[:, None]
    kept = np.zeros(size, np.int64)
    for bit in reversed(range(num_steps.bit_length())):
        tried = kept + (1 << bit)
        ends = starts + tried
        is_there = ends <= num_steps
        changes = np.take_along_axis(sums, np.minimum(ends, num_steps)[None], axis=1) - sums
        best = np.where(is_there, changes, -np.inf).max(axis=(0, 1))
        kept = np.where(best >= np.log(0.5) - 1e-9, tried, kept)
    return kept


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
        gate, symbol = ("forget", "f") if units["cell"] == "lstm" else ("update", "z")
        lines.append(
            f"{name}: half-lives in steps by the {gate} gate (mean of ln {symbol}), median "
            f"{_steps(np.median(known))}; longest: {shown}"
        )
        if units.get("kept_steps"):  # files of earlier versions do not tell
            lines.append(_kept_line(units, gate))
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


def _kept_line(units: dict[str, Any], gate: str) -> str:
    """Say what the mean hides: one reset outweighs many steps that keep all."""
    kept, share = np.array(units["kept_steps"]), np.array(units["open_share"])
    best, most_open = int(kept.argmax()), int(share.argmax())
    whole = int((kept == units["num_steps"]).sum())
    all_steps = (
        f" (all that were looked at: {whole} of {counted(len(kept), 'unit')})" if whole else ""
    )
    opened = (
        f"above {HIGH} in {share.mean():.0%} of all steps, of unit {most_open} in "
        f"{share[most_open]:.0%}"
    )
    if share[most_open] < 0.005:
        opened = f"hardly ever above {HIGH}"
    return (
        f"  a gate that resets now and then has a short one; in their longest stretch units kept "
        f"half for {counted(int(kept[best]), 'step')}{all_steps or f' (unit {best})'}, median "
        f"{np.median(kept):g}; {gate} gates are {opened}"
    )


def _steps(value: float) -> str:
    return "never" if np.isinf(value) else f"{value:.3g}"


def _listed(units: list[int]) -> str:
    shown = ", ".join(map(str, units[:NUM_SHOWN]))
    more = f" and {len(units) - NUM_SHOWN} more" if len(units) > NUM_SHOWN else ""
    return f"unit{'s' * (len(units) > 1)} {shown}{more}"
