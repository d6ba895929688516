"""What the release before records had version 2 has left is read, and goes on to the bit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import RecordError
from streamrnn.kernels.cpu.program import Program
from streamrnn.state.record import FRESH, NUMBERED, UNNUMBERED, decode_record, encode_record
from streamrnn.state.store import SNAPSHOTS, STREAMS, StateStore, snapshot_key
from streamrnn_client import Client
from streamrnn_client.errors import Conflict
from streamrnn_server.cli import main
from streamrnn_server.testing import serving
from tests.state.make_release_1 import DIRECTORY, INPUTS, MODEL, NUM_STEPS

RECORD = (DIRECTORY / "wide.srnn").read_bytes()
SEVEN = b"u" + (7).to_bytes(8, "big")


@pytest.fixture(scope="module", autouse=True)
def same_arithmetic():
    if decode_record(RECORD).arithmetic != Program(MODEL).arithmetic:
        pytest.skip("the files are of another arithmetic")


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(DIRECTORY, tmp_path / "state")


@pytest.fixture(scope="module")
def expected():
    return Engine(MODEL).steps("s", INPUTS)


def stored(directory):
    store = StateStore(directory, max_bytes=2**24)
    try:
        return dict(store.items(STREAMS)), dict(store.items(SNAPSHOTS))
    finally:
        store.close()


def version_of(record):
    return int.from_bytes(record[4:6], "little")


def test_its_records_are_read(directory):
    streams, snapshots = stored(directory)
    assert {version_of(each) for each in (*streams.values(), *snapshots.values())} == {1}
    records = {key: decode_record(data) for key, data in streams.items()}
    seen = {key: (each.numbering, each.last_seq, each.window) for key, each in records.items()}
    assert seen == {
        b"snarrow": (NUMBERED, NUM_STEPS, 1),
        b"sunnumbered": (UNNUMBERED, 0, 16),
        b"swide": (NUMBERED, NUM_STEPS, 4),
        SEVEN: (FRESH, 0, 2),
    }
    assert {(each.incarnation, each.num_changes) for each in records.values()} == {(0, 0)}
    again = decode_record(encode_record(records[b"swide"]))
    assert again.row == records[b"swide"].row
    assert decode_record(snapshots[snapshot_key(b"swide", b"here")]).row == again.row


def test_every_flipped_bit_of_them_is_refused(directory):
    for bit in range(8 * len(RECORD)):
        changed = bytearray(RECORD)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            decode_record(changed)


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_its_streams_go_on(directory, expected, durability):
    options = {"state_dir": directory, "durability": durability}
    with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
        for name in ("wide", "narrow"):
            stream = client.stream(name)
            assert stream.last_seq == NUM_STEPS
            again = stream.step(INPUTS[NUM_STEPS - 1], seq=NUM_STEPS)
            np.testing.assert_array_equal(again, expected[NUM_STEPS - 1])
            with pytest.raises(Conflict):
                stream.step(INPUTS[0], seq=NUM_STEPS)
            for k in range(NUM_STEPS, 2 * NUM_STEPS):
                np.testing.assert_array_equal(stream.step(INPUTS[k]), expected[k])
        unnumbered = client.stream("unnumbered", numbered=False)
        for k in range(NUM_STEPS, 2 * NUM_STEPS):
            np.testing.assert_array_equal(unnumbered.step(INPUTS[k]), expected[k])
        wide = client.stream("wide")
        wide.rollback("here")
        np.testing.assert_array_equal(wide.step(INPUTS[NUM_STEPS]), expected[NUM_STEPS])
        moved = client.stream("moved", initial_state=RECORD)
        np.testing.assert_array_equal(moved.step(INPUTS[NUM_STEPS]), expected[NUM_STEPS])
        np.testing.assert_array_equal(client.stream(7).step(INPUTS[0]), expected[0])
    streams, snapshots = stored(directory)
    assert {version_of(each) for each in streams.values()} == {2}
    assert {version_of(each) for each in snapshots.values()} == {1}
    incarnations = {key: decode_record(data).incarnation for key, data in streams.items()}
    assert incarnations.pop(b"smoved") == (1 << 32) + 1
    assert set(incarnations.values()) == {0}


def test_commands_read_it(directory, tmp_path, capsys):
    assert main(["state", "verify", str(directory)]) == 0
    assert "4 streams, 1 snapshots, 0 tombstones, 0 damaged" in capsys.readouterr().out
    assert main(["state", "export", str(directory), "wide", str(tmp_path / "w.srnn")]) == 0
    assert version_of((tmp_path / "w.srnn").read_bytes()) == 2


def test_a_stream_that_is_made_anew_has_another_incarnation(tmp_path):
    seen = []
    for _ in range(2):
        options = {"state_dir": tmp_path / "state", "durability": "checkpoint"}
        with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
            for _ in range(2):
                stream = client.stream("a")
                stream.step(INPUTS[0])
                seen.append(decode_record(stream.export()).incarnation)
                stream.close()
                stream = client.stream("a")
    assert seen == sorted(set(seen))
    assert [each >> 32 for each in seen] == [1, 1, 1, 2]  # the third was left open
