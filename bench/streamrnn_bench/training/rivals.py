"""All that ours is compared with, fitted without a look at the test part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from streamrnn.training.baselines.compare import judge
from streamrnn.training.baselines.families import fit_baselines
from streamrnn.training.baselines.target import Baseline, Prediction, Target
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.training.boosting import fit_boosting
from streamrnn_bench.training.lstm import Effort, fit_lstm

__all__ = ["Rivals", "checked", "fit_rivals", "require_peers"]

PEERS = ("pytorch", "boosting")
_PACKAGES = {"torch": "torch", "sklearn": "scikit-learn"}
Predict = Callable[[Stream, slice], Prediction]


@dataclass(frozen=True)
class Rivals:
    """Predictors of one target."""

    fitted: list[Baseline]  # as they are judged
    validation: dict[str, float]  # by name, the error on the validation part

    def best(self, leave_out: tuple[str, ...] = ()) -> str:
        """Return the name of the one that is best on the validation part."""
        kept = {name: error for name, error in self.validation.items() if name not in leave_out}
        return min(kept, key=lambda name: kept[name])


def require_peers() -> None:
    """Raise a `BenchError` unless PyTorch and scikit-learn are installed."""
    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise BenchError(
            f"not installed: {', '.join(missing)}; `make bench-training` installs them, or "
            "pip install 'streamrnn[peers]'"
        )


def fit_rivals(
    dataset: Dataset, target: Target, effort: Effort, peers: tuple[str, ...] = PEERS
) -> Rivals:
    """Fit the baselines of the report, and the peers.

    On the validation part each is judged by what it learned from the rows before it: the baselines
    choose by the last quarter of the training part then, and are fitted to all of it.
    """
    earlier = _earlier(dataset)
    validation = {
        baseline.name: _error(earlier, target, "test", baseline)
        for baseline in fit_baselines(earlier)[target.name]
    }
    fitted = list(fit_baselines(dataset)[target.name])
    if "pytorch" in peers:
        lstm = cast(Baseline, fit_lstm(dataset, target, effort))
        validation[lstm.name] = _error(dataset, target, "validation", lstm)
        fitted.append(lstm)
    if "boosting" in peers:
        before, after = (cast(Baseline, peer) for peer in fit_boosting(dataset, target))
        validation[before.name] = _error(dataset, target, "validation", before)
        fitted.append(after)
    for baseline in fitted:  # a period may show in the whole training part alone
        if baseline.name not in validation:
            validation[baseline.name] = _error(dataset, target, "validation", baseline)
    names = [baseline.name for baseline in fitted]
    return Rivals(
        [checked(baseline) for baseline in fitted], {name: validation[name] for name in names}
    )


def _earlier(dataset: Dataset) -> Dataset:
    """Return the data with the validation part as its test part."""
    streams = []
    for stream in dataset.streams:
        first, second, _ = stream.stops
        streams.append(replace(stream, stops=(first - first // 4, first, second)))
    return replace(dataset, streams=tuple(streams))


def _error(dataset: Dataset, target: Target, part: str, baseline: Baseline) -> float:
    found = judge(dataset, target, part, checked(baseline).predict).measures
    return found[target.metric]


def checked(baseline: Baseline) -> Baseline:
    """Return it with every prediction looked at: one that is missing would count for nobody."""
    return cast(Baseline, _Checked(baseline))


class _Checked:
    def __init__(self, baseline: Baseline) -> None:
        self._baseline = baseline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._baseline, name)

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        found = self._baseline.predict(stream, rows)
        num_rows = rows.stop - rows.start
        num_missing = int(np.count_nonzero(np.isnan(found.values)))
        if len(found.values) != num_rows or num_missing:
            raise BenchError(
                f"{self._baseline.name} predicts {len(found.values)} rows, {num_missing} values "
                f"missing, of the {num_rows} rows from {rows.start} of stream {stream.name!r}"
            )
        return found
