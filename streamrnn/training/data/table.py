"""Tables of training data: named columns of numbers, of times or of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, listed, suggestion
from streamrnn_client.text import UNKNOWN

__all__ = ["MAX_VALUE", "Column", "Table", "finite_column"]

Floats = NDArray[np.float64]
# Beyond it differences, spreads and what weights are divided by leave float32.
MAX_VALUE = 1e30


@dataclass(frozen=True)
class Column:
    """One column of a table of N rows: one of numbers, times and texts.

    Attributes
    ----------
    name : str
    numbers : ndarray or None
        [N] float64, NaN where missing. Tokens and classes are whole numbers.
    times : ndarray or None
        [N] float64, seconds since 1970, NaN where missing.
    labels : tuple of str
        The different texts, in the order of their first row.
    indices : ndarray or None
        [N] int32, into ``labels``; -1 where missing.
    num_tokens : int
        Above 0 for token ids (0 to ``num_tokens - 1``), else 0. ``labels`` may name them.
    unit : str
        ``char`` or ``word`` if the column is a text in such pieces, else empty.
    problem : str
        Why the column cannot be used, naming the first cell that is odd; empty if it can.
    odd : tuple or None
        Row (from 0) and text of that cell.
    cells : pyarrow.ChunkedArray or None
        [N], the cells as the file has them, where that was asked for.
    """

    name: str
    numbers: Floats | None = None
    times: Floats | None = None
    labels: tuple[str, ...] = ()
    indices: NDArray[np.int32] | None = None
    num_tokens: int = 0
    unit: str = ""
    problem: str = ""
    odd: tuple[int, str] | None = None
    cells: Any = None

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self._values)

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """Which rows have no value, [N]."""
        if self.indices is not None:
            return self.indices < 0
        return np.isnan(self._values)

    @property
    def _values(self) -> NDArray[np.float64] | NDArray[np.int32]:
        found = next(v for v in (self.numbers, self.times, self.indices) if v is not None)
        return found

    def texts(self, start: int, stop: int) -> list[str]:
        """Return some rows as text: as the file has them where that was kept."""
        if self.cells is not None:
            return [cell or "" for cell in self.cells.slice(start, stop - start).to_pylist()]
        if self.indices is not None:
            return [self.labels[k] if k >= 0 else "" for k in self.indices[start:stop]]
        if self.times is not None:
            are_days = not np.nan_to_num(self.times % 86_400).any()
            moments = (self.times[start:stop] * 1e6).astype("datetime64[us]")
            texts = moments.astype("datetime64[D]" if are_days else "datetime64[us]").astype(str)
            return ["" if t == "NaT" else t.removesuffix(".000000") for t in texts.tolist()]
        values = self.codes(None)[start:stop].tolist()
        return ["" if value != value else f"{value:.15g}" for value in values]

    def is_constant(self) -> bool:
        """Tell whether no two rows that have a value differ."""
        if self.unit:  # another text of the kind has others
            return False
        if self.indices is not None:
            return len(self.labels) < 2 < self.num_rows
        known = self._values[~self.is_missing]
        return len(known) != 1 and bool((known == known[:1]).all())

    def categories(self) -> tuple[str, ...]:
        """Return the different values as text, sorted (numbers by size, tokens as numbered)."""
        if self.num_tokens and self.labels:
            return self.labels
        if self.numbers is not None:
            values = np.unique(self.numbers[~np.isnan(self.numbers)])
            return tuple(f"{value:.15g}" for value in values)
        return tuple(sorted(self.labels, key=_in_order))

    def codes(self, categories: tuple[str, ...] | None) -> Floats:
        """Return the index of each row's category, NaN where the cell is missing or unknown.

        Without categories the numbers are the indices; so are tokens. A piece of text that is
        unknown has the index of `UNKNOWN`.
        """
        if categories is None or self.num_tokens:
            return np.asarray(self.numbers, np.float64)
        index = {name: float(k) for k, name in enumerate(categories)}
        if self.numbers is not None:
            values, where = np.unique(self.numbers, return_inverse=True)
            found = [index.get(f"{value:.15g}", np.nan) for value in values]
            return np.array(found, np.float64)[where]
        assert self.indices is not None
        if self.unit:
            unknown = index.get(UNKNOWN, np.nan)
            return np.array([index.get(label, unknown) for label in self.labels])[self.indices]
        of_labels = [index.get(_respelled(label, index), np.nan) for label in self.labels]
        return np.array([*of_labels, np.nan])[self.indices]


def finite_column(name: str, values: Floats, num_tokens: int = 0) -> Column:
    """Return a column of numbers, with a problem if one is too large for float32."""
    bad = np.abs(values) > MAX_VALUE
    if not bad.any():
        return Column(name, values, num_tokens=num_tokens)
    row = int(np.argmax(bad))
    problem = (
        f"holds {values[row]:g}; of numbers beyond {MAX_VALUE:g} what is computed is not finite as "
        "float32. Leave the cell empty if it stands for a missing value (or name it with --na), "
        "else divide the column"
    )
    return Column(name, values, problem=problem, odd=(row, f"{values[row]:g}"))


def _in_order(label: str) -> tuple[bool, float, str]:
    """Sort numbers by size, before other texts."""
    try:
        value = float(label)
    except ValueError:
        return True, 0.0, label
    return value != value, value if value == value else 0.0, label


def _respelled(label: str, known: dict[str, float]) -> str:
    """Return a category written as a number in another spelling (``7.0`` for ``7``)."""
    if label in known:
        return label
    try:
        return f"{float(label):.15g}"
    except ValueError:
        return label


@dataclass(frozen=True)
class Table:
    """Columns of a file or a frame."""

    path: str  # for error messages
    columns: dict[str, Column]  # by name, in the file's order
    num_rows: int
    sha256: str  # hex digest of the file's bytes; empty for a frame
    # column that tells streams apart, if the file's form says so (.npz), else empty
    group: str = ""
    # columns that hold targets, if the file's form says so (.npz with y), else empty
    targets: tuple[str, ...] = ()
    # line of the first row in a file of text where every row is one line, else 0
    first_line: int = 0

    def column(self, name: str) -> Column:
        """Return a column, or raise `DataError` with the names there are."""
        if name not in self.columns:
            raise DataError(
                f"{self.path} has no column {name!r}{suggestion(name, self.columns)}; its columns "
                f"are {listed(self.columns)}"
            )
        return self.columns[name]

    def shifted(self, origins: Mapping[str, float]) -> Table:
        """Return a table with numbers subtracted from some columns, in float64."""
        columns = {
            name: replace(column, numbers=column.numbers - origins[name])
            if name in origins and column.numbers is not None
            else column
            for name, column in self.columns.items()
        }
        return replace(self, columns=columns)

    def usable(self, name: str) -> Column:
        """Return a column that has no problem, or raise `DataError` with the first odd cell."""
        column = self.column(name)
        if column.problem:
            raise DataError(f"{self.row_name(column)}column {name!r} {column.problem}")
        return column

    def row_name(self, column: Column) -> str:
        """Say where a column's odd cell stands, for the beginning of a message."""
        if column.odd is None:
            return f"{self.path}: "
        return f"{self.path}, {self.place(column.odd[0])}: "

    def place(self, row: int) -> str:
        """Name a row, from 0: by its line where that is known, else by its number, from 1."""
        return f"line {self.first_line + row}" if self.first_line else f"row {row + 1}"
