"""Records with a right checksum that no server wrote, and numbers at the end of their range."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.state.record import (
    NUMBERED,
    UNNUMBERED,
    RecordHead,
    StreamRecord,
    decode_record,
    encode_record,
)
from streamrnn.state.store import SNAPSHOTS, STREAMS, Change, StateStore, snapshot_key
from streamrnn_client.protocol import MAX_SEQ, canonical_id
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.peer import Peer, served, step

NUM_INPUTS, NUM_OUTPUTS = 3, 2
Y_BYTES = 4 * NUM_OUTPUTS
WINDOW = 8


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(7)
    return {"m": random_model(rng, [("lstm", 24)], NUM_INPUTS, NUM_OUTPUTS)}


@pytest.fixture
def peer(models):
    with serving(models) as server:
        peer = Peer(server.endpoints[0])
        yield peer
        peer.socket.close()


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, NUM_INPUTS)).astype(np.float32)


def exported(peer, x, num_steps=10) -> StreamRecord:
    peer.ok("open", "a", "m", WINDOW)
    for k in range(num_steps):
        step(peer, "a", k + 1, x[k])
    return decode_record(peer.ok("export", "a"))


def with_field(record: StreamRecord, name: str, value: int) -> bytes:
    """Return a record with one field of its head changed, and the right checksum for that."""
    data = bytearray(encode_record(record))
    np.frombuffer(data, RecordHead.dtype, 1)[name] = value
    return bytes(data[:-4]) + zlib.crc32(data[:-4]).to_bytes(4, "little")


def ringed(record: StreamRecord, last_seq: int, y_bytes: int = Y_BYTES) -> StreamRecord:
    """Return a record as it is after a step of some number."""
    num_ring = min(WINDOW, last_seq)
    return dataclasses.replace(
        record,
        numbering=NUMBERED,
        last_seq=last_seq,
        digests=np.zeros(num_ring, np.int64),
        outputs=np.zeros((num_ring, y_bytes), np.uint8),
    )


def hostile(good: StreamRecord) -> dict[str, bytes]:
    """Return records with a right checksum that no stream has."""
    narrow = dataclasses.replace(good, window=1, digests=good.digests[:1], outputs=good.outputs[:1])
    return {
        # What a server that trusted it would copy lies beyond the record.
        "no outputs of a ring": encode_record(ringed(good, 10, 0)),
        "shorter outputs": encode_record(ringed(good, 10, 4)),
        "longer outputs": encode_record(ringed(good, 10, 12)),
        "outputs with window 1": encode_record(
            dataclasses.replace(narrow, outputs=good.outputs[:1])
        ),
        "odd outputs": encode_record(ringed(good, 10, 6)),
        "odd inputs": encode_record(dataclasses.replace(good, inputs=bytes(4 * NUM_INPUTS + 4))),
        "shorter row": encode_record(dataclasses.replace(good, row=good.row[:-64])),
        "longer row": encode_record(dataclasses.replace(good, row=good.row + bytes(64))),
        "a number beyond the last": encode_record(ringed(good, MAX_SEQ + 1)),
        "the largest int64": encode_record(ringed(good, 2**63 - 1)),
        "unnumbered with a number": encode_record(dataclasses.replace(good, numbering=UNNUMBERED)),
        **{
            f"{name} {value}": with_field(good, name, value)
            for name, values in {
                "numbering": (0, 2, 3, 255),
                "window_log2": (0, 2, 4, 9, 63, 64, 255),
                "num_bytes": (0, 80, 2**62, -1),
                "last_seq": (0, 7, -1, -(2**63)),
                "clock_s": (-1, -(2**63)),
                "row_bytes": (0, 64, -64, 2**31 - 64, -(2**31)),
                "y_bytes": (0, 4, -8, 2**31 - 8),
                "num_ring": (0, 1, 7, 9, 256, -1, -(2**31), 2**31 - 1),
                "id_bytes": (0, 1, 255),
                "model_bytes": (0, 255),
                "arithmetic_bytes": (0, 255),
                "owner_bytes": (9, 255),
                "version": (0, 1, 3, -1),
                "incarnation": (-1, -(2**63)),
                "num_changes": (-1, -(2**63)),
                "num_outputs": (0, 7, 9, -1, 2**31 - 1),
                "inputs_bytes": (1, 4, -4, 2**31 - 4, -(2**31)),
            }.items()
            for value in values
        },
    }


def test_a_record_that_no_stream_has_is_refused_on_every_way_in(peer, x):
    good = exported(peer, x)
    for name, data in hostile(good).items():
        assert peer.error("import", "b", data, None)[0] == "damaged", name
        assert peer.error("open", "b", "m", 4, data)[0] == "damaged", name
    assert peer.error("export", "b")[0] == "unknown"
    assert peer.ok("import", "b", encode_record(good), None) == [10, 0, WINDOW]


def test_a_record_that_no_stream_has_is_refused_from_disk(models, tmp_path, x):
    with served(models, tmp_path) as peer:
        good = exported(peer, x)
        peer.ok("sync", "a")
    expected = Engine(models["m"]).steps("s", x[:11])
    bad = {f"b{k}": name for k, name in enumerate(hostile(good))}
    store = StateStore(tmp_path)
    changes: list[Change] = []
    for stream, name in bad.items():
        key = canonical_id(stream)
        changes.append((STREAMS, key, hostile(good.renamed(key))[name]))
        changes.append((SNAPSHOTS, snapshot_key(b"sa", stream.encode()), hostile(good)[name]))
    store.commit(changes, store.clock_s)
    store.close()
    with served(models, tmp_path) as peer:
        for stream, name in bad.items():
            assert peer.error("step", stream, 11, x[10].tobytes())[0] == "damaged", name
            assert peer.error("rollback", "a", 11, stream)[0] == "damaged", name
            assert peer.error("fork", stream, "other")[0] == "damaged", name
        np.testing.assert_array_equal(step(peer, "a", 11, x[10])[2], expected[10])
        assert peer.ok("stats")["num_records_refused"] >= len(bad)


def test_numbers_end_at_the_last_and_never_wrap(peer, x):
    good = exported(peer, x)
    last = MAX_SEQ - 2
    peer.ok("import", "s", encode_record(ringed(good, last)), None)
    assert peer.ok("step", "s", last + 1, x[10].tobytes())[0] == MAX_SEQ - 1
    code, detail = peer.error("step", "s", MAX_SEQ, x[11:13].tobytes())
    assert code == "bad_params"
    wanted = {"stream": "s", "first_seq": MAX_SEQ, "num_steps": 2, "max": MAX_SEQ}
    assert detail == wanted
    # A chunk that begins with steps that were made before ends there too.
    assert peer.error("step", "s", MAX_SEQ - 1, x[10:13].tobytes())[0] == "bad_params"
    assert peer.ok("step", "s", MAX_SEQ, x[11].tobytes())[0] == MAX_SEQ
    assert peer.error("step", "s", MAX_SEQ + 1, x[12].tobytes())[0] == "bad_params"
    assert peer.error("step", "s", MAX_SEQ + 1, x[12].tolist())[0] == "bad_params"
    assert peer.error("reset", "s", MAX_SEQ + 1)[0] == "bad_params"
    [[error, result]] = peer.ok("batch", ["s"], [MAX_SEQ + 1], x[12].tobytes())
    assert (error[0], result) == ("bad_params", None)
    for seq in (MAX_SEQ + 2, 2**63 - 1):
        assert peer.error("step", "s", seq, x[12].tobytes())[0] == "gap"
        assert peer.error("reset", "s", seq)[0] == "gap"
    record = decode_record(peer.ok("export", "s"))
    assert (record.last_seq, len(record.digests)) == (MAX_SEQ, WINDOW)
    assert peer.ok("fork", "s", "t") == [MAX_SEQ, 0, WINDOW]
    # The way on that the error names.
    assert peer.ok("open", "u", "m", WINDOW, encode_record(record)) == [0, 0, WINDOW]
    assert step(peer, "u", 1, x[12])[0] == 1


def test_a_rollback_takes_no_number_beyond_the_last(models, tmp_path, x):
    with served(models, tmp_path) as peer:
        good = exported(peer, x)
        peer.ok("import", "s", encode_record(ringed(good, MAX_SEQ - 1)), None)
        peer.ok("snapshot", "s", "now")
        assert peer.ok("rollback", "s", MAX_SEQ, "now")[0] == MAX_SEQ
        for seq in (MAX_SEQ + 1, 2**63 - 1, 2**63):
            assert peer.error("rollback", "s", seq, "now")[0] == "bad_params"
    with served(models, tmp_path) as peer:
        assert peer.ok("open", "s", "m", WINDOW)[0] == MAX_SEQ
        assert peer.error("step", "s", MAX_SEQ + 1, x[0].tobytes())[0] == "bad_params"
