"""``streamrnn predict``: run a CSV file through a model, in bounded memory."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, listed, suggestion
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, ModelSpec
from streamrnn.training.data.csv_file import CsvReader, number, open_csv, parse_time

if TYPE_CHECKING:
    from streamrnn.engine.engine import Engine

__all__ = ["configure", "predict_file", "run"]

BLOCK_ROWS = 4096
Line = tuple[int, list[str]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="weight file")
    parser.add_argument("data", metavar="DATA.csv", help="with a header and the model's inputs")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.csv", help="- for stdout")
    parser.add_argument("--time", metavar="COLUMN", help="to check the order by (default: trained)")
    parser.add_argument("--group", metavar="COLUMN", help="tells streams apart (default: trained)")


def run(args: argparse.Namespace) -> int:
    """Predict a file; return the exit code."""
    model = Model.load(args.model)
    num_rows, num_streams = predict_file(model, args.data, args.output, args.time, args.group)
    streams = f"{num_streams} stream{'' if num_streams == 1 else 's'}"
    print(f"{args.output}: {num_rows} rows of {streams}", file=sys.stderr)
    return 0


def predict_file(
    model: Model,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    time: str | None = None,
    group: str | None = None,
) -> tuple[int, int]:
    """Run every row of a CSV file through a model, each group as a stream of its own.

    ``data`` needs a column for every input, by name, and rows in time order within each group.
    ``output`` gets the time and group columns, then one column for each output; ``-`` is stdout.
    ``time`` and ``group`` None mean the columns of the training, as far as the file has them.

    Returns the number of rows and of streams. Raises `DataError` if a column is absent, a cell
    cannot be read, or rows are out of order; what was written until then stays.
    """
    from streamrnn.engine.engine import Engine

    with open_csv(data) as reader:
        rows = _Rows(model.spec, reader, time, group)
        if os.fspath(output) == "-":
            return _predict(
                Engine(model), rows, csv.writer(sys.stdout, lineterminator="\n").writerow
            )
        if os.path.exists(output) and os.path.samefile(data, output):
            raise DataError(f"{output} is the file that is read; write to another one")
        try:
            with open(output, "w", newline="", encoding="utf-8") as file:
                return _predict(Engine(model), rows, csv.writer(file, lineterminator="\n").writerow)
        except OSError as error:
            raise DataError(f"{output} cannot be written: {error.strerror}") from error


def _predict(engine: Engine, rows: _Rows, write: Callable[[list[str]], object]) -> tuple[int, int]:
    write(rows.header)
    num_rows = 0
    while block := list(islice(rows.lines, BLOCK_ROWS)):
        num_rows += len(block)
        x = rows.inputs(block)
        y = np.empty((len(block), engine.model.spec.output_size), np.float32)
        for stream, indices in rows.streams(block).items():
            y[indices] = engine.steps(stream, x[indices])
        for (_, cells), outputs in zip(block, y, strict=True):
            copied = [cells[k] for k in rows.copied_columns]
            write([*copied, *(format(value, ".9g") for value in outputs.tolist())])
    return num_rows, len(engine)


class _Rows:
    """Rows of a file, read as a model's inputs."""

    def __init__(
        self, spec: ModelSpec, reader: CsvReader, time: str | None, group: str | None
    ) -> None:
        self.spec, self.path = spec, reader.path
        self.lines: Iterator[Line] = reader.rows()
        self._names = reader.header
        self._places = {name: k for k, name in enumerate(reader.header)}
        self._columns = [self._column(item.name) for item in spec.inputs]
        self._time = self._named_or_trained(time, "time")
        self._group = self._named_or_trained(group, "group")
        self.copied_columns = [k for k in (self._time, self._group) if k is not None]
        taken = {reader.header[k] for k in self.copied_columns}
        outputs = [
            f"{item.name} predicted" if item.name in taken else item.name for item in spec.outputs
        ]
        self.header = [*(reader.header[k] for k in self.copied_columns), *outputs]
        self._categories = {
            item.name: {name: float(k) for k, name in enumerate(item.categories)}
            for item in spec.inputs
        }
        self._last_time: dict[str, float] = {}

    def _column(self, name: str) -> int:
        if name not in self._places:
            raise DataError(
                f"{self.path} has no column {name!r}, which the model needs"
                f"{suggestion(name, self._names)}; its columns are {listed(self._names)}"
            )
        return self._places[name]

    def _named_or_trained(self, name: str | None, what: str) -> int | None:
        """Return the column named, or the one of the training if the file has it."""
        if name:
            return self._column(name)
        trained = self.spec.training.get("config", {}).get(what, "") if name is None else ""
        if trained in self._places:
            return self._places[trained]
        if what == "group" and trained:
            raise DataError(
                f"{self.path} has no column {trained!r}, which told the streams apart in training; "
                "name another one with --group, or --group '' if the file is one stream"
            )
        return None

    def inputs(self, block: list[Line]) -> NDArray[np.generic]:
        """Return x, [rows, num_inputs]."""
        x = np.empty((len(block), self.spec.num_inputs))
        for i, (item, column) in enumerate(zip(self.spec.inputs, self._columns, strict=True)):
            categories = self._categories[item.name]
            for row, (line, cells) in enumerate(block):
                cell = cells[column]
                value = categories.get(cell) if categories else number(cell)
                if value is None and categories:
                    value = _as_category(cell, categories)
                if value is None or (value != value and item.missing == "error"):
                    raise DataError(self._refusal(item, line, cell))
                x[row, i] = value
        return x.astype(np.uint32 if self.spec.is_token else np.float32)

    def _refusal(self, item: InputSpec, line: int, cell: str) -> str:
        where = f"{self.path}, line {line}, column {item.name!r}: "
        if item.categories:
            hint = suggestion(cell, item.categories)
            return f"{where}{cell!r} is none of the {len(item.categories)} known categories{hint}"
        if number(cell) is None:
            return f"{where}{cell!r} is no number"
        return f"{where}the value is missing, and the model was trained without missing values"

    def streams(self, block: list[Line]) -> dict[str, list[int]]:
        """Return the rows of each stream in a block, in order, and check their times."""
        found: dict[str, list[int]] = {}
        for row, (line, cells) in enumerate(block):
            stream = cells[self._group] if self._group is not None else ""
            found.setdefault(stream, []).append(row)
            if self._time is not None:
                now = parse_time(cells[self._time])
                if now < self._last_time.get(stream, -np.inf):
                    raise DataError(
                        f"{self.path}, line {line}: {cells[self._time]} is earlier than the row "
                        "before it in its stream; sort the file by time"
                    )
                self._last_time[stream] = now
        return found


def _as_category(cell: str, categories: dict[str, float]) -> float | None:
    """Look up a category written as a number in another spelling (``7.0`` for ``7``)."""
    value = number(cell)
    return None if value is None else categories.get(f"{value:.15g}")
