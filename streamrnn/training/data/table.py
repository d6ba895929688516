"""Tables of training data: named columns of numbers or of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, listed, suggestion

__all__ = ["Column", "Table"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    # [num_rows], NaN where missing; None if a cell is no number. Tokens and classes are whole
    # numbers.
    numbers: Floats | None
    cells: list[str] | None = None  # the text, stripped; None for columns of an .npz file
    num_tokens: int = 0  # above 0 for token ids (0 to num_tokens - 1), else 0

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.numbers) if self.numbers is not None else len(self.cells or ())

    def categories(self) -> tuple[str, ...]:
        """Return the different values as text, sorted (numbers by size)."""
        if self.numbers is not None:
            values = np.unique(self.numbers[~np.isnan(self.numbers)])
            return tuple(f"{value:.15g}" for value in values)
        return tuple(sorted({cell for cell in self.cells or () if cell}))

    def codes(self, categories: tuple[str, ...] | None) -> Floats:
        """Return the index of each row's category, NaN where the cell is missing.

        Without categories the numbers are the indices (tokens).
        """
        if categories is None:
            return np.asarray(self.numbers, np.float64)
        index = {name: float(k) for k, name in enumerate(categories)}
        if self.numbers is not None:
            texts: Iterable[str] = (f"{value:.15g}" for value in self.numbers)
        else:
            texts = self.cells or ()
        return np.array([index.get(text, np.nan) for text in texts])


@dataclass(frozen=True)
class Table:
    """Columns of a file."""

    path: str  # for error messages
    columns: dict[str, Column]  # by name, in the file's order
    num_rows: int
    sha256: str  # hex digest of the file's bytes
    # column that tells streams apart, if the file's form says so (.npz), else empty
    group: str = ""
    # columns that hold targets, if the file's form says so (.npz with y), else empty
    targets: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        """Return a column, or raise `DataError` with the names there are."""
        if name not in self.columns:
            raise DataError(
                f"{self.path} has no column {name!r}{suggestion(name, self.columns)}; its columns "
                f"are {listed(self.columns)}"
            )
        return self.columns[name]
