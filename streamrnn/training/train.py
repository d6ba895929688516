"""A training from its configuration to its verified model and its report."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamrnn.errors import TrainingError, TrainingStopped
from streamrnn.model.model import Model
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import Dataset, make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.seen_rows import seen_rows_to_dict
from streamrnn.training.data.table import Table
from streamrnn.training.diagnostics import measure_memory
from streamrnn.training.fit.checkpoint import Checkpoint
from streamrnn.training.fit.chunks import choose_sizes
from streamrnn.training.fit.loop import Fit, fit
from streamrnn.training.fit.refit import refit, with_all_rows
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.memory.drift import input_ranges
from streamrnn.training.report import report_lines
from streamrnn.training.run.facts import first_and_last_time, make_report
from streamrnn.training.run.kept import Kept
from streamrnn.training.run.outputs import (
    check_data_name,
    check_model_path,
    check_outputs,
    chosen_path,
    configuration_path,
)
from streamrnn.training.run.threads import limit_threads
from streamrnn.training.search.budget import Budget
from streamrnn.training.search.search import Found, search
from streamrnn.training.search.store import TrialStore
from streamrnn.training.search.trial import Trial
from streamrnn.training.verify import verify

__all__ = ["TrainingResult", "train", "train_to_file"]


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """Result of a training; printed, its report.

    Attributes
    ----------
    model : Model
        Trained; ``model.spec.training`` is the report.
    report : dict
        JSON types: ``data``, ``config``, ``versions``, ``errors`` (part -> target -> measure),
        ``baselines`` (name -> target -> measure, on the test part), ``comparison`` (target ->
        intervals and verdict), ``fitted`` (target -> baseline -> what was fitted), ``intervals``
        (target -> coverage and crossings of its quantiles), ``memory``, ``updates``, ``seen`` (what
        tells the rows that were learned from), ``inputs`` (their quantiles) and of a refit
        ``refit``.
    config : TrainingConfig
        With every choice made; it repeats the training to the bit.
    dataset : Dataset
        Streams, features and targets.
    history : list of Evaluation
        Losses, each time the weights were validated.
    was_stopped : bool
        Whether it was stopped before its end; the model is the best so far.
    configuration : Path or None
        Where `config` was written.
    chosen : Model or None
        After a refit the model before it, of which are the errors of the report.
    """

    model: Model
    report: dict[str, Any]
    config: TrainingConfig
    dataset: Dataset
    history: list[Evaluation] = field(default_factory=list)
    was_stopped: bool = False
    configuration: Path | None = None
    chosen: Model | None = None

    def __repr__(self) -> str:
        return f"<TrainingResult {self.model!r}; print it for the report>"

    def __str__(self) -> str:
        return "\n".join(report_lines(self.report))

    @property
    def measured(self) -> Model:
        """The model of which are the errors of the report."""
        return self.chosen or self.model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, after the engine has reproduced the trainer with what was written.

        After a refit the chosen model is written too, as ``{name}.chosen{suffix}``. Raises
        `TrainingError` if it does not, `ModelFileError` if the file cannot be written.
        """
        path = Path(path)
        for place in (path, chosen_path(path)) if self.chosen else (path,):
            check_model_path(place)
        _save(self, path)


def train(
    config: TrainingConfig,
    progress: Callable[[Evaluation], None] | None = None,
    *,
    table: Table | None = None,
    stop: StopSignals | None = None,
    threads: int = 1,
    budget: Budget | None = None,
    seeds: int = 0,
    on_trial: Callable[[int, Trial], None] | None = None,
    kept: Kept | None = None,
) -> TrainingResult:
    """Train a model in memory.

    Parameters
    ----------
    config : TrainingConfig
        What to learn from which data, and how.
    progress : callable or None
        Called after each evaluation.
    table : Table or None
        The data, if it is not to be read from ``config.path``.
    stop : StopSignals or None
        Asks for the best model so far when Ctrl-C or SIGTERM comes; without it they end all.
    threads : int
        Of the matrix products. The bits may depend on it.
    budget : Budget or None
        For a search of the settings that the configuration leaves open; None: there is no search.
    seeds : int
        Trainings of which the best is kept; 0: 3 after a search of little work, else 1.
    on_trial : callable or None
        Called with its number after each trial of a search.
    kept : Kept or None
        Files that hold the training while it runs; they are the caller's to remove.

    Returns
    -------
    TrainingResult

    Raises
    ------
    DataError
        If the data cannot be used.
    TrainingError
        If the configuration contradicts itself, the training diverges, or it is stopped before
        there is a model.
    """
    with limit_threads(threads):
        dataset = _prepare(config, table)
        if kept:
            kept.begin(dataset, config, threads, budget, seeds)
        run = _run_of(config, progress, stop, budget, seeds, on_trial, kept)
        with _block(stop):
            return _train(dataset, run)


def _prepare(config: TrainingConfig, table: Table | None = None) -> Dataset:
    check_data_name(config.path)
    table = table or read_table(config.path, config.read_options(), config.kinds())
    dataset = make_dataset(config, table)
    sizes = choose_sizes(dataset)
    chosen = dataset.config.replace(
        updates=sizes.updates,
        batch_size=sizes.batch_size,
        truncation_steps=sizes.truncation_steps,
        patience=sizes.patience,
    )
    return replace(dataset, config=chosen)


def _block(stop: StopSignals | None) -> AbstractContextManager[object]:
    return stop if stop is not None else nullcontext()


@dataclass(frozen=True)
class _Run:
    """How a training is run."""

    free: tuple[str, ...]  # what a search may choose
    budget: Budget | None
    seeds: int
    progress: Callable[[Evaluation], None] | None
    should_stop: Callable[[], bool]
    on_trial: Callable[[int, Trial], None] | None = None
    keeper_of: Callable[[Dataset], Checkpoint] | None = None
    store: TrialStore | None = None
    is_length_open: bool = True  # neither updates nor epochs are given

    def fit(self, dataset: Dataset) -> Found:
        """Search, if that is wanted, and fit."""
        if self.budget or self.seeds > 1:
            return search(
                dataset,
                self.free,
                self.budget,
                self.seeds,
                self.progress,
                self.should_stop,
                self.store,
                self.keeper_of,
                self.on_trial,
                self.is_length_open,
            )
        keeper = self.keeper_of(dataset) if self.keeper_of else None
        fitted = fit(dataset, self.progress, self.should_stop, keeper)
        return Found(dataset, fitted, {}, fitted.was_stopped)


def _run_of(
    config: TrainingConfig,
    progress: Callable[[Evaluation], None] | None,
    stop: StopSignals | None,
    budget: Budget | None,
    seeds: int,
    on_trial: Callable[[int, Trial], None] | None,
    kept: Kept | None,
) -> _Run:
    return _Run(
        config.open_settings,
        budget,
        seeds,
        progress,
        stop or (lambda: False),
        on_trial,
        kept.keeper_of if kept else None,
        kept.store if kept else None,
        not (config.updates or config.epochs),
    )


def _train(dataset: Dataset, run: _Run) -> TrainingResult:
    found = run.fit(dataset)
    dataset, fitted = found.dataset, found.fitted
    memory = measure_memory(fitted.network, dataset)
    report = make_report(dataset, fitted, memory)
    if found.was_stopped:
        report["updates"]["was_stopped"] = True
    spec = replace(fitted.network.spec, warmup_steps=memory.horizon_steps, training=report)
    model = Model(spec, fitted.network.parameters)
    result = TrainingResult(
        model, report, dataset.config, dataset, fitted.history, found.was_stopped
    )
    if dataset.config.refit and not found.was_stopped:
        result = _refit(result, fitted, run.should_stop)
    # Not in the model: the configuration with all choices made repeats it without a search.
    search_report = {"search": found.report} if found.report else {}
    return replace(result, report=result.report | search_report)


def _refit(result: TrainingResult, fitted: Fit, should_stop: Callable[[], bool]) -> TrainingResult:
    """Put a network of all rows into the place of the measured one, which is kept beside it."""
    network = refit(result.dataset, fitted, should_stop)
    if network is None:
        return replace(result, was_stopped=True)
    whole, data = with_all_rows(result.dataset), result.report["data"]
    memory = measure_memory(network, whole)
    found = {
        "num_updates": fitted.best_update,
        "rows": [1, data["num_rows"]],
        "times": first_and_last_time(whole),
        "sha256": data["sha256"],
        "is_measured": False,
    }
    seen: dict[str, Any] = {"seen": seen_rows_to_dict(whole, 2), "inputs": input_ranges(whole, 2)}
    seen["memory"] = memory.to_dict()
    report = result.report | seen | {"refit": found}
    spec = replace(network.spec, warmup_steps=memory.horizon_steps, training=report)
    model = Model(spec, network.parameters)
    return replace(result, model=model, report=report, chosen=result.model)


def train_to_file(
    config: TrainingConfig,
    path: str | os.PathLike[str],
    progress: Callable[[Evaluation], None] | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    resume: bool = False,
    begin: Callable[[Dataset], None] | None = None,
    stop: StopSignals | None = None,
    threads: int = 1,
    budget: Budget | None = None,
    seeds: int = 0,
    on_trial: Callable[[int, Trial], None] | None = None,
) -> TrainingResult:
    """Train, save, load again, and let the engine reproduce the trainer's outputs.

    While it runs, all that goes on with it is kept in ``{path}.checkpoint``, and the trials of a
    search that have ended in ``{path}.search``.

    Parameters
    ----------
    config : TrainingConfig
        What to learn from which data, and how.
    path : str or path
        Of the weight file. The full configuration goes beside it, with the suffix ``.toml``, or
        ``.trained.toml`` if the former is a file of the user's own.
    progress : callable or None
        Called after each evaluation.
    source : str, path or None
        The file that the configuration was read from; it is never written.
    resume : bool
        Go on from the checkpoint; the model comes out as if there had been no break, to the bit.
    begin : callable or None
        Called with the data before the training, to tell what becomes of it.
    stop, threads, budget, seeds, on_trial
        As for `train`.

    Returns
    -------
    TrainingResult
        Its model is the one that was loaded.

    Raises
    ------
    DataError
        If the data cannot be used.
    TrainingError
        If the training fails, or the engine does not reproduce it (no model is written then), or
        a file that is not ours is in the way.
    ModelFileError
        If the file cannot be written.
    """
    path = Path(path)
    source = None if source is None else Path(source)
    inputs = {"the data": Path(config.path)} | ({"the configuration": source} if source else {})
    if config.start_from:
        inputs["the model to start from"] = Path(config.start_from)
    models = {"the model": path}
    if config.refit:
        models["the chosen model"] = chosen_path(path)
    check_outputs(models, inputs)
    for model_path in models.values():
        check_model_path(model_path)
    place, kept = configuration_path(path, source), Kept(path, resume)
    outputs = {"the checkpoint": kept.checkpoint, "the search": kept.trials}
    check_outputs({"the configuration": place} | outputs, inputs)
    with limit_threads(threads):
        try:
            dataset = _prepare(config)
        except TrainingError as error:  # the settings contradict each other, or the data
            raise TrainingError(f"{source}: {error}" if source else str(error)) from error
        if begin:
            begin(dataset)
        kept.begin(dataset, config, threads, budget, seeds)
        run = _run_of(config, progress, stop, budget, seeds, on_trial, kept)
        with _block(stop):
            result = _train(dataset, run)
            if result.was_stopped and (bool(budget) or seeds > 1):
                loss = result.history[-1].best
                if kept.store.saved <= loss:
                    raise TrainingStopped(f"stopped: {path}, saved before the break, is better")
                kept.store.note_saved(loss)
            model = _save(result, path)
            if source is not None and TrainingConfig.read(source) == result.config:
                place = source
            else:
                result.config.write(place)
            if not result.was_stopped:
                kept.remove()
    return replace(result, model=model, configuration=place)


def _save(result: TrainingResult, path: Path) -> Model:
    """Write the model, and the chosen one that a refit has put aside; return the former."""
    if result.chosen:
        _save_model(result.chosen, result.dataset, chosen_path(path))
    return _save_model(result.model, result.dataset, path)


def _save_model(model: Model, dataset: Dataset, path: Path) -> Model:
    """Write a model, but only if the engine reproduces the trainer with what was written."""
    target = Path(os.path.realpath(path))
    unverified = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.unverified")
    try:
        model.save(unverified)
        model = Model.load(unverified)
        verify(model, dataset)
        os.replace(unverified, target)
    finally:
        unverified.unlink(missing_ok=True)
    return model
