"""The head of a text table: which character parts its cells, and what its columns are called."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from itertools import islice

from streamrnn.errors import DataError
from streamrnn.model.checks import shown
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.source import TextStream

__all__ = ["END", "INDEX", "Head", "read_head"]

HEAD_BYTES = 1 << 20
INDEX = "index"  # name of a first column without one, as pandas writes it
END = ""  # of a last one without one
DELIMITERS = ",;\t|"
_TRIED_RECORDS = 100
_NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Head:
    """What the first lines of a text table say."""

    delimiter: str
    names: tuple[str, ...]  # of the columns
    has_index: bool  # whether the first column had no name
    has_end: bool  # whether the last one had none: each line ends with a delimiter
    first_line: int  # of the file, from 1: the one behind the header
    skipped: frozenset[int]  # lines that were left out behind it


def read_head(stream: TextStream, options: ReadOptions, path: str) -> Head:
    """Read the header off a stream; what comes next from it are the rows.

    Raises `DataError` if there is no header, or it names a column twice or not at all.
    """
    data = bytearray()
    while len(data) < HEAD_BYTES and (more := stream.read(HEAD_BYTES)):
        data += more
    # Cut where a line ends, lest a character or a line is parted.
    cut = len(data) if len(data) < HEAD_BYTES else max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if not cut and data:
        raise DataError(f"{path}: its first line has more than {HEAD_BYTES} bytes; is it a table?")
    skipped = options.skipped_lines()
    # Only these end a line; text has more characters that do.
    lines = list(io.StringIO(data[:cut].decode(), newline=""))
    kept = [line for k, line in enumerate(lines, 1) if k not in skipped]
    delimiter = options.delimiter or _delimiter(kept, options.decimal, cut < len(data))
    num_lines, header = _header(kept, delimiter)
    if not any(header):
        raise DataError(f"{path} is empty; the first line must name the columns")
    if all(_NUMBER.fullmatch(name) for name in header):
        raise DataError(
            f"{path}: the first line holds only numbers; it must name the columns (it reads "
            f"{kept[num_lines - 1].strip()[:60]!r})"
        )
    names = _names(header, path)
    stream.put_back("".join(kept[num_lines:]).encode() + data[cut:])
    numbers = [k for k in range(1, len(lines) + 1) if k not in skipped]
    first_line = numbers[num_lines - 1] + 1
    behind = frozenset(k for k in skipped if k >= first_line)
    has_end = len(header) > 1 and not header[-1]
    return Head(delimiter, names, not header[0], has_end, first_line, behind)


def _header(lines: list[str], delimiter: str) -> tuple[int, list[str]]:
    """Return how many lines the header takes, with blank ones before it, and its names."""
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next((record for record in reader if record), [])
    except csv.Error:
        header = []
    return reader.line_num, [name.strip() for name in header]


def _delimiter(lines: list[str], decimal: str, are_cut: bool) -> str:
    """Return the delimiter that gives every record as many cells, and the most."""
    best, most = DELIMITERS[0], (False, 1)
    for delimiter in DELIMITERS:
        if delimiter == decimal:
            continue
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            widths = [len(record) for record in islice(reader, _TRIED_RECORDS) if record]
        except csv.Error:
            continue
        if are_cut and len(lines) == reader.line_num:
            widths.pop()  # a quoted cell of the last record may go on
        found = (len(set(widths)) == 1, widths[0] if widths else 1)
        if found[1] > 1 and found > most:
            best, most = delimiter, found
    return best


def _names(header: list[str], path: str) -> tuple[str, ...]:
    names = list(header)
    if len(names) > 1 and not names[0] and INDEX not in names:
        names[0] = INDEX
    seen: set[str] = set()
    for k, name in enumerate(names):
        if not name and k < len(names) - 1:
            raise DataError(f"{path}: column {k + 1} has no name in the header")
        if name in seen:
            raise DataError(f"{path}: two columns are named {shown(name)}; names must differ")
        seen.add(name)
    return tuple(names)
