"""Tables of text: CSV with a header, in blocks of bounded size."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv

from streamrnn.errors import DataError, counted
from streamrnn.training.data.reading.builder import ColumnBuilder
from streamrnn.training.data.reading.dialect import END, INDEX, Head, read_head
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.source import Source, TextStream, open_source
from streamrnn.training.data.table import Table

__all__ = ["read_csv"]

BLOCK_BYTES = 4 << 20
TEXTS = (".txt", ".md", ".text")
_BLANKS = [" " * k for k in range(64)] + ["\t"]


def read_csv(
    source: Source, options: ReadOptions, kinds: dict[str, str], keep: frozenset[str]
) -> Table:
    """Read a whole table.

    ``kinds`` says ``text`` or ``numbers`` of columns where that is known; those of ``keep`` have
    their cells too. A first column without a
    name that counts the rows (as pandas writes its index) is left out, as is a last one without
    name or cells. Raises `DataError` if a row has more or fewer cells than the header, or the
    bytes are no text.
    """
    stream = TextStream(source, options.encoding)
    head = read_head(stream, options, source.path)
    builders = [
        ColumnBuilder(name, options, kinds.get(name, ""), name in keep) for name in head.names
    ]
    num_rows = 0
    for block in _blocks(stream, head, source.path, options.encoding):
        for builder, cells in zip(builders, block.columns, strict=True):
            builder.add(cells)
        num_rows += len(block)
    if not num_rows:
        advice = "; if it is a text, --tokens char or word" * source.path.endswith(TEXTS)
        raise DataError(f"{source.path} has a header but no rows{advice}")
    columns = {builder.name: builder.finish() for builder in builders}
    if head.has_end and not columns.pop(END).is_missing.all():
        raise DataError(f"{source.path}: column {len(head.names)} has no name in the header")
    if head.has_index and len(columns) > 1:
        numbers = columns[INDEX].numbers
        if numbers is not None and (numbers[1:] - numbers[:-1] == 1).all():
            del columns[INDEX]
    is_line_a_row = not head.skipped and stream.num_lines - head.first_line + 1 == num_rows
    first_line = head.first_line if is_line_a_row else 0
    return Table(source.path, columns, num_rows, source.sha256(), first_line=first_line)


def _blocks(stream: TextStream, head: Head, path: str, encoding: str) -> Iterator[pa.RecordBatch]:
    names = [str(k) for k in range(len(head.names))]
    is_alone = len(names) == 1  # then a blank line is a missing value
    try:
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(stream, mode="r"),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=names
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=head.delimiter, newlines_in_values=True, ignore_empty_lines=not is_alone
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=_BLANKS,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        yield from reader
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return
        raise DataError(
            _located(path, head, encoding) or f"{path} cannot be read: {error}"
        ) from error


def _located(path: str, head: Head, encoding: str) -> str:
    """Name the line of a file whose number of cells is not the header's; empty if none is found.

    Read again, row by row: the reader of blocks knows no lines.
    """
    if not os.path.isfile(path):
        return ""
    with open_source(path) as source:
        stream = TextStream(source, encoding)
        text = io.TextIOWrapper(io.BufferedReader(stream), "utf-8", newline="")
        kept = (line for k, line in enumerate(text, 1) if k not in head.skipped)
        reader = csv.reader(kept, delimiter=head.delimiter)
        try:
            for row in reader:
                line = reader.line_num + sum(k <= reader.line_num for k in head.skipped)
                if line >= head.first_line and row and len(row) != len(head.names):
                    return (
                        f"{path}, line {line}: {counted(len(row), 'cell')}, but the header names "
                        f"{counted(len(head.names), 'column')}{_comment(head, row, line)}"
                    )
        except csv.Error as error:
            return f"{path}, line {reader.line_num}: {error}"
    return ""


def _comment(head: Head, row: list[str], line: int) -> str:
    """Say how a comment is left out, if the header or a row looks like one."""
    if row[0].startswith("#"):
        return f"; if it is a comment, leave it out (--skip-rows {line})"
    if head.names[0].startswith("#"):
        lines = "1" if head.first_line == 2 else f"1-{head.first_line - 1}"
        return f"; the header begins with #: if it is a comment, leave it out (--skip-rows {lines})"
    return ""
