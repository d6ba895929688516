"""Training loop: epochs until there is nothing to gain, and the weights that were best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamrnn.errors import TrainingError, TrainingStopped
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.fit.trainer import Epoch, Trainer
from streamrnn.training.network.network import Network

__all__ = ["Fit", "Keeper", "fit"]


@dataclass(frozen=True)
class Fit:
    """Result of the training loop."""

    network: Network  # with the best weights
    best_epoch: int  # from 1
    num_epochs: int
    num_updates: int
    clipped_share: float  # share of the updates whose gradient was clipped
    max_gradient_norm: float  # before clipping
    history: list[Epoch]
    was_stopped: bool  # before its end, by `should_stop`


class Keeper(Protocol):
    """Where a training is kept while it runs (`streamrnn.training.fit.checkpoint`)."""

    def restore(self, trainer: Trainer) -> None:
        """Bring a new trainer to where the kept one was, if there is one."""

    def keep(self, trainer: Trainer) -> None:
        """Keep a trainer as it is now."""

    def remove(self) -> None:
        """Keep nothing any more."""


def fit(
    dataset: Dataset,
    progress: Callable[[Epoch], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keeper: Keeper | None = None,
) -> Fit:
    """Train a network, repeatable by its seed.

    ``progress`` is called after each epoch (first for those that were restored), ``should_stop``
    is asked after each update. Raises `TrainingError` if the training diverges,
    `TrainingStopped` if it is stopped before its first epoch has ended.
    """
    trainer = Trainer(dataset)
    if keeper:
        keeper.restore(trainer)
    if progress:
        for epoch in trainer.history:
            progress(epoch)
    was_stopped = False
    while not trainer.is_finished and not was_stopped:
        try:
            # An overflow shows in the loss or the gradient, and is reported from there.
            with np.errstate(over="ignore", invalid="ignore"):
                has_ended = trainer.run_epoch(should_stop)
        except TrainingError as error:
            if keeper:
                keeper.remove()  # going on would end here again
            number = len(trainer.history) + 1
            raise TrainingError(f"in epoch {number} of {trainer.num_epochs}: {error}") from error
        if keeper:
            keeper.keep(trainer)
        if has_ended and progress:
            progress(trainer.history[-1])
        was_stopped = not trainer.is_finished and should_stop()
    if was_stopped and not trainer.history:
        raise TrainingStopped("stopped before the first epoch had ended: there is no model yet")
    if not trainer.counts.best_epoch:
        if keeper:
            keeper.remove()
        raise TrainingError(
            "the validation error was never finite: training diverged. Lower learning_rate (to a "
            "third) or clip_norm"
        )
    return _result(trainer, was_stopped)


def _result(trainer: Trainer, was_stopped: bool) -> Fit:
    counts = trainer.counts
    trainer.network.flat[:] = trainer.best
    return Fit(
        trainer.network,
        counts.best_epoch,
        len(trainer.history),
        counts.num_updates,
        counts.num_clipped / max(counts.num_updates, 1),
        counts.max_norm,
        trainer.history,
        was_stopped,
    )
