"""What a crash may leave in a state directory is of use to the next start, or goes with it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streamrnn.errors import StartError
from streamrnn.state.journal import (
    JOURNAL_DIRECTORY,
    ChangeKind,
    Entry,
    SegmentHead,
    SegmentWriter,
    encode_entry,
    segment_paths,
)
from streamrnn.state.store import MAX_EPOCH, StateStore
from streamrnn_client import Client
from streamrnn_server.storage.disk_reserve import DiskReserve
from streamrnn_server.storage.replay import SET_ASIDE, UNDER_WAY
from streamrnn_server.testing import serving
from tests.support.models import random_model

MODEL = random_model(np.random.default_rng(3), [("gru", 8)], 3, 2)
HEAD = SegmentHead(7, 3, 1, "abacus", (("m", MODEL.fingerprint),))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def fill(directory):
    """Leave in a journal's directory all that a crash can leave there."""
    directory.mkdir(parents=True)
    (directory / HEAD.file_name).write_bytes(b"")  # before its head was written
    (directory / HEAD._replace(number=2).file_name).write_bytes(b"SRNJ\1")
    SegmentWriter(directory, HEAD._replace(number=3)).close()  # of a shard that is no more
    torn = SegmentWriter(directory, HEAD._replace(number=4))
    torn._write([b"SRNG", bytes(90)])
    torn.close()
    (directory / "reserve").write_bytes(bytes(2**17))
    (directory / UNDER_WAY).write_text('{"streams": ["7361"], "attempts": 1')
    (directory / SET_ASIDE).write_text(json.dumps({"streams": ["7361"]}))


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_a_start_and_a_clean_stop_leave_nothing_of_it(tmp_path, durability):
    directory = tmp_path / JOURNAL_DIRECTORY
    fill(directory)
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "lock.mdb").write_bytes(b"")
    with serving({"m": MODEL}, state_dir=tmp_path, durability=durability) as server:
        assert segment_paths(directory) == []
        if durability == "checkpoint":
            assert names(directory) == []
        with Client(server.endpoints[0]) as client:
            client.stream("a").step(np.zeros(3, np.float32))  # it is set aside no more
    assert names(directory) == []
    assert names(tmp_path) == ["data.mdb", JOURNAL_DIRECTORY, "lock.mdb", "owner.lock"]


def test_what_is_no_segment_is_left_alone(tmp_path):
    directory = tmp_path / JOURNAL_DIRECTORY
    directory.mkdir()
    kept = ["notes.journal", "0000000001-00000-0000000001.journal.bak"]
    for name in kept:
        (directory / name).write_text("not ours")
    with serving({"m": MODEL}, state_dir=tmp_path, durability="always"):
        pass
    assert names(directory) == sorted(kept)


def test_a_segment_of_an_impossible_epoch_is_refused_before_it_is_one(tmp_path):
    directory = tmp_path / JOURNAL_DIRECTORY
    directory.mkdir()
    head = HEAD._replace(epoch=MAX_EPOCH - 1)
    segment = SegmentWriter(directory, head)
    segment.append(0, 1, make_open())
    segment.close()
    with pytest.raises(StartError, match=f"epoch {MAX_EPOCH - 1}"):
        serving({"m": MODEL}, state_dir=tmp_path, durability="always").__enter__()
    StateStore(tmp_path).close()
    assert names(directory) == [head.file_name]


def make_open():
    return encode_entry(Entry(ChangeKind.OPEN, 0, b"sa", 1, 1, 2, b""))


def test_a_reserve_that_a_crash_left_unfinished_is_no_room(tmp_path):
    (tmp_path / "reserve").write_bytes(b"")
    reserve = DiskReserve(tmp_path)
    assert not reserve.release()
    assert names(tmp_path) == []
    reserve.hold()
    assert (tmp_path / "reserve").stat().st_size >= 2**16
    assert DiskReserve(tmp_path).release()
    assert names(tmp_path) == []
