"""Which part of the data trains, which chooses and which judges."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError, TrainingError, counted, listed
from streamrnn.model.checks import shown
from streamrnn.training.config import PARTS, TrainingConfig
from streamrnn.training.data.streams import times_of_rows
from streamrnn.training.data.table import Table

__all__ = ["Split", "Stops", "overlap", "split_streams"]

Index = NDArray[np.intp]
# Rows before which the targets of the training, validation and test part end.
Stops = tuple[int, int, int]
MANY_STREAMS = 20
_SPELLINGS = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "test"}


@dataclass(frozen=True)
class Split:
    """The parts of every stream, and how they came about."""

    kind: str  # time, date, stream, file or column
    stops: dict[str, Stops]  # by stream
    says: str  # which rows are the test part, such as "the last 20% of each stream"
    # by stream, the rows before which the values, not the targets, of each part end
    ends: dict[str, Stops] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, ends: dict[str, Stops], says: str, horizon: int) -> Split:
        """Make one of the ends of the values: a target lies ``horizon`` rows later at most."""
        stops = {name: _ahead(*own, horizon) for name, own in ends.items()}
        return cls(kind, stops, says, ends)


def split_streams(config: TrainingConfig, table: Table, rows: dict[str, Index]) -> Split:
    """Cut streams into their parts.

    - ``time``: each stream by its own rows, in time order.
    - ``date``: all streams at the same two dates, so that no stream knows another's future.
    - ``stream``: whole streams by chance (`seed`), every class in every part as far as it goes.
    - ``file``: whole streams in the table's order.
    - ``column:NAME``: as a column says, ``train``, ``validation`` or ``test`` in every row.

    ``auto`` is ``time`` for one stream, ``date`` where several share calendar time, ``stream`` for
    `MANY_STREAMS` and more that do not, else ``time``. Raises `DataError` if the data cannot be
    cut so.
    """
    kind, _, column = config.split_by.partition(":")
    if kind == "auto":
        kind = _suitable(config, table, rows)
    share = f"{config.split[2]:.0%}"
    match kind:
        case "column":
            ends, says = _by_column(table, rows, column), f"as {column} says"
        case "date":
            ends, date = _by_date(config, table, rows)
            says = f"rows from {date} on"
        case "stream" | "file":
            order = _order(config, table, rows) if kind == "stream" else _file_order(rows)
            ends = _by_stream(config, rows, order)
            which = "drawn by chance" if kind == "stream" else "the last of the file"
            says = f"{share} of the streams, {which}"
        case _:
            ends = {name: _by_time(len(index), config) for name, index in rows.items()}
            says = f"the last {share} of each stream"
    return Split.of(kind, ends, says, config.farthest)


def _suitable(config: TrainingConfig, table: Table, rows: dict[str, Index]) -> str:
    if len(rows) == 1:
        return "time"
    is_calendar = bool(config.time) and table.column(config.time).times is not None
    if is_calendar and overlap(times_of_rows(table, config.time), rows):
        return "date"
    return "stream" if len(rows) >= MANY_STREAMS else "time"


def overlap(times: NDArray[np.float64] | None, rows: dict[str, Index]) -> bool:
    """Tell whether most streams begin before the one that began before them has ended."""
    assert times is not None
    spans = sorted((times[i[0]], times[i[-1]]) for i in rows.values() if len(i))
    latest, num_overlaps = -np.inf, 0
    for start, stop in spans:
        num_overlaps += start < latest
        latest = max(latest, stop)
    return 2 * num_overlaps >= len(spans) - 1


def _by_time(num_rows: int, config: TrainingConfig) -> Stops:
    first = round(config.split[0] * num_rows)
    second = round((config.split[0] + config.split[1]) * num_rows)
    return first, second, num_rows


def _ahead(first: int, second: int, last: int, horizon: int) -> Stops:
    """Turn rows whose values end each part into rows whose targets do."""
    return max(0, first - horizon), max(0, second - horizon), max(0, last - horizon)


def _by_date(
    config: TrainingConfig, table: Table, rows: dict[str, Index]
) -> tuple[dict[str, Stops], str]:
    times = times_of_rows(table, config.time)
    if times is None:
        raise TrainingError("split_by is 'date', but no column orders the rows: name --time")
    ordered = np.sort(times)
    at = [config.split[0], config.split[0] + config.split[1]]
    cuts = ordered[[min(round(share * len(ordered)), len(ordered) - 1) for share in at]]
    ends: dict[str, Stops] = {}
    for name, index in rows.items():
        first, second = np.searchsorted(times[index], cuts, side="left").tolist()
        ends[name] = first, second, len(index)
    row = int(np.flatnonzero(times == cuts[1])[0])
    return ends, table.column(config.time).texts(row, row + 1)[0]


def _file_order(rows: dict[str, Index]) -> list[str]:
    return sorted((name for name in rows if len(rows[name])), key=lambda name: rows[name].min())


def _order(config: TrainingConfig, table: Table, rows: dict[str, Index]) -> list[str]:
    """Return the streams so that any beginning of them is drawn by chance from every class."""
    rng = np.random.default_rng(config.seed)
    names = [name for name in rows if len(rows[name])]
    shuffled = [names[k] for k in rng.permutation(len(names))]
    target = table.column(config.predict[0])
    if target.numbers is not None and not target.num_tokens and config.loss != "cross_entropy":
        return shuffled
    # The class of its last row; where every stream has one, that is it.
    codes = target.codes(None if target.num_tokens else target.categories())
    of_stream = {name: codes[rows[name][-1]] for name in shuffled}
    sizes: dict[float, int] = {}
    for code in of_stream.values():
        sizes[code] = sizes.get(code, 0) + 1
    seen: dict[float, int] = {}
    places = []
    for code in of_stream.values():
        seen[code] = seen.get(code, 0) + 1
        # Where in its class the stream stands, from 0 to 1: the same shares of every class.
        places.append((seen[code] - 0.5) / sizes[code])
    return [shuffled[k] for k in np.argsort(places, kind="stable")]


def _by_stream(
    config: TrainingConfig, rows: dict[str, Index], order: list[str]
) -> dict[str, Stops]:
    if len(order) < len(PARTS):
        raise DataError(
            f"{counted(len(order), 'stream')} cannot be split by stream into {len(PARTS)} parts; "
            "split each by time (--split-by time)"
        )
    num = len(order)
    first = min(max(1, round(config.split[0] * num)), num - 2)
    second = min(max(first + 1, round((config.split[0] + config.split[1]) * num)), num - 1)
    ends: dict[str, Stops] = dict.fromkeys(rows, (0, 0, 0))
    for k, name in enumerate(order):
        last = len(rows[name])
        ends[name] = last if k < first else 0, last if k < second else 0, last
    return ends


def _by_column(table: Table, rows: dict[str, Index], name: str) -> dict[str, Stops]:
    column = table.column(name)
    if column.indices is None:
        raise DataError(
            f"column {name!r} of {table.path} says no part of any row: it must hold "
            f"{', '.join(PARTS)}"
        )
    codes = []
    for label in column.labels:
        word = label.strip().lower()
        word = "train" if word == "training" else _SPELLINGS.get(word, word)
        if word not in PARTS:
            raise DataError(
                f"column {name!r} of {table.path} holds {shown(label)}; it must hold "
                f"{', '.join(PARTS)}"
            )
        codes.append(PARTS.index(word))
    parts = np.array([*codes, -1])[column.indices]
    if (parts < 0).any():
        row = int(np.argmax(parts < 0))
        raise DataError(f"{table.path}, {table.place(row)}: no {name!r}, which says the part")
    ends: dict[str, Stops] = {}
    unordered = []
    for stream, index in rows.items():
        own = parts[index]
        if (np.diff(own) < 0).any():
            unordered.append(stream)
        first, second = np.searchsorted(own, [1, 2]).tolist()
        ends[stream] = first, second, len(index)
    if unordered:
        raise DataError(
            f"{table.path}: rows of {name!r} go back from {PARTS[2]} or {PARTS[1]} to an earlier "
            f"part within a stream ({listed(unordered)}); parts must follow each other in time"
        )
    return ends
