"""How much of its past a model uses: its loss when it is given only so many steps before a row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.model.model import Model
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.memory.rows import Rows, choose_rows, raw_inputs
from streamrnn.training.memory.targets import TargetsOf

__all__ = ["History", "history_lines", "measure_history"]

Doubles = NDArray[np.float64]

MAX_ROWS, MAX_STEPS = 256, 256
MAX_BEFORE = 1024  # steps that stand for all of a stream's past
SAME = 0.01  # of the constant's loss
MOST = 1000  # times the constant's loss that are told: beyond, its targets hardly differ


@dataclass(frozen=True)
class History:
    """Losses as shares of that of the best constant on the same rows."""

    shares: dict[str, float]  # by the number of steps before the row that the model is given
    full: float  # with all of its past
    uses_steps: int  # with so many or more the loss is as with all; `tried_steps` if never
    tried_steps: int  # the most that were tried
    num_rows: int
    is_of_outputs: bool = False  # there were no targets: the outputs with all of the past are

    @property
    def has_skill(self) -> bool:
        """Whether the model is better than a constant."""
        return self.full < 1.0 - SAME

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"has_skill": self.has_skill}


def measure_history(
    model: Model, dataset: Dataset, part: str, targets_are_outputs: bool = False
) -> History | None:
    """Restart streams some steps before rows of a part, and compare.

    ``targets_are_outputs`` asks when the outputs come to be those with all of the past, whatever
    the targets are. None if the part has no targets.
    """
    rows = choose_rows(dataset, part, MAX_ROWS, MAX_STEPS)
    if not len(rows.rows):
        return None
    ask = _Restarts(model, dataset, rows)
    whole = ask(MAX_BEFORE)
    losses: _OfOutputs | TargetsOf
    losses = _OfOutputs(whole) if targets_are_outputs else TargetsOf(dataset, rows)
    constant = losses.of_constant()
    full = losses(whole) / constant

    def share(steps: int) -> float:
        return losses(ask(steps)) / constant

    found = {steps: share(steps) for steps in _steps(rows.history)}
    differing = [steps for steps in found if abs(found[steps] - full) > SAME]
    if not differing:
        uses = 0
    elif differing[-1] == rows.history:
        uses = rows.history
    else:
        low = differing[-1]
        uses = min(steps for steps in found if steps > low)
        while uses - low > 1:
            middle = (low + uses) // 2
            if abs(share(middle) - full) > SAME:
                low = middle
            else:
                uses = middle
    shares = {str(steps): found[steps] for steps in sorted(found)}
    return History(shares, full, uses, rows.history, len(rows.rows), targets_are_outputs)


def _steps(most: int) -> list[int]:
    """Return 0, 1, 2, 3, 4, 6, 8, 12, ... and the most."""
    powers = [1 << k for k in range(20)]
    steps = {0, most, *powers, *(3 * power for power in powers)}
    return sorted(each for each in steps if each <= most)


class _Restarts:
    """Outputs of a model for some rows, from new streams begun some steps before each."""

    def __init__(self, model: Model, dataset: Dataset, rows: Rows) -> None:
        from streamrnn.engine.sequences import Sequences

        x, firsts = raw_inputs(dataset)
        self._sequences = Sequences(model, x)
        self._rows = rows
        self._places = firsts[rows.streams] + rows.rows

    def __call__(self, steps: int) -> Doubles:
        """Return the outputs in the user's units, [N, O]."""
        before = np.minimum(self._rows.rows, steps)
        lengths = (before + 1).astype(np.int64)
        y = self._sequences.run((self._places - before).astype(np.int64), lengths)
        found: Doubles = y[np.cumsum(lengths) - 1].astype(np.float64)
        return found


class _OfOutputs:
    """Squared distance of outputs from those that are right."""

    def __init__(self, right: Doubles) -> None:
        self._right = right
        self._scale = np.maximum(right.std(axis=0), 1e-12)

    def __call__(self, y: Doubles) -> float:
        return float(np.mean(((y - self._right) / self._scale) ** 2))

    def of_constant(self) -> float:
        """Return the loss of the outputs' means."""
        return max(self(np.broadcast_to(self._right.mean(axis=0), self._right.shape)), 1e-30)


def history_lines(history: dict[str, Any]) -> list[str]:
    """Format what `History.to_dict` returned as lines of text."""
    shares, full = history["shares"], history["full"]
    steps = sorted(map(int, shares))
    shown = [k for k in steps if k & (k - 1) == 0 or k == steps[-1]]
    listed = "  ".join(f"{k}: {shares[str(k)]:.3g}" for k in shown)
    uses, tried = history["uses_steps"], history["tried_steps"]
    if history["is_of_outputs"]:
        what = "how far outputs are from those with all of the past, as a share of their variance"
        used, most = counted(uses, "step"), counted(tried, "step")
        when = f"outputs with {used} before a row are those with all of the past, within 1 %"
        if uses == tried:
            when = f"outputs still change with what lies {most} before a row, the most tried"
        return [f"memory: {when}", f"{what}, by steps given: {listed}"]
    of_all = f"all: {full:.3g}"
    told = f"loss as a share of a constant's, by steps given before a row: {listed}  {of_all}"
    if not history["has_skill"]:
        times = f"{full:.3g}" if full <= MOST else f"more than {MOST:,}"
        no_skill = (
            f"memory: no skill (its loss is {times} times that of the constant that suits "
            "these rows best): the figures below do not mean memory"
        )
        return [no_skill, told] if full <= MOST else [no_skill]
    if uses == 0:
        return ["memory: uses 0 steps: the row itself is all that its outputs need", told]
    if uses == tried:
        return [f"memory: uses {counted(tried, 'step')}, the most that were tried", told]
    used = counted(uses, "step")
    return [f"memory: uses {used} before a row; more change its loss by less than 1 %", told]
