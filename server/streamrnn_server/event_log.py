"""One line an event on stderr, as text or JSON; never an input value, never a flood.

Who writes an event must not suffer from it: a line that cannot be written at once, because the
reader of stderr has gone or does not read, or its disk is full, is dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

__all__ = ["FORMATS", "LEVELS", "EventLog", "UnbufferedFile"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_MAX_PER_PERIOD = 10
_PERIOD_S = 10.0
_MAX_EVENTS = 256  # told apart; all others share one limit
_OTHERS = ""
_STDERR = 2
_MAX_WRITE_BYTES = 4096  # a pipe that can be written to takes so much without waiting (PIPE_BUF)


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


class UnbufferedFile:
    """A file that is written to without waiting, nothing of which stays behind in a buffer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_torn = False  # the last line has no end

    def write(self, text: str) -> None:
        """Write a line.

        Raises
        ------
        OSError
            If it could not be written, or not all of it.
        """
        left = memoryview(b"\n" * self._is_torn + text.encode(errors="backslashreplace"))
        has_begun = False
        try:
            while left:
                if not self._takes_more():
                    raise BlockingIOError("its reader does not read")
                left = left[os.write(self._descriptor, left[:_MAX_WRITE_BYTES]) :]
                has_begun = True
            self._is_torn = False
        except OSError:
            self._is_torn |= has_begun
            raise

    def _takes_more(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(0))


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
        self._handler = handler = _Handler(stream or UnbufferedFile(_STDERR))
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

    @property
    def num_dropped(self) -> int:
        """How many lines could not be written."""
        return self._handler.num_dropped

    def say_dropped(self) -> None:
        """If lines have been dropped since it was said last, try to say how many."""
        self._handler.say_dropped()


class _Handler(logging.Handler):
    """Writes lines to a file that may fail at any time."""

    def __init__(self, file: _Writable) -> None:
        super().__init__()
        self._file = file
        self.num_dropped = 0
        self._num_told = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write an event, after what is to be said about those before; called with the lock."""
        try:
            line = self.format(record) + "\n"
            self._say_dropped()
            self._file.write(line)
        except Exception:  # whatever it is, who writes the event has other things to do
            self.num_dropped += 1

    def say_dropped(self) -> None:
        """Say how many lines have been dropped since the last time; if it fails, next time."""
        self.acquire()
        try:
            with contextlib.suppress(Exception):
                self._say_dropped()
        finally:
            self.release()

    def _say_dropped(self) -> None:
        num_new = self.num_dropped - self._num_told
        if num_new:
            event = "lines of this log could not be written"
            record = logging.makeLogRecord({"levelname": "WARNING", "msg": event})
            record.__dict__["fields"] = {"num_dropped": num_new}
            self._file.write(self.format(record) + "\n")
            self._num_told += num_new


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
