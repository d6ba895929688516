"""How a text file is to be read."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from streamrnn.errors import TrainingError, suggestion
from streamrnn.model.checks import shown
from streamrnn.training.data.reading.source import check_encoding
from streamrnn_client.text import UNITS

__all__ = ["MAX_SKIPPED_LINE", "ReadOptions"]

MAX_SKIPPED_LINE = 1000
_DELIMITERS = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}


@dataclass(frozen=True)
class ReadOptions:
    """How the cells of a text file are found and understood.

    Attributes
    ----------
    delimiter : str
        One character; empty: the one of comma, semicolon, tab and bar that fits the first lines.
    encoding : str
        As Python names it; empty: UTF-8, or what a byte order mark says.
    decimal, thousands : str
        ``.`` or ``,``; and what groups of three digits are parted by, or empty.
    na : tuple of str
        Cells that mean a missing value, beside empty ones and, among numbers, ``nan``, ``na``,
        ``n/a``, ``null`` and ``none``.
    skip_rows : tuple of str
        Lines of the file that are left out, from 1: ``"3"`` or ``"1-3"``.
    date_format : str
        Such as ``%d.%m.%Y %H:%M``; empty: ISO 8601.
    tokens : str
        ``char`` or ``word``: the file is no table but a text, of which each such piece is a row;
        empty: a table.
    """

    delimiter: str = ""
    encoding: str = ""
    decimal: str = "."
    thousands: str = ""
    na: tuple[str, ...] = ()
    skip_rows: tuple[str, ...] = ()
    date_format: str = ""
    tokens: str = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, is_text = getattr(self, item.name), item.type == "str"
            cells = (value,) if is_text else value if isinstance(value, tuple) else (None,)
            if not all(isinstance(cell, str) for cell in cells):
                expected = "a string" if is_text else "a tuple of strings"
                raise TrainingError(f"{item.name} is {shown(value)}; it must be {expected}")
        object.__setattr__(self, "delimiter", _DELIMITERS.get(self.delimiter, self.delimiter))
        if len(self.delimiter) > 1 or self.delimiter in ('"', "\n", "\r"):
            raise TrainingError(
                f"delimiter is {shown(self.delimiter)}; it must be one character (tab and space "
                "are names of theirs)"
            )
        if self.encoding:
            check_encoding(self.encoding)
        if self.decimal not in (".", ","):
            raise TrainingError(f"decimal is {shown(self.decimal)}; it must be '.' or ','")
        if self.thousands not in ("", ",", ".", " ", "'", "_") or self.thousands == self.decimal:
            raise TrainingError(
                f"thousands is {shown(self.thousands)}; it must be one of , . ' _ and a space, and "
                f"another than decimal ({self.decimal})"
            )
        if self.delimiter and self.delimiter in (self.decimal, self.thousands):
            raise TrainingError(
                f"delimiter is {shown(self.delimiter)}, which decimal or thousands is too"
            )
        if self.tokens not in ("", *UNITS):
            raise TrainingError(
                f"tokens is {shown(self.tokens)}{suggestion(self.tokens, UNITS)}; it must be "
                f"{' or '.join(UNITS)}, or empty for a table"
            )
        self.skipped_lines()  # raises if they cannot be read
        if self.date_format:
            _check_date_format(self.date_format)

    def skipped_lines(self) -> frozenset[int]:
        """Return the numbers of the lines that are left out, from 1."""
        lines: set[int] = set()
        for text in self.skip_rows:
            found = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", text)
            first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
            if not 1 <= first <= last <= MAX_SKIPPED_LINE:
                raise TrainingError(
                    f"skip_rows has {shown(text)}; write lines of the file from 1 to "
                    f"{MAX_SKIPPED_LINE}, such as 2 or 1-3"
                )
            lines.update(range(first, last + 1))
        return frozenset(lines)


def _check_date_format(text: str) -> None:
    """Raise `TrainingError` if no date can be written and read so."""
    some = datetime(2001, 12, 29, 13, 14, 15, tzinfo=UTC)
    try:
        datetime.strptime(some.strftime(text), text)
    except (ValueError, re.error) as error:
        raise TrainingError(
            f"date_format is {shown(text)}, which reads no date ({error}); usual ones are %d.%m.%Y "
            "and %Y/%m/%d %H:%M:%S"
        ) from None
