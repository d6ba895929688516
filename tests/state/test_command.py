"""`streamrnn state` on the files of a stopped server."""

from __future__ import annotations

import pytest

from streamrnn.state.record import decode_record, encode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_server.cli import main
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
