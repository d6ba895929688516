"""A short search: first what helps most, then of the best two the better, then more seeds.

Each step varies one setting of the best so far (coordinate descent), in trainings of a quarter of
the length, whose schedules come to their ends. The validation part alone decides. The best two are
trained for the full length, and the better of them with more seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamrnn.errors import TrainingError, TrainingStopped
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.fit.chunks import MAX_UPDATES, choose_sizes
from streamrnn.training.fit.lags import fit_path, has_lags
from streamrnn.training.fit.loop import Fit, Keeper, fit
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.search.budget import Budget
from streamrnn.training.search.store import TrialStore
from streamrnn.training.search.trial import Runner, SearchStopped, Settings, Trial, with_choices

__all__ = ["Found", "search"]

LAYERS = (
    ("lstm:32",),
    ("lstm:64",),
    ("gru:32",),
    ("lstm:16",),
    ("gru:64",),
    ("lstm:32", "lstm:32"),
)
LEARNING_RATES = (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2)
SHORT = 4  # a trial is so many times shorter
MIN_UPDATES = 100
NUM_SEEDS = 3
# Rows times steps of a training, from which on one seed has to do.
MUCH_WORK = 6_000_000
_TRIED_UPDATES = 50  # to know how long one takes
_MAX_VARIATIONS = 1000
NEAR = 1.3  # times the best loss: what a short trial may still be wrong about


@dataclass(frozen=True)
class Found:
    """Result of a search."""

    dataset: Dataset  # with the settings that were chosen
    fitted: Fit
    report: dict[str, Any]  # JSON types
    was_stopped: bool = False


def search(
    dataset: Dataset,
    free: tuple[str, ...],
    budget: Budget | None,
    seeds: int,
    progress: Callable[[Evaluation], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    store: TrialStore | None = None,
    keeper_of: Callable[[Dataset], Keeper] | None = None,
    on_trial: Callable[[int, Trial], None] | None = None,
    is_length_open: bool = True,
) -> Found:
    """Choose the ``free`` settings within a budget, and the best of some seeds.

    ``is_length_open`` says that a time may decide how long a training is. ``seeds`` 0 is
    `NUM_SEEDS`, one where there is much to train. Raises `TrainingError` if every trial diverges,
    `TrainingStopped` if it is stopped before anything is validated.
    """
    if dataset.config.start_from:  # of those layers, and beside no path
        free = tuple(name for name in free if name not in ("layers", "lags"))
    store = store or TrialStore(None, {}, False)
    runner = Runner(dataset, store, progress, should_stop, keeper_of, on_trial)
    try:
        plan = _Plan.of(dataset, free, budget, seeds, store, is_length_open)
        winner = _run(plan, runner)
        fitted = runner.fit(winner.settings)
        was_stopped = fitted.was_stopped
    except SearchStopped:
        if not runner.fits:
            raise TrainingStopped(
                "stopped before the weights were validated once: there is no model yet"
            ) from None
        settings = min(runner.fits, key=lambda each: runner.fits[each].loss)
        fitted, was_stopped = runner.fits[settings], True
        return Found(with_choices(dataset, settings), fitted, _report(runner, None), was_stopped)
    return Found(
        with_choices(dataset, winner.settings), fitted, _report(runner, winner), was_stopped
    )


@dataclass(frozen=True)
class _Plan:
    """How many trials of which length; JSON types, for it is kept for a search that goes on."""

    num_trials: int
    updates: int  # of a training of the full length; 0: the epochs bound it
    short: int  # of a trial
    num_seeds: int
    seconds: float | None  # for all of it
    free: tuple[str, ...]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        free: tuple[str, ...],
        budget: Budget | None,
        seeds: int,
        store: TrialStore,
        is_length_open: bool,
    ) -> _Plan:
        """Make a plan, or take the one that a search began with."""
        if not store.plan:
            sizes = choose_sizes(dataset)
            full = math.ceil(sizes.num_epochs * sizes.updates_an_epoch)
            work = full * sizes.batch_size * sizes.truncation_steps
            num_seeds = seeds or (NUM_SEEDS if work <= MUCH_WORK else 1)
            num_trials, seconds = (budget.num_trials if budget and free else 0), None
            if budget and math.isfinite(budget.seconds):
                seconds = budget.seconds
                fitting = seconds / _seconds_an_update(dataset)
                if not seeds and fitting < 5 * full:
                    num_seeds = 1
                rest = fitting / full - 1 - num_seeds
                num_trials = min(num_trials, max(4, int(SHORT * rest)), 24)
                share = num_trials / SHORT + (2 if free else 1) + num_seeds - 1
                if is_length_open and not dataset.config.epochs:
                    full = min(MAX_UPDATES, max(MIN_UPDATES, int(fitting / share)))
            is_by_epochs = bool(dataset.config.epochs and not dataset.config.updates)
            store.plan = {
                "num_trials": num_trials,
                "updates": 0 if is_by_epochs else full,
                "short": min(full, max(MIN_UPDATES, full // SHORT)),
                "num_seeds": num_seeds,
                "seconds": seconds,
                "free": list(free),
            }
            store.keep([])  # before the first trial: it goes on as it was begun, or not at all
        try:
            return cls(**store.plan | {"free": tuple(store.plan["free"])})
        except (KeyError, TypeError) as error:
            raise TrainingError(f"{store.path} is damaged: {error}") from error

    def is_late(self, runner: Runner) -> bool:
        """Whether the time is over."""
        return self.seconds is not None and runner.spent_s > self.seconds


def _seconds_an_update(dataset: Dataset) -> float:
    """Time some updates; the first ones may compile what they run."""
    for num_updates in (2, _TRIED_UPDATES):
        tried = dataset.config.replace(updates=num_updates, epochs=0)
        found = fit(replace(dataset, config=tried))
    return max(found.history[-1].seconds / found.num_updates, 1e-6)


def _run(plan: _Plan, runner: Runner) -> Trial:
    """Return the best training of the full length."""
    config = runner.dataset.config
    if config.lags:
        fit_path(runner.dataset, config.lags)  # raises where there can be none
    first = Settings(config.layers, config.learning_rate, config.lags, config.seed, plan.updates)
    finalists = [first]
    if plan.num_trials:
        finalists = _finalists(_explore(first._replace(updates=plan.short), plan, runner), plan)
    finals = [
        runner.run(settings._replace(updates=plan.updates), True)
        for settings in finalists
        if settings == finalists[0] or not plan.is_late(runner)
    ]
    winner = _best(finals)
    for k in range(1, plan.num_seeds):
        if not plan.is_late(runner):
            seed = (config.seed + k) % 2**63
            finals.append(runner.run(winner.settings._replace(seed=seed), True))
    if not math.isfinite(_best(finals).loss):
        raise TrainingError(
            "every training of the search diverged: lower learning_rate or clip_norm, and look "
            "for extreme values in the data"
        )
    return _best(finals)


def _best(trials: list[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial.loss)


def _explore(first: Settings, plan: _Plan, runner: Runner) -> list[Trial]:
    """Vary one setting after the other of the best so far."""
    if "lags" in plan.free and has_lags(runner.dataset):
        first = first._replace(lags=fit_path(runner.dataset).lags)
    is_whole = plan.short == plan.updates
    trials = [runner.run(first, is_whole)]
    for changes in _variations(first, plan.free):
        if len(trials) == plan.num_trials or plan.is_late(runner):
            break
        settings = _best(trials).settings._replace(**changes)
        if settings not in [trial.settings for trial in trials]:
            trials.append(runner.run(settings, is_whole))
    return trials


def _variations(first: Settings, free: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield what to change: the path, the rate, the sizes, then anything."""
    if first.lags and "lags" in free:
        yield {"lags": 0}
    if "learning_rate" in free:
        yield {"learning_rate": 1e-2}
        yield {"learning_rate": 1e-3}
    if "layers" in free:
        yield from ({"layers": layers} for layers in LAYERS[1:3])
    rng = np.random.default_rng(first.seed)
    for _ in range(_MAX_VARIATIONS):
        drawn = {
            "layers": LAYERS[rng.integers(len(LAYERS))],
            "learning_rate": LEARNING_RATES[rng.integers(len(LEARNING_RATES))],
            "lags": (0, first.lags, min(first.lags, 3))[rng.integers(3)],
        }
        # One or two of them: near the best so far is where to look.
        kept = rng.permutation(sorted(free))[: rng.integers(1, 3)].tolist()
        yield {name: drawn[name] for name in kept}


def _finalists(trials: list[Trial], plan: _Plan) -> list[Settings]:
    """Return the best and a second that is near it; one with a path beside one without."""
    ranked = sorted(trials, key=lambda trial: trial.loss)
    best = ranked[0]
    others = [t for t in ranked if bool(t.settings.lags) != bool(best.settings.lags)] or ranked[1:]
    near = [trial for trial in others[:1] if trial.loss <= NEAR * best.loss]
    return [trial.settings for trial in (best, *near)]


def _report(runner: Runner, winner: Trial | None) -> dict[str, Any]:
    """Return the trials, and mean and spread over the winner's seeds."""
    report: dict[str, Any] = {"trials": [trial.to_dict() for trial in runner.trials]}
    if winner is None:
        return report
    same = [
        trial
        for trial in runner.trials
        if trial.settings == winner.settings._replace(seed=trial.settings.seed)
    ]
    report["seeds"] = {
        "seeds": [trial.settings.seed for trial in same],
        "best": winner.settings.seed,
        "validation": _spread([trial.loss for trial in same]),
        "test": {
            target: {
                measure: _spread([trial.test[target][measure] for trial in same if trial.test])
                for measure in found
            }
            for target, found in winner.test.items()
        },
    }
    return report


def _spread(values: list[float]) -> dict[str, float | None]:
    """Return mean and standard deviation of a sample; none of one value."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return {"mean": None, "spread": None}
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "spread": spread}
