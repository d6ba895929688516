"""Where a training is kept while it runs: its checkpoint, and the trials of its search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import streamrnn
from streamrnn.model.model import Model
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.fit.checkpoint import Checkpoint
from streamrnn.training.run.outputs import checkpoint_path, search_path
from streamrnn.training.search.budget import Budget
from streamrnn.training.search.store import TrialStore

__all__ = ["Kept"]


class Kept:
    """The files beside a model's that hold its training.

    Raises `TrainingError` if the training cannot begin, or go on, there.
    """

    def __init__(self, model: Path, resume: bool) -> None:
        self.checkpoint, self.trials = checkpoint_path(model, resume), search_path(model)
        self._resume = resume

    def begin(
        self,
        dataset: Dataset,
        config: TrainingConfig,
        threads: int,
        budget: Budget | None,
        seeds: int,
    ) -> None:
        """Tell what is trained, before anything is asked; another training is refused."""
        self._threads, self._is_search = threads, bool(budget) or seeds > 1
        how = {"open": config.open_settings, "budget": repr(budget), "seeds": seeds}
        place = self.trials if self._is_search else None
        self.store = TrialStore(place, _identity(dataset, threads) | how, self._resume)

    def keeper_of(self, dataset: Dataset) -> Checkpoint:
        """Return where one training is kept: that of all, or a trial."""
        checkpoint = Checkpoint(self.checkpoint, _identity(dataset, self._threads), self._resume)
        if self._is_search:  # it may be of the trial before, which has ended
            checkpoint.resume = self._resume and checkpoint.is_of_this()
        return checkpoint

    def remove(self) -> None:
        """Remove both: the training has ended."""
        self.checkpoint.unlink(missing_ok=True)
        self.trials.unlink(missing_ok=True)


def _identity(dataset: Dataset, threads: int) -> dict[str, Any]:
    """Return what decides every bit of a training, by name."""
    config = dataset.config.to_dict()
    del config["path"]  # the data may have moved; its digest says whether it is the same
    del config["refit"]  # it begins when all that is kept has ended
    if dataset.config.start_from:
        config["start_from"] = Model.load(dataset.config.start_from).fingerprint
    return config | {
        "the data's sha256": dataset.table.sha256,
        "threads": threads,
        "the version of numpy": np.__version__,
        "the version of streamrnn": streamrnn.__version__,
    }
