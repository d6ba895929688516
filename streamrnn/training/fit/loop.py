"""Training loop: updates until there is nothing to gain, and the weights that were best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from streamrnn.errors import TrainingError, TrainingStopped
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.evaluate import mean_loss
from streamrnn.training.fit.lags import LinearPath, fit_path
from streamrnn.training.fit.trainer import Evaluation, Trainer
from streamrnn.training.network.network import Network

__all__ = ["Fit", "Keeper", "fit"]


@dataclass(frozen=True)
class Fit:
    """Result of the training loop."""

    network: Network  # with the best weights
    best_epoch: float  # passes over the training part that the best weights took
    num_epochs: float
    best_update: int  # updates that the best weights took
    num_updates: int
    clipped_share: float  # share of the updates whose gradient was clipped
    max_gradient_norm: float  # before clipping
    history: list[Evaluation]
    was_stopped: bool  # before its end, by `should_stop`
    path: LinearPath | None = None  # beside the network

    @property
    def loss(self) -> float:
        """The validation loss of the best weights."""
        return self.history[-1].best


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
    progress: Callable[[Evaluation], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keeper: Keeper | None = None,
) -> Fit:
    """Train a network, repeatable by its seed, beside a linear path if there are ``lags``.

    ``progress`` is called after each evaluation (first for those that were restored),
    ``should_stop`` is asked after each update. Raises `TrainingError` if the training diverges,
    `TrainingStopped` if it is stopped before anything is validated.
    """
    path = fit_path(dataset, dataset.config.lags) if dataset.config.lags > 0 else None
    trainer = Trainer(path.residual(dataset) if path else dataset)
    if keeper:
        keeper.restore(trainer)
    unit = path.unit(dataset.loss) if path else 1.0
    if progress:
        for evaluation in trainer.history:
            progress(evaluation.times(unit))
    was_stopped = False
    while not trainer.is_finished and not was_stopped:
        try:
            # An overflow shows in the loss or the gradient, and is reported from there.
            with np.errstate(over="ignore", invalid="ignore"):
                is_validated = trainer.run(should_stop)
        except TrainingError as error:
            if keeper:
                keeper.remove()  # going on would end here again
            raise TrainingError(f"{_place(trainer)}: {error}") from error
        if keeper:
            keeper.keep(trainer)
        if is_validated and progress:
            progress(trainer.history[-1].times(unit))
        was_stopped = not trainer.is_finished and should_stop()
    if was_stopped and not trainer.history:
        raise TrainingStopped(
            "stopped before the weights were validated once: there is no model yet"
        )
    if not trainer.counts.best_evaluation:
        if keeper:
            keeper.remove()
        raise TrainingError(
            "the validation error was never finite: training diverged. Lower learning_rate (to a "
            "third) or clip_norm"
        )
    found = _result(trainer, was_stopped)
    return _beside(found, path, trainer.dataset, unit) if path else found


def _beside(found: Fit, path: LinearPath, residuals: Dataset, unit: float) -> Fit:
    """Put network and path together; the network gives nothing if it made the path worse."""
    head = [view for name, view in found.network.parameters.items() if name.startswith("head.")]
    best, learned = found.loss, [view.copy() for view in head]
    for view in head:
        view[...] = 0.0
    alone = mean_loss(found.network, residuals, "validation")
    if best < alone:
        for view, value in zip(head, learned, strict=True):
            view[...] = value
    else:
        found = replace(found, best_update=0, best_epoch=0.0)
    history = [evaluation.times(unit) for evaluation in found.history]
    history[-1] = replace(history[-1], best=min(best, alone) * unit)
    return replace(found, network=path.compose(found.network), path=path, history=history)


def _place(trainer: Trainer) -> str:
    """Say how far a training has come."""
    sizes, counts = trainer.sizes, trainer.counts
    if sizes.updates:
        return f"in update {counts.num_updates + 1} of {sizes.updates}"
    return f"in epoch {counts.num_epochs + 1} of {sizes.epochs}"


def _result(trainer: Trainer, was_stopped: bool) -> Fit:
    counts = trainer.counts
    best = trainer.history[counts.best_evaluation - 1]
    trainer.network.flat[:] = trainer.best
    return Fit(
        trainer.network,
        best.epoch,
        trainer.epoch,
        best.num_updates,
        counts.num_updates,
        counts.num_clipped / max(counts.num_updates, 1),
        counts.max_norm,
        trainer.history,
        was_stopped,
    )
