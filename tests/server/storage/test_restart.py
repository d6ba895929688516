"""A server with a state directory: restarts, and records that do not fit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import StartError
from streamrnn.state.record import decode_record, encode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client.protocol import canonical_id, hash_slot, shard_of
from tests.support.models import two_models
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


STREAMS_USED = ["a", "a stream with an id that does not fit in a header", 7]


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_streams_go_on_after_a_restart(models, tmp_path, x, expected, window, durability):
    with served(models, tmp_path, durability=durability) as peer:
        for stream in STREAMS_USED:
            assert peer.ok("open", stream, None, window) == [0, 0, window]
            for k in range(10):
                last, durable, y = step(peer, stream, k + 1, x[k])
                assert last == k + 1
                assert durable == (k + 1 if durability == "always" else 0)
                np.testing.assert_array_equal(y, expected[k])
    with served(models, tmp_path, durability=durability) as peer:
        assert peer.ok("open", "a", None, 32) == [10, 10, window]
        for stream in STREAMS_USED:
            np.testing.assert_array_equal(step(peer, stream, 10, x[9])[2], expected[9])
            assert peer.error("step", stream, 12, x[0].tobytes())[0] == "gap"
            assert peer.error("step", stream, 10, x[0].tobytes())[0] == "conflict"
            for k in range(10, 20):
                np.testing.assert_array_equal(step(peer, stream, k + 1, x[k])[2], expected[k])
            if window > 1:
                np.testing.assert_array_equal(step(peer, stream, 14, x[13])[2], expected[13])
        assert peer.error("step", "never", 1, x[0].tobytes())[0] == "unknown"


def test_sync_tells_the_step_that_is_on_disk(models, tmp_path, x):
    with served(models, tmp_path) as peer:
        peer.ok("open", "a", None, 8)
        step(peer, "a", 1, x[0])
        assert peer.ok("sync", "a") == 1
        assert step(peer, "a", 2, x[1])[1] == 1
        assert peer.ok("sync", None) is True
        assert step(peer, "a", 3, x[2])[1] == 2
        assert peer.ok("open", "a", None, 8) == [3, 2, 8]
        assert peer.error("sync", "b")[0] == "unknown"


def test_checkpoints_come_by_themselves(models, tmp_path, x):
    with served(models, tmp_path, checkpoint_interval_s=0.01) as peer:
        peer.ok("open", "a", None, 8)
        step(peer, "a", 1, x[0])
        for _ in range(100_000):  # questions, not seconds: each waits for its answer
            if peer.ok("open", "a", None, 8)[1] == 1:
                break
        else:
            pytest.fail("no checkpoint came")


def test_unnumbered_streams_survive_too(models, tmp_path, x, expected):
    with served(models, tmp_path) as peer:
        peer.ok("open", "a", None, 8)
        step(peer, "a", 0, x[0])
    with served(models, tmp_path) as peer:
        np.testing.assert_array_equal(step(peer, "a", 0, x[1])[2], expected[1])
        assert peer.error("step", "a", 1, x[2].tobytes())[0] == "mixed_numbering"


def test_a_closed_stream_is_gone_from_disk(models, tmp_path, x):
    with served(models, tmp_path) as peer:
        for stream in STREAMS_USED:
            peer.ok("open", stream, None, 8)
            step(peer, stream, 1, x[0])
        peer.ok("sync", None)
        assert peer.ok("close", "a") is True
        assert peer.ok("close", "a") is False
        assert peer.error("step", "a", 2, x[1].tobytes())[0] == "unknown"
        assert peer.ok("open", "a", None, 4) == [0, 0, 4]
        assert peer.ok("close", "a") is True
    with served(models, tmp_path) as peer:
        assert peer.error("step", "a", 2, x[1].tobytes())[0] == "unknown"
        assert peer.ok("close", 7) is True
        assert peer.ok("close", 7) is False
        assert step(peer, STREAMS_USED[1], 2, x[1])[0] == 2


def test_requests_that_wait_for_a_record_keep_their_order(models, tmp_path, x, expected):
    with served(models, tmp_path) as peer:
        peer.ok("open", "a", None, 32)
        step(peer, "a", 1, x[0])
    with served(models, tmp_path) as peer:
        sent = [peer.send("step", "a", k, x[k - 1].tobytes()) for k in range(2, 30)]
        sent += [peer.send("close", "a"), peer.send("open", "a", None, 8)]
        sent += [peer.send("step", "a", 1, x[0].tobytes())]
        replies = {}
        for _ in sent:
            msgid, error, result = peer.receive()
            assert error is None
            replies[msgid] = result
        for k, msgid in enumerate(sent[:28]):
            y = np.frombuffer(replies[msgid][2], np.float32)
            np.testing.assert_array_equal(y, expected[k + 1])
        assert replies[sent[28]] is True
        assert replies[sent[29]] == [0, 0, 8]
        np.testing.assert_array_equal(np.frombuffer(replies[sent[30]][2], np.float32), expected[0])


def test_two_models_come_back_each_as_its_own(models, tmp_path, x):
    with served(models, tmp_path, ("m", "other")) as peer:
        peer.ok("open", "a", "m", 8)
        peer.ok("open", "b", "other", 8)
        step(peer, "a", 1, x[0])
        step(peer, "b", 1, x[0])
    with served(models, tmp_path, ("other", "m")) as peer:
        assert len(step(peer, "a", 2, x[1])[2]) == 2
        assert len(step(peer, "b", 2, x[1])[2]) == 5
        assert peer.error("open", "a", "other", 8)[0] == "wrong_model"


def test_a_batch_of_streams_on_disk(models, tmp_path, x, expected):
    names = [f"s{k}" for k in range(300)]
    with served(models, tmp_path) as peer:
        peer.ok("open", names, None, 4)
        rows = np.repeat(x[:1], 300, 0)
        for _, result in [
            tuple(each) for each in peer.ok("batch", names, [1] * 300, rows.tobytes())
        ]:
            assert result[0] == 1
    with served(models, tmp_path) as peer:
        rows = np.repeat(x[1:2], 301, 0)
        replies = peer.ok("batch", [*names, "none"], [2] * 301, rows.tobytes())
        assert replies[-1][0][0] == "unknown"
        for error, result in replies[:-1]:
            assert error is None
            assert result[:2] == [2, 1]
            np.testing.assert_array_equal(np.frombuffer(result[2], np.float32), expected[1])
        opened = peer.ok("open", names, None, 4)
        assert [result for _, result in opened] == [[2, 1, 4]] * 300


def test_a_batch_of_streams_on_disk_finds_their_model(models, tmp_path, x):
    expected = Engine(models["other"]).steps("s", x)
    with served(models, tmp_path, ("m", "other")) as peer:
        peer.ok("open", ["a", "b"], "other", 4)
        peer.ok("batch", ["a", "b"], [1, 1], np.repeat(x[:1], 2, 0).tobytes())
    with served(models, tmp_path, ("m", "other")) as peer:
        rows = np.repeat(x[1:2], 2, 0).tobytes()
        for error, result in peer.ok("batch", ["a", "b"], [2, 2], rows):
            assert error is None
            np.testing.assert_array_equal(np.frombuffer(result[2], np.float32), expected[1])
    with served(models, tmp_path, ("m", "other")) as peer:
        rows = np.repeat(x[2:3], 2, 0).tobytes()
        seqs, durable = (np.full(2, seq, "<u8").tobytes() for seq in (3, 2))
        y = expected[2].tobytes() * 2
        assert peer.ok("batch", ["a", "b"], [3, 3], rows, True) == [{}, seqs, durable, y]


@pytest.mark.parametrize("window", [2, 8])
def test_of_two_racing_clients_one_makes_each_step(models, tmp_path, x, window, rng):
    """Both send the next step, each its own: one is applied, the other told, and nothing mixed."""
    with served(models, tmp_path) as one:
        two = Peer(one.ok("hello", {})["endpoints"][0])
        one.ok("open", "a", None, window)
        won = []
        for seq in range(1, len(x)):
            answers = []
            for peer in rng.permutation(np.array([one, two])):
                peer.send("step", "a", seq, x[seq - (peer is two)].tobytes())
            for peer in (one, two):
                _, error, result = peer.receive()
                answers.append((None, peer, result[2]) if error is None else (error[0], peer, b""))
            (error, winner, y), (lost, _, _) = sorted(answers, key=lambda each: each[0] or "")
            assert (error, lost) == (None, "conflict")
            won.append(x[seq - (winner is two)])
            expected = Engine(models["m"]).steps("s", np.array(won))[-1]
            np.testing.assert_array_equal(np.frombuffer(y, np.float32), expected)
        two.socket.close()


def test_the_number_of_shards_may_change(models, tmp_path, x, expected):
    def one(peers, method, stream, *params):
        shard = shard_of(hash_slot(stream), len(peers))
        return peers[shard].ok(method, stream, *params)

    for start, num_shards in enumerate([1, 3, 2, 1]):
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(served(models, tmp_path, num_shards=num_shards))
            endpoints = peer.ok("hello", {})["endpoints"]
            peers = [peer, *(Peer(endpoint) for endpoint in endpoints[1:])]
            for k in range(20):
                if start == 0:
                    one(peers, "open", k, None, 8)
                last, _, y = one(peers, "step", k, start + 1, x[start].tobytes())
                assert last == start + 1
                np.testing.assert_array_equal(np.frombuffer(y, np.float32), expected[start])
            for each in peers[1:]:
                each.socket.close()


def test_a_changed_model_is_refused_with_both_fingerprints(models, tmp_path, x):
    with served(models, tmp_path) as peer:
        peer.ok("open", "a", None, 8)
        step(peer, "a", 1, x[0])
    with served(models, tmp_path, ("other",)) as peer:
        for method in (("step", "a", 2, x[1].tobytes()), ("open", "a", None, 8)):
            code, detail = peer.error(*method)
            assert code == "mismatch"
            assert detail["stored"] == models["m"].fingerprint
            assert models["other"].fingerprint in detail["served"][0]
    with served(models, tmp_path) as peer:  # nothing has happened to it
        assert step(peer, "a", 2, x[1])[0] == 2
    with served(models, tmp_path, ("other",)) as peer:
        assert peer.ok("close", "a") is True
        assert peer.ok("open", "a", None, 8) == [0, 0, 8]


@pytest.mark.parametrize("what", ["arithmetic", "damaged", "another's"])
def test_a_record_that_does_not_fit_is_refused(models, tmp_path, x, what):
    with served(models, tmp_path) as peer:
        peer.ok("open", "a", None, 8)
        step(peer, "a", 1, x[0])
    store = StateStore(tmp_path)
    key = canonical_id("a")
    data = store.get(STREAMS, key) or b""
    if what == "damaged":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif what == "another's":
        data = encode_record(decode_record(data).renamed(b"sb"))
    else:
        data = data.replace(b"float32", b"float64")
        data = encode_record(decode_record_unchecked(data))
    store.commit([(STREAMS, key, data)], 0)
    store.close()
    with served(models, tmp_path) as peer:
        code, detail = peer.error("step", "a", 2, x[1].tobytes())
        if what == "arithmetic":
            assert code == "mismatch"
            assert "-float64-" in detail["stored_arithmetic"]
            assert detail["arithmetic"].startswith("cpu-")
        else:
            assert code == "damaged"
            assert ("checksum" if what == "damaged" else "of stream") in detail["reason"]
        assert peer.error("open", "a", None, 8)[0] == code
        sent = [peer.send("close", "a"), peer.send("step", "a", 1, x[0].tobytes())]
        replies = {each[0]: each[1:] for each in (peer.receive(), peer.receive())}
        assert replies[sent[0]] == (None, True)
        assert replies[sent[1]][0][0] == "unknown"


def decode_record_unchecked(data):
    import zlib

    return decode_record(data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little"))


def test_a_second_server_is_refused(models, tmp_path):
    with (
        served(models, tmp_path),
        pytest.raises(StartError, match="another process"),
        served(models, tmp_path),
    ):
        pass


def test_hello_and_stats_say_what_is_promised(models, tmp_path, x):
    with served(models, tmp_path, durability="always") as peer:
        assert peer.ok("hello", {})["durability"] == "always"
        assert peer.ok("hello", {})["read_only"] is None
        peer.ok("open", "a", None, 8)
        assert peer.ok("stats")["num_groups"] == 1
        peer.ok("sync", "a")
        stats = peer.ok("stats")
        assert stats["num_streams_on_disk"] == 1
        assert stats["num_checkpoints"] >= 1
        assert stats["num_commits"] >= 1
