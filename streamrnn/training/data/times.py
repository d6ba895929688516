"""Features of time as columns of a table, computed as the client does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, TrainingError
from streamrnn.training.data.table import Column, Table
from streamrnn_client.times import TIME_FEATURES, time_features

__all__ = ["ELAPSED", "feature_names", "is_time_feature", "with_time_features"]

ELAPSED = TIME_FEATURES["elapsed"][0]
_ALL = {name for names in TIME_FEATURES.values() for name in names}


def feature_names(features: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the inputs that features such as ``hour`` become."""
    return tuple(name for feature in features for name in TIME_FEATURES[feature])


def is_time_feature(name: str) -> bool:
    """Tell whether an input's name is that of a feature of time."""
    return name in _ALL


def with_time_features(
    table: Table, names: tuple[str, ...], time: str, rows: dict[str, NDArray[np.intp]]
) -> Table:
    """Return a table with a column of each name; ``rows`` are those of its streams, in time order.

    Raises `DataError` if the column ``time`` holds no dates, `TrainingError` if there is none.
    """
    if not names:
        return table
    if not time:
        raise TrainingError(f"{names[0]!r} is a feature of time, but no column is; name --time")
    moments = table.usable(time).times
    if moments is None:
        raise DataError(
            f"column {time!r} of {table.path} holds no dates, which {names[0]!r} follows from; say "
            "how they are written (--date-format), or leave out the features of time "
            "(--time-features '')"
        )
    found = {name: np.full(table.num_rows, np.nan) for name in names}
    for index in rows.values():
        for name, values in time_features(names, moments[index]).items():
            found[name][index] = values
    more = {name: Column(name, values) for name, values in found.items()}
    return replace(table, columns={**table.columns, **more})
