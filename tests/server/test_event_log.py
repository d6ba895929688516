"""The server's log: one line an event, and no flood of the same one."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_server import event_log
from streamrnn_server.event_log import EventLog, UnbufferedFile


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


class Failing(io.StringIO):
    """A file that fails when it is told to."""

    is_broken = False

    def write(self, text):
        if self.is_broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_line_that_cannot_be_written_is_dropped_counted_and_said_once():
    stream = Failing()
    log = EventLog(stream=stream)
    log.write("info", "before")
    stream.is_broken = True
    for k in range(3):
        log.write("error", f"lost {k}")
    log.say_dropped()
    stream.is_broken = False
    log.say_dropped()
    log.say_dropped()
    log.write("info", "after")
    lines = [line.split(maxsplit=1)[1] for line in stream.getvalue().splitlines()]
    told = "warning lines of this log could not be written num_dropped=3"
    assert lines == ["info    before", told, "info    after"]
    assert log.num_dropped == 3


def test_an_event_that_cannot_be_worded_hurts_nobody():
    class Broken:
        def __str__(self):
            raise RuntimeError

    log = EventLog(stream=io.StringIO())
    log.write("info", "event", value=Broken())
    assert log.num_dropped == 1


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def test_a_reader_that_does_not_read_delays_nobody_and_gets_whole_lines(pipe):
    reader, writer = pipe
    file = UnbufferedFile(writer)
    line = "x" * 5000 + "\n"
    num_written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            file.write(line)
            num_written += 1
    got = os.read(reader, 10_000_000)
    file.write("end\n")
    *whole, torn = got.decode().split("\n")
    assert whole == [line.strip()] * num_written
    assert set(torn) <= {"x"}
    # What was torn has an end, so that the next line is one.
    assert os.read(reader, 100) == b"\n" * bool(torn) + b"end\n"


@given(st.lists(st.text(max_size=3).map(lambda text: text * 3000), max_size=60), st.data())
def test_every_line_that_is_said_to_be_written_is_read_whole(lines, data):
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        file, written, got = UnbufferedFile(writer), [], b""
        for line in lines:
            text = line.replace("\n", "") + "\n"
            with contextlib.suppress(BlockingIOError):
                file.write(text)
                written.append(text.strip("\n").encode(errors="backslashreplace"))
            if data.draw(st.booleans()):
                with contextlib.suppress(BlockingIOError):
                    got += os.read(reader, 2**20)
        with contextlib.suppress(BlockingIOError):
            got += os.read(reader, 2**20)
    finally:
        os.close(reader)
        os.close(writer)
    remaining = iter(got.split(b"\n"))
    assert all(line in remaining for line in written)  # in their order


def test_a_reader_that_has_gone_is_an_error(pipe):
    reader, writer = pipe
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        UnbufferedFile(writer).write("line\n")


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
