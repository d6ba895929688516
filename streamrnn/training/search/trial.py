"""One training of a search: what it was told and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from streamrnn.errors import TrainingError
from streamrnn.model.spec import ModelSpec
from streamrnn.training.baselines.compare import measures
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.evaluate import outputs_of
from streamrnn.training.fit.loop import Fit, Keeper, fit
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.search.store import TrialStore

__all__ = ["Runner", "SearchStopped", "Settings", "Trial", "with_choices"]

Errors = dict[str, dict[str, float]]  # target -> measure


class Settings(NamedTuple):
    """What a trial is told."""

    layers: tuple[str, ...]
    learning_rate: float
    lags: int
    seed: int
    updates: int


@dataclass(frozen=True)
class Trial:
    """Result of a trial."""

    settings: Settings
    loss: float  # of the validation part; Inf if it diverged
    best_update: int
    test: Errors = field(default_factory=dict)  # of a training of the full length
    seconds: float = field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = asdict(self)
        del plain["settings"]
        loss = self.loss if math.isfinite(self.loss) else None
        return self.settings._asdict() | plain | {"loss": loss}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Trial:
        """Take it back; raises `KeyError`, `TypeError` or `ValueError` if it is none."""
        layers = tuple(str(item) for item in plain["layers"])
        numbers = (int(plain[name]) for name in ("lags", "seed", "updates"))
        settings = Settings(layers, float(plain["learning_rate"]), *numbers)
        loss = math.inf if plain["loss"] is None else float(plain["loss"])
        test = {str(target): dict(found) for target, found in plain["test"].items()}
        return cls(settings, loss, int(plain["best_update"]), test, float(plain["seconds"]))


class SearchStopped(Exception):
    """Ctrl-C or SIGTERM came during a trial."""


def with_choices(dataset: Dataset, settings: Settings) -> Dataset:
    """Return the dataset with the settings of a trial in its configuration."""
    chosen = dataset.config.replace(**settings._asdict())
    layers = parse_layers(chosen.layers, chosen.feedback)
    spec: ModelSpec = replace(dataset.spec, layers=layers)
    return replace(dataset, config=chosen, spec=spec)


class Runner:
    """Runs trials, and knows those that were run before.

    ``keeper_of`` returns where a trial is kept while it runs; ``on_trial`` is called after each.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: TrialStore,
        progress: Callable[[Evaluation], None] | None,
        should_stop: Callable[[], bool],
        keeper_of: Callable[[Dataset], Keeper] | None,
        on_trial: Callable[[int, Trial], None] | None,
    ) -> None:
        self.dataset, self._store, self._progress = dataset, store, progress
        self._should_stop, self._keeper_of, self._on_trial = should_stop, keeper_of, on_trial
        self._known = {trial.settings: trial for trial in map(Trial.from_dict, store.trials)}
        self.trials: list[Trial] = []
        self.fits: dict[Settings, Fit] = {}  # of this process

    @property
    def spent_s(self) -> float:
        """Seconds that the trials took, those before a break included."""
        return sum(trial.seconds for trial in self.trials)

    def run(self, settings: Settings, is_measured: bool = False) -> Trial:
        """Return a trial's result; ``is_measured`` asks for its test errors too.

        Raises `SearchStopped` if it is stopped.
        """
        for trial in self.trials:
            if trial.settings == settings:
                return trial
        trial = self._known.get(settings) or self._train(settings, is_measured)
        self.trials.append(trial)
        self._store.keep([each.to_dict() for each in self.trials])
        if self._on_trial:
            self._on_trial(len(self.trials), trial)
        return trial

    def fit(self, settings: Settings) -> Fit:
        """Return what a trial has fitted; one of before a break is repeated."""
        if settings not in self.fits:
            self._train(settings, False)
        return self.fits[settings]

    def _train(self, settings: Settings, is_measured: bool) -> Trial:
        dataset = with_choices(self.dataset, settings)
        keeper = self._keeper_of(dataset) if self._keeper_of else None
        number = len(self.trials) + 1

        def progress(evaluation: Evaluation) -> None:
            if self._progress:
                self._progress(replace(evaluation, trial=number))

        try:
            found = fit(dataset, progress, self._should_stop, keeper)
        except TrainingError:
            if self._should_stop():  # before anything was validated
                raise SearchStopped from None
            return Trial(settings, math.inf, 0)
        self.fits[settings] = found
        if found.was_stopped:
            raise SearchStopped
        test: Errors = {}
        if is_measured:
            test = measures(dataset, "test", outputs_of(found.network, dataset).predict)
        if keeper:
            keeper.remove()
        seconds = found.history[-1].seconds
        return Trial(settings, found.loss, found.best_update, test, seconds)
