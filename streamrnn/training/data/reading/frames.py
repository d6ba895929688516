"""Data in memory as a table: frames of pandas and polars, mappings, sequences of arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from streamrnn.errors import DataError
from streamrnn.training.data.reading.arrays import table_of_sequences
from streamrnn.training.data.reading.dialect import INDEX
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.read import needs_train_extra, read_table
from streamrnn.training.data.table import Table

__all__ = ["FRAME", "read_data"]

FRAME = "the data"  # how messages call what is no file


def read_data(
    data: Any,
    options: ReadOptions,
    kinds: Mapping[str, str],
    keep: Iterable[str] = (),
) -> Table:
    """Return data of any kind as a table.

    Parameters
    ----------
    data : path, frame, mapping or tuple
        A file as `read_table` reads it; a DataFrame of pandas or polars, or a table of pyarrow; a
        mapping of names to columns; or ``(sequences, targets)`` as `table_of_sequences` takes them.
    options, kinds, keep
        As of `read_table`.

    Raises
    ------
    DataError
        If the data is none of these, or a column holds what is neither numbers, times nor text.
    TrainingError
        If a package is missing that the kind needs.
    """
    if isinstance(data, str | os.PathLike):
        return read_table(data, options, kinds, keep)
    if isinstance(data, tuple) and len(data) == 2:
        return table_of_sequences(data[0], data[1], path=FRAME)
    with needs_train_extra(FRAME):
        import pyarrow as pa

        from streamrnn.training.data.reading.parquet_file import arrow_column
    try:
        arrow = _arrow_columns(data, pa)
        columns = {
            name: arrow_column(name, values, FRAME, options, kinds.get(name, ""))
            for name, values in arrow.items()
        }
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{FRAME} cannot be read as a table: {error}") from error
    num_rows = {len(values) for values in arrow.values()}
    if len(num_rows) != 1 or 0 in num_rows:
        raise DataError(f"{FRAME} has no rows, or columns of different lengths")
    return Table(FRAME, columns, num_rows.pop(), "")


def _arrow_columns(data: Any, pa: Any) -> dict[str, Any]:
    """Return the columns by name as Arrow's chunked arrays."""
    if isinstance(data, pa.Table):
        found = list(zip(data.column_names, data.columns, strict=True))
    elif hasattr(data, "to_arrow"):  # polars
        table = data.to_arrow()
        found = list(zip(table.column_names, table.columns, strict=True))
    elif hasattr(data, "columns") and hasattr(data, "index"):  # pandas
        found = [(str(name), data.iloc[:, k]) for k, name in enumerate(data.columns)]
        # An index that is not just the rows' numbers is a column too.
        is_count = type(data.index).__name__ == "RangeIndex"
        if not is_count and not _counts(data.index):
            found.insert(0, (str(data.index.name or INDEX), data.index))
        found = [(name, _of_pandas(name, values, pa)) for name, values in found]
    elif isinstance(data, Mapping):
        found = [(str(name), pa.chunked_array([pa.array(v)])) for name, v in data.items()]
    else:
        raise DataError(
            f"data is a {type(data).__name__}; expected a path, a DataFrame, a mapping of columns, "
            "or a tuple (sequences, targets)"
        )
    columns: dict[str, Any] = {}
    for name, values in found:
        if name in columns:
            raise DataError(f"{FRAME}: two columns are named {name!r}; names must differ")
        columns[name] = values
    return columns


def _counts(index: Any) -> bool:
    """Tell whether a frame's index only numbers its rows, as far as they are still there."""
    return index.name is None and np.asarray(index).dtype.kind in "iu"


def _of_pandas(name: str, values: Any, pa: Any) -> Any:
    try:
        return pa.chunked_array([pa.Array.from_pandas(values)])
    except (pa.ArrowException, TypeError) as error:
        raise DataError(
            f"{FRAME}: column {name!r} holds values of several types: {error}"
        ) from None
