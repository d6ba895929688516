"""Which rows of a table are which stream, in time order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, counted
from streamrnn.model.checks import shown
from streamrnn.training.data.reading.cells import format_of
from streamrnn.training.data.table import Table

__all__ = ["rows_of_streams", "times_of_rows"]

Index = NDArray[np.intp]
_BETWEEN_NAMES = "/"  # of a stream that several columns tell apart


def rows_of_streams(table: Table, time: str, group: tuple[str, ...]) -> dict[str, Index]:
    """Return the rows of every stream by its name, in time order.

    ``time`` empty leaves the rows in their order; rows of one time stay in theirs. Streams come in
    the order of their names; without a group there is one, whose name is empty. Raises `DataError`
    if a row has no time or no name.
    """
    times = times_of_rows(table, time)
    if times is not None and not group:
        _check_times(table, time, times)
    order = np.arange(table.num_rows) if times is None else np.argsort(times, kind="stable")
    if not group:
        return {"": order}
    codes, names = np.zeros(table.num_rows, np.int64), [""]
    for k, column_name in enumerate(group):
        column = table.column(column_name)
        own = column.categories()
        index = column.codes(own)
        if np.isnan(index).any():
            raise DataError(
                f"{table.path}, {table.place(int(np.argmax(np.isnan(index))))}: no "
                f"{column_name!r}, which names the row's stream"
            )
        # Only those that occur: there may be far fewer than pairs.
        pairs, codes = np.unique(codes * len(own) + index.astype(np.int64), return_inverse=True)
        between = _BETWEEN_NAMES if k else ""
        names = [names[p // len(own)] + between + own[p % len(own)] for p in pairs.tolist()]
    order = order[np.argsort(codes[order], kind="stable")]
    starts = np.searchsorted(codes[order], np.arange(len(names) + 1))
    streams = {name: order[starts[k] : starts[k + 1]] for k, name in enumerate(names)}
    if len(streams) < len(names):
        raise DataError(
            f"{table.path}: two streams have the same name when {' and '.join(group)} are put "
            f"together with {_BETWEEN_NAMES!r}; rename one"
        )
    return streams


def _check_times(table: Table, time: str, times: NDArray[np.float64]) -> None:
    """Raise `DataError` if most rows share their times: then they are of several streams."""
    different, counts = np.unique(times, return_counts=True)
    if counts[counts > 1].sum() <= len(times) / 2:
        return
    texts = [
        name
        for name, column in table.columns.items()
        if column.indices is not None and 1 < len(column.labels) <= counts.max() * 10
    ]
    first = different[int(np.argmax(counts > 1))]
    row = int(np.flatnonzero(times == first)[0])
    named = f"--group {texts[0]!r}, perhaps" if texts else "--group COLUMN"
    raise DataError(
        f"{table.path}: most rows share their {time!r} with others "
        f"({counted(int(counts.max()), 'row')} of "
        f"{table.column(time).texts(row, row + 1)[0]}), as the rows of several streams do: say "
        f"which column tells them apart ({named}), or --time '' if the rows are one stream in order"
    )


def times_of_rows(table: Table, time: str) -> NDArray[np.float64] | None:
    """Return what orders the rows: seconds since 1970, or numbers; None for the file's order.

    Raises `DataError` if the column holds neither, or a row has none.
    """
    if not time:
        return None
    column = table.usable(time)
    times = column.numbers if column.times is None else column.times
    if times is None:
        form = format_of(column.labels)
        guess = f"perhaps --date-format {form!r}" if form else "or as --date-format says"
        raise DataError(
            f"{table.path}: column {time!r} holds text ({shown(column.labels[0])}), neither "
            f"numbers nor dates that are read (ISO 8601, {guess}); it cannot order the rows"
        )
    if np.isnan(times).any():
        row = int(np.argmax(np.isnan(times)))
        raise DataError(f"{table.path}, {table.place(row)}: no {time!r}, which orders the rows")
    return times
