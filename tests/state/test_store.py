"""The state directory: commits, locking, errors."""

from __future__ import annotations

import os

import pytest

from streamrnn.errors import StoreError
from streamrnn.state.store import (
    DATA_FILE,
    SNAPSHOTS,
    STREAMS,
    TOMBSTONES,
    StateStore,
    snapshot_key,
)


@pytest.fixture
def store(tmp_path):
    store = StateStore(tmp_path / "state", max_bytes=2**24)
    yield store
    store.close()


def test_what_was_committed_is_there_after_opening_again(tmp_path):
    store = StateStore(tmp_path, max_bytes=2**24)
    store.commit([(STREAMS, b"sa", b"1"), (STREAMS, b"sb", b"2"), (STREAMS, b"sa", None)], 7)
    store.close()
    store = StateStore(tmp_path, max_bytes=2**24)
    assert store.get(STREAMS, b"sa") is None
    assert store.get(STREAMS, b"sb") == b"2"
    assert store.clock_s == 7
    assert list(store.items(STREAMS)) == [(b"sb", b"2")]
    store.close()
    store.close()


def test_a_second_process_is_refused(store):
    with pytest.raises(StoreError, match="another process"):
        StateStore(store.directory)


def test_closing_a_stream_takes_its_snapshots_and_no_others(store):
    keys = [snapshot_key(b"sa", b"x"), snapshot_key(b"sa", b"y"), snapshot_key(b"saa", b"x")]
    store.commit([(SNAPSHOTS, key, b"1") for key in keys], 0)
    store.commit([(STREAMS, b"sa", None)], 0)
    assert [store.get(SNAPSHOTS, key) for key in keys] == [None, None, b"1"]


def test_a_stream_that_is_there_again_has_no_tombstone(store):
    store.commit([(TOMBSTONES, b"sa", b"1"), (TOMBSTONES, b"sb", b"1")], 0)
    store.commit([(STREAMS, b"sa", b"1")], 0)
    assert store.num_items(TOMBSTONES) == 1


def test_a_full_store_says_so_changes_nothing_and_goes_on(tmp_path):
    store = StateStore(tmp_path, max_bytes=2**19)
    store.commit([(STREAMS, b"sa", bytes(1000))], 1)
    with pytest.raises(StoreError, match="largest size"):
        store.commit([(STREAMS, b"s%d" % k, bytes(1000)) for k in range(1000)], 2)
    assert store.num_items(STREAMS) == 1
    assert store.clock_s == 1
    store.commit([(STREAMS, b"sb", b"1")], 3)
    assert store.get(STREAMS, b"sb") == b"1"
    store.close()


def test_a_truncated_file_is_refused(tmp_path):
    store = StateStore(tmp_path, max_bytes=2**24)
    store.commit([(STREAMS, b"s%d" % k, bytes(1000)) for k in range(100)], 1)
    store.close()
    path = tmp_path / DATA_FILE
    whole = path.read_bytes()
    for length in (len(whole) - 4096, len(whole) // 2, 8192, 5000, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"truncated|cannot open"):
            StateStore(tmp_path, max_bytes=2**24)
    path.write_bytes(whole)
    StateStore(tmp_path, max_bytes=2**24).close()


def test_an_invalid_state_directory_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no state directory"):
        StateStore(tmp_path, read_only=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot use"):
        StateStore(tmp_path / "file")
    (tmp_path / DATA_FILE).write_bytes(b"something else" * 1000)
    with pytest.raises(StoreError, match="cannot open"):
        StateStore(tmp_path)


def modes(directory):
    return {path.name: path.stat().st_mode & 0o777 for path in [directory, *directory.iterdir()]}


def test_nobody_else_can_read_a_state_directory(tmp_path):
    directory = tmp_path / "state"
    private = {"state": 0o700, "data.mdb": 0o600, "lock.mdb": 0o600, "owner.lock": 0o600}
    before = os.umask(0)
    try:
        StateStore(directory).close()
        assert modes(directory) == private
        for path in [directory, *directory.iterdir()]:  # as it was made before
            path.chmod(0o755)
        StateStore(directory).close()
    finally:
        os.umask(before)
    assert modes(directory) == private


def test_a_place_that_holds_other_things_too_stays_open_and_the_state_does_not(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "other").write_text("")
    (tmp_path / "other").chmod(0o644)
    StateStore(tmp_path).close()
    assert modes(tmp_path) == {
        tmp_path.name: 0o755,
        "other": 0o644,
        "data.mdb": 0o600,
        "lock.mdb": 0o600,
        "owner.lock": 0o600,
    }


@pytest.mark.parametrize("read_only", [False, True])
def test_an_empty_file_is_refused_and_stays_as_it_is(tmp_path, read_only):
    StateStore(tmp_path).close()
    path = tmp_path / DATA_FILE
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="has 0 bytes: it was truncated"):
        StateStore(tmp_path, read_only=read_only)
    assert path.stat().st_size == 0
    path.unlink()
    StateStore(tmp_path).close()


def test_a_crash_while_the_file_is_made_leaves_none(tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, crash)
            with pytest.raises(Crash):
                StateStore(tmp_path)
        assert not (tmp_path / DATA_FILE).exists()
    store = StateStore(tmp_path)
    store.commit([(STREAMS, b"sa", b"1")], 1)
    store.close()
    assert not (tmp_path / ".new").exists()
