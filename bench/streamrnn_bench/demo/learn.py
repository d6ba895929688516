"""Part one: a network learns the weekly CO2 at Mauna Loa."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import Dataset, make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.run.progress import TrainingProgress
from streamrnn.training.train import TrainingResult, train_to_file
from streamrnn_bench.demo.output import Output, duration

__all__ = ["Learned", "learn"]


@dataclass(frozen=True)
class Learned:
    """Results of the training that the later parts need.

    ``x`` [T, 1] is the whole series in ppmv, NaN where a week is missing; ``dates`` are its weeks.
    The test part's first step is row ``first``, which predicts row ``first + 1``. ``errors`` are
    root mean square errors on the test part in ppmv, as the trainer reports them: of the
    ``network``, of ``autoregression`` and of ``persistence``.
    """

    model: Model
    x: NDArray[np.float32]
    dates: list[str]
    first: int
    errors: dict[str, float]


def learn(path: Path, epochs: int, output: Output) -> Learned:
    """Train, write the weight file and print the errors; 0 epochs is the default."""
    output.heading("Train")
    with as_file(files("streamrnn") / "data" / "co2_mauna_loa.csv") as data:
        config = TrainingConfig(path=str(data), predict=("co2",), time="date", epochs=epochs)
        _introduce(make_dataset(config, read_table(config.path)), output)
        times_s = [time.perf_counter()]
        with TrainingProgress(output.console) as progress:

            def show(evaluation: Evaluation) -> None:
                times_s.append(time.perf_counter())
                progress(evaluation)

            # One that was interrupted is begun anew; every call is the same demonstration.
            path.with_name(f"{path.name}.checkpoint").unlink(missing_ok=True)
            result = train_to_file(config, path, show)
        trained_s = times_s[-1] - times_s[0]
        checked_s = time.perf_counter() - times_s[-1]
    learned = _learned(result)
    _report(result, learned, path, output, trained_s, checked_s)
    return learned


def _introduce(dataset: Dataset, output: Output) -> None:
    [stream] = dataset.streams
    weeks = _dates(dataset)
    highest_seen = np.nanmax(stream.x[: stream.stops[0] + 1])
    judged = stream.x[stream.stops[1] + 1 :]
    output.say(
        f"{len(stream.x):,} weeks of CO2 at Mauna Loa, {weeks[0]} to {weeks[-1]}. The last fifth "
        f"is kept for the end, and lies above all that is learnt from: {np.nanmin(judged):.0f} to "
        f"{np.nanmax(judged):.0f} ppmv, at most {highest_seen:.0f} before. So the network sees "
        "changes, not levels: the transform is part of the model, and its memory part of a "
        "stream's state."
    )


def _dates(dataset: Dataset) -> list[str]:
    """Return the day of every row."""
    return dataset.table.column("date").texts(0, dataset.table.num_rows)


def _learned(result: TrainingResult) -> Learned:
    [stream] = result.dataset.streams
    [output] = [item.name for item in result.model.spec.outputs]
    report = result.report
    errors = {name: found[output]["rmse"] for name, found in report["baselines"].items()}
    errors["network"] = report["errors"]["test"][output]["rmse"]
    return Learned(
        result.model, stream.x, _dates(result.dataset), stream.rows("test").start, errors
    )


def _report(
    result: TrainingResult,
    learned: Learned,
    path: Path,
    output: Output,
    trained_s: float,
    checked_s: float,
) -> None:
    [layer] = learned.model.spec.chain
    updates = result.report["updates"]
    output.say(
        f"{layer.cell.upper()}, {layer.hidden_size} units, {learned.model.num_parameters:,} "
        f"parameters: {updates['num_updates']:,} updates in {duration(trained_s)}, the best weights"
        f" after {updates['best_update']:,}. Saved as {path}, loaded, and found equal to what the "
        f"engine computes, in {duration(checked_s)}."
    )
    errors = learned.errors
    [fitted] = result.report["fitted"].values()
    names = {
        "network": "this network",
        "autoregression": f"linear autoregression on {fitted['autoregression']['lags']} lags",
        "persistence": "persistence: next week is like this week",
    }
    num_judged = np.count_nonzero(np.isfinite(learned.x[learned.first + 1 :]))
    output.line()
    output.table(
        (f"error one week ahead, over the last {num_judged} weeks (RMSE)", "ppmv", "relative"),
        [
            (label, f"{errors[name]:.3f}", f"{errors[name] / errors['network']:.2f}")
            for name, label in names.items()
        ],
    )
