"""A training once more, on every row: what to deploy when the measured model is good.

Nothing measures it, for no row is left; so all that a validation part would decide is taken from
the training before: settings, transforms, and the number of updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from streamrnn.errors import TrainingError, counted
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.fit.loop import Fit
from streamrnn.training.fit.trainer import Evaluation, Trainer
from streamrnn.training.network.network import Network

__all__ = ["refit", "with_all_rows"]


class _Refitter(Trainer):
    """A trainer whose schedule goes by updates: an epoch of all rows makes more of them."""

    def __init__(self, dataset: Dataset, fitted: Fit) -> None:
        super().__init__(dataset)
        self.num_updates = fitted.best_update
        self._past = fitted.history
        # Where epochs are the bound, about so many updates as they would have made.
        an_epoch = fitted.num_updates / fitted.num_epochs
        bounds = (self.sizes.updates, an_epoch * self.sizes.epochs)
        self._planned = min(bound for bound in bounds if bound)

    @property
    def past(self) -> list[Evaluation]:
        """Evaluations that the schedule goes by: those of the training before."""
        return self._past

    @property
    def progress(self) -> float:
        """The share of the schedule that is over."""
        return self.counts.num_updates / self._planned

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Make the updates; tell whether it came to the end."""
        while self.counts.num_updates < self.num_updates:
            for piece in self.plan:
                self.train(piece)
                if should_stop():
                    return False
                if self.counts.num_updates == self.num_updates:
                    break
            self.begin_epoch()
        return True


def with_all_rows(dataset: Dataset) -> Dataset:
    """Return the dataset with every row in its training part, and none in the others."""
    streams = (replace(stream, stops=(stream.stops[2],) * 3) for stream in dataset.streams)
    return replace(dataset, streams=tuple(streams))


def refit(dataset: Dataset, fitted: Fit, should_stop: Callable[[], bool]) -> Network | None:
    """Train anew on every row, by the updates that the best weights took, at their rates.

    Returns the network, or None if it was stopped. Raises `TrainingError` if it diverges.
    """
    whole = with_all_rows(dataset)
    path = fitted.path.again(whole) if fitted.path else None
    trainer = _Refitter(path.residual(whole) if path else whole, fitted)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            if not trainer.run(should_stop):
                return None
        if not np.isfinite(trainer.average).all():
            raise TrainingError("a weight is not finite")
    except TrainingError as error:
        raise TrainingError(
            "in the refit on all rows, after "
            f"{counted(trainer.counts.num_updates, 'update')}: {error}. "
            "Without --refit the model that was measured is kept"
        ) from error
    trainer.network.flat[:] = trainer.average
    if path is None:
        return trainer.network
    if not fitted.best_update:  # the path alone
        for name, view in trainer.network.parameters.items():
            view[...] *= not name.startswith("head.")
    return path.compose(trainer.network)
