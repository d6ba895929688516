"""Read training data, whatever its format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from streamrnn.errors import DataError, TrainingError
from streamrnn.training.data.reading.npz_file import read_npz
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.source import STDIN, open_source
from streamrnn.training.data.reading.text_file import read_text
from streamrnn.training.data.table import Table

__all__ = ["needs_train_extra", "read_table"]

_ZIP, _PARQUET = b"PK\x03\x04", b"PAR1"


def read_table(
    path: str | os.PathLike[str],
    options: ReadOptions | None = None,
    kinds: Mapping[str, str] | None = None,
    keep: Iterable[str] = (),
) -> Table:
    """Read a whole table.

    Parameters
    ----------
    path : str or path
        ``-`` is standard input. Text with a header (gzip, bzip2 and xz are recognised), Parquet, or
        an .npz file with

        - ``X``: [N, T, I] or [T, I] numbers; or unsigned integers [N, T] or [T]: token ids;
        - ``y`` (optional): targets of the same rows, [N, T, O], [N, T] or, for one stream,
          [T, O] or [T]; or one of every stream, [N]; integers of one column are classes;
        - ``names``, ``output_names`` (optional): names of the columns of X and y;
        - ``lengths`` (optional): [N], the number of true rows of each stream.
    options : ReadOptions or None
        How text is written.
    kinds : mapping or None
        ``text`` or ``numbers`` by column, where it shall not be told by the cells.
    keep : iterable of str
        Columns of a text file that get their `cells` too.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        If it cannot be read, or a line is malformed.
    TrainingError
        If a package is missing that reads the format.
    """
    options, kinds = options or ReadOptions(), dict(kinds or {})
    with open_source(path) as source:
        first = source.first_bytes()
        is_file = os.fspath(path) != STDIN and os.path.isfile(path)
        if first.startswith(_ZIP) or os.fspath(path).lower().endswith(".npz"):
            if not is_file:
                raise DataError(f"{source.path}: an .npz file must be a regular file")
            return read_npz(path, _sha256(path))
        if options.tokens:
            return read_text(source, options)
        with needs_train_extra(source.path):
            from streamrnn.training.data.reading.csv_file import read_csv
            from streamrnn.training.data.reading.parquet_file import read_parquet
        if first.startswith(_PARQUET):
            return read_parquet(source, options, kinds)
        return read_csv(source, options, kinds, frozenset(keep))


@contextmanager
def needs_train_extra(what: str) -> Iterator[None]:
    """Say which extra to install where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"{what} cannot be read without the package {error.name}: pip install "
            "'streamrnn[train]'"
        ) from error


def _sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
