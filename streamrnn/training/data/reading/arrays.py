"""Sequences in memory as a table: a list of arrays, and what is to be predicted of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, counted, listed
from streamrnn.model.checks import MAX_SIZE
from streamrnn.training.data.table import Column, Table, finite_column

__all__ = ["STREAM", "table_of_sequences"]

STREAM = "stream"  # name of the column that tells the streams apart


def table_of_sequences(
    sequences: Sequence[Any],
    targets: Any = None,
    *,
    path: str = "the data",
    names: Any = None,
    output_names: Any = None,
    sha256: str = "",
) -> Table:
    """Put sequences below each other.

    Parameters
    ----------
    sequences : sequence of array
        N arrays [T, I] of numbers, or [T] of unsigned integers: token ids. T may differ.
    targets : array, sequence or None
        Of every sequence one value ([N]), which becomes that of its last row, or of every row: N
        arrays [T] or [T, O]. Integers of one column are classes; so are strings.
    path : str
        For messages.
    names, output_names : sequence of str or None
        Of the I inputs (``x0``, ...) and of the O targets (``y``, or ``y0``, ...).
    sha256 : str
        Hex digest of the file, if they come from one.

    Returns
    -------
    Table
        With several sequences a column ``stream`` tells them apart.

    Raises
    ------
    DataError
        If shapes or names do not fit together.
    """
    arrays = [np.asarray(item) for item in sequences]
    if not arrays or not sum(map(len, map(np.atleast_1d, arrays))):
        raise DataError(f"{path} holds no row")
    is_token = arrays[0].ndim == 1 and arrays[0].dtype.kind == "u"
    arrays = [item[:, None] if item.ndim == 1 and is_token else item for item in arrays]
    for n, item in enumerate(arrays):
        if item.ndim != 2 or item.dtype.kind not in "fiub" or item.shape[1] != arrays[0].shape[1]:
            raise DataError(
                f"sequence {n} of {path} is {item.dtype} {list(item.shape)}; expected numbers "
                f"[T, {arrays[0].shape[-1]}]"
            )
    if not arrays[0].shape[1]:
        raise DataError(f"{path} has no inputs: its sequences are [T, 0]")
    lengths = [len(item) for item in arrays]
    x = np.concatenate(arrays)
    columns: dict[str, Column] = {}
    default = ["token"] if is_token else [f"x{k}" for k in range(x.shape[1])]
    for k, name in enumerate(_checked_names(path, names, default)):
        num_tokens = _num_kinds(path, x, "token") if is_token else 0
        _add(path, columns, finite_column(name, x[:, k].astype(np.float64), num_tokens))
    chosen: tuple[str, ...] = ()
    if targets is not None:
        y, num_classes = _targets(path, targets, lengths)
        default = ["y"] if y.shape[1] == 1 else [f"y{k}" for k in range(y.shape[1])]
        chosen = tuple(_checked_names(path, output_names, default))
        for k, name in enumerate(chosen):
            _add(path, columns, _target_column(name, y[:, k], num_classes))
    group = ""
    if len(arrays) > 1:
        group = STREAM
        index = np.repeat(np.arange(len(arrays), dtype=np.float64), lengths)
        _add(path, columns, Column(STREAM, index))
    return Table(path, columns, len(x), sha256, group, chosen)


def _targets(path: str, targets: Any, lengths: list[int]) -> tuple[NDArray[Any], int]:
    """Return the targets of all rows, [rows, O], and the number of classes if they are classes."""
    per_row = [np.asarray(item) for item in targets]
    if len(per_row) != len(lengths):
        raise DataError(
            f"{path} has {counted(len(lengths), 'sequence')}, and targets of {len(per_row)}"
        )
    if all(item.ndim == 0 for item in per_row):
        return _last_rows(path, np.array(per_row), lengths)
    per_row = [item[:, None] if item.ndim == 1 else item for item in per_row]
    width = per_row[0].shape[1] if per_row[0].ndim == 2 else 0
    for n, (item, length) in enumerate(zip(per_row, lengths, strict=True)):
        if item.shape != (length, width) or not width or item.dtype.kind not in "fiubU":
            raise DataError(
                f"y of sequence {n} of {path} is {item.dtype} {list(item.shape)}; expected "
                f"[{length}] or [{length}, O] of numbers or names, or one value a sequence"
            )
    y = np.concatenate(per_row)
    return y, _num_classes(path, y)


def _last_rows(path: str, values: NDArray[Any], lengths: list[int]) -> tuple[NDArray[Any], int]:
    """Give the last row of every sequence its value."""
    if values.dtype.kind not in "fiubU":
        raise DataError(f"y of {path} is {values.dtype}; expected numbers or names")
    if 0 in lengths:
        raise DataError(f"sequence {lengths.index(0)} of {path} has no row that its value is of")
    num_classes = _num_classes(path, values[:, None])
    last = np.cumsum(lengths) - 1
    if values.dtype.kind == "U":
        y = np.full(sum(lengths), "", values.dtype)
        y[last] = values
        return y[:, None], 0
    numbers = np.full(sum(lengths), np.nan)
    numbers[last] = values
    return numbers[:, None], num_classes


def _num_classes(path: str, y: NDArray[Any]) -> int:
    if y.dtype.kind not in "iu" or y.shape[1] != 1:
        return 0
    if y.min() < 0:
        raise DataError(
            f"{path}: y holds the class {y.min()}; classes are 0, 1, 2, ...: number them so. If "
            "it means that there is no label, give y as floats, NaN there, and name y in "
            "categorical (--categorical); if y is a quantity, give it as floats"
        )
    return _num_kinds(path, y, "class")


def _num_kinds(path: str, values: NDArray[Any], what: str) -> int:
    """Return how many tokens or classes there are: one more than the largest."""
    largest = int(values.max())
    if largest >= MAX_SIZE:
        raise DataError(
            f"{path} holds the {what} {largest}; the largest that a model may have is "
            f"{MAX_SIZE - 1}: number those that occur from 0 on"
        )
    return largest + 1


def _target_column(name: str, values: NDArray[Any], num_classes: int) -> Column:
    if values.dtype.kind != "U":
        return finite_column(name, values.astype(np.float64), num_classes)
    labels, indices = np.unique(values, return_inverse=True)
    texts = tuple(str(label) for label in labels)
    index = indices.astype(np.int32)
    if texts[0] == "":  # sorted first: no value
        texts, index = texts[1:], index - 1
    return Column(name, labels=texts, indices=index)


def _checked_names(path: str, given: Any, default: list[str]) -> list[str]:
    if given is None:
        return default
    names = [str(name) for name in np.atleast_1d(np.asarray(given))]
    if len(names) != len(default):
        raise DataError(
            f"{path}: {counted(len(names), 'name')} ({listed(names)}) for "
            f"{counted(len(default), 'column')}"
        )
    return names


def _add(path: str, columns: dict[str, Column], column: Column) -> None:
    if column.name in columns:
        raise DataError(f"{path}: two columns are named {column.name!r}; names must differ")
    columns[column.name] = column
