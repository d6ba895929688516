"""Tables of training data: named columns of numbers or of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, suggestion

__all__ = ["Column", "Table"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes
    ----------
    name : str
        As in the header.
    numbers : ndarray [num_rows] of float64, or None
        NaN where missing; None if a cell is no number. Tokens and classes are whole numbers.
    cells : list of str, or None
        The text, without blanks around it; None for columns of an .npz file.
    num_tokens : int
        Above 0 for token ids (0 to num_tokens - 1), else 0.
    """

    name: str
    numbers: Floats | None
    cells: list[str] | None = None
    num_tokens: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.numbers) if self.numbers is not None else len(self.cells or ())

    def categories(self) -> tuple[str, ...]:
        """Return the different values as text, sorted (numbers by size); missing ones left out."""
        if self.numbers is not None:
            values = np.unique(self.numbers[~np.isnan(self.numbers)])
            return tuple(f"{value:.15g}" for value in values)
        return tuple(sorted({cell for cell in self.cells or () if cell}))

    def codes(self, categories: tuple[str, ...] | None) -> Floats:
        """Return the index of each row's category, NaN where the cell is missing.

        Parameters
        ----------
        categories : tuple of str or None
            As `categories` returns them; None if the numbers are the indices (tokens).

        Returns
        -------
        ndarray [num_rows] of float64
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
    """A file's columns.

    Attributes
    ----------
    path : str
        Where it came from.
    columns : dict of str to Column
        By name, in the file's order.
    num_rows : int
        Number of rows.
    sha256 : str
        Hex digest of the file's bytes.
    group : str
        Column that tells streams apart, if the file's form says so (.npz), else empty.
    targets : tuple of str
        Columns that hold targets, if the file's form says so (.npz with y), else empty.
    """

    path: str
    columns: dict[str, Column]
    num_rows: int
    sha256: str
    group: str = ""
    targets: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        """Return a column, or say which ones there are.

        Parameters
        ----------
        name : str
            As in the header.

        Returns
        -------
        Column

        Raises
        ------
        DataError
            If there is none of that name.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path} has no column {name!r}{suggestion(name, self.columns)}; its columns "
                f"are {', '.join(self.columns)}"
            )
        return self.columns[name]
