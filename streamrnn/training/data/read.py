"""Read a file of training data, whatever its format."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from streamrnn.errors import DataError
from streamrnn.model.checks import shown
from streamrnn.training.data.csv_file import read_csv
from streamrnn.training.data.npz_file import read_npz
from streamrnn.training.data.table import Table

__all__ = ["read_table"]


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a whole table.

    Parameters
    ----------
    path : str or path
        A CSV file with a header, or an .npz file with

        - ``X``: [N, T, I] or [T, I] numbers; or unsigned integers [N, T] or [T]: token ids;
        - ``y`` (optional): targets of the same rows, [N, T, O], [N, T] or, for one stream,
          [T, O] or [T]; integers of one column are classes;
        - ``names``, ``output_names`` (optional): names of the columns of X and y;
        - ``lengths`` (optional): [N], the number of true rows of each stream.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        If it cannot be read, a line is malformed, or a number is infinite.
    """
    try:
        # What is read twice, and to its end: no pipe, and no device.
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(f"{path} is no regular file")
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL, or a surrogate
        raise DataError(f"{shown(path)} is no path of a file: {error}") from error
    read = read_npz if Path(path).suffix.lower() == ".npz" else read_csv
    return read(path, sha256)
