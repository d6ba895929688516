"""What is run with which inputs, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.original.trial import trial_inputs
from streamrnn.importers.proof import Recording
from streamrnn.model.model import Model

__all__ = ["Layout", "NotRun", "Plan", "Trial", "apart", "on_and_on"]


class NotRun(Exception):
    """Why an original was not run."""


class Layout(Protocol):
    """How an original has streams, steps and features."""

    num_streams: int

    def widened(self, x: NDArray[Any]) -> NDArray[Any]:
        """Put in front of every step what the original takes of the one before."""

    def given(self, x: NDArray[Any]) -> NDArray[Any]:
        """Lay [B, L, I] out as the original takes it."""

    def read(self, answer: NDArray[Any]) -> NDArray[Any]:
        """Bring its answer to [B, L, O], or [B, 1, O] of the last step alone."""


@dataclass(frozen=True)
class Trial:
    """One run: pieces that are given one after the other."""

    how: str  # for the user: "a sequence of 200 steps"
    x: NDArray[Any]  # [B, T, I], as the model takes it
    given: NDArray[Any]  # pieces as the original takes them
    read: Callable[[NDArray[Any]], NDArray[Any]]  # its answer to [B, T, O], or [B, 1, O]


@dataclass(frozen=True)
class Plan:
    """Runs of one original."""

    facts: dict[str, Any]  # for the child
    trials: list[Trial]

    @property
    def inputs(self) -> list[NDArray[Any]]:
        """What the original is given in each run."""
        return [trial.given for trial in self.trials]

    def recording(self, name: str, k: int, answer: NDArray[Any]) -> Recording:
        """Make a recording of the answer to a run."""
        trial = self.trials[k]
        try:
            y = trial.read(answer)
        except ValueError as error:
            raise NotRun(f"its answer has the shape {list(answer.shape)}") from error
        return Recording(trial.x, y.astype(np.float64), y.dtype, f"{name}, {trial.how}")


def apart(layout: Layout, model: Model, length: int, count: int) -> Trial:
    """Begin every piece anew: so many streams more."""
    x = trial_inputs(model.spec, layout.num_streams * count, length)
    pieces = layout.widened(x).reshape(count, layout.num_streams, length, -1)

    def read(answer: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([layout.read(piece) for piece in answer])

    how = "a sequence" if count == 1 else f"{count} sequences"
    given = np.stack([layout.given(piece) for piece in pieces])
    return Trial(f"{how} of {length} steps", x, given, read)


def on_and_on(layout: Layout, model: Model, length: int, count: int) -> Trial:
    """Let every piece go on with the states of the one before."""
    x = trial_inputs(model.spec, layout.num_streams, length * count)
    pieces = np.split(layout.widened(x), count, axis=1)

    def read(answer: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([layout.read(piece) for piece in answer], axis=1)

    how = f"a sequence of {length} steps"
    if count > 1:
        how = f"{count} steps, one by one" if length == 1 else f"{count} times {length} steps"
    return Trial(how, x, np.stack([layout.given(piece) for piece in pieces]), read)
