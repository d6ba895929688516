"""A table through a model: each of its streams from the first row, in time order."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, ModelFileError, TrainingError, suggestion
from streamrnn.model.checks import shown
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, ModelSpec
from streamrnn.training.config import checked_setting, possible_names
from streamrnn.training.data.categories import category_codes
from streamrnn.training.data.columns import resolve_names
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.streams import rows_of_streams
from streamrnn.training.data.table import Column, Table
from streamrnn.training.data.times import feature_names, with_time_features
from streamrnn_client.times import TIME_FEATURES

__all__ = [
    "columns_of",
    "kinds_of",
    "model_inputs",
    "predict_table",
    "result_names",
    "time_inputs",
    "trained_columns",
    "trained_options",
]

MAX_ELEMENTS = 16_000_000  # outputs of streams that run together
_OF_DATA = ("time", "group", "time_features", *(item.name for item in fields(ReadOptions)))


def trained_columns(
    spec: ModelSpec, time: str | None = None, group: tuple[str, ...] | None = None
) -> tuple[str, tuple[str, ...]]:
    """Return the column that orders the rows and those that tell streams apart.

    None means those of the training, as far as the model knows any.
    """
    stored = _stored(spec)
    if time is None:
        time = stored.get("time", "")
    if group is None:
        group = tuple(filter(None, stored.get("group", ())))
    return time, group


def columns_of(
    spec: ModelSpec, table: Table, time: str | None = None, group: tuple[str, ...] | None = None
) -> tuple[str, tuple[str, ...]]:
    """Return the columns of a table that order its rows and tell its streams apart.

    None means those of the training, of which the time may be absent. Names with commas, which were
    split at them, are put together again. Raises `DataError` if a column of ``group`` is absent.
    """
    chosen_time, chosen_group = trained_columns(spec, time, group)
    chosen_group = resolve_names(chosen_group, table)
    if time is None and chosen_time not in table.columns:
        chosen_time = ""
    for name in chosen_group:
        if name not in table.columns:
            raise DataError(
                f"{table.path} has no column {name!r}, which tells the streams apart"
                f"{suggestion(name, table.columns)}; name another one with --group, or --group '' "
                "if the file is one stream"
            )
    return chosen_time, chosen_group


def _stored(spec: ModelSpec) -> dict[str, Any]:
    """Return what a model's report says of its data, or raise `ModelFileError`."""
    config = spec.training.get("config", {})
    try:
        if not isinstance(config, dict):
            raise TrainingError(f"config is {shown(config)}; it must be a table")
        return {name: checked_setting(name, config[name]) for name in _OF_DATA if name in config}
    except TrainingError as error:
        raise _damaged(error) from error


def _damaged(error: TrainingError) -> ModelFileError:
    return ModelFileError(f"the model's report is damaged: {error}; train the model again")


def kinds_of(spec: ModelSpec, group: tuple[str, ...]) -> dict[str, str]:
    """Return how the columns that a model needs are read: as numbers or as text."""
    kinds = {item.name: "text" if item.categories else "numbers" for item in spec.inputs}
    return kinds | dict.fromkeys(possible_names(group), "text")


def trained_options(spec: ModelSpec, **given: Any) -> ReadOptions:
    """Return how a text file is read: as told, else like the file of the training."""
    names = {item.name for item in fields(ReadOptions)}
    names.discard("skip_rows")  # which lines are left out is a matter of one file
    try:
        trained = ReadOptions(**{k: v for k, v in _stored(spec).items() if k in names})
    except TrainingError as error:
        raise _damaged(error) from error
    return replace(trained, **given)


def time_inputs(spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of a model's inputs that are computed from the time."""
    features = _stored(spec).get("time_features", ())
    names = feature_names(name for name in features if name in TIME_FEATURES)
    return tuple(item.name for item in spec.inputs if item.name in names)


def model_inputs(spec: ModelSpec, table: Table) -> NDArray[Any]:
    """Return a table's rows as a model's inputs, [N, num_inputs] of float64 or uint32.

    Columns are found by the inputs' names. Raises `DataError` if one is absent, or a cell cannot be
    read, is no known category, or is missing where the model knows of no missing values.
    """
    x = np.empty((table.num_rows, spec.num_inputs), np.uint32 if spec.is_token else np.float64)
    for i, item in enumerate(spec.input_elements):
        if item.name not in table.columns:
            raise DataError(
                f"{table.path} has no column {item.name!r}, which the model needs"
                f"{suggestion(item.name, table.columns)}; its columns are "
                f"{', '.join(map(repr, list(table.columns)[:20]))}"
            )
        column = table.usable(item.name)
        values = category_codes(column, item.categories) if item.categories else column.numbers
        if values is None:
            raise DataError(f"{table.path}: column {item.name!r} holds no numbers")
        bad = np.isnan(values)
        if item.kind == "token":  # ids are taken as they come
            bad |= ~((values >= 0) & (values < item.num_categories) & (values % 1 == 0))
        if bad.any() and (item.kind != "numeric" or item.missing == "error"):
            raise DataError(_refusal(table, column, item, int(np.argmax(bad))))
        x[:, i] = values
    return x


def _refusal(table: Table, column: Column, item: InputSpec, row: int) -> str:
    where = f"{table.path}, {table.place(row)}, column {item.name!r}: "
    if column.is_missing[row]:
        return f"{where}the value is missing, and the model was trained without missing values"
    if column.indices is not None:
        cell = column.labels[column.indices[row]]
    else:
        cell = f"{column.codes(None)[row]:.15g}"
    if item.kind == "token" and not item.categories:
        return f"{where}{shown(cell)} is no token of the model's, 0 to {item.num_categories - 1}"
    hint = suggestion(cell, item.categories)
    return (
        f"{where}{shown(cell)} is none of the {len(item.categories)} known categories{hint}; a "
        "model trained with --other ROWS takes new names as one category, other"
    )


def predict_table(
    model: Model, table: Table, time: str = "", group: tuple[str, ...] = ()
) -> tuple[NDArray[Any], int]:
    """Run every row of a table through a model, in time order, each stream from a new state.

    Returns the outputs, [N, O] in the table's order (float32, or float64 if one has an origin), and
    the number of streams. They are those that the server would give for the same steps, to the bit.
    Raises `DataError` as `model_inputs` does, and if a row has no time or no stream.
    """
    from streamrnn.engine.sequences import Sequences, in_batches

    streams = rows_of_streams(table, time, group)
    x = model_inputs(model.spec, with_time_features(table, time_inputs(model.spec), time, streams))
    has_origin = any(item.origin for item in model.spec.outputs)
    y = np.empty((table.num_rows, model.spec.output_size), np.float64 if has_origin else np.float32)
    places = [np.asarray(rows, np.int64) for rows in streams.values()]
    lengths = np.array([len(rows) for rows in places], np.int64)
    starts = np.cumsum(lengths) - lengths
    sequences = Sequences(model, x[np.concatenate(places)])
    for batch in in_batches(lengths, MAX_ELEMENTS // model.spec.output_size):
        y[np.concatenate([places[k] for k in batch])] = sequences.run(starts[batch], lengths[batch])
    return y, len(streams)


def result_names(spec: ModelSpec, taken: tuple[str, ...] = ()) -> list[str]:
    """Name the columns of a prediction: ``co2_h24`` for 24 rows ahead, ``p_red`` for a class.

    A quantile is ``co2_h24_q0.9``.

    Names in ``taken`` get an end that tells them apart.
    """
    is_class = spec.head is not None and spec.head.activation == "softmax"
    names = []
    for item in spec.outputs:
        plain = re.sub(r" (q[0-9.e-]+)$", r"_\1", item.name)
        name = f"p_{item.name}" if is_class else re.sub(r"\+([0-9]+)(_q.+)?$", r"_h\1\2", plain)
        names.append(f"{name} predicted" if name in taken else name)
    return names
