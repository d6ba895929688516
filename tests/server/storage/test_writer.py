"""The writer thread's commits for others, without shards."""

from __future__ import annotations

import io

import pytest

from streamrnn.state.store import STREAMS, StateStore
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.checkpoint.packing import Templates
from streamrnn_server.storage.expiry import Expiry
from streamrnn_server.storage.writer import CheckpointWriter


@pytest.fixture
def store(tmp_path):
    store = StateStore(tmp_path, max_bytes=2**24)
    yield store
    store.close()


@pytest.fixture
def writer(store):
    log = EventLog(stream=io.StringIO())
    writer = CheckpointWriter(store, Templates([], 1), [], Expiry(0, 0), log)
    yield writer
    writer.stop()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ((STREAMS, b"k" * 1000, b"record"), "MDB_BAD_VALSIZE"),  # as the disk would say it
        ((STREAMS, "no bytes", b"record"), "a fault of the server's own"),
    ],
)
def test_one_that_cannot_be_written_keeps_no_other_from_the_disk(store, writer, bad, why):
    asked = [
        writer.commit_too(changes)
        for changes in (
            [(STREAMS, b"a", b"of a")],
            [(STREAMS, b"x", b"whole or not"), bad],
            [(STREAMS, b"b", b"of b")],
        )
    ]
    writer.turn()
    assert all(each.is_done for each in asked)
    assert [each.has_succeeded for each in asked] == [True, False, True]
    assert why in str(asked[1].error)
    assert dict(store.items(STREAMS)) == {b"a": b"of a", b"b": b"of b"}
    assert writer.read_only is None
