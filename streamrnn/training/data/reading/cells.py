"""Cells of text as numbers and as times, and what to say of those that are neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamrnn.errors import DataError
from streamrnn.model.checks import shown
from streamrnn.training.data.reading.options import ReadOptions

__all__ = [
    "advice", "format_of", "known_text", "looks_like_a_number", "numbers_of", "parse_time",
    "times_of",
]  # fmt: skip

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
# Among numbers, in any case.
MISSING_WORDS = ("", "nan", "na", "n/a", "null", "none")
_DAYS = (
    "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%m/%d/%y",
    "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y",
)  # fmt: skip
_DATE_FORMATS = (
    *(day + hour for day in _DAYS for hour in ("", " %H:%M", " %H:%M:%S", " %I:%M %p")),
    "%Y-%m", "%Y/%m", "%m/%Y", "%b %Y", "%B %Y", "%b-%Y",
)  # fmt: skip
_MOST_DATES = 1000  # that are read to find their form
_EXPONENT = "([eE][+-]?[0-9]+)?"
_SPACES = "\u00a0\u202f"  # that also part groups of three digits
# What may be a number in some notation, or with a sign or a unit beside it.
_LIKE_A_NUMBER = (
    r"^\s*[-+$€£¥]?\s*([0-9][0-9.,'\s\x{a0}\x{202f}]*|[.,][0-9]+)([eE][+-]?[0-9]+)?"
    r"\s*([%°€$£¥]|[a-zA-Zµ°]{1,3})?\s*$"
)


def known_text(cells: pa.Array, options: ReadOptions) -> pa.Array:
    """Return the cells without the blanks around them, null where nothing is known.

    A cell of blanks alone is kept as it is: it was quoted.
    """
    text = pc.utf8_trim_whitespace(cells)
    text = pc.if_else(pc.equal(text, ""), pc.if_else(pc.equal(cells, ""), None, cells), text)
    if options.na:
        text = pc.if_else(pc.is_in(text, pa.array(options.na)), None, text)
    return text


def numbers_of(cells: pa.Array, options: ReadOptions) -> tuple[Floats, Flags]:
    """Read cells as numbers, [N] and NaN where there is none; tell which are no numbers.

    A missing cell is NaN and counts as a number.
    """
    is_plain = options.decimal == "." and not options.thousands
    if is_plain and not options.na:
        try:
            values = pc.cast(cells, pa.float64())
            return _floats(values), np.zeros(len(cells), bool)
        except pa.ArrowInvalid:
            pass
    text = pc.utf8_trim_whitespace(known_text(cells, options))
    is_word = pc.is_in(pc.utf8_lower(text), pa.array(MISSING_WORDS))
    text = pc.if_else(is_word, None, text)
    is_number = pc.fill_null(pc.match_substring_regex(text, _pattern(options)), False)
    plain = pc.if_else(is_number, text, None)
    if options.thousands:
        parting = _SPACES + " " if options.thousands == " " else options.thousands
        plain = pc.replace_substring_regex(plain, f"[{re.escape(parting)}]", "")
    if options.decimal != ".":
        plain = pc.replace_substring(plain, options.decimal, ".")
    odd = pc.and_(pc.is_valid(text), pc.invert(is_number))
    return _floats(pc.cast(plain, pa.float64())), odd.to_numpy(zero_copy_only=False)


def _floats(values: pa.Array) -> Floats:
    found: Floats = values.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return found


def _pattern(options: ReadOptions) -> str:
    point = re.escape(options.decimal)
    whole = "[0-9]+"
    if options.thousands:
        parting = (
            "[ \\x{a0}\\x{202f}]" if options.thousands == " " else re.escape(options.thousands)
        )
        whole = f"([0-9]{{1,3}}({parting}[0-9]{{3}})+|[0-9]+)"
    return f"^([+-]?({whole}({point}[0-9]*)?|{point}[0-9]+){_EXPONENT}|(?i:[+-]?inf(inity)?))$"


def looks_like_a_number(cells: pa.Array) -> Flags:
    """Tell which cells are numbers in some notation, or with a unit."""
    found = pc.fill_null(pc.match_substring_regex(cells, _LIKE_A_NUMBER), False)
    flags: Flags = found.to_numpy(zero_copy_only=False)
    return flags


def format_of(cells: Sequence[str]) -> str:
    """Return the form in which all the cells are dates, not ISO 8601; empty if none is known.

    Of days and months that might be either, the day is first.
    """
    for date_format in _DATE_FORMATS:
        try:
            for cell in cells[:_MOST_DATES]:
                datetime.strptime(cell, date_format)
        except ValueError:
            continue
        return date_format if cells else ""
    return ""


def advice(cell: str, column: str, options: ReadOptions) -> str:
    """Say which option reads a cell that is no number; ``column`` empty: it cannot be names."""
    text = cell.strip()
    date_format = format_of([text])
    if date_format:
        return f"if it is a date, say how dates are written, perhaps --date-format {date_format!r}"
    sign = "[+-]?"
    if options.decimal == "." and re.fullmatch(
        rf"{sign}[0-9]{{1,3}}(,[0-9]{{3}})+(\.[0-9]*)?", text
    ):
        comma = ", or --decimal , if the comma is the decimal one" * (text.count(",") == 1)
        return f"if commas part its thousands, --thousands ,{comma * ('.' not in text)}"
    if options.decimal == "." and re.fullmatch(rf"{sign}[0-9]*,[0-9]+([eE]{sign}[0-9]+)?", text):
        return "if its comma is a decimal one, --decimal ,"
    grouped = re.fullmatch(rf"{sign}[0-9]{{1,3}}(?:([.' \xa0\u202f])[0-9]{{3}})+(,[0-9]*)?", text)
    if grouped:
        parting = " " if grouped[1] in _SPACES else grouped[1]
        decimal = " --decimal ," if grouped[2] or parting == "." else ""
        return f"--thousands {parting!r}{decimal}"
    if re.fullmatch(r"[-+$€£¥]?\s*[0-9.,]*[0-9][.,]?\s*[%°€$£¥a-zA-Zµ]{0,3}", text):
        return "take signs and units out of the file" + (
            f", or take the column as names: --categorical {column!r}" if column else ""
        )
    as_names = f"; if the column holds names, --categorical {column!r}" if column else ""
    return f"if it means that the value is missing, --na {shown(text)}{as_names}"


def parse_time(cell: str, date_format: str = "") -> float:
    """Turn a number or a date into a float: that number, or seconds since 1970.

    The date is ISO 8601 (``2001-12-29T10:00:00+02:00``) or of the format given; without a zone UTC
    is taken. Raises `DataError`.
    """
    try:
        if date_format:
            moment = datetime.strptime(cell, date_format)
        else:
            try:
                value = float(cell)
            except ValueError:
                pass
            else:
                if value == value:
                    return value
            moment = datetime.fromisoformat(cell)
    except ValueError:
        wanted = (
            f"no date of the format {date_format!r}"
            if date_format
            else "neither a number nor an ISO date (2001-12-29, 2001-12-29T10:00:00); for others "
            "say --date-format, such as %d.%m.%Y"
        )
        raise DataError(f"{shown(cell)} is {wanted}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def times_of(cells: pa.Array, options: ReadOptions) -> tuple[Floats, Flags]:
    """Read cells as dates, in seconds since 1970; tell which are none. Missing ones are NaN."""
    text = known_text(cells, options)
    if not options.date_format:
        for zone in (None, "UTC"):
            try:
                moments = pc.cast(text, pa.timestamp("us", zone))
            except pa.ArrowInvalid:
                continue
            micros = _floats(pc.cast(pc.cast(moments, pa.int64()), pa.float64()))
            return micros / 1e6, np.zeros(len(cells), bool)
    known = text.dictionary_encode()
    times, is_odd = [], []
    for cell in known.dictionary.to_pylist():
        try:
            times.append(parse_time(cell, options.date_format))
            is_odd.append(not options.date_format and _is_number(cell))
        except DataError:
            times.append(float("nan"))
            is_odd.append(True)
    index = known.indices.fill_null(len(times)).to_numpy(zero_copy_only=False)
    return np.array([*times, np.nan])[index], np.array([*is_odd, False])[index]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
