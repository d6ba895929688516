"""export, import, fork, snapshot, rollback and quarantine over a raw socket."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.state.record import decode_record, encode_record
from streamrnn_server.testing import serving
from tests.support.models import exploding_model, two_models
from tests.support.peer import Peer, served, step

NUM_INPUTS = 3


@pytest.fixture(scope="module")
def models():
    return two_models(NUM_INPUTS)


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, NUM_INPUTS)).astype(np.float32)


@pytest.fixture
def expected(models, x):
    return Engine(models["m"]).steps("s", x)


@pytest.fixture(params=["durable", "in memory"])
def peer(request, models, tmp_path):
    if request.param == "durable":
        with served(models, tmp_path, ("m", "other")) as peer:
            yield peer
        return
    with serving(models) as server:
        peer = Peer(server.endpoints[0])
        yield peer
        peer.socket.close()


def run(peer, stream, x, first, last):
    return np.stack([step(peer, stream, k + 1, x[k])[2] for k in range(first, last)])


def begin(peer, x, stream="a", window=8, num_steps=10):
    peer.ok("open", stream, "m", window)
    return run(peer, stream, x, 0, num_steps)


def test_an_exported_stream_goes_on_elsewhere(peer, x, expected):
    begin(peer, x)
    record = peer.ok("export", "a")
    assert decode_record(record).last_seq == 10
    last, _, window = peer.ok("import", "b", record, None)
    assert (last, window) == (10, 8)
    np.testing.assert_array_equal(run(peer, "b", x, 9, 20), expected[9:20])
    np.testing.assert_array_equal(run(peer, "a", x, 9, 20), expected[9:20])
    assert peer.error("import", "b", record, None)[0] == "exists"
    assert peer.error("export", "c")[0] == "unknown"


def test_what_cannot_be_imported_is_refused(peer, models, x):
    begin(peer, x)
    record = peer.ok("export", "a")
    assert peer.error("import", "b", record[:-1], None)[0] == "damaged"
    assert peer.error("import", "b", "record", None)[0] == "bad_params"
    assert peer.error("import", "b", record, "other")[0] == "wrong_model"
    assert peer.error("import", "b", record, "none")[0] == "unknown_model"
    foreign = dataclasses.replace(decode_record(record), fingerprint="00" * 32)
    code, detail = peer.error("import", "b", encode_record(foreign), None)
    assert code == "mismatch"
    assert detail["stored"] == "00" * 32
    short = dataclasses.replace(decode_record(record), row=bytes(64))
    assert peer.error("import", "b", encode_record(short), None)[0] == "damaged"
    assert peer.error("step", "b", 1, x[0].tobytes())[0] == "unknown"


def test_a_stream_may_begin_with_another_one_s_state(peer, x, expected):
    begin(peer, x)
    record = peer.ok("export", "a")
    assert peer.ok("open", "b", "m", 4, record) == [0, 0, 4]
    ys = np.stack([step(peer, "b", k + 1, x[10 + k])[2] for k in range(10)])
    np.testing.assert_array_equal(ys, expected[10:20])
    assert peer.error("open", "b", "m", 4, record)[0] == "exists"


def test_steps_of_a_fork_do_not_change_the_original(peer, x, expected):
    begin(peer, x)
    assert peer.ok("fork", "a", "b")[::2] == [10, 8]
    for k in range(10, 20):
        step(peer, "b", k + 1, x[0])
    np.testing.assert_array_equal(run(peer, "a", x, 10, 20), expected[10:20])
    assert peer.error("fork", "a", "b")[0] == "exists"
    assert peer.error("fork", "c", "d")[0] == "unknown"
    assert peer.error("fork", "a")[0] == "bad_params"


@pytest.mark.parametrize("window", [1, 8])
def test_fork_and_import_are_idempotent_until_the_stream_is_stepped(peer, x, expected, window):
    begin(peer, x, window=window)
    record = peer.ok("export", "a")
    calls: list[list] = [
        ["fork", "a", "b"],
        ["import", "c", record, None],
        ["open", "d", "m", 4, record],
    ]
    for call in calls:
        first = peer.ok(*call)
        assert peer.ok(*call)[::2] == first[::2]
        assert peer.ok("stats")["num_opened"] == 2 + calls.index(call)
    other = x[::-1].copy()
    for call, target in zip(calls, "bcd", strict=True):
        seq = 1 if target == "d" else 11
        np.testing.assert_array_equal(step(peer, target, seq, x[10])[2], expected[10])
        assert peer.error(*call)[0] == "exists"
        peer.ok("close", target)
        peer.ok(*call)
        peer.ok("reset", target, seq)
        assert peer.error(*call)[0] == "exists"
    peer.ok("open", "e", "m", window)
    run(peer, "e", other, 0, 10)  # as many steps, but others
    assert peer.error("import", "e", record, None)[0] == "exists"
    peer.ok("open", "f", "m", 2 * window)
    run(peer, "f", x, 0, 10)  # the same steps, but more of them are remembered
    assert peer.error("import", "f", record, None)[0] == "exists"
    assert peer.error("fork", "a", "a")[0] == "exists"
    step(peer, "a", 11, x[10])
    assert peer.error("import", "a", record, None)[0] == "exists"


@pytest.mark.parametrize("window", [1, 8])
def test_a_snapshot_can_be_rolled_back_to(models, tmp_path, x, expected, window):
    with served(models, tmp_path) as peer:
        begin(peer, x, window=window)
        assert peer.ok("snapshot", "a", "good") == [10, 10]
        run(peer, "a", x, 10, 15)
        assert peer.ok("rollback", "a", 16, "good") == [16, 16]
        assert peer.ok("rollback", "a", 16, "good")[0] == 16
        assert peer.error("rollback", "a", 16, None)[0] == "conflict"
        for k in range(5):
            y = step(peer, "a", 17 + k, x[10 + k])[2]
            np.testing.assert_array_equal(y, expected[10 + k])
        code, detail = peer.error("rollback", "a", 22, "bad")
        assert (code, detail["name"]) == ("unknown_snapshot", "bad")
        assert peer.error("rollback", "a", 30, "good")[0] == "gap"
        assert peer.error("snapshot", "a", "")[0] == "bad_params"
        assert peer.error("snapshot", "b", "good")[0] == "unknown"
    with served(models, tmp_path) as peer:
        np.testing.assert_array_equal(step(peer, "a", 22, x[15])[2], expected[15])
        assert peer.ok("rollback", "a", 23, "good")[0] == 23
        np.testing.assert_array_equal(step(peer, "a", 24, x[10])[2], expected[10])


def test_rollback_without_a_name_goes_to_the_last_state_on_disk(models, tmp_path, x, expected):
    with served(models, tmp_path) as peer:
        begin(peer, x)
        assert peer.error("rollback", "a", 11, None)[0] == "unknown_snapshot"
        assert peer.ok("sync", "a") == 10
        run(peer, "a", x, 10, 15)
        assert peer.ok("rollback", "a", 16, None)[0] == 16
        np.testing.assert_array_equal(step(peer, "a", 17, x[10])[2], expected[10])


def test_without_a_state_directory_sync_and_snapshots_are_not_supported(models, x):
    with serving({"m": models["m"]}) as server:
        peer = Peer(server.endpoints[0])
        begin(peer, x)
        for call in (("sync", "a"), ("snapshot", "a", "s"), ("rollback", "a", 11, None)):
            assert peer.error(*call)[0] == "not_supported"
        peer.socket.close()


@pytest.mark.parametrize("first_seq", [1, 0])
def test_a_stream_that_turns_nan_is_frozen_and_can_be_rolled_back(tmp_path, first_seq):
    x = np.ones(1, np.float32)
    with served({"m": exploding_model()}, tmp_path) as peer:
        peer.ok("open", "a", None, 8)
        good = step(peer, "a", first_seq, x)[2]
        peer.ok("sync", "a")
        seq = first_seq
        while True:
            seq += 1 if first_seq else 0
            error, _ = peer.call("step", "a", seq, x.tobytes())
            if error is not None:
                break
        code, _, detail = error
        assert code == "quarantined"
        assert detail["seq"] == seq
        following = seq + 1 if first_seq else 0
        assert detail["expected"] == following
        assert peer.error("step", "a", following, x.tobytes())[0] == "quarantined"
        assert peer.error("export", "a")[0] == "quarantined"
        assert peer.error("sync", "a")[0] == "quarantined"
        assert peer.error("snapshot", "a", "s")[0] == "quarantined"
        peer.ok("sync", None)
        assert peer.ok("stats")["num_quarantined"] == 1
        assert peer.ok("rollback", "a", following, None)[0] == following
        peer.ok("reset", "a", following + 1 if first_seq else 0)
        again = step(peer, "a", following + 2 if first_seq else 0, x)[2]
        np.testing.assert_array_equal(again, good)
