"""The server's log: one line an event, and no flood of the same one."""

from __future__ import annotations

import io
import json
import re

import pytest

from streamrnn_server import event_log
from streamrnn_server.event_log import EventLog


@pytest.fixture
def clock(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr("streamrnn_server.event_log.time.monotonic", lambda: now_s[0])
    return now_s


def test_text_quotes_values_that_are_not_plain_words():
    stream = io.StringIO()
    EventLog(stream=stream).write("warning", "100% refused", a=1, b="two words", c="", d="é\n")
    when, rest = stream.getvalue().split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", when)
    assert rest == 'warning 100% refused a=1 b="two words" c="" d="\\u00e9\\n"\n'


def test_json_is_one_object_a_line():
    stream = io.StringIO()
    EventLog("json", stream=stream).write("error", "cannot write", reason=OSError("full"))
    line = json.loads(stream.getvalue())
    del line["time"]
    assert line == {"level": "error", "event": "cannot write", "reason": "full"}


def test_events_below_the_level_are_not_written():
    stream = io.StringIO()
    log = EventLog(level="warning", stream=stream)
    for level in event_log.LEVELS:
        log.write(level, f"of level {level}")
    assert re.findall("of level (.*)", stream.getvalue()) == ["warning", "error"]


def test_events_beyond_ten_in_ten_seconds_are_only_counted(clock):
    stream = io.StringIO()
    log = EventLog(stream=stream)
    for k in range(25):
        log.write("error", "often", k=k)
    log.write("error", "once")
    clock[0] += 9.9
    log.write("error", "often", k=25)
    clock[0] += 0.1
    log.write("error", "often", k=26)
    lines = [line.split(maxsplit=2)[2] for line in stream.getvalue().splitlines()]
    assert lines == [*(f"often k={k}" for k in range(10)), "once", "often k=26 num_not_written=16"]


def test_events_of_ever_new_names_share_one_limit_and_one_place(clock):
    stream = io.StringIO()
    log = EventLog(stream=stream)
    for k in range(2000):
        log.write("error", f"event {k}")
    assert len(stream.getvalue().splitlines()) == 256 + 10
    clock[0] += 10.0
    log.write("error", "event again")
    assert "num_not_written" not in stream.getvalue()
    (rate,) = log._logger.filters
    assert len(vars(rate)["_periods"]) <= 256 + 1
