"""The same table given to several cells: which one to keep, if that can be told.

Two kinds of chance are in an error: of the rows it is measured on, and of the weights a training
began with. One cell is said to be better than another only if both are against chance: the paired
interval of the kept models' errors excludes 1, and every seed of the one beats every seed of the
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from streamrnn.errors import TrainingError, TrainingStopped, listed
from streamrnn.model.checks import shown
from streamrnn.training.baselines.bootstrap import Interval
from streamrnn.training.baselines.compare import judge, paired_interval, sides
from streamrnn.training.baselines.target import Target, targets_of
from streamrnn.training.cells.speed import time_steps
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.table import Table
from streamrnn.training.evaluate import outputs_of
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.network.lags import network_of
from streamrnn.training.run.kept import Kept
from streamrnn.training.run.outputs import ENDINGS
from streamrnn.training.search.budget import AUTO, Budget, parse_budget
from streamrnn.training.search.trial import Trial
from streamrnn.training.train import TrainingResult, train
from streamrnn.training.verify import verify

__all__ = [
    "CELLS", "MODEL_ENDING", "NUM_SEEDS", "UNITS", "Candidate", "Comparison", "compare_cells",
    "rate_budget", "stacks_of",
]  # fmt: skip

CELLS = ("rnn", "gru", "lstm")
UNITS = 32
NUM_SEEDS = 3
NUM_RATES = 3  # what a search begins with, and a third and three times of it
MAX_CELLS = 16
MODEL_ENDING = ".safetensors"  # of the file of each cell's model
_ALIASES = {"rnn": "rnn_tanh"}


@dataclass(frozen=True)
class Candidate:
    """One stack of layers, and its trainings; ``result`` is the one best in validation."""

    layers: str
    result: TrainingResult
    trials: list[Trial]  # one a seed

    def errors(self, target: str, metric: str) -> list[float]:
        """Return the test errors of the seeds that did not diverge."""
        return [trial.test[target][metric] for trial in self.trials if trial.test]

    @property
    def num_parameters(self) -> int:
        """Numbers that were learned."""
        return self.result.measured.num_parameters

    def to_dict(self, targets: Iterable[Target], step_us: float) -> dict[str, Any]:
        """Return plain JSON types."""
        history = self.result.report["memory"]["history"] or {}
        return {
            "layers": self.layers,
            "num_parameters": self.num_parameters,
            "step_us": step_us,
            "learning_rate": self.result.config.learning_rate,
            "seeds": [trial.settings.seed for trial in self.trials],
            "num_diverged": sum(not math.isfinite(trial.loss) for trial in self.trials),
            "test": {each.name: _summary(self.errors(each.name, each.metric)) for each in targets},
            "memory": {
                name: history.get(name) for name in ("uses_steps", "tried_steps", "has_skill")
            },
        }


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes
    ----------
    candidates : list of Candidate
        In the order that was asked for; ``candidates[0].result.model`` is a model.
    report : dict
        JSON types: ``split``, ``cells`` (a list: layers, parameters, microseconds a step, test
        errors by target, memory), and ``targets`` (by name: ``metric``, ``best``, what to ``keep``,
        ``against`` the others ratios with their intervals, the ``baseline``, the ``verdict``).
    """

    candidates: list[Candidate]
    report: dict[str, Any]


def rate_budget(text: str, given: Collection[str] = ()) -> Budget | None:
    """Read how many learning rates each cell may try; ``auto`` is `NUM_RATES`.

    It is none where the ``given`` settings tell the rate or the length, as for a training. Raises
    `TrainingError` if it is a time: the slower cell would be trained less.
    """
    budget = parse_budget(text, given)
    if budget and math.isfinite(budget.seconds):
        raise TrainingError(
            f"budget is {shown(text)}; give a number of trials or off: in the same time a slower "
            "cell would be trained less"
        )
    return Budget(NUM_RATES) if budget and text.strip() == AUTO else budget


def stacks_of(cells: Iterable[str], units: int) -> list[str]:
    """Return stacks such as ``lstm:32`` or ``gru:16+gru:8`` of what is asked for.

    A layer without a size has so many ``units``, and ``rnn`` is the one of tanh. Raises
    `TrainingError` if one cannot be read.
    """
    stacks = []
    for text in cells:
        named = [layer.strip().partition(":") for layer in text.split("+")]
        layers = [f"{_ALIASES.get(cell, cell)}:{size or units}" for cell, _, size in named]
        parse_layers(tuple(layers))
        stacks.append("+".join(layers))
    if len(set(stacks)) < len(stacks) or not 2 <= len(stacks) <= MAX_CELLS:
        raise TrainingError(
            f"cells are {shown(stacks)}; give 2 to {MAX_CELLS} different ones, such as rnn,gru,lstm"
        )
    return stacks


def compare_cells(
    config: TrainingConfig,
    cells: Iterable[str] = CELLS,
    *,
    units: int = UNITS,
    seeds: int = NUM_SEEDS,
    budget: Budget | None = None,
    table: Table | None = None,
    progress: Callable[[Evaluation], None] | None = None,
    threads: int = 1,
    on_trial: Callable[[int, Trial], None] | None = None,
    on_candidate: Callable[[Candidate], None] | None = None,
    stop: StopSignals | None = None,
    places: Mapping[str, Path] | None = None,
    resume: bool = False,
) -> Comparison:
    """Train each cell as `train` would with these layers and seeds, and compare them.

    The layers of the configuration give way to the cells, and there is no linear path unless it
    tells its ``lags``: beside one, most cells are alike. ``on_candidate`` is called when a cell's
    trainings have ended, and the engine has reproduced them. ``places`` are the models' paths by
    stack; beside them the trainings are kept until all have ended, and with ``resume`` they go on:
    of a cell that had ended only its best training is repeated.

    Raises
    ------
    DataError
        If the data cannot be used.
    TrainingError
        If a cell or a setting cannot be used, every seed of a cell diverges, or there is nothing to
        go on with.
    TrainingStopped
        If a signal came.
    """
    stacks = stacks_of(cells, units)
    if seeds < 2:
        raise TrainingError(f"seeds is {seeds}; give 2 or more: one training shows no spread")
    if config.start_from:
        raise TrainingError("start_from holds the weights of one stack of layers; leave it out")
    config = config.replace(lags=max(config.lags, 0), refit=False)
    table = table or read_table(config.path, config.read_options(), config.kinds())
    kept = _kept(places or {}, resume)
    candidates: list[Candidate] = []
    for stack in stacks:
        own = config.replace(layers=tuple(stack.split("+")))
        try:
            result = train(
                own,
                progress,
                table=table,
                threads=threads,
                budget=budget,
                seeds=seeds,
                on_trial=on_trial,
                stop=stop,
                kept=kept.get(stack),
            )
        except TrainingStopped:
            raise _stopped(stack, candidates, stacks) from None
        except TrainingError as error:
            raise TrainingError(f"{stack}: {error}") from error
        if result.was_stopped:
            raise _stopped(stack, candidates, stacks)
        verify(result.model, result.dataset)
        candidates.append(Candidate(stack, result, _trials_of_seeds(result)))
        if on_candidate:
            on_candidate(candidates[-1])
    found = Comparison(candidates, _report(candidates))
    for files in kept.values():
        files.remove()
    return found


def _kept(places: Mapping[str, Path], resume: bool) -> dict[str, Kept]:
    """Return where each stack is kept; of a comparison that goes on some are yet to begin."""
    begun = {
        stack: any(path.with_name(f"{path.name}.{end}").exists() for end in ENDINGS)
        for stack, path in places.items()
    }
    others = _others_begun(places) if resume else []
    if others:
        raise TrainingError(
            f"{next(iter(places.values())).parent} holds a comparison that was not ended, with "
            f"{listed(others)}; it is not among the cells asked for, {listed(list(places))}. Go on "
            "with the same --cells and --units, or remove its files .checkpoint and .search"
        )
    if resume and not any(begun.values()):
        raise TrainingError(
            "there is nothing to go on with: the comparison has ended, or never began; leave "
            "--resume out to begin it"
        )
    return {stack: Kept(path, resume and begun[stack]) for stack, path in places.items()}


def _others_begun(places: Mapping[str, Path]) -> list[str]:
    """Return the models beside these, by their names, whose trainings have not ended."""
    folders = {path.parent for path in places.values()}
    names = {
        file.name.removesuffix(f".{end}")
        for folder in folders
        for end in ENDINGS
        for file in folder.glob(f"*{MODEL_ENDING}.{end}")
    }
    known = {path.name for path in places.values()}
    return sorted(name.removesuffix(MODEL_ENDING) for name in names - known)


def _stopped(stack: str, done: list[Candidate], stacks: list[str]) -> TrainingStopped:
    return TrainingStopped(f"stopped in {stack}: {len(done)} of {len(stacks)} cells are done")


def _trials_of_seeds(result: TrainingResult) -> list[Trial]:
    """Return the trainings that differ from the kept one by their seeds alone."""
    trials = [Trial.from_dict(each) for each in result.report["search"]["trials"]]
    best = min((trial for trial in trials if trial.test), key=lambda trial: trial.loss)
    return [
        trial
        for trial in trials
        if trial.settings == best.settings._replace(seed=trial.settings.seed)
    ]


def _summary(errors: list[float]) -> dict[str, Any]:
    spread = float(np.std(errors, ddof=1)) if len(errors) > 1 else None
    return {"mean": float(np.mean(errors)), "spread": spread, "of_seeds": errors}


def _report(candidates: list[Candidate]) -> dict[str, Any]:
    first = candidates[0].result
    known = first.report["comparison"]  # a target without a value is left out
    spec = first.dataset.spec
    targets = [each for each in targets_of(first.config, spec) if each.name in known]
    step_us = time_steps(
        {each.layers: (each.result.model, each.result.dataset) for each in candidates}
    )
    return {
        "split": first.dataset.split.says,
        "cells": [each.to_dict(targets, step_us[each.layers]) for each in candidates],
        "targets": {each.name: _judged(each, candidates) for each in targets},
    }


@dataclass(frozen=True)
class _Other:
    """A candidate beside the best one."""

    candidate: Candidate
    interval: Interval  # of the best one's error as a multiple of this one's
    drawn: str
    seeds_differ: bool  # every seed of the best one beats every seed of this one

    @property
    def is_worse(self) -> bool:
        return self.seeds_differ and self.interval.high < 1.0


def _judged(target: Target, candidates: list[Candidate]) -> dict[str, Any]:
    """Compare the candidate of the least mean error with the others."""
    errors = {each.layers: each.errors(target.name, target.metric) for each in candidates}
    ranked = sorted(candidates, key=lambda each: float(np.mean(errors[each.layers])))
    losses = {each.layers: _losses(target, each) for each in candidates}
    best = ranked[0]
    others = []
    for other in ranked[1:]:
        pair = (losses[best.layers], losses[other.layers])
        interval, drawn = paired_interval(best.result.dataset, target, "test", *pair)
        differ = max(errors[best.layers]) < min(errors[other.layers])
        others.append(_Other(other, interval, drawn, differ))
    alike = [each for each in others if not each.is_worse]
    keep = min([best, *(each.candidate for each in alike)], key=lambda each: each.num_parameters)
    found = best.result.report["comparison"][target.name]
    name = found["best"]
    baselines = best.result.report["baselines"]
    return {
        "metric": target.metric,
        "num_targets": found["num_targets"],
        "best": best.layers,
        "keep": keep.layers,
        "is_clear": not alike,
        "against": {
            each.candidate.layers: {
                "ratio": each.interval.ratio,
                "low": each.interval.low,
                "high": each.interval.high,
                "drawn": each.drawn,
                "seeds_differ": each.seeds_differ,
                "is_worse": each.is_worse,
            }
            for each in others
        },
        "baseline": {
            "name": name,
            "error": baselines[name][target.name][target.metric],
            "verdict": keep.result.report["comparison"][target.name]["verdict"],
        },
        "verdict": _verdict(target.metric, best, keep, others),
    }


def _losses(target: Target, candidate: Candidate) -> list[Any]:
    result, model = candidate.result, candidate.result.model
    network = outputs_of(network_of(model.spec, model.parameters), result.dataset)
    return judge(result.dataset, target, "test", partial(network.predict, target)).losses


def _verdict(metric: str, best: Candidate, keep: Candidate, others: list[_Other]) -> str:
    """Say in one sentence which one to keep; where none can be told, the smallest."""
    alike = [each for each in others if not each.is_worse]
    if not alike:
        words, low, high = sides(others[0].interval)
        return (
            f"keep {best.layers}: its {metric} is {words} than that of {others[0].candidate.layers}"
            f", 95 % interval {low} to {high}, and each of its seeds is better than all others"
        )
    names = ", ".join(each.candidate.layers for each in alike)
    worse = ", ".join(each.candidate.layers for each in others if each.is_worse)
    return (
        f"cannot tell {best.layers} from {names} ({_why_alike(metric, alike[0])}): take the one "
        f"with the fewest parameters, {keep.layers}" + (f"; worse: {worse}" if worse else "")
    )


def _why_alike(metric: str, other: _Other) -> str:
    words, low, high = sides(other.interval)
    if not other.interval.is_bounded:
        return f"too few rows for an interval: {other.drawn}"
    found = f"{metric} beside {other.candidate.layers}: {words}, 95 % interval {low} to {high}"
    return found + (", but their seeds overlap" if other.interval.high < 1.0 else "")
