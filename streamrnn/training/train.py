"""A training from its configuration to its verified model and its report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import streamrnn
from streamrnn.errors import TrainingError
from streamrnn.model.model import Model
from streamrnn.model.spec import NUM_SAMPLE_STEPS
from streamrnn.training.baselines.compare import compare, measures
from streamrnn.training.baselines.families import baselines_to_dict, fit_baselines
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import PARTS, Dataset, make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.diagnostics import Memory, measure_memory
from streamrnn.training.evaluate import NetworkOutputs
from streamrnn.training.fit.chunks import choose_sizes
from streamrnn.training.fit.loop import Fit, fit
from streamrnn.training.fit.trainer import Epoch
from streamrnn.training.verify import verify

__all__ = ["TrainingResult", "train", "train_to_file"]


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes
    ----------
    model : Model
        Trained; ``model.spec.training`` is the report.
    report : dict
        JSON types: ``data``, ``config``, ``versions``, ``errors`` (part -> target -> measure),
        ``baselines`` (name -> target -> measure, on the test part), ``comparison`` (target ->
        intervals and verdict), ``fitted`` (target -> baseline -> what was fitted), ``memory``,
        ``updates``.
    config : TrainingConfig
        With every choice made; it repeats the training to the bit.
    dataset : Dataset
        Streams, features and targets.
    """

    model: Model
    report: dict[str, Any]
    config: TrainingConfig
    dataset: Dataset


def train(
    config: TrainingConfig, progress: Callable[[Epoch], None] | None = None
) -> TrainingResult:
    """Train a model.

    Parameters
    ----------
    config : TrainingConfig
        What to learn from which data, and how.
    progress : callable or None
        Called after each epoch.

    Returns
    -------
    TrainingResult
        The same to the bit for the same configuration, data, versions and machine.

    Raises
    ------
    DataError
        If the data cannot be used.
    TrainingError
        If the configuration cannot be used, or the training diverges.
    """
    dataset = make_dataset(config, read_table(config.path, config.read_options(), config.kinds()))
    batch_size, _, num_epochs = choose_sizes(dataset)
    dataset = replace(
        dataset, config=dataset.config.replace(batch_size=batch_size, epochs=num_epochs)
    )
    fitted = fit(dataset, progress)
    memory = measure_memory(fitted.network, dataset)
    report = _report(dataset, fitted, memory)
    spec = replace(dataset.spec, warmup_steps=memory.horizon_steps, training=report)
    model = Model(spec, fitted.network.parameters)
    return TrainingResult(model, report, dataset.config, dataset)


def _report(dataset: Dataset, fitted: Fit, memory: Memory) -> dict[str, Any]:
    rows = [stream.stops[2] + dataset.config.horizon for stream in dataset.streams]
    network = NetworkOutputs.of(fitted.network, dataset)
    baselines = fit_baselines(dataset)
    found = compare(dataset, "test", network.predict, baselines)
    errors = {part: measures(dataset, part, network.predict) for part in PARTS[:2]}
    return {
        "data": {
            "file": Path(dataset.config.path).name,
            "sha256": dataset.table.sha256,
            "num_rows": int(sum(rows)),
            "num_streams": len(rows),
            "split": dataset.split.says,
        },
        "config": dataset.config.to_dict(),
        "versions": {"streamrnn": streamrnn.__version__, "numpy": np.__version__},
        "errors": errors | {"test": found["errors"]},
        "baselines": found["baselines"],
        "comparison": found["comparison"],
        "fitted": baselines_to_dict(baselines),
        "memory": memory.to_dict(),
        "sample": _sample(dataset),
        "updates": {
            "num_epochs": fitted.num_epochs,
            "best_epoch": fitted.best_epoch,
            "num_updates": fitted.num_updates,
            "clipped_share": fitted.clipped_share,
            "max_gradient_norm": fitted.max_gradient_norm,
        },
    }


def _sample(dataset: Dataset) -> list[list[float | None]]:
    """Return some steps of the validation part as a sample; None where x is missing."""
    stream = max(dataset.streams, key=lambda stream: stream.stops[1] - stream.stops[0])
    x = stream.x[stream.rows("validation")][:NUM_SAMPLE_STEPS]
    return [[None if np.isnan(value) else float(value) for value in row] for row in x]


def train_to_file(
    config: TrainingConfig,
    path: str | os.PathLike[str],
    progress: Callable[[Epoch], None] | None = None,
) -> TrainingResult:
    """Train, save, load again, and let the engine reproduce the trainer's outputs.

    Parameters
    ----------
    config : TrainingConfig
        What to learn from which data, and how.
    path : str or path
        Of the weight file. The full configuration goes beside it, with the suffix ``.toml``.
    progress : callable or None
        Called after each epoch.

    Returns
    -------
    TrainingResult
        Its model is the one that was loaded.

    Raises
    ------
    DataError
        If the data cannot be used.
    TrainingError
        If the training fails, or the engine does not reproduce it; no file is left then.
    ModelFileError
        If the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".toml":
        raise TrainingError(f"{path} is the model's file; .toml is kept for its configuration")
    if not path.parent.is_dir():
        raise TrainingError(f"the directory {path.parent} does not exist; make it first")
    result = train(config, progress)
    unverified = path.with_name(path.name + ".unverified")
    try:
        result.model.save(unverified)
        model = Model.load(unverified)
        verify(model, result.dataset)
        result.config.write(path.with_suffix(".toml"))
        os.replace(unverified, path)
    finally:
        unverified.unlink(missing_ok=True)
    return replace(result, model=model)
