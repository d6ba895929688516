"""CSV files with a header: checked rows, and cells as numbers or times.

A cell that is empty, or says NaN, NA, N/A, null or none, is missing. A column whose other cells are
all numbers is numeric; any other column is text.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO

import numpy as np

from streamrnn.errors import DataError
from streamrnn.model.checks import shown
from streamrnn.training.data.table import Column, Table

__all__ = ["CsvReader", "number", "open_csv", "parse_time", "read_csv"]

MAX_FLOAT32 = float(np.finfo(np.float32).max)
MISSING_CELLS = frozenset({"", "nan", "na", "n/a", "null", "none"})


def number(cell: str) -> float | None:
    """Read a stripped cell as a number: NaN if it is missing, None if it is text."""
    try:
        return float(cell)
    except ValueError:
        return float("nan") if cell.lower() in MISSING_CELLS else None


def parse_time(cell: str) -> float:
    """Turn a number or an ISO 8601 date (``2001-12-29T10:00:00+02:00``) into a float.

    That is the number, or seconds since 1970; without a zone UTC is taken. Raises `DataError`.
    """
    value = number(cell)
    if value is not None and value == value:
        return value
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        raise DataError(
            f"{shown(cell)} is neither a number nor an ISO date (2001-12-29, 2001-12-29T10:00:00)"
        ) from None
    if moment.tzinfo is None:
        moment = datetime.fromisoformat(moment.isoformat() + "+00:00")
    return moment.timestamp()


class CsvReader:
    """The header of a CSV file, then its rows one by one, checked.

    The file must be opened with ``newline=""``. The delimiter is the one of comma, semicolon and
    tab that the header has most of. Raises `DataError` if there is no header, or it names a column
    twice or not at all.
    """

    def __init__(self, file: IO[str], path: str) -> None:
        self.path = path
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        header = next(csv.reader([first], delimiter=delimiter), [])
        self.header = [name.strip() for name in header]
        if not any(self.header):
            raise DataError(f"{path} is empty; the first line must name the columns")
        names: set[str] = set()
        for k, name in enumerate(self.header):
            if not name:
                raise DataError(f"{path}: column {k + 1} has no name in the header")
            if name in names:
                raise DataError(f"{path}: two columns are named {shown(name)}; names must differ")
            names.add(name)
        if all(number(name) is not None for name in self.header):
            raise DataError(
                f"{path}: the first line holds only numbers; it must name the columns "
                f"(it reads {first.strip()[:60]!r})"
            )
        self._reader = csv.reader(file, delimiter=delimiter)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of each line, from 2, and its stripped cells.

        Blank lines are left out; but in a file of one column they are missing values, save at its
        end. Raises `DataError` if a line has more or fewer cells than the header.
        """
        try:
            blank_lines: list[int] = []
            for row in self._reader:
                line = self._reader.line_num + 1
                if not row:
                    blank_lines.append(line)
                    continue
                if len(self.header) == 1:
                    yield from ((blank, [""]) for blank in blank_lines)
                blank_lines.clear()
                if len(row) != len(self.header):
                    raise DataError(
                        f"{self.path}, line {line}: {len(row)} cells, but the header names "
                        f"{len(self.header)} columns"
                    )
                yield line, [cell.strip() for cell in row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read as CSV (UTF-8): {error}") from error


@contextmanager
def open_csv(path: str | os.PathLike[str]) -> Iterator[CsvReader]:
    """Open a CSV file: UTF-8, with or without a byte order mark.

    Raises `DataError` if it cannot be opened or has no good header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield CsvReader(file, str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as CSV (UTF-8): {error}") from error


def read_csv(path: str | os.PathLike[str], sha256: str) -> Table:
    """Read a whole CSV file; ``sha256`` is the hex digest of its bytes."""
    with open_csv(path) as reader:
        columns: list[list[str]] = [[] for _ in reader.header]
        for _, row in reader.rows():
            for cells, cell in zip(columns, row, strict=True):
                cells.append(cell)
        header = reader.header
    if not columns[0]:
        raise DataError(f"{path} has a header but no rows")
    read = (
        _text_or_numbers(str(path), name, cells)
        for name, cells in zip(header, columns, strict=True)
    )
    return Table(str(path), {column.name: column for column in read}, len(columns[0]), sha256)


def _text_or_numbers(path: str, name: str, cells: list[str]) -> Column:
    numbers = np.empty(len(cells))
    for k, cell in enumerate(cells):
        value = number(cell)
        if value is None:
            return Column(name, None, cells)
        if abs(value) > MAX_FLOAT32:
            raise DataError(
                f"{path}, row {k + 1} of column {name!r}: {cell[:60]} is not finite as float32; "
                "leave the cell empty if the value is missing"
            )
        numbers[k] = value
    return Column(name, numbers, cells)
