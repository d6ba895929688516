"""How much may be tried before a training."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from streamrnn.errors import TrainingError
from streamrnn.model.checks import shown

__all__ = ["AUTO", "OFF", "SEARCHED", "Budget", "parse_budget"]

AUTO, OFF = "auto", "off"
NUM_TRIALS, MAX_TRIALS = 6, 64
# What the search chooses, where it is left open.
SEARCHED = ("layers", "learning_rate", "lags")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """Trials at most, and seconds for them and the trainings after them."""

    num_trials: int
    seconds: float = math.inf


def parse_budget(text: str, given: Collection[str] = ()) -> Budget | None:
    """Read ``auto``, ``off``, a number of trials, or a time such as ``60s`` or ``5m``.

    ``auto`` is `NUM_TRIALS`, and none where one of the ``given`` settings is what the search
    chooses, or says how long the training is. Raises `TrainingError` if it is none of these.
    """
    text = text.strip()
    if text == OFF:
        return None
    if text == AUTO:
        is_told = bool({*SEARCHED, "updates", "epochs"} & set(given))
        return None if is_told else Budget(NUM_TRIALS)
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([smh]?)", text)
    value = float(found[1]) if found else 0.0
    if found and found[2] and value > 0:
        return Budget(MAX_TRIALS, value * _UNITS[found[2]])
    if found and not found[2] and value == int(value) and 1 <= value <= MAX_TRIALS:
        return Budget(int(value))
    raise TrainingError(
        f"budget is {shown(text)}; write auto, off, a number of trials up to {MAX_TRIALS}, or a "
        "time such as 60s, 5m or 1h"
    )
