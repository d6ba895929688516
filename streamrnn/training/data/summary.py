"""What a table holds and what becomes of it, told before the training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.training.config import PARTS
from streamrnn.training.data.columns import is_named
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.data.streams import rows_of_streams, times_of_rows
from streamrnn.training.data.table import Column
from streamrnn_client.protocol.input_names import MISSING, OTHER

__all__ = ["ColumnSummary", "Times", "summarise_columns", "summarise_times", "summary_lines"]

MAX_LINES = 40  # of columns
_SHOWN_NAMES = 4
_WIDTH = 24
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True)
class ColumnSummary:
    """What a column holds and what it is used for."""

    name: str
    kind: str  # numbers, names, tokens or times
    missing: float  # share of the rows
    holds: str  # its range, or its commonest names
    use: str  # such as "input, as changes; target 1 row ahead"
    notes: tuple[str, ...]  # such as "constant", "equals y"


@dataclass(frozen=True)
class Times:
    """How the rows of the streams follow each other in time."""

    interval: float  # the commonest difference from row to row, in seconds or the column's units
    num_duplicates: int  # rows of the time of the row before
    num_gaps: int  # differences of more than one and a half intervals
    largest_gap: float
    is_date: bool


def summarise_columns(dataset: Dataset) -> list[ColumnSummary]:
    """Describe the columns of a table, in their order."""
    table, config = dataset.table, dataset.config
    first: dict[bytes, str] = {}
    found = []
    for column in table.columns.values():
        notes = []
        if column.is_constant():
            notes.append("constant")
        else:
            if _rises_evenly(column):
                notes.append("rises evenly")
            same = first.setdefault(_digest(column), column.name)
            if same != column.name:
                notes.append(f"equals {same}")
        if column.problem:
            notes.append("has odd cells")
        kind = "times" if column.times is not None else "numbers"
        if is_named(column, config):
            kind = "tokens" if column.num_tokens else "names"
        found.append(
            ColumnSummary(
                column.name,
                kind,
                float(column.is_missing.mean()),
                _holds(column, kind),
                _use(dataset, column.name) or "not used",
                tuple(notes),
            )
        )
    return found


def _rises_evenly(column: Column) -> bool:
    values = column.numbers
    if values is None or column.num_tokens or len(values) < 3:
        return False
    return bool((np.diff(values) == values[1] - values[0]).all())


def _digest(column: Column) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for values in (column.numbers, column.times, column.indices):
        digest.update(b"" if values is None else values.tobytes())
        digest.update(b"/")
    if column.indices is not None:
        digest.update("\0".join(column.labels).encode())
    return digest.digest()


def _holds(column: Column, kind: str) -> str:
    if column.is_missing.all():
        return "nothing"
    if kind in ("names", "tokens"):
        names = column.categories()
        listed = ", ".join(_cut(name, _WIDTH) for name in names[:_SHOWN_NAMES])
        more = f", ... ({len(names):,})" if len(names) > _SHOWN_NAMES else ""
        return listed + more
    values = column.times if column.times is not None else column.numbers
    assert values is not None
    lowest, highest = int(np.nanargmin(values)), int(np.nanargmax(values))
    if column.times is not None:
        low, high = (column.texts(row, row + 1)[0] for row in (lowest, highest))
        return f"{low} to {high}"
    return f"{values[lowest]:.6g} to {values[highest]:.6g}"


def _use(dataset: Dataset, name: str) -> str:
    config = dataset.config
    uses = []
    if name == config.time:
        uses.append("orders the rows")
    if name in config.group or name == dataset.table.group:
        uses.append("tells streams apart")
    if name in config.split_column:
        uses.append("says the part")
    uses += [
        "input"
        + ", as changes" * item.difference
        + _policy(item.missing)
        + _named(item.categories, dataset.table.columns[name])
        for item in dataset.spec.inputs
        if item.name == name and name in dataset.table.columns
    ]
    if name in config.predict:
        rows = ", ".join(map(str, config.horizon))
        ahead = f" {rows} row{'s' * (rows != '1')} ahead" * bool(config.farthest)
        last = " of each stream's last row" * (config.loss_on == "last")
        uses.append("target" + ahead + last)
    return "; ".join(uses)


def _policy(missing: str) -> str:
    words = {
        "hold": ", the last value where one is missing",
        "mean": ", the mean where one is missing",
        "mask": ", with a mark where one is missing",
    }
    return words.get(missing, "")


def _named(categories: tuple[str, ...], column: Column) -> str:
    """Tell what becomes of cells without a name, and of names that are rare or new."""
    text = ""
    if MISSING in categories and column.is_missing.any():
        text += f", an empty cell as the name {MISSING}"
    unnamed = set(column.categories()) - set(categories) if OTHER in categories else ()
    return text + (f", {len(unnamed)} rare names as {OTHER}" if unnamed else "")


def summarise_times(dataset: Dataset) -> Times | None:
    """Describe how rows follow each other; None without a column that orders them."""
    table, config = dataset.table, dataset.config
    times = times_of_rows(table, config.time)
    if times is None:
        return None
    rows = rows_of_streams(table, config.time, config.group)
    steps = np.concatenate([np.zeros(0), *(np.diff(times[index]) for index in rows.values())])
    interval = _commonest(steps[steps > 0])
    gaps = steps[steps > 1.5 * interval] if interval else steps[:0]
    return Times(
        interval,
        int(np.count_nonzero(steps == 0)),
        len(gaps),
        float(gaps.max(initial=0.0)),
        table.column(config.time).times is not None,
    )


def _commonest(steps: NDArray[np.float64]) -> float:
    if not len(steps):
        return 0.0
    values, counts = np.unique(np.round(steps, 6), return_counts=True)
    return float(values[np.argmax(counts)])


def summary_lines(dataset: Dataset) -> Iterator[str]:
    """Describe a table and what becomes of it, as lines of text."""
    table, config = dataset.table, dataset.config
    columns = summarise_columns(dataset)
    num_streams = len(dataset.streams)
    yield f"{table.path}: {counted(table.num_rows, 'row')}, {counted(len(columns), 'column')}"
    shown = columns[:MAX_LINES]
    width = max(len(_cut(c.name, _WIDTH)) for c in shown)
    for c in shown:
        missing = f", {_share(c.missing)} missing" if c.missing else ""
        notes = f" ({', '.join(c.notes)})" if c.notes else ""
        yield f"  {_cut(c.name, width):<{width}}  {c.kind}, {c.holds}{missing}{notes}: {c.use}"
    if len(columns) > MAX_LINES:
        yield f"  ... and {counted(len(columns) - MAX_LINES, 'more column')}"
    times = summarise_times(dataset)
    if times is None:
        yield "rows: taken in the order in which they come; no column of times"
    else:
        yield f"rows: in the order of {config.time}{_times_text(times)}"
    if num_streams > 1:
        lengths = np.array([len(stream.x) for stream in dataset.streams])
        yield (
            f"streams: {num_streams:,}, of {lengths.min():,} to {lengths.max():,} rows (median "
            f"{int(np.median(lengths)):,})"
        )
    counts = ", ".join(
        f"{part} {sum(s.rows(part).stop - s.rows(part).start for s in dataset.streams):,}"
        for part in PARTS
    )
    yield f"parts by {dataset.split.kind}: {counts} rows; test: {dataset.split.says}"
    if _parts_share_labels(dataset):
        yield (
            "each stream has one label, which is in its training part too: the test error tells "
            "nothing of new streams; --split-by stream judges those"
        )


def _parts_share_labels(dataset: Dataset) -> bool:
    if dataset.config.farthest or dataset.split.kind not in ("time", "date"):
        return False
    if dataset.loss not in ("cross_entropy", "binary_cross_entropy") or len(dataset.streams) < 2:
        return False
    return all(len(np.unique(s.target[~np.isnan(s.target)])) <= 1 for s in dataset.streams)


def _times_text(times: Times) -> str:
    def said(value: float) -> str:
        if not times.is_date:
            return f"{value:g}"
        size, unit = next((u for u in _UNITS if value >= u[0]), _UNITS[-1])
        return f"{value / size:.4g} {unit}"

    if not times.interval:
        return ", which never rises"
    text = f", mostly {said(times.interval)} from row to row"
    if times.num_gaps:
        text += f", {counted(times.num_gaps, 'gap')} (the largest {said(times.largest_gap)})"
    if times.num_duplicates:
        text += f", {counted(times.num_duplicates, 'row')} of the time of the row before"
    return text


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "<0.1%"


def _cut(text: str, width: int) -> str:
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= width else text[: width - 3] + "..."
