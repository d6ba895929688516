"""Columns from cells of text that come block by block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamrnn.model.checks import shown
from streamrnn.training.data.reading import cells as reading
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.table import Column, finite_column

__all__ = ["ColumnBuilder"]

MAX_LABELS = 100_000  # of a column that nobody has called names
# A column of which so many cells are numbers, or look like some, is one of numbers.
_SHARE_OF_NUMBERS = 0.5


class ColumnBuilder:
    """One column: numbers, times, or texts by their index.

    What it is the first block says that holds any cell. Cells that do not fit are counted, and
    the first one is named by the column's `problem`, which is an error where the column is used.

    Parameters
    ----------
    name : str
    options : ReadOptions
    kind : str
        ``text`` or ``numbers`` where that is known; empty: by the cells.
    keep : bool
        Whether the column has its `cells` too.
    is_told : bool
        Whether a user said so, and not the file.
    """

    def __init__(
        self,
        name: str,
        options: ReadOptions,
        kind: str = "",
        keep: bool = False,
        is_told: bool = True,
    ) -> None:
        self.name, self.options, self.kind = name, options, kind
        self._is_given = bool(kind) and is_told
        self._num_rows = 0
        self._cells: list[pa.Array] | None = [] if keep else None
        self._blocks: list[NDArray[np.float64]] = []
        self._indices: list[NDArray[np.int32]] = []
        self._labels: dict[str, int] = {}
        self._num_odd = 0
        self._odd: tuple[int, str] | None = None  # row from 0, and the cell

    def add(self, cells: pa.Array) -> None:
        """Take the next cells, of type string and null where there is nothing."""
        if self._cells is not None:
            self._cells.append(cells)
        if not self.kind:
            self.kind = "" if cells.null_count == len(cells) else self._kind_of(cells)
            if not self.kind:
                self._num_rows += len(cells)
                return
            self._fill_skipped()
        if self.kind == "text":
            self._add_text(cells)
        else:
            read = reading.times_of if self.kind == "times" else reading.numbers_of
            values, odd = read(cells, self.options)
            self._blocks.append(values)
            self._note_odd(cells, odd)
        self._num_rows += len(cells)

    def _fill_skipped(self) -> None:
        if self._num_rows and self.kind == "text":
            self._indices.append(np.full(self._num_rows, -1, np.int32))
        elif self._num_rows:
            self._blocks.append(np.full(self._num_rows, np.nan))

    def _kind_of(self, cells: pa.Array) -> str:
        values, odd = reading.numbers_of(cells, self.options)
        if self.options.date_format:
            times, is_no_time = reading.times_of(cells, self.options)
            if not is_no_time.any() and not np.isnan(times).all():
                return "times"
        if not odd.any():
            return "numbers" if not np.isnan(values).all() else ""
        _, is_no_time = reading.times_of(cells, self.options)
        if not is_no_time.any():
            return "times"
        num_numbers = np.count_nonzero(~np.isnan(values))
        num_alike = np.count_nonzero(odd & reading.looks_like_a_number(cells))
        known = num_numbers + np.count_nonzero(odd)
        return "numbers" if num_numbers + num_alike >= _SHARE_OF_NUMBERS * known else "text"

    def _add_text(self, cells: pa.Array) -> None:
        found = reading.known_text(cells, self.options).dictionary_encode()
        labels = self._labels
        if not self._is_given and len(labels) > MAX_LABELS:
            self._indices.append(np.zeros(len(cells), np.int32))
            return
        places = [labels.setdefault(text, len(labels)) for text in found.dictionary.to_pylist()]
        index = found.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
        self._indices.append(np.array([*places, -1], np.int32)[index])

    def _note_odd(self, cells: pa.Array, odd: NDArray[np.bool_]) -> None:
        count = int(np.count_nonzero(odd))
        if count and self._odd is None:
            row = int(np.argmax(odd))
            self._odd = (self._num_rows + row, cells[row].as_py())
        self._num_odd += count

    def finish(self) -> Column:
        """Return the column."""
        cells = None if self._cells is None else pa.chunked_array(self._cells, pa.string())
        return replace(self._column(), cells=cells)

    def _column(self) -> Column:
        if not self.kind:
            return Column(self.name, np.full(self._num_rows, np.nan))
        if self.kind == "text":
            indices = np.concatenate(self._indices) if self._indices else np.zeros(0, np.int32)
            problem = ""
            if not self._is_given and len(self._labels) > MAX_LABELS:
                problem = f"has more than {MAX_LABELS} different texts; leave it out"
            elif not self._is_given and (form := reading.format_of(list(self._labels))):
                problem = (
                    f"seems to hold dates, such as {shown(next(iter(self._labels)))}: say how they "
                    f"are written, perhaps --date-format {form!r}; if they are names, "
                    f"--categorical {self.name!r}"
                )
            return Column(self.name, labels=tuple(self._labels), indices=indices, problem=problem)
        values = np.concatenate(self._blocks) if self._blocks else np.zeros(0)
        if self.kind == "numbers" and self._odd is None:
            return finite_column(self.name, values)
        if self.kind == "times":
            return Column(self.name, times=values, odd=self._odd, problem=self._problem("date"))
        return Column(self.name, values, odd=self._odd, problem=self._problem("number"))

    def _problem(self, what: str) -> str:
        if self._odd is None:
            return ""
        row, cell = self._odd
        others = f" (and {self._num_odd - 1:,} more)" if self._num_odd > 1 else ""
        said = f"holds {what}s, but {shown(cell)}{others} is none: "
        if what == "date":
            return said + "say how dates are written (--date-format), or leave the column out"
        if row == 0 and self._num_odd == 1:
            said += "if that line holds units, leave it out (--skip-rows LINE); "
        return said + reading.advice(cell, "" if self._is_given else self.name, self.options)
