"""``streamrnn predict``: run a table through a model."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.commands.arguments import add_reading, column_list, reading_settings
from streamrnn.errors import DataError, counted
from streamrnn.model.model import Model
from streamrnn.training.config import possible_names
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.table import Table
from streamrnn.training.predict import (
    columns_of,
    kinds_of,
    predict_table,
    result_names,
    trained_columns,
    trained_options,
)

__all__ = ["configure", "predict_file", "predict_text", "run"]

BLOCK_ROWS = 4096
BLOCK_TOKENS = 4096
TEXT_HEADER = ("token", "p", "expected", "p_expected")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="weight file")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a table with the model's inputs, or a text; - for standard input",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT.csv", help="- for stdout")
    parser.add_argument("--time", metavar="COLUMN", help="orders the rows (default: as trained)")
    parser.add_argument(
        "--group", metavar="COLUMN,...", help="tells streams apart (default: as trained)"
    )
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Predict a file; return the exit code."""
    model = Model.load(args.model)
    if os.path.exists(args.output) and os.path.samefile(args.model, args.output):
        raise DataError(f"{args.output} is the model; write to another file")
    group = None if args.group is None else column_list(args.group)
    options = trained_options(model.spec, **reading_settings(args))
    num_rows, num_streams = predict_file(model, args.data, args.output, args.time, group, options)
    rows, streams = counted(num_rows, "row"), counted(num_streams, "stream")
    where = "standard output" if args.output == "-" else args.output
    print(f"{where}: {rows} of {streams}", file=sys.stderr)
    return 0


def predict_file(
    model: Model,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    time: str | None = None,
    group: tuple[str, ...] | None = None,
    options: ReadOptions | None = None,
) -> tuple[int, int]:
    """Run every row of a file through a model, each group as a stream of its own.

    ``data`` needs a column for every input, by name; rows of a stream are taken in time order.
    ``output`` gets the time and group columns, then one column for each output, in the rows' own
    order; ``-`` is stdout. ``time`` and ``group`` None mean the columns of the training (the time,
    if the file has it); ``options`` None, to read like the training's file.

    Of a text the columns are those of `predict_text`.

    Returns the number of rows and of streams. Raises `DataError` if a column is absent or a cell
    cannot be read; nothing is written then.
    """
    is_stdout = os.fspath(output) == "-"
    are_files = not is_stdout and os.path.exists(output) and os.path.exists(data)
    if are_files and os.path.samefile(data, output):
        raise DataError(f"{output} is the file that is read; write to another one")
    expected = trained_columns(model.spec, time, group)
    kinds = kinds_of(model.spec, expected[1])
    copied = tuple(filter(None, (expected[0], *possible_names(expected[1]))))
    table = read_table(data, options or trained_options(model.spec), kinds, copied)
    time, group = columns_of(model.spec, table, time, group)
    copied = tuple(filter(None, (time, *group)))
    if is_text(table):
        num_streams, header, rows = 1, list(TEXT_HEADER), predict_text(model, table)
    else:
        y, num_streams = predict_table(model, table, time, group)
        header = [*copied, *result_names(model.spec, copied)]
        rows = _rows(table, copied, y)
    try:
        with _opened(output) as file:
            write = csv.writer(file, lineterminator="\n").writerow
            write(header)
            for row in rows:
                write(row)
    except OSError as error:
        if is_stdout:
            raise
        raise DataError(f"{output} cannot be written: {error.strerror}") from error
    return table.num_rows, num_streams


@contextmanager
def _opened(output: str | os.PathLike[str]) -> Iterator[IO[str]]:
    if os.fspath(output) == "-":
        yield sys.stdout
        sys.stdout.flush()  # what cannot be written shows here
    else:
        with open(output, "w", newline="", encoding="utf-8") as file:
            yield file


def _rows(table: Table, copied: Iterable[str], y: NDArray[Any]) -> Iterator[list[str]]:
    columns = [table.column(name) for name in copied]
    digits = ".9g" if y.dtype == np.float32 else ".15g"
    for start in range(0, table.num_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, table.num_rows)
        texts = [column.texts(start, stop) for column in columns]
        for k, outputs in enumerate(y[start:stop].tolist()):
            yield [*(text[k] for text in texts), *(format(value, digits) for value in outputs)]


def is_text(table: Table) -> bool:
    """Tell whether a table is a text."""
    return any(column.unit for column in table.columns.values())


def predict_text(model: Model, table: Table) -> Iterator[list[str]]:
    """Return the rows of `TEXT_HEADER`, one for every token of a text.

    ``token`` is the text itself, ``p`` the probability that the model gave to it before it came,
    ``expected`` the token that had the highest one, ``p_expected``; nothing was expected of the
    first token. One that the model does not know is judged as the unknown one. Raises `DataError`
    if the model does not predict the tokens of such a text.
    """
    [column] = table.columns.values()
    spec, names = model.spec, model.spec.inputs[0].categories
    is_next = tuple(output.name for output in spec.outputs) == names
    is_softmax = spec.head is not None and spec.head.activation == "softmax"
    if spec.inputs[0].unit != column.unit or not is_next or not is_softmax:
        raise DataError(
            f"{table.path} is read as a text in units of {column.unit}, and the model does not "
            "predict the next one of such a text"
        )
    assert column.indices is not None
    pieces = (column.labels[k] for k in column.indices.tolist())
    rows = _text_rows(model, column.codes(names).astype(np.uint32))
    return ([piece, *row] for piece, row in zip(pieces, rows, strict=True))


def _text_rows(model: Model, tokens: NDArray[np.uint32]) -> Iterator[list[str]]:
    from streamrnn.engine.engine import Engine

    names, engine = model.spec.inputs[0].categories, Engine(model)
    yield ["", "", ""]
    for start in range(0, len(tokens) - 1, BLOCK_TOKENS):
        block = tokens[start : min(start + BLOCK_TOKENS, len(tokens) - 1)]
        y = engine.steps("text", block[:, None])
        then = tokens[start + 1 : start + 1 + len(block)]
        best = y.argmax(axis=1)
        steps = np.arange(len(block))
        for p, k, most in zip(y[steps, then], best.tolist(), y[steps, best], strict=True):
            yield [f"{p:.9g}", names[k], f"{most:.9g}"]
