"""`streamrnn state` on the files of a stopped server."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.commands.printable import printable, unescaped
from streamrnn.state.record import decode_record, encode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client.protocol import canonical_id
from streamrnn_server.cli import main
from tests.support.program import ROOT, streamrnn
from tests.support.records import EXAMPLE


@pytest.fixture
def directory(tmp_path):
    store = StateStore(tmp_path / "state", max_bytes=2**24)
    integer = b"u" + (7).to_bytes(8, "big")
    store.commit(
        [(STREAMS, key, encode_record(EXAMPLE.renamed(key))) for key in (b"sa", b"s7", integer)], 65
    )
    store.close()
    return tmp_path / "state"


def state(*arguments):
    return main(["state", *map(str, arguments)])


def test_streams_are_listed_and_shown(directory, capsys):
    assert state("list", directory) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["stream", "7", "a", "int:7"]
    assert lines[1][1:] == ["co2", "abababababab", "3", "4", "60"]
    assert state("show", directory, "int:7") == 0
    shown = capsys.readouterr().out
    assert EXAMPLE.fingerprint in shown
    assert "float32-cpu" in shown


def test_a_record_is_moved_through_a_file(directory, tmp_path, capsys):
    assert state("export", directory, "a", tmp_path / "a.srnn") == 0
    assert decode_record((tmp_path / "a.srnn").read_bytes()).stream == b"sa"
    assert state("import", directory, "b", tmp_path / "a.srnn") == 0
    assert state("import", directory, "b", tmp_path / "a.srnn") == 1
    assert "already" in capsys.readouterr().err
    assert state("show", directory, "b") == 0
    assert state("show", directory, "c") == 1
    assert "no stream 'c'" in capsys.readouterr().err


def test_damage_is_found(directory, capsys):
    assert state("verify", directory) == 0
    assert "3 streams, 0 snapshots, 0 tombstones, 0 damaged" in capsys.readouterr().out
    store = StateStore(directory, max_bytes=2**24)
    data = encode_record(EXAMPLE)
    store.commit([(STREAMS, b"sa", data[:-1] + b"\0"), (STREAMS, b"sb", data)], 0)
    store.close()
    assert state("verify", directory) == 1
    out = capsys.readouterr().out
    assert "stream 'a' is damaged: its checksum" in out
    assert "stream 'b' is damaged: it is the record of 'a'" in out
    assert state("list", directory) == 0
    assert "damaged" in capsys.readouterr().out


def test_a_directory_in_use_is_left_alone(directory, capsys):
    store = StateStore(directory, max_bytes=2**24)
    assert state("list", directory) == 1
    assert "another process" in capsys.readouterr().err
    store.close()


NASTY = [
    "a\tb",
    "two\nlines",
    "\x1b[2Jcleared",
    "back\\slash",
    "\u202eright to left",
    "é",
    "日本",
    "int:7",
]


@pytest.fixture
def nasty(tmp_path):
    store = StateStore(tmp_path / "state", max_bytes=2**24)
    keys = [canonical_id(name) for name in NASTY]
    store.commit([(STREAMS, key, encode_record(EXAMPLE.renamed(key))) for key in keys], 65)
    store.close()
    return tmp_path / "state"


def test_ids_are_shown_on_one_line_each_and_can_be_typed_back(nasty, capsys):
    assert state("list", nasty) == 0
    out = capsys.readouterr().out
    assert all(char.isprintable() or char in "\t\n" for char in out)
    shown = [line.split("\t") for line in out.splitlines()[1:]]
    assert {len(line) for line in shown} == {6}
    assert {"two\\nlines", "\\x1b[2Jcleared", "é", "str:int:7"} <= {line[0] for line in shown}
    for name, *_ in shown:
        assert state("show", nasty, name) == 0
        assert name in capsys.readouterr().out
    assert state("show", nasty, "int:7") == 1


@given(st.text())
def test_any_text_is_printable_on_one_line_and_comes_back(text):
    shown = printable(text)
    assert shown.isprintable()
    assert unescaped(shown) == text


def test_an_ascii_terminal_shows_escapes(nasty):
    for action in ("list", "verify"):
        ended = subprocess.run(
            streamrnn("state", action, nasty),
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ended.stdout.isascii()
        assert b"\\u65e5" in ended.stdout or action == "verify"


READ_ONLY = """
import errno, os, sys
def refuse(event, args):  # as read-only media do, to root too
    if event == "open" and str(args[0]).startswith(sys.argv[1]):
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
sys.addaudithook(refuse)
from streamrnn_server.cli import main
sys.exit(main(["state", "list", sys.argv[1]]))
"""


@pytest.mark.parametrize("has_lock", [True, False])
def test_read_only_media_can_be_looked_at(directory, has_lock):
    if not has_lock:
        (directory / "owner.lock").unlink()
    command = [sys.executable, "-c", READ_ONLY, str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == 4


def test_who_can_only_read_sees_that_a_server_runs(directory):
    store = StateStore(directory, max_bytes=2**24)
    command = [sys.executable, "-c", READ_ONLY, str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert "another process" in ended.stderr
    store.close()
