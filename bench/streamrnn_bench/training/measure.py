"""One series: ours by the public API with all defaults, beside its rivals, on the same rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import streamrnn
from streamrnn.training.baselines.compare import compare
from streamrnn.training.baselines.target import targets_of
from streamrnn.training.evaluate import outputs_of
from streamrnn.training.network.lags import network_of
from streamrnn.training.train import TrainingResult
from streamrnn_bench.report.results import BenchError, commit
from streamrnn_bench.training.fetch import PLACE, fetch
from streamrnn_bench.training.lstm import Effort
from streamrnn_bench.training.rivals import PEERS, fit_rivals
from streamrnn_bench.training.task import Task

__all__ = ["LEAST_TARGETS", "TOLERANCE", "Against", "Measured", "measure", "measure_file"]

LEAST_TARGETS = 1000
# Ours is worse than a rival if its error is larger by more than this, and beyond chance.
TOLERANCE = 0.03
_AGREEMENT = 1e-3  # between the error of the report, by the engine, and the one judged here


@dataclass(frozen=True)
class Against:
    """Ours beside one rival on the test rows."""

    label: str
    error: float
    validation: float  # its error on the validation part
    ratio: float  # of our error to its
    low: float  # the 95 % interval of the ratio
    high: float

    @property
    def holds(self) -> bool:
        """Whether ours is not worse, beyond chance and `TOLERANCE`."""
        return self.ratio <= 1.0 + TOLERANCE or self.low <= 1.0


@dataclass(frozen=True)
class Measured:
    """One series' outcome."""

    series: str
    kind: str
    horizon: int
    metric: str  # ``rmse`` or ``cross_entropy``
    num_targets: int
    ours: float
    validation: float  # our error on the validation part
    rival: str  # the name of the one that was best on the validation part
    rival_but_boosting: str  # the same without gradient boosting
    against: dict[str, Against]
    effort: Effort
    cpu_s: dict[str, float] = field(default_factory=dict)

    def holds(self, with_boosting: bool = True) -> bool:
        """Whether ours is not worse than the rival."""
        name = self.rival if with_boosting else self.rival_but_boosting
        return self.against[name].holds

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"benchmark": "training", **asdict(self), "commit": commit()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Measured:
        """Take it back."""
        known = {name: plain[name] for name in cls.__dataclass_fields__}
        known["against"] = {name: Against(**item) for name, item in plain["against"].items()}
        known["effort"] = Effort(**plain["effort"])
        return cls(**known)


def measure(
    tasks: Iterable[Task], settings: dict[str, Any] | None = None, place: Path = PLACE
) -> Iterator[Measured]:
    """Fetch and measure some series, one after the other."""
    for task in tasks:
        yield measure_file(task, fetch(task, place), settings)


def measure_file(
    task: Task,
    path: Path,
    settings: dict[str, Any] | None = None,
    peers: tuple[str, ...] = PEERS,
) -> Measured:
    """Train ours and its rivals on a table, and judge them on its test part.

    ``settings`` are of `streamrnn.train`, beside what the task asks; none: all defaults.

    Raises a `BenchError` if what is judged is not what ours reports, or is too little.
    """
    begun_s = time.process_time()
    result = streamrnn.train(
        path,
        predict=task.predict,
        time=task.time,
        group=task.group,
        horizon=task.horizon,
        split=task.split,
        split_by=task.split_by,
        **(settings or {}),
    )
    trained_s = time.process_time()
    dataset = result.dataset
    [target] = targets_of(dataset.config, dataset.spec)
    effort = effort_of(result)
    rivals = fit_rivals(dataset, target, effort, peers)
    network = outputs_of(network_of(result.model.spec, result.model.parameters), dataset)
    found = compare(dataset, "test", network.predict, {target.name: rivals.fitted})
    cpu_s = {"ours": trained_s - begun_s, "rivals": time.process_time() - trained_s}
    metric, comparison = target.metric, found["comparison"][target.name]
    ours = found["errors"][target.name][metric]
    reported = result.report["errors"]["test"][target.name][metric]
    if abs(ours - reported) > _AGREEMENT * reported:
        raise BenchError(f"{task.name}: judged {metric} {ours}, but reported is {reported}")
    if comparison["num_targets"] < LEAST_TARGETS:
        raise BenchError(
            f"{task.name}: {comparison['num_targets']} targets in the test part are too few; at "
            f"least {LEAST_TARGETS} say something"
        )
    against = {
        name: Against(
            item["label"],
            found["baselines"][name][target.name][metric],
            rivals.validation[name],
            item["ratio"],
            item["low"],
            item["high"],
        )
        for name, item in comparison["against"].items()
    }
    return Measured(
        task.name,
        task.kind,
        task.horizon,
        metric,
        comparison["num_targets"],
        ours,
        result.report["errors"]["validation"][target.name][metric],
        rivals.best(),
        rivals.best(leave_out=("boosting",)),
        against,
        effort,
        cpu_s,
    )


def effort_of(result: TrainingResult) -> Effort:
    """Return what ours did, for the LSTM of PyTorch to do as much: as many trainings, as long."""
    config, report = result.config, result.report
    lengths = [trial["updates"] for trial in report.get("search", {}).get("trials", ())]
    full = max(lengths, default=0) or report["updates"]["num_updates"]
    short = [length for length in lengths if 0 < length < full]
    return Effort(
        len(short),
        max(short, default=0),
        max(1, len(lengths) - len(short)),
        full,
        config.batch_size,
        config.truncation_steps,
    )
