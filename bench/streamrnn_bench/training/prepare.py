"""From the files of a package to one table: header and rows of text."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

__all__ = ["Prepare", "Rows", "columns", "dated", "meters", "typical_year"]

Row = dict[str, str]
Rows = list[list[str]]  # the header first
Prepare = Callable[[list[bytes]], Rows]


def _records(data: bytes, skip_lines: int = 0) -> Iterator[Row]:
    """Read a CSV file, compressed or not."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    lines = io.StringIO(data.decode("utf-8-sig"), newline="")
    for _ in range(skip_lines):
        lines.readline()
    return csv.DictReader(lines)


def columns(
    names: Sequence[str],
    *,
    key: Sequence[str] = (),
    last_rows: int = 0,
    renamed: dict[str, str] | None = None,
    date_format: str = "",
) -> Prepare:
    """Keep some columns, in this order.

    Rows without a value of the last column are left out, and so are those after the first one with
    the same ``key``. ``renamed`` replaces cells; ``date_format`` is that of the first column's.
    """

    def prepare(files: list[bytes]) -> Rows:
        found = _table(_records(files[0]), names, key, last_rows, renamed or {})
        for row in found[1:] if date_format else ():
            row[0] = datetime.strptime(row[0], date_format).date().isoformat()
        return found

    return prepare


def _table(
    records: Iterable[Row],
    names: Sequence[str],
    key: Sequence[str] = (),
    last_rows: int = 0,
    renamed: dict[str, str] | None = None,
) -> Rows:
    seen = set()
    rows = []
    for record in records:
        identity = tuple(record[name] for name in key)
        if record[names[-1]] in ("", ".") or (key and identity in seen):
            continue
        seen.add(identity)
        cells = [record[name] for name in names]
        rows.append([(renamed or {}).get(cell, cell) for cell in cells])
    return [list(names), *rows[-last_rows:]]


def dated(names: Sequence[str], last_rows: int) -> Prepare:
    """Make a column ``time`` of year, month, day and hour; ``NA`` becomes an empty cell."""

    def prepare(files: list[bytes]) -> Rows:
        def with_time() -> Iterator[Row]:
            for record in _records(files[0]):
                year, month, day, hour = (
                    int(record[part]) for part in ("year", "month", "day", "hour")
                )
                yield record | {"time": f"{year:04}-{month:02}-{day:02} {hour:02}:00"}

        return _table(with_time(), ["time", *names], last_rows=last_rows, renamed={"NA": ""})

    return prepare


# Of a typical meteorological year (Wilcox and Marion 2008), hour by hour.
_TYPICAL = {
    "GHI (W/m^2)": "radiation",
    "TotCld (tenths)": "clouds",
    "Dew-point (C)": "dew point",
    "RHum (%)": "humidity",
    "Pressure (mbar)": "pressure",
    "Wdir (degrees)": "wind direction",
    "Wspd (m/s)": "wind speed",
    "Dry-bulb (C)": "temperature",
}


def typical_year(files: list[bytes]) -> Rows:
    """Take a typical year: its months come from several years, and are dated as one, 2001."""

    def renamed() -> Iterator[Row]:
        for record in _records(files[0], skip_lines=1):
            month, day, _ = record["Date (MM/DD/YYYY)"].split("/")
            hour = int(record["Time (HH:MM)"].split(":")[0]) - 1  # of the hour that ends then
            yield {name: record[own] for own, name in _TYPICAL.items()} | {
                "time": f"2001-{month}-{day} {hour:02}:00"
            }

    return _table(renamed(), ["time", *_TYPICAL.values()])


def meters(names: Sequence[str], last_rows: int) -> Prepare:
    """Join meters, one a file, with the temperature, the last file; the last rows of each."""

    def prepare(files: list[bytes]) -> Rows:
        warmth = {record["dt"]: record["tempF"] for record in _records(files[-1])}
        found: Rows = [["meter", "time", "temperature", "energy"]]
        for name, data in zip(names, files[:-1], strict=True):
            rows = [
                [name, record["start"], warmth[record["start"]], record["value"]]
                for record in _records(data)
            ]
            found += rows[-last_rows:]
        return found

    return prepare
