"""What a model, trained here or imported, remembers over the streams of a file."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, counted
from streamrnn.model.layers.frame import ActivationSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.forecasts import forecasts_of
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.split import Split
from streamrnn.training.data.streams import rows_of_streams
from streamrnn.training.data.table import Table
from streamrnn.training.data.times import with_time_features
from streamrnn.training.memory.fading import Fading, jacobian_by_lag, measure_fading
from streamrnn.training.memory.history import measure_history
from streamrnn.training.memory.rows import choose_rows, raw_inputs, windows_before
from streamrnn.training.memory.units import measure_layers
from streamrnn.training.network.losses import LossSettings
from streamrnn.training.network.network import Chunk
from streamrnn.training.predict import (
    kinds_of,
    model_inputs,
    time_inputs,
    trained_columns,
    trained_options,
)
from streamrnn.training.unseen import config_of_model, dataset_of_model, kinds_of_targets

__all__ = ["first_steps", "read_streams", "remember"]

PART = "test"  # all rows of a file are of this one
MAX_WINDOWS, MAX_STEPS = 16, 128
_LOSSES = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy"}


def read_streams(
    model: Model,
    path: str | os.PathLike[str],
    time: str | None = None,
    group: tuple[str, ...] | None = None,
    options: ReadOptions | None = None,
    predict: tuple[str, ...] = (),
    horizon: int = 0,
) -> tuple[Dataset, bool]:
    """Read a file's streams, and whether they have targets.

    Targets are those of the training; else the columns ``predict``, ``horizon`` rows later. Without
    any, what is measured is of the outputs. Raises `DataError` if the file lacks what is needed.
    """
    spec = model.spec
    options = options or trained_options(spec)
    if predict:
        config = _config(spec, path, time, group, predict, horizon)
    elif isinstance(spec.training.get("config"), dict):
        config = config_of_model(spec, path, time, group)
    else:
        time, group = trained_columns(spec, time, group)
        table = read_table(path, options, kinds_of(spec, group))
        return _without_targets(spec, table, time, group), False
    kinds = kinds_of_targets(spec, config) | kinds_of(spec, config.group)
    dataset, _ = dataset_of_model(spec, config, read_table(path, options, kinds))
    quantiles = tuple(f.quantile for f in forecasts_of(config) if f.quantile is not None)
    return replace(dataset, loss_settings=LossSettings(quantiles, config.huber_delta)), True


def _config(
    spec: ModelSpec,
    path: str | os.PathLike[str],
    time: str | None,
    group: tuple[str, ...] | None,
    predict: tuple[str, ...],
    horizon: int,
) -> TrainingConfig:
    """Return what is asked of a model that others have trained."""
    time, group = trained_columns(spec, time, group)
    last = spec.layers[-1]
    activation = spec.head.activation if spec.head else "identity"
    if spec.head is None and isinstance(last, ActivationSpec):
        activation = last.activation
    loss = _LOSSES.get(activation, "mse")
    wanted = 1 if loss == "cross_entropy" else spec.output_size
    if len(predict) != wanted:
        raise DataError(
            f"--predict names {counted(len(predict), 'column')}, but the model has "
            f"{counted(spec.output_size, 'output')}"
            + (", the probabilities of one column's classes" if loss == "cross_entropy" else "")
            + f": name {wanted}"
        )
    if any(item.shape for item in spec.inputs):
        raise DataError(
            "an input of the model is a frame, which no table's columns are; leave out --predict"
        )
    return TrainingConfig(
        path=os.fspath(path),
        predict=predict,
        time=time,
        group=group,
        horizon=(horizon,),
        loss=loss,
        loss_on="every",
    )


def _without_targets(spec: ModelSpec, table: Table, time: str, group: tuple[str, ...]) -> Dataset:
    """Return a table's streams, every row of which is asked about."""
    rows = rows_of_streams(table, time, group)
    raw = model_inputs(spec, with_time_features(table, time_inputs(spec), time, rows))
    origins = np.array([item.origin for item in spec.input_elements])
    streams = []
    for name, index in rows.items():
        x = (raw[index] - origins).astype(np.float32)
        none = np.zeros((len(index), 1), np.float32)
        chunk = Chunk(none[:, :, None], {})  # nothing here runs the trainer's network
        streams.append(Stream(name, x, chunk, none, none, (0, 0, len(index))))
    split = Split("column", {stream.name: stream.stops for stream in streams}, "every row")
    config = TrainingConfig(path=table.path, horizon=(0,), loss="mse")
    return Dataset(config, spec, tuple(streams), table, split)


def remember(model: Model, dataset: Dataset, has_targets: bool) -> dict[str, Any]:
    """Measure a model over streams that `read_streams` gave.

    Returns JSON types: ``history``, ``gradients`` (of the loss, or the Jacobian of the outputs
    where there are no targets; None where it is not measured) and ``units``, as the report of a
    training has them.
    """
    history = measure_history(model, dataset, PART, targets_are_outputs=not has_targets)
    gradients = measure_fading(model, dataset, PART) if has_targets else _jacobian(model, dataset)
    units = measure_layers(model, dataset, PART)
    return {
        "history": history.to_dict() if history else None,
        "gradients": gradients.to_dict() if gradients else None,
        "units": [each.to_dict() for each in units],
    }


def _jacobian(model: Model, dataset: Dataset) -> Fading | None:
    rows = choose_rows(dataset, PART, MAX_WINDOWS, MAX_STEPS - 1)
    layers = jacobian_by_lag(model, windows_before(dataset, rows))
    return Fading(layers, rows.history + 1, len(rows.rows), 0, True) if layers else None


def first_steps(dataset: Dataset, stop: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the inputs of the longest stream up to a step, [1, T, I], and names of its steps.

    Steps have names where the model's only input has.
    """
    lengths = [len(stream.x) for stream in dataset.streams]
    k = int(np.argmax(lengths))
    x, firsts = raw_inputs(dataset)
    own = x[firsts[k] : firsts[k] + min(stop, lengths[k])]
    [item, *others] = dataset.spec.inputs
    names = item.categories if not others else ()
    return own[None], tuple(names[int(code)] for code in own[:, 0]) if names else ()
