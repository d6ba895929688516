"""Backups of a state directory that nobody uses, and what is restored of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamrnn.errors import StateError
from streamrnn.kernels.arithmetic import cpu_arithmetic
from streamrnn.state import backup as backups
from streamrnn.state.backup import ABOUT_FILE, BackupProcess, read_about, restore_backup
from streamrnn.state.record import encode_record
from streamrnn.state.store import DATA_FILE, SNAPSHOTS, STREAMS, StateStore, snapshot_key
from streamrnn_server.cli import main
from tests.support.records import EXAMPLE

RECORD = dataclasses.replace(EXAMPLE, arithmetic=cpu_arithmetic("float32", False))
KEYS = [b"s%d" % k for k in range(40)]


def fill(directory, record=RECORD):
    store = StateStore(directory, max_bytes=2**24)
    changes = [(STREAMS, key, encode_record(record.renamed(key))) for key in KEYS]
    name = snapshot_key(KEYS[0], b"here")
    store.commit([*changes, (SNAPSHOTS, name, encode_record(record.renamed(KEYS[0])))], 65)
    store.close()
    return directory


def content(directory):
    store = StateStore(directory, max_bytes=2**24)
    try:
        tables = {table: dict(store.items(table)) for table in (STREAMS, SNAPSHOTS)}
        return tables, store.clock_s, store.epoch
    finally:
        store.close()


@pytest.fixture
def directory(tmp_path):
    return fill(tmp_path / "state")


@pytest.fixture(scope="module")
def backup(tmp_path_factory):
    path = tmp_path_factory.mktemp("backup")
    BackupProcess(fill(path / "state"), path / "b", "1.0").wait()
    return path / "b"


def state(*arguments):
    return main(["state", *map(str, arguments)])


def test_a_backup_restores_to_the_same_streams(directory, tmp_path, capsys):
    assert state("backup", directory, tmp_path / "b") == 0
    assert "40 streams and 1 snapshot copied to" in capsys.readouterr().out
    assert state("restore", tmp_path / "b", tmp_path / "new" / "state") == 0
    assert "40 streams and 1 snapshot restored to" in capsys.readouterr().out
    assert content(tmp_path / "new" / "state") == content(directory)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [ABOUT_FILE, DATA_FILE]
    assert list(tmp_path.rglob("*.part")) == []
    assert (tmp_path / "new" / "state" / DATA_FILE).stat().st_mode & 0o077 == 0


def test_what_is_there_is_not_written_over(directory, backup, tmp_path, capsys):
    before = content(directory)
    assert state("restore", backup, directory) == 1
    assert "is not empty" in capsys.readouterr().err
    assert content(directory) == before
    (tmp_path / "b").mkdir()
    assert state("backup", directory, tmp_path / "b") == 1
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert state("restore", backup, tmp_path / "empty") == 0


def test_a_directory_in_use_is_not_copied_behind_its_server(directory, tmp_path, capsys):
    store = StateStore(directory, max_bytes=2**24)
    assert state("backup", directory, tmp_path / "b") == 1
    assert "another process is using" in capsys.readouterr().err
    store.close()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "arithmetic", ["cpu-z80-float32-2", cpu_arithmetic("float32", False) + "0"]
)
def test_another_arithmetic_is_refused_by_name(tmp_path, arithmetic):
    fill(tmp_path / "state", dataclasses.replace(RECORD, arithmetic=arithmetic))
    BackupProcess(tmp_path / "state", tmp_path / "b", "1.0").wait()
    with pytest.raises(StateError, match=f"arithmetic {arithmetic}, and this release computes"):
        restore_backup(tmp_path / "b", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "state"]


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_changed_byte_of_a_backup_is_refused(backup, tmp_path, data):
    changed = tmp_path / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(backup, changed)
    path = changed / data.draw(st.sampled_from([ABOUT_FILE, DATA_FILE]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    is_truncated = data.draw(st.booleans())
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content) - 1))] if is_truncated else content
    )
    with pytest.raises(StateError, match="damaged"):
        restore_backup(changed, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / ".new.part").exists()


def test_a_backup_that_lacks_a_file_is_refused(backup, tmp_path):
    for name in (DATA_FILE, ABOUT_FILE):
        shutil.copytree(backup, tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(StateError, match=f"{name}.*No such file"):
            restore_backup(tmp_path / name, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_backup_names_no_file_outside_of_it(backup, tmp_path):
    about = read_about(backup)
    about["files"]["../state"] = about["files"][DATA_FILE]
    about["sha256"] = backups._digest_of(about)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ABOUT_FILE).write_text(json.dumps(about))
    with pytest.raises(StateError, match="names a file that no backup has"):
        restore_backup(tmp_path / "b", tmp_path / "new")


def test_damage_in_a_directory_is_told_and_all_else_is_copied(directory, tmp_path, capsys):
    store = StateStore(directory, max_bytes=2**24)
    store.commit([(STREAMS, KEYS[3], encode_record(RECORD.renamed(KEYS[3]))[:-1] + b"\0")], 65)
    store.close()
    assert state("backup", directory, tmp_path / "b") == 1
    told = capsys.readouterr()
    assert "stream '3' is damaged" in told.err
    assert "40 streams" in told.out
    assert state("restore", tmp_path / "b", tmp_path / "new") == 1
    assert content(tmp_path / "new") == content(directory)


def test_a_backup_that_does_not_end_leaves_nothing(directory, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(backups, "_survey", stop)
        with pytest.raises(KeyboardInterrupt):
            backups._make(directory, tmp_path / "b", "1.0", -1)
    assert list(tmp_path.iterdir()) == [directory]
    process = BackupProcess(directory, tmp_path / "b", "1.0")
    process._child.send_signal(signal.SIGKILL)
    with pytest.raises(StateError, match="ended by SIGKILL"):
        process.wait()
    assert list(tmp_path.iterdir()) == [directory]


def test_what_a_crash_has_left_is_done_anew(directory, tmp_path):
    for name in (".b.part", ".new.part"):
        (tmp_path / name / "journal").mkdir(parents=True)
        (tmp_path / name / DATA_FILE).write_bytes(b"half of it")
    BackupProcess(directory, tmp_path / "b", "1.0").wait()
    restore_backup(tmp_path / "b", tmp_path / "new")
    assert content(tmp_path / "new") == content(directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "new", "state"]


def test_a_file_that_is_no_state_is_told(tmp_path, capsys):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / DATA_FILE).write_bytes(b"x" * 8192)
    assert state("backup", tmp_path / "state", tmp_path / "b") == 1
    assert "cannot open the state" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
