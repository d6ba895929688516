"""Names of categories: which a model knows, and what becomes of all others."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError
from streamrnn.model.spec import InputSpec
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.table import Column, Table
from streamrnn_client.protocol.input_names import MISSING, OTHER, UNKNOWN

__all__ = ["categorical_input", "category_codes", "known_categories"]

MAX_ONE_HOT = 8  # more categories than this get an embedding
MAX_CATEGORIES = 1000
LEAST_REPEATING = 20  # rows, from which on names that never come again are none


def known_categories(
    column: Column, path: str, least: int = 1, names: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Return the names of a column's categories, or ``names``; refuse too few or too many."""
    if column.num_tokens:
        names = column.labels or tuple(str(k) for k in range(column.num_tokens))
    elif names is None:
        names = column.categories()
    if not least <= len(names) <= max(MAX_CATEGORIES, column.num_tokens):
        raise DataError(
            f"column {column.name!r} of {path} has {len(names)} different values; as names of "
            f"categories from {least} to {MAX_CATEGORIES} are useful. Choose other columns "
            "(--inputs), say what it is (--time, --group), or take rare names together (--other "
            "ROWS)"
        )
    return names


def category_codes(column: Column, categories: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the index of each row's category, NaN where there is none.

    An empty cell is ``missing`` and an unknown name ``other``, if the model knows these; both are
    ``<unknown>`` in the vocabulary of a text.
    """
    codes = column.codes(categories or None)
    if UNKNOWN in categories:
        return np.where(np.isnan(codes), categories.index(UNKNOWN), codes)
    for name, rows in ((MISSING, column.is_missing), (OTHER, ~column.is_missing)):
        if name in categories:  # the codes may be the column's own numbers
            codes = np.where(rows & np.isnan(codes), categories.index(name), codes)
    return codes


def categorical_input(
    column: Column, config: TrainingConfig, table: Table, training: NDArray[np.bool_]
) -> InputSpec:
    """Describe an input of names or tokens; ``training`` tells the rows of the training part.

    Raises `DataError` if a token is missing, or there are too many categories.
    """
    if column.num_tokens:
        names = known_categories(column, table.path)
        if column.is_missing.any():
            raise DataError(
                f"{table.path}, {table.place(int(np.argmax(column.is_missing)))}: no {column.name}"
            )
    else:
        names = known_categories(column, table.path, names=_names(column, config, training))
        _check_repeats(column, config, table)
    embedding_size = config.embedding_size
    if embedding_size == 0 and (len(names) > MAX_ONE_HOT or column.num_tokens):
        embedding_size = min(32, math.ceil(2 * len(names) ** 0.5))
    if len(names) <= MAX_ONE_HOT and not column.num_tokens:
        embedding_size = 0
    if column.num_tokens and embedding_size < 0:
        embedding_size = min(32, math.ceil(2 * len(names) ** 0.5))
    return InputSpec(
        column.name,
        unit=column.unit,
        kind="token" if column.num_tokens else "categorical",
        categories=column.labels if column.num_tokens else names,
        num_categories=len(names),
        embedding_size=max(embedding_size, 0),
    )


def _check_repeats(column: Column, config: TrainingConfig, table: Table) -> None:
    """Refuse what nobody called names, and has another in each row, as keys and times do."""
    num_known = int(np.count_nonzero(~column.is_missing))
    is_given = config.other or column.name in config.categorical
    if not is_given and len(column.categories()) == num_known >= LEAST_REPEATING:
        raise DataError(
            f"column {column.name!r} of {table.path} has another text in each of {num_known:,} "
            "rows, of which nothing can be learned for new ones: leave it out (--inputs), or say "
            f"what it is (--time with --date-format, --group, or --categorical {column.name!r})"
        )


def _names(column: Column, config: TrainingConfig, training: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the names a model shall know: with `other` those that are not rare, and it."""
    names = column.categories()
    if config.other:
        codes = column.codes(names)[training]
        counts = np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=len(names))
        names = tuple(
            name
            for name, count in zip(names, counts.tolist(), strict=True)
            if count > config.other and name != OTHER
        )
    if column.is_missing.any() and MISSING not in names:
        names += (MISSING,)
    return (*names, OTHER) if config.other else names
