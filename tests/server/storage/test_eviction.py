"""Eviction, expiry and full disks."""

from __future__ import annotations

import dataclasses

import lmdb
import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import RecordError, StartError, StoreError
from streamrnn.state.record import encode_record
from streamrnn.state.store import STREAMS, TOMBSTONES, StateStore
from streamrnn_server.config import ServerConfig
from streamrnn_server.storage.expiry import Expiry, read_tombstone
from tests.support.models import random_model
from tests.support.peer import served, step, step_or_busy, until
from tests.support.records import EXAMPLE

NUM_INPUTS = 3
MAX_TEST_S = 300


@pytest.fixture(scope="module")
def models():
    return {"m": random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS, 2)}


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, NUM_INPUTS)).astype(np.float32)


@pytest.fixture
def expected(models, x):
    return Engine(models["m"]).steps("s", x)


def test_idle_streams_are_spilled_and_come_back(models, tmp_path, x, expected):
    with served(models, tmp_path, idle_limit_s=1, checkpoint_interval_s=0.05) as peer:
        peer.ok("open", ["a", "b"], None, 8)
        step(peer, "a", 1, x[0])
        stats: dict[str, int] = {}

        def are_gone():
            stats.update(
                peer.call("stats")[1] or {"num_streams": -1}
            )  # or busy, if asked too often
            return stats["num_streams"] == 0

        until(are_gone)
        assert stats["num_spilled_idle"] == 2
        assert stats["num_evicted_idle"] == 0
        np.testing.assert_array_equal(step(peer, "a", 2, x[1])[2], expected[1])
        assert peer.ok("stats")["num_restored"] == 1


def test_more_streams_than_max_streams_are_evicted_in_turn(models, tmp_path, x, expected):
    names = [f"s{k}" for k in range(40)]
    with served(models, tmp_path, max_streams=8, checkpoint_interval_s=0.01) as peer:
        for seq in (1, 2, 3):
            for name in names:
                if seq == 1:
                    until(lambda name=name: peer.call("open", name, None, 4)[0] is None)
                until(lambda name=name, seq=seq: step_or_busy(peer, name, seq, x, expected))
        stats = peer.ok("stats")
        assert stats["num_streams"] <= 8
        assert stats["num_spilled_for_room"] > 32


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_on_a_full_disk_serving_goes_on_and_says_so(models, tmp_path, x, expected, durability):
    options = {"checkpoint_interval_s": 0.02, "max_state_bytes": 2**18, "durability": durability}
    with served(models, tmp_path, **options) as peer:
        peer.ok("open", "a", None, 4)
        step(peer, "a", 1, x[0])
        peer.ok("sync", "a")
        # Far more than there is room for, in one commit with whatever else changes.
        peer.send("open", list(range(4096)), None, 4)
        peer.receive()
        until(lambda: (peer.call("hello", {})[1] or {}).get("read_only"))
        stats = peer.ok("stats")
        assert "largest size" in stats["read_only"]
        assert stats["num_checkpoints_failed"] > 0
        is_journaled = durability == "always"
        durable = peer.ok("open", "a", None, 4)[1]
        for k in range(1, 20):
            last, told, y = step(peer, "a", k + 1, x[k])
            assert (last, told) == (k + 1, k + 1 if is_journaled else durable)
            np.testing.assert_array_equal(y, expected[k])
        assert peer.ok("sync", "a") == durable
        assert peer.ok("sync", None) is False
        code, detail = peer.error("snapshot", "a", "s")
        assert (code, "largest size" in detail["reason"]) == ("read_only", True)
        assert peer.ok("stats")["num_streams_on_disk"] < 4097  # how many fitted is chance
    with served(models, tmp_path) as peer:  # a larger limit: what was committed is there
        last = peer.ok("open", "a", None, 4)[0]
        assert last >= (20 if is_journaled else durable)
        np.testing.assert_array_equal(step(peer, "a", last + 1, x[last])[2], expected[last])


class Clock:
    """The time, as a test sets it."""

    def __init__(self, monkeypatch):
        self.now_s = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)


def test_streams_expire_by_the_directory_s_own_clock(models, tmp_path, x, monkeypatch):
    with served(models, tmp_path) as peer:
        peer.ok("open", ["a", "b"], None, 8)
        step(peer, "a", 1, x[0])
    store = StateStore(tmp_path)
    monkeypatch.setattr("time.time", lambda: 4e9)  # a wall clock that jumps changes nothing
    clock = Clock(monkeypatch)
    expiry = Expiry(store.clock_s, 100)
    clock.now_s += 100
    assert expiry.due(store) == []
    clock.now_s += 1
    changes = expiry.due(store)
    assert len(changes) == 4
    store.commit(changes, expiry.now_s())
    assert store.num_items(STREAMS) == 0
    assert store.num_items(TOMBSTONES) == 2
    assert expiry.due(store) == []
    store.close()
    monkeypatch.undo()
    with served(models, tmp_path) as peer:
        code, detail = peer.error("step", "a", 2, x[1].tobytes())
        assert (code, detail["stream"]) == ("expired", "a")
        assert 101 <= detail["idle_s"] <= 101 + MAX_TEST_S
        assert peer.ok("open", "a", None, 8) == [0, 0, 8]
        assert step(peer, "a", 1, x[0])[0] == 1
        peer.ok("sync", "a")
        assert peer.error("step", "b", 1, x[1].tobytes())[0] == "expired"
    store = StateStore(tmp_path)
    assert store.num_items(TOMBSTONES) == 1
    clock = Clock(monkeypatch)
    expiry = Expiry(store.clock_s, 100)
    for passed_s, num_tombstones in ((900, 2), (150, 1)):  # "b" is 101 s older, or some more
        clock.now_s += passed_s
        store.commit(expiry.due(store), expiry.now_s())
        assert store.num_items(TOMBSTONES) == num_tombstones
    assert store.get(TOMBSTONES, b"sb") is None
    store.close()


def test_what_is_damaged_does_not_expire_by_a_clock_that_cannot_be_believed(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    store = StateStore(tmp_path)
    good = dataclasses.replace(EXAMPLE, stream=b"sgood", clock_s=0)
    torn = bytearray(encode_record(dataclasses.replace(good, stream=b"storn", clock_s=500)))
    torn[24:32] = (-(2**63)).to_bytes(8, "little", signed=True)  # its clock
    buried = [(TOMBSTONES, b"s%d" % k, data) for k, data in enumerate((b"\xff 1", b"", b"x eve"))]
    records = {b"sgood": encode_record(good), b"storn": bytes(torn), b"sshort": b"", b"scut": b"x"}
    changes = [*((STREAMS, key, record) for key, record in records.items()), *buried]
    store.commit(changes, 500)
    expiry = Expiry(store.clock_s, 100)
    clock.now_s += 10_000
    assert expiry.due(store) == [(STREAMS, b"sgood", None), (TOMBSTONES, b"sgood", b"0 eve")]
    for _, _, data in buried:
        with pytest.raises(RecordError, match="tombstone is damaged"):
            read_tombstone(data)
    store.close()


def test_all_streams_are_looked_at_in_turn_some_at_a_time(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr("streamrnn_server.storage.expiry._MAX_LOOKED_AT", 2)
    store = StateStore(tmp_path)
    keys = [b"s%d" % k for k in range(5)]
    store.commit(
        [
            (STREAMS, key, encode_record(dataclasses.replace(EXAMPLE, stream=key, clock_s=clock_s)))
            for key, clock_s in zip(keys, (500, 500, 500, 0, 0), strict=True)
        ],
        500,
    )
    expiry = Expiry(store.clock_s, 100)
    found = [[key for table, key, _ in expiry.due(store) if table == STREAMS] for _ in range(3)]
    assert found == [[], [b"s3"], [b"s4"]]
    clock.now_s += 1000
    assert [key for table, key, _ in expiry.due(store) if table == STREAMS] == keys[:2]
    store.close()


@pytest.mark.parametrize("clock_s", [b"-1", b"9007199254740992", b"9" * 5000, b"soon", b""])
def test_a_clock_that_no_server_wrote_is_refused(tmp_path, clock_s):
    StateStore(tmp_path).close()
    with lmdb.open(str(tmp_path), max_dbs=4) as env, env.begin(write=True) as transaction:
        transaction.put(b"clock_s", clock_s, db=env.open_db(b"meta", transaction))
    with pytest.raises(StoreError):
        StateStore(tmp_path)


def test_the_clock_goes_on_where_it_was(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    expiry = Expiry(50, 10)
    assert expiry.now_s() == 50
    clock.now_s += 7
    assert expiry.now_s() == 57
    assert not expiry.has_expired(47)
    assert expiry.has_expired(46)
    assert not Expiry(50, 0).has_expired(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"durability": "sometimes"}, "--durability"),
        ({"durability": "always"}, "--state-dir"),
        ({"time_to_live_s": 5}, "--time-to-live"),
        ({"checkpoint_interval_s": 0}, "--checkpoint-interval"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(StartError, match=words):
        ServerConfig(**options)
