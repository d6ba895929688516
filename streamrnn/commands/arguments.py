"""Types of arguments that several commands take."""

from __future__ import annotations

import argparse
import csv
import math
from typing import Any

__all__ = ["add_reading", "column_list", "count", "reading_settings", "share"]


def share(text: str) -> float:
    """Parse a number above 0 and below 1."""
    value = float(text)
    if not (0 < value < 1 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is no share; give a number above 0 and below 1")
    return value


def count(text: str) -> int:
    """Parse a whole number from 1."""
    value = int(text)
    if not 1 <= value <= 65_536:
        raise argparse.ArgumentTypeError(f"{text} is no count; give a whole number from 1")
    return value


def column_list(text: str) -> tuple[str, ...]:
    """Split a list of columns at its commas, but not within double quotes."""
    if not text.strip():
        return ()
    return tuple(next(csv.reader([text], skipinitialspace=True), []))


_READING: tuple[tuple[str, str, str], ...] = (
    ("delimiter", "CHAR", "between cells; tab, space (default: by the first lines)"),
    ("encoding", "NAME", "latin-1, cp1252, utf-16 ... (default: UTF-8)"),
    ("decimal", "CHAR", "decimal point: . or , (default .)"),
    ("thousands", "CHAR", "what parts groups of three digits (default: nothing)"),
    ("date-format", "FORMAT", "such as %%d.%%m.%%Y (default: ISO 8601)"),
)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say how a text file is written."""
    group = parser.add_argument_group("how a text file is read")
    for name, metavar, description in _READING:
        group.add_argument(f"--{name}", metavar=metavar, help=description)
    group.add_argument(
        "--na",
        metavar="CELL",
        action="append",
        help="a cell that means a missing value, beside an empty one; repeatable",
    )
    group.add_argument(
        "--skip-rows",
        metavar="LINE,...",
        help="lines of the file that are left out, from 1: 2 or 1-3",
    )


def reading_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the arguments of `add_reading` say, by the names of `ReadOptions`."""
    names = (name.replace("-", "_") for name, _, _ in _READING)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.na is not None:
        given["na"] = tuple(args.na)
    if args.skip_rows is not None:
        given["skip_rows"] = tuple(item for item in args.skip_rows.split(",") if item.strip())
    return given
