"""One line an event on stderr, as text or JSON; never an input value, never a flood."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

__all__ = ["FORMATS", "LEVELS", "EventLog"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_MAX_PER_PERIOD = 10
_PERIOD_S = 10.0
_MAX_EVENTS = 256  # told apart; all others share one limit
_OTHERS = ""


class EventLog:
    """Writes events to a stream, the same one at most ten times in ten seconds.

    Parameters
    ----------
    form : str
        One of `FORMATS`.
    level : str
        The least of `LEVELS` that is written.
    stream : text file, optional
        Where to; stderr by default.

    Attributes
    ----------
    num_faults : int
        How many exceptions there were that nobody expected.
    """

    def __init__(
        self, form: str = "text", level: str = "info", stream: TextIO | None = None
    ) -> None:
        self.num_faults = 0
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
        # Not from `getLogger`: two servers of one process do not share a log.
        self._logger = logging.Logger("streamrnn_server", level.upper())
        self._logger.addFilter(_RateFilter())
        self._logger.addHandler(handler)

    def write(self, level: str, event: str, **fields: Any) -> None:
        """Write an event, named by a few constant words, with the numbers that go with it."""
        number = logging.getLevelNamesMapping()[level.upper()]
        self._logger.log(number, event, extra={"fields": fields})

    def write_fault(self, event: str, error: BaseException, **fields: Any) -> None:
        """Write that something failed through a fault of ours, and where.

        Not the exception's text: it may hold what a client has sent.
        """
        self.num_faults += 1
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(
            f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in place
        )
        self.write("error", event, error=type(error).__name__, where=where, **fields)


class _RateFilter(logging.Filter):
    """Passes an event a few times a period; the next period says how many were not written."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._periods: dict[str, tuple[float, int]] = {}  # event -> when it began, how many

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now = time.monotonic()
            event = self._key(record.getMessage(), now)
            began, number = self._periods.get(event, (-_PERIOD_S, 0))
            if now - began >= _PERIOD_S:
                if number > _MAX_PER_PERIOD:
                    _fields(record)["num_not_written"] = number - _MAX_PER_PERIOD
                began, number = now, 0
            self._periods[event] = (began, number + 1)
        return number < _MAX_PER_PERIOD

    def _key(self, event: str, now_s: float) -> str:
        """Return what an event is counted under, in a table that does not grow."""
        periods = self._periods
        if event in periods or len(periods) < _MAX_EVENTS:
            return event
        over = [
            key
            for key, (began, number) in periods.items()
            if now_s - began >= _PERIOD_S and number <= _MAX_PER_PERIOD
        ]
        for key in over:
            del periods[key]
        return event if over else _OTHERS


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        rest = "".join(f" {key}={_text(value)}" for key, value in _fields(record).items())
        return f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}{rest}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower()}
        return json.dumps(head | {"event": record.getMessage()} | _fields(record), default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = record.__dict__["fields"]
    return fields


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _text(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not any(mark in text for mark in " =\"'")
    return text if text and plain else json.dumps(text)
