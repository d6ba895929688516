"""NumPy .npz files as tables."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, listed, suggestion
from streamrnn.model.checks import MAX_SIZE
from streamrnn.training.data.table import Column, Table

__all__ = ["read_npz"]

KEYS = ("X", "y", "names", "output_names", "lengths")
STREAM = "stream"  # name of the column that tells the streams apart


def read_npz(path: str | os.PathLike[str], sha256: str) -> Table:
    """Read arrays as a table; `read_table` documents the keys.

    Pickled objects are refused. ``sha256`` is the hex digest of the file's bytes. With several
    streams the table has a column ``stream`` as its group. Raises `DataError`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:  # before any is read: it may be of any size
                if key not in KEYS:
                    raise DataError(
                        f"{path}: unknown key {key!r}{suggestion(key, KEYS)}; known are "
                        f"{', '.join(KEYS)}"
                    )
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error
    except MemoryError as error:
        raise DataError(f"{path}: its arrays do not fit into memory: {error}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy returns what is no array as it is
            raise DataError(f"{path}: {key!r} is no array in NumPy's format")
    if "X" not in arrays:
        raise DataError(f"{path} has no key 'X' (inputs: [N, T, I] or [T, I])")
    x = arrays["X"]
    is_token = x.dtype.kind == "u" and x.ndim <= 2
    wanted = "[N, T] or [T] token ids" if is_token else "[N, T, I] or [T, I]"
    if x.dtype.kind not in "fiu" or x.ndim not in ((1, 2) if is_token else (2, 3)) or not x.size:
        raise DataError(f"{path}: X is {x.dtype} {list(x.shape)}; expected numbers {wanted}")
    if is_token:
        x = x[..., None]
    x = x if x.ndim == 3 else x[None]
    num_streams, num_steps, num_inputs = x.shape
    keep = _true_rows(path, arrays.get("lengths"), num_streams, num_steps)
    columns: dict[str, Column] = {}
    names = _names(path, arrays.get("names"), ["token"] if is_token else None, "x", num_inputs)
    for k, name in enumerate(names):
        num_tokens = _num_kinds(path, x, "token") if is_token else 0
        _add(path, columns, Column(name, x[..., k][keep].astype(np.float64), num_tokens=num_tokens))
    targets: list[str] = []
    if "y" in arrays:
        y, num_classes = _targets(path, arrays["y"], num_streams, num_steps)
        default = ["y"] if y.shape[2] == 1 else None
        targets = _names(path, arrays.get("output_names"), default, "y", y.shape[2])
        for k, name in enumerate(targets):
            values = y[..., k][keep].astype(np.float64)
            _add(path, columns, Column(name, values, num_tokens=num_classes))
    group = ""
    if num_streams > 1:
        group = STREAM
        index = np.broadcast_to(np.arange(num_streams)[:, None], (num_streams, num_steps))
        _add(path, columns, Column(STREAM, index[keep].astype(np.float64)))
    return Table(str(path), columns, int(keep.sum()), sha256, group, tuple(targets))


def _true_rows(
    path: str | os.PathLike[str], lengths: NDArray[Any] | None, num_streams: int, num_steps: int
) -> NDArray[np.bool_]:
    """Return which rows belong to a stream, [N, T]."""
    if lengths is None:
        return np.ones((num_streams, num_steps), bool)
    good = lengths.shape == (num_streams,) and lengths.dtype.kind in "iu"
    if not good or lengths.min() < 0 or lengths.max() > num_steps:
        raise DataError(
            f"{path}: lengths is {lengths.dtype} {list(lengths.shape)}; expected {num_streams} "
            f"whole numbers from 0 to {num_steps}"
        )
    return np.asarray(np.arange(num_steps)[None, :] < lengths[:, None])


def _targets(
    path: str | os.PathLike[str], y: NDArray[Any], num_streams: int, num_steps: int
) -> tuple[NDArray[Any], int]:
    """Return y as [N, T, O], and the number of classes if they are classes."""
    steps = (num_streams, num_steps)
    shape = y.shape
    if shape[:2] != steps and num_streams == 1 and shape[:1] == (num_steps,):
        y = y[None]
    if y.shape[:2] != steps or y.ndim not in (2, 3) or y.dtype.kind not in "fiub" or not y.size:
        raise DataError(
            f"{path}: y is {y.dtype} {list(shape)}; expected numbers [{num_streams}, {num_steps}] "
            "or the same with a further axis of outputs, as in X"
        )
    y = y if y.ndim == 3 else y[..., None]
    if y.dtype.kind in "iu" and y.shape[2] == 1:
        if y.min() < 0:
            raise DataError(f"{path}: y holds the class {y.min()}; classes are 0, 1, 2, ...")
        return y, _num_kinds(path, y, "class")
    return y, 0


def _num_kinds(path: str | os.PathLike[str], values: NDArray[Any], what: str) -> int:
    """Return how many tokens or classes there are: one more than the largest."""
    largest = int(values.max())
    if largest >= MAX_SIZE:
        raise DataError(
            f"{path} holds the {what} {largest}; the largest that a model may have is "
            f"{MAX_SIZE - 1}: number those that occur from 0 on"
        )
    return largest + 1


def _names(
    path: str | os.PathLike[str],
    given: NDArray[Any] | None,
    default: list[str] | None,
    letter: str,
    count: int,
) -> list[str]:
    if given is None:
        return default or [f"{letter}{k}" for k in range(count)]
    names = [str(name) for name in np.atleast_1d(given)]
    if len(names) != count:
        raise DataError(f"{path}: {len(names)} names ({listed(names)}) for {count} columns")
    return names


def _add(path: str | os.PathLike[str], columns: dict[str, Column], column: Column) -> None:
    if column.name in columns:
        raise DataError(f"{path}: two columns are named {column.name!r}; names must differ")
    if column.numbers is not None and np.isinf(column.numbers).any():
        raise DataError(f"{path}: column {column.name!r} holds Inf; use NaN for missing values")
    columns[column.name] = column
