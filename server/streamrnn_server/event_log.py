"""One line an event on stderr, as text or JSON; never an input value, never a flood."""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["FORMATS", "LEVELS", "EventLog"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_MAX_PER_PERIOD = 10
_PERIOD_S = 10.0


class EventLog:
    """Writes events; the same one at most ten times in ten seconds.

    Parameters
    ----------
    form : str
        One of `FORMATS`.
    level : str
        The least of `LEVELS` that is written.
    stream : text file, optional
        Where to; stderr by default.
    """

    def __init__(
        self, form: str = "text", level: str = "info", stream: TextIO | None = None
    ) -> None:
        self._form = form
        self._least = LEVELS.index(level)
        self._stream = sys.stderr if stream is None else stream
        self._lock = threading.Lock()
        self._periods: dict[str, tuple[float, int]] = {}  # event -> when it began, how many

    def write(self, level: str, event: str, **fields: Any) -> None:
        """Write an event, unless there were too many like it.

        Parameters
        ----------
        level : str
            One of `LEVELS`.
        event : str
            What happened, in few constant words.
        **fields : Any
            Numbers and names that go with it.
        """
        if LEVELS.index(level) < self._least:
            return
        with self._lock:
            began, number = self._periods.get(event, (-_PERIOD_S, 0))
            now = time.monotonic()
            if now - began >= _PERIOD_S:
                if number > _MAX_PER_PERIOD:
                    fields["num_not_written"] = number - _MAX_PER_PERIOD
                began, number = now, 0
            self._periods[event] = (began, number + 1)
            if number < _MAX_PER_PERIOD:
                self._stream.write(self._line(level, event, fields) + "\n")
                self._stream.flush()

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> str:
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        if self._form == "json":
            record = {"time": when, "level": level, "event": event, **fields}
            return json.dumps(record, default=str)
        rest = " ".join(f"{key}={_text(value)}" for key, value in fields.items())
        return f"{when} {level:7} {event}{' ' if rest else ''}{rest}"


def _text(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not any(mark in text for mark in " =\"'")
    return text if text and plain else json.dumps(text)
