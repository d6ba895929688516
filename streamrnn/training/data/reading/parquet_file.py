"""Parquet files as tables."""

from __future__ import annotations

import io
import os
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from streamrnn.errors import DataError
from streamrnn.training.data.reading.builder import ColumnBuilder
from streamrnn.training.data.reading.cells import parse_time
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.source import Source
from streamrnn.training.data.table import Column, Table, finite_column

__all__ = ["arrow_column", "read_parquet"]

BLOCK_ROWS = 1 << 16


def read_parquet(source: Source, options: ReadOptions, kinds: dict[str, str]) -> Table:
    """Read a whole Parquet file, column by column; `read_table` documents the arguments.

    Raises `DataError` if it is damaged, has no rows, or a column holds what is neither numbers,
    times nor text.
    """
    path = source.path
    try:
        if os.path.isfile(path):
            file = pa.parquet.ParquetFile(path)
        else:
            file = pa.parquet.ParquetFile(io.BytesIO(source.read()))
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise DataError(f"{path}: two columns have the same name; names must differ")
        if not file.metadata.num_rows:
            raise DataError(f"{path} has no rows")
        columns = {}
        for name in names:
            data = file.read([name], use_threads=False).column(0)
            columns[name] = arrow_column(name, data, path, options, kinds.get(name, ""))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return Table(path, columns, file.metadata.num_rows, source.sha256())


def arrow_column(
    name: str, data: pa.ChunkedArray, path: str, options: ReadOptions, kind: str
) -> Column:
    """Return a column of an Arrow table; raise `DataError` if it is of no type that is read."""
    kind_of = data.type
    if pa.types.is_dictionary(kind_of):
        kind_of = kind_of.value_type
        data = data.cast(kind_of)
    is_text = pa.types.is_string(kind_of) or pa.types.is_large_string(kind_of)
    if kind == "text" and not is_text:
        data, is_text = data.cast(pa.string()), True
    if is_text or pa.types.is_string_view(kind_of):
        # Text that a typed file calls text is text, save dates.
        builder = ColumnBuilder(
            name, options, kind or _kind_of_text(data, options), is_told=bool(kind)
        )
        for start in range(0, len(data), BLOCK_ROWS):
            block = data.slice(start, BLOCK_ROWS).combine_chunks().cast(pa.string())
            builder.add(block)
        return builder.finish()
    if pa.types.is_date(kind_of) or pa.types.is_timestamp(kind_of):
        micros = data.cast(pa.timestamp("us", getattr(kind_of, "tz", None)), safe=False)
        values = pc.cast(micros.cast(pa.int64()), pa.float64(), safe=False)
        return Column(name, times=_floats(values) / 1e6)
    is_number = (
        pa.types.is_integer(kind_of)
        or pa.types.is_floating(kind_of)
        or pa.types.is_boolean(kind_of)
        or pa.types.is_decimal(kind_of)
        or pa.types.is_null(kind_of)
    )
    if not is_number:
        raise DataError(
            f"{path}: column {name!r} is of type {data.type}; numbers, times and text are read"
        )
    if pa.types.is_boolean(kind_of):
        data = data.cast(pa.int8())
    return finite_column(name, _floats(pc.cast(data, pa.float64(), safe=False)))


def _kind_of_text(data: pa.ChunkedArray, options: ReadOptions) -> str:
    """Return ``text``, or nothing where the cells may be dates: then they say what they are."""
    first = data.drop_null().slice(0, 1).to_pylist()
    try:
        float(first[0]) if first else None
        return "text"
    except ValueError:
        pass
    try:
        parse_time(first[0])
    except DataError:
        return "" if options.date_format and _is_date(first[0], options.date_format) else "text"
    return ""


def _is_date(cell: str, date_format: str) -> bool:
    try:
        datetime.strptime(cell, date_format)
    except ValueError:
        return False
    return True


def _floats(values: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = values.fill_null(float("nan")).to_numpy()
    return found
