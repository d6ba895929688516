"""Output of the demonstration: the same text on a terminal and in a pipe."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

__all__ = ["Output", "duration", "sparkline"]

WIDTH = 88
UNIT_AFTER_NUMBER = re.compile(r"(?<=\d) (?=(?:µs|ms|s|ppmv|units)\b)")  # stay on one line
BLOCKS = "▁▂▃▄▅▆▇█"


class Output:
    """Plain lines on stdout, with bold headings where there is a terminal."""

    def __init__(self) -> None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without block characters
        self.console = Console(highlight=False)
        self.num_sections = 0

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.num_sections += 1
        title = f"── {self.num_sections}  {text} "
        self.line()
        self.line(title.ljust(WIDTH, "─"), style="bold")

    def line(self, text: str = "", style: str | None = None) -> None:
        """Write one line literally, unwrapped; the style is rich's, for terminals only."""
        self.console.print(text, style=style, markup=False, emoji=False, soft_wrap=True)
        self.console.file.flush()

    def say(self, text: str, style: str | None = None, indent: int = 0) -> None:
        """Write a paragraph, wrapped to the page and indented by some blanks."""
        margin = " " * indent
        wrapped = textwrap.wrap(
            UNIT_AFTER_NUMBER.sub("\u00a0", text),
            WIDTH,
            initial_indent=margin,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in wrapped:
            self.line(line.replace("\u00a0", " "), style)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table: the first column to the left, numbers to the right."""
        columns = list(zip(header, *rows, strict=True))
        widths = [max(len(cell) for cell in column) for column in columns]
        for k, row in enumerate((header, *rows)):
            first = row[0].ljust(widths[0])
            others = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            self.line(("  " + "   ".join([first, *others])).rstrip(), "dim" if k == 0 else None)


def duration(seconds: float) -> str:
    """Format a time with three digits or so, in µs, ms or s."""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        value = seconds * factor
        if value < 999.5:
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"


def sparkline(values: NDArray[np.floating], low: float, high: float) -> str:
    """Draw a series as a row of blocks between low and high; NaN leaves a blank."""
    share = (np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12)
    blanks = np.isnan(share)
    level = np.clip(np.nan_to_num(share) * len(BLOCKS), 0, len(BLOCKS) - 1).astype(int)
    return "".join(" " if blank else BLOCKS[k] for blank, k in zip(blanks, level, strict=True))
