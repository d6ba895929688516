"""Evaluation of a model on a file that it has not seen, beside its baselines."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import (
    DataError,
    ModelFileError,
    StreamRNNError,
    counted,
    listed,
    suggestion,
)
from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec
from streamrnn.training.baselines.compare import compare, measures
from streamrnn.training.baselines.families import baselines_from_dict
from streamrnn.training.baselines.target import targets_of
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.columns import resolve_names
from streamrnn.training.data.dataset import Dataset, Stream, current_level, encode
from streamrnn.training.data.forecasts import forecasts_of
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.seen_rows import find_seen_rows
from streamrnn.training.data.split import Split
from streamrnn.training.data.streams import rows_of_streams
from streamrnn.training.data.table import Table
from streamrnn.training.data.times import with_time_features
from streamrnn.training.evaluate import CarriedOutputs, NetworkOutputs, outputs_of
from streamrnn.training.network.lags import network_of
from streamrnn.training.network.losses import LOSSES
from streamrnn.training.predict import kinds_of, model_inputs, time_inputs, trained_options
from streamrnn.training.quantiles import measure_intervals

__all__ = ["config_of_model", "dataset_of_model", "evaluate_file", "kinds_of_targets"]

Doubles = NDArray[np.float64]

LEAST_SAMPLE = 8  # rows that are the same by no chance
MAX_STARTS = 10_000


def evaluate_file(
    model: Model,
    path: str | os.PathLike[str],
    time: str | None = None,
    group: tuple[str, ...] | None = None,
    options: ReadOptions | None = None,
    warmup_rows: int = 0,
) -> dict[str, Any]:
    """Compare a model with the baselines that were fitted when it was trained, on another file.

    Parameters
    ----------
    model : Model
        Trained by this version, so that its report holds the baselines.
    path : str or path
        Of a table with the model's inputs and targets.
    time, group : str and tuple of str, or None
        Columns that order the rows and tell streams apart; None: those of the training.
    options : ReadOptions or None
        How a text file is written; None: like the training's file.
    warmup_rows : int
        Rows at the start of every stream that are not judged. Every row is run, and each is warmed
        up by those before it.

    Returns
    -------
    dict
        JSON types: ``file``, ``sha256``, ``is_training_file``, ``has_training_rows``, ``is_refit``,
        ``in_sample`` (``num_rows`` that were learned from, ``rows`` by the stream's name, first and
        last from 1 in time order, ``errors`` of these and ``other_errors``),
        ``num_rows``, ``num_streams``, ``warmup_rows``, ``unit`` (of a text, else empty),
        ``unknown_classes`` (target -> rows), ``not_judged`` (targets without a value),
        ``intervals`` as
        `streamrnn.training.quantiles.measure_intervals` gives them, and what
        `streamrnn.training.baselines.compare.compare` returns.

    Raises
    ------
    DataError
        If the file lacks what the model needs.
    ModelFileError
        If the model has no report of a training, or a damaged one.
    """
    config = config_of_model(model.spec, path, time, group)
    targets = targets_of(config, model.spec)
    fitted = baselines_from_dict(model.spec.training.get("fitted"), targets)
    kinds = kinds_of_targets(model.spec, config) | kinds_of(model.spec, config.group)
    table = read_table(path, options or trained_options(model.spec), kinds)
    config = config.replace(group=resolve_names(config.group, table))
    dataset, unknown = dataset_of_model(model.spec, config, table, warmup_rows)
    network = network_of(model.spec, model.parameters)
    outputs = outputs_of(network, dataset)
    found = compare(dataset, "test", outputs.predict, fitted)
    seen = find_seen_rows(model.spec.training.get("seen"), dataset)
    data = model.spec.training.get("data")
    is_training_file = isinstance(data, dict) and data.get("sha256") == table.sha256
    return {
        "file": Path(path).name,
        "sha256": table.sha256,
        "is_training_file": is_training_file,
        "has_training_rows": is_training_file or bool(seen) or _holds_sample(model.spec, dataset),
        "is_refit": "refit" in model.spec.training,
        "in_sample": _in_sample(dataset, seen, outputs),
        "num_rows": table.num_rows,
        "num_streams": len(dataset.streams),
        "warmup_rows": warmup_rows,
        "unit": config.tokens,
        "unknown_classes": {config.predict[0]: unknown} if unknown else {},
        "not_judged": [t.name for t in targets if t.name not in found["errors"]],
        "intervals": measure_intervals(dataset, outputs.z),
        **found,
    }


def _in_sample(
    dataset: Dataset,
    seen: dict[str, tuple[int, int]],
    outputs: NetworkOutputs | CarriedOutputs,
) -> dict[str, Any]:
    """Say which rows were learned from; measure them, and the others."""
    found = {
        "num_rows": sum(stop - start for start, stop in seen.values()),
        "rows": {name: [start + 1, stop] for name, (start, stop) in seen.items()},
    }
    for key, is_kept in (("errors", True), ("other_errors", False)):
        streams = []
        for stream in dataset.streams:
            target = stream.target.copy()
            is_seen = np.zeros(len(target), bool)
            is_seen[slice(*seen.get(stream.name, (0, 0)))] = True
            target[is_seen != is_kept] = np.nan
            streams.append(replace(stream, target=target))
        part = replace(dataset, streams=tuple(streams))
        found[key] = _measured(part, outputs) if seen else {}
    return found


def _measured(
    dataset: Dataset, outputs: NetworkOutputs | CarriedOutputs
) -> dict[str, dict[str, float]]:
    """Measure a network; targets without a value are left out."""
    known = [stream.target[stream.rows("test")] for stream in dataset.streams]
    has_value = np.any(~np.isnan(np.concatenate(known)), axis=0).tolist()
    found = measures(dataset, "test", outputs.predict)
    return {
        t.name: found[t.name]
        for t in targets_of(dataset.config, dataset.spec)
        if has_value[t.output]
    }


def kinds_of_targets(spec: ModelSpec, config: TrainingConfig) -> dict[str, str]:
    """Return how the targets are read: classes such as ``01``, which no number has, as text."""
    if config.loss != "cross_entropy":
        return dict.fromkeys(config.predict, "numbers")
    is_text = any(_as_number(item.name) != item.name for item in spec.outputs)
    return dict.fromkeys(config.predict, "text") if is_text else config.kinds()


def _as_number(name: str) -> str:
    """Return a class as a column of numbers would spell it; empty if it is none."""
    try:
        return f"{float(name):.15g}"
    except ValueError:
        return ""


def config_of_model(
    spec: ModelSpec,
    path: str | os.PathLike[str],
    time: str | None,
    group: tuple[str, ...] | None,
) -> TrainingConfig:
    """Return the configuration of a model's training, for another file."""
    stored = spec.training.get("config")
    if not isinstance(stored, dict):
        raise ModelFileError(
            "the model has no report of a training by `streamrnn train`, which says what it "
            "predicts and holds the baselines; `streamrnn predict` gives its outputs"
        )
    known = {item.name for item in fields(TrainingConfig)}
    given: dict[str, Any] = {"path": os.fspath(path)}
    given |= {key: value for key, value in (("time", time), ("group", group)) if value is not None}
    try:
        config = TrainingConfig(**{key: stored[key] for key in known & set(stored)} | given)
        is_whole = config.horizon and config.loss != "auto"
        num_outputs = 1 if config.loss == "cross_entropy" else spec.output_size
        if not is_whole or len(forecasts_of(config)) != num_outputs:
            raise ModelFileError("targets, horizon or loss do not fit its outputs")
        return config
    except StreamRNNError as error:
        raise ModelFileError(f"the model's report of its training is damaged: {error}") from error


def dataset_of_model(
    spec: ModelSpec, config: TrainingConfig, table: Table, warmup_rows: int = 0
) -> tuple[Dataset, int]:
    """Make a dataset of a table as a model sees it: all rows after the warm-up are its test part.

    Returns the dataset, and the number of targets whose class the model does not know. Raises
    `DataError` if the table lacks what the model needs.
    """
    for name in filter(None, (config.time, *config.group)):
        if name not in table.columns:
            raise DataError(
                f"{table.path} has no column {name!r}, which ordered the rows or told the streams "
                f"apart in training{suggestion(name, table.columns)}; its columns are "
                f"{listed(table.columns)}. Name others with --time and --group, or '' for none"
            )
    rows = rows_of_streams(table, config.time, config.group)
    raw = model_inputs(spec, with_time_features(table, time_inputs(spec), config.time, rows))
    known, unknown = _targets(spec, config, table)
    origins = np.array([item.origin for item in spec.inputs])
    streams = []
    for name, index in rows.items():
        x = (raw[index] - origins).astype(np.float32)
        stop = max(0, len(index) - config.farthest)
        target = np.full((len(index), known.shape[1]), np.nan)
        for o, forecast in enumerate(forecasts_of(config)):
            later = known[index[forecast.horizon :], o]
            target[: len(later), o] = later
        if config.loss_on == "last":
            target[:-1] = np.nan
        level = np.zeros_like(target)
        if LOSSES[config.loss] == "identity":
            _to_network(spec, x, target, level)
        first = min(warmup_rows, stop)
        found = (target.astype(np.float32), level.astype(np.float32))
        streams.append(Stream(name, x, encode(spec, x), *found, (first, first, stop)))
    split = Split("column", {stream.name: stream.stops for stream in streams}, "every row")
    dataset = Dataset(config, spec, tuple(streams), table, split)
    if not any((~np.isnan(s.target[s.rows("test")])).any() for s in streams):
        raise DataError(
            f"{table.path} holds no target to judge: {counted(table.num_rows, 'row')} in "
            f"{counted(len(streams), 'stream')}, targets {counted(config.farthest, 'row')} ahead"
            + f"; not judged: the first {counted(warmup_rows, 'row')}"
            * bool(warmup_rows)
        )
    return dataset, unknown


def _holds_sample(spec: ModelSpec, dataset: Dataset) -> bool:
    """Tell whether rows of the training's file, which the report holds some of, are among these."""
    try:
        plain = np.array(spec.training.get("sample"), np.float64)
        sample = (plain - [item.origin for item in spec.inputs]).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        return False
    if sample.shape[1:] != (spec.num_inputs,) or len(sample) < LEAST_SAMPLE:
        return False
    if all(np.array_equal(row, sample[0], equal_nan=True) for row in sample):
        return False
    for stream in dataset.streams:
        last = len(stream.x) - len(sample) + 1
        first = sample[0]
        x = stream.x[: max(0, last)]
        same = (x == first) | (np.isnan(x) & np.isnan(first))
        for start in np.flatnonzero(same.all(axis=1))[:MAX_STARTS].tolist():
            rows = stream.x[start : start + len(sample)]
            if np.array_equal(rows, sample, equal_nan=True):
                return True
    return False


def _targets(spec: ModelSpec, config: TrainingConfig, table: Table) -> tuple[Doubles, int]:
    """Return every row's values, [N, O], or classes, [N, 1], and how many classes are unknown.

    Of values the outputs' origins are taken off.
    """
    columns = [table.usable(forecast.column) for forecast in forecasts_of(config)]
    if config.loss != "cross_entropy":
        for column in columns:
            if column.numbers is None:
                raise DataError(f"column {column.name!r} of {table.path} holds no numbers")
        origins = np.array([item.origin for item in spec.outputs])
        return np.stack([np.asarray(column.numbers) for column in columns], axis=1) - origins, 0
    [column] = columns
    if column.times is not None:
        raise DataError(f"column {column.name!r} of {table.path} holds times, not classes")
    if column.num_tokens:
        classes = column.codes(None)  # the column's own
        classes = np.where(classes < spec.output_size, classes, np.nan)
    else:
        classes = column.codes(tuple(item.name for item in spec.outputs))
    unknown = int(np.count_nonzero(np.isnan(classes) & ~column.is_missing))
    return classes[:, None], unknown


def _to_network(spec: ModelSpec, x: NDArray[np.float32], target: Doubles, level: Doubles) -> None:
    """Turn targets in the user's units into network units, and fill in their levels."""
    for o, output in enumerate(spec.outputs):
        for i, item in enumerate(spec.inputs):
            if output.difference_of == item.name:
                level[:, o] = current_level(item, x[:, i])
                # From what stands for a value to the first one that is known is no change.
                is_known = np.maximum.accumulate(~np.isnan(x[:, i]))
                target[~is_known, o] = np.nan
        target[:, o] = (target[:, o] - level[:, o] - output.center) / output.scale
