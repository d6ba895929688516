"""NumPy .npz files as tables."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, suggestion
from streamrnn.training.data.reading.arrays import table_of_sequences
from streamrnn.training.data.table import Table

__all__ = ["read_npz"]

KEYS = ("X", "y", "names", "output_names", "lengths")
# Of all arrays of a file. A small file may say that its zeros take any size.
MAX_BYTES = 16 << 30


def read_npz(path: str | os.PathLike[str], sha256: str) -> Table:
    """Read arrays as a table; `read_table` documents the keys.

    Pickled objects are refused, and every array's size is checked before it is read. ``sha256`` is
    the hex digest of the file's bytes. Raises `DataError`.
    """
    name = os.fspath(path)
    arrays = _arrays(name)
    if "X" not in arrays:
        raise DataError(f"{name} has no key 'X' (inputs: [N, T, I] or [T, I])")
    x = arrays["X"]
    is_token = x.dtype.kind == "u" and x.ndim <= 2
    wanted = "[N, T] or [T] token ids" if is_token else "[N, T, I] or [T, I]"
    if x.dtype.kind not in "fiu" or x.ndim not in ((1, 2) if is_token else (2, 3)) or not x.size:
        raise DataError(f"{name}: X is {x.dtype} {list(x.shape)}; expected numbers {wanted}")
    if x.ndim == (1 if is_token else 2):
        x = x[None]
    lengths = _lengths(name, arrays.get("lengths"), *x.shape[:2])
    targets = None
    if "y" in arrays:
        targets = _targets(name, arrays["y"], x.shape[0], x.shape[1], lengths)
    return table_of_sequences(
        [rows[:length] for rows, length in zip(x, lengths, strict=True)],
        targets,
        path=name,
        names=arrays.get("names"),
        output_names=arrays.get("output_names"),
        sha256=sha256,
    )


def _arrays(path: str) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            total = 0
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if key not in KEYS:
                    raise DataError(
                        f"{path}: unknown key {key!r}{suggestion(key, KEYS)}; known are "
                        f"{', '.join(KEYS)}"
                    )
                total += _check_size(path, archive, member, key)
            if total > MAX_BYTES:
                raise DataError(
                    f"{path}: its arrays take {total:,} bytes, at most {MAX_BYTES:,} are read"
                )
        with np.load(path, allow_pickle=False) as loaded:
            return {key: np.asarray(loaded[key]) for key in loaded.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error
    except (MemoryError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error


def _check_size(path: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, key: str) -> int:
    """Return the bytes of an array; raise `DataError` if its member has others than it says."""
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise DataError(f"{path}: {key!r} is no array in NumPy's format ({error})") from error
        header = file.tell()
    if dtype.hasobject:
        raise DataError(f"{path} cannot be read as .npz: {key!r} holds objects, not numbers")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header + size != member.file_size:
        raise DataError(
            f"{path} cannot be read as .npz: {key!r} is {dtype} {list(shape)}, which does not fit "
            f"the {member.file_size:,} bytes that it takes"
        )
    return size


def _lengths(
    path: str, lengths: NDArray[Any] | None, num_streams: int, num_steps: int
) -> list[int]:
    """Return the number of true rows of each stream."""
    if lengths is None:
        return [num_steps] * num_streams
    good = lengths.shape == (num_streams,) and lengths.dtype.kind in "iu"
    if not good or lengths.min() < 0 or lengths.max() > num_steps:
        raise DataError(
            f"{path}: lengths is {lengths.dtype} {list(lengths.shape)}; expected {num_streams} "
            f"whole numbers from 0 to {num_steps}"
        )
    return [int(length) for length in lengths]


def _targets(
    path: str, y: NDArray[Any], num_streams: int, num_steps: int, lengths: list[int]
) -> list[Any]:
    """Return the targets of each stream: of its rows, or one value."""
    steps = (num_streams, num_steps)
    shape = y.shape
    if shape == (num_streams,) and num_streams > 1:
        return list(y)
    if shape[:2] != steps and num_streams == 1 and shape[:1] == (num_steps,):
        y = y[None]
    if y.shape[:2] != steps or y.ndim not in (2, 3) or y.dtype.kind not in "fiub" or not y.size:
        raise DataError(
            f"{path}: y is {y.dtype} {list(shape)}; expected numbers [{num_streams}, {num_steps}], "
            f"the same with a further axis of outputs, or one value a stream [{num_streams}]"
        )
    return [rows[:length] for rows, length in zip(y, lengths, strict=True)]
