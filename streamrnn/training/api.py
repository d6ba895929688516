"""``streamrnn.train``, ``compare``, ``predict``: data in memory or a path, no output, no files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from streamrnn.errors import TrainingError, suggestion
from streamrnn.model.model import Model
from streamrnn.training.cells.compare import (
    CELLS,
    NUM_SEEDS,
    UNITS,
    Comparison,
    compare_cells,
    rate_budget,
)
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.reading.frames import FRAME, read_data
from streamrnn.training.data.table import Table
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.predict import (
    columns_of,
    kinds_of,
    predict_table,
    result_names,
    trained_columns,
    trained_options,
)
from streamrnn.training.search.budget import AUTO, parse_budget
from streamrnn.training.train import TrainingResult
from streamrnn.training.train import train as train_config

__all__ = ["compare", "predict", "train"]


def train(
    data: Any,
    *,
    predict: str | Iterable[str] = (),
    time: str = "auto",
    group: str | Iterable[str] = (),
    horizon: int | Iterable[int] = -1,
    progress: Callable[[Evaluation], None] | None = None,
    threads: int = 1,
    budget: str | int = AUTO,
    seeds: int = 0,
    **settings: Any,
) -> TrainingResult:
    """Train a model; write and print nothing.

    Parameters
    ----------
    data : path, DataFrame, mapping or tuple
        A table: the path of a file, a DataFrame of pandas or polars, a mapping of names to columns,
        or ``(sequences, targets)``, N arrays [T, I] and of each one target, or one of every row.
    predict : str or iterable of str
        Target columns; may be left out for sequences.
    time : str
        Column that orders the rows; ``auto``: the only one of dates; empty: they are in order.
    group : str or iterable of str
        Columns that tell streams apart.
    horizon : int or iterable of int
        How many rows ahead; -1: 1, or 0 for sequences.
    progress : callable or None
        Called with an `Evaluation` each time the weights are validated.
    threads : int
        Of the matrix products. The bits may depend on it.
    budget : str or int
        For a search of ``layers``, ``learning_rate`` and ``lags``: ``off``, a number of trials, or
        a time such as ``60s``, after which the last trainings may end. ``auto``: 6 trials, and none
        where one of these settings or ``updates`` or ``epochs`` is given.
    seeds : int
        Trainings of which the one best in validation is kept; 0: 3 after a search of little work,
        else 1.
    **settings
        Of `TrainingConfig`, such as ``layers=["gru:16"]``, ``updates=500``, ``seed=1``.

    Returns
    -------
    TrainingResult
        Its ``model``, ``report``, ``history`` and ``save(path)``. The best so far if it is
        interrupted (Ctrl-C); ``was_stopped`` says so.

    Raises
    ------
    DataError
        If the data cannot be used.
    TrainingError
        If a setting is not known or contradicts another, the training diverges, or it is
        interrupted before there is a model.
    """
    config, table = _told(data, predict, time, group, horizon, settings)
    return train_config(
        config,
        progress,
        table=table,
        stop=StopSignals(),
        threads=threads,
        budget=parse_budget(str(budget), settings),
        seeds=seeds,
    )


def compare(
    data: Any,
    *,
    cells: Iterable[str] = CELLS,
    units: int = UNITS,
    predict: str | Iterable[str] = (),
    time: str = "auto",
    group: str | Iterable[str] = (),
    horizon: int | Iterable[int] = -1,
    progress: Callable[[Evaluation], None] | None = None,
    threads: int = 1,
    budget: str | int = AUTO,
    seeds: int = NUM_SEEDS,
    **settings: Any,
) -> Comparison:
    """Train several cells on the same rows, and say which one to keep.

    Parameters
    ----------
    cells : iterable of str
        Such as ``gru``, ``gru:16`` or ``lstm:32+gru:16``.
    units : int
        Of each layer whose size is not told.
    data, predict, time, group, horizon, progress, threads
        As for `train`.
    budget : str or int
        Learning rates that each cell may try, or ``off``; ``auto``: 3, and none where the rate,
        ``updates`` or ``epochs`` is given.
    seeds : int
        Trainings of each cell, from 2.
    **settings
        Of `TrainingConfig`, without ``layers``.

    Returns
    -------
    Comparison
        Its ``report`` has errors, spread, parameters, microseconds a step, memory and verdict, and
        ``candidates[k].result.model`` a model.

    Raises
    ------
    DataError
        If the data cannot be used.
    TrainingError
        If a setting is not known or contradicts another, or every seed of a cell diverges.
    """
    if "layers" in settings:
        raise TrainingError("layers are what is compared: give cells, such as ['lstm:64']")
    limit = rate_budget(str(budget), settings)
    config, table = _told(data, predict, time, group, horizon, settings)
    return compare_cells(
        config,
        [cells] if isinstance(cells, str) else cells,
        units=units,
        seeds=seeds,
        budget=limit,
        table=table,
        progress=progress,
        threads=threads,
    )


def predict(
    model: Model | str | os.PathLike[str],
    data: Any,
    *,
    time: str | None = None,
    group: str | Iterable[str] | None = None,
) -> Any:
    """Run data through a model, each stream from a new state and in time order.

    Parameters
    ----------
    model : Model or path
        The model, or its file.
    data : path, DataFrame, mapping or tuple
        As for `train`. Columns are found by the inputs' names, whatever their order.
    time : str or None
        Column that orders the rows; None: that of the training, if the data has it.
    group : str, iterable of str or None
        Columns that tell streams apart; None: those of the training.

    Returns
    -------
    DataFrame, dict or list
        In the data's order. For a DataFrame one of the same kind, of pandas with the same index;
        for sequences a list of arrays [T, O]; else a dict of name to array [N]. Results are named
        as ``co2_h24`` (24 rows ahead), ``y_h1_q0.9`` (a quantile) or ``p_red`` (a class).

    Raises
    ------
    DataError
        If a column is absent, or a cell cannot be read or is missing where it may not.
    """
    if not isinstance(model, Model):
        model = Model.load(model)
    spec = model.spec
    names = None if group is None else _names(group)
    _, expected = trained_columns(spec, time, names)
    table = read_data(data, trained_options(spec), kinds_of(spec, expected))
    if isinstance(data, tuple):
        columns: tuple[str, tuple[str, ...]] = "", tuple(filter(None, (table.group,)))
    else:
        columns = columns_of(spec, table, time, names)
    y, _ = predict_table(model, table, *columns)
    if isinstance(data, tuple):
        ends = np.cumsum([len(np.asarray(item)) for item in data[0]])
        return np.split(y, ends[:-1])
    results = {name: y[:, k] for k, name in enumerate(result_names(spec))}
    if hasattr(data, "to_arrow") and hasattr(data, "with_columns"):  # polars
        return type(data)(results)
    if hasattr(data, "iloc"):  # pandas
        return type(data)(results, index=data.index)
    return results


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        return (names,) if names else ()
    return tuple(names)


def _told(
    data: Any,
    predict: str | Iterable[str],
    time: str,
    group: str | Iterable[str],
    horizon: int | Iterable[int],
    settings: dict[str, Any],
) -> tuple[TrainingConfig, Table]:
    """Return the configuration that arguments tell, and the data."""
    known = TrainingConfig.__dataclass_fields__
    for name in settings:
        if name not in known or name == "path":
            raise TrainingError(
                f"unknown setting {name!r}{suggestion(name, known)}; known are "
                f"{', '.join(n for n in known if n != 'path')}"
            )
    path = os.fspath(data) if isinstance(data, str | os.PathLike) else FRAME
    config = TrainingConfig(
        path=path,
        predict=_names(predict),
        time=time,
        group=_names(group),
        horizon=(horizon,) if isinstance(horizon, int) else tuple(horizon),
        **settings,
    )
    return config, read_data(data, config.read_options(), config.kinds())
