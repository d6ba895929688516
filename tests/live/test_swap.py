"""Streams that go on as another version of their model, while they are stepped."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from streamrnn_client import Client
from streamrnn_server.testing import serving
from tests.live.versions import MODELS, NUM_INPUTS, Run, folder, swapped_after
from tests.support.peer import Peer, served, step

NUM_STREAMS, NUM_STEPS = 40, 300
CARRY = {"name": "m@1", "to": "m@2", "streams": "carry"}
POLICIES = [("keep", "m@3"), ("carry", "m@2"), ("reset", "m@2"), ("reset", "m@3")]


@pytest.fixture
def x(rng):
    return rng.standard_normal((NUM_STEPS, NUM_INPUTS)).astype(np.float32)


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
@pytest.mark.parametrize(("policy", "to"), POLICIES)
def test_a_swap_under_load_loses_no_step_and_changes_no_bit(tmp_path, rng, durability, policy, to):
    """Steps, chunks and batches of many streams in flight, and a swap in their midst."""
    x = rng.standard_normal((NUM_STREAMS, NUM_STEPS, NUM_INPUTS)).astype(np.float32)
    y: list[list[np.ndarray]] = [[] for _ in range(NUM_STREAMS)]
    is_open, is_swapped = threading.Barrier(5, timeout=60), threading.Event()
    options = {"durability": durability, "checkpoint_interval_s": 0.02, "num_shards": 2}
    models_dir = folder(tmp_path / "models")
    with served(MODELS, tmp_path / "state", ("m@1",), models_dir=models_dir, **options) as peer:
        address = peer.socket.getsockopt_string(32)  # LAST_ENDPOINT

        def walk(streams):
            with Client(address, timeout_s=60) as client:
                opened = client.streams([f"stream {k}" for k in streams], "m", window=16)
                rows = client.rows([f"stream {k}" for k in streams], "m", window=16)
                is_open.wait()
                at, num_after = 0, 0
                while at + 9 <= NUM_STEPS:
                    if not is_swapped.is_set() and at > NUM_STEPS // 2:
                        is_swapped.wait(60)
                    for k, stream in zip(streams, opened, strict=True):
                        y[k].append(stream.steps(x[k, at : at + 8]))
                    together = client.batch(rows, x[streams, at + 8])
                    for k, each in zip(streams, together, strict=True):
                        y[k].append(each[np.newaxis])
                    at += 9
                    num_after += is_swapped.is_set()
                assert num_after > 1

        parts = [range(k, NUM_STREAMS, 4) for k in range(4)]
        threads = [threading.Thread(target=walk, args=(list(part),)) for part in parts]
        for thread in threads:
            thread.start()
        is_open.wait()
        peer.ok("model", "load", {"name": to})
        told = peer.ok("model", "swap", {"name": "m@1", "to": to, "streams": policy})
        assert told == {"alias": "m", "model": to}
        is_swapped.set()
        for thread in threads:
            thread.join()
        stats = peer.ok("stats")
        with Client(address) as client:
            new = client.stream("new").step(x[0, 0])
        np.testing.assert_array_equal(new, Run(to).step(x[0, 0]))
    num_done = NUM_STEPS // 9 * 9
    left = [
        swapped_after(x[k, :num_done], np.concatenate(y[k]), "m@1", to, policy)
        for k in range(NUM_STREAMS)
    ]
    if policy == "keep":
        assert left == [num_done] * NUM_STREAMS
        assert stats["num_swapped"] == 0
    else:
        assert max(left) < num_done
        assert stats["num_swapped"] == NUM_STREAMS
        assert stats["models"] == {"m@1": 0, to: NUM_STREAMS}


@pytest.mark.parametrize("window", [1, 2, 8])
def test_steps_answered_before_a_swap_are_answered_the_same_after_it(tmp_path, x, window):
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        peer.ok("open", "a", "m@1", window)
        before = [step(peer, "a", k + 1, x[k])[2] for k in range(10)]
        peer.ok("model", "swap", CARRY)
        for k in range(max(0, 10 - window), 10):
            last, _, y = step(peer, "a", k + 1, x[k])
            assert last == k + 1
            np.testing.assert_array_equal(y, before[k])
        assert peer.error("step", "a", 10, x[0].tobytes())[0] == "conflict"
        y = [*before, *(step(peer, "a", k + 1, x[k])[2] for k in range(10, 20))]
        assert swapped_after(x[:20], np.stack(y), "m@1", "m@2", "carry") == 10
        assert peer.ok("open", "a", "m@1", window)[0] == 20  # its old name is one of them all
        assert peer.ok("stats")["models"] == {"m@1": 0, "m@2": 1}


def test_a_swapped_stream_is_on_disk_as_the_new_version_before_its_next_step(tmp_path, x):
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        peer.ok("open", "a", "m@1", 8)
        for k in range(5):
            assert step(peer, "a", k + 1, x[k])[1] == 0
        peer.ok("model", "swap", CARRY)
        assert step(peer, "a", 6, x[5])[1] == 5
        record = peer.ok("export", "a")
        assert MODELS["m@2"].fingerprint in bytes(record).hex()


def test_streams_on_disk_are_swapped_when_they_come_back(tmp_path, x):
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        for stream in ("a", "b"):
            peer.ok("open", stream, "m@1", 8)
            for k in range(5):
                step(peer, stream, k + 1, x[k])
        peer.ok("model", "swap", CARRY)
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        run = Run("m@1")
        for k in range(5):
            run.step(x[k])
        run.swap("m@2", "carry")
        for k in range(5, 10):
            y = run.step(x[k])
            for stream in ("a", "b"):
                np.testing.assert_array_equal(step(peer, stream, k + 1, x[k])[2], y)
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        np.testing.assert_array_equal(step(peer, "a", 11, x[10])[2], run.step(x[10]))


def test_a_swap_back_begins_where_the_other_version_came_to(tmp_path, x):
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        peer.ok("open", "a", "m@1", 8)
        run = Run("m@1")
        seq = 0
        for name, to in [("m@1", "m@2"), ("m@2", "m@1"), ("m@1", "m@2")]:
            for _ in range(3):
                np.testing.assert_array_equal(step(peer, "a", seq + 1, x[seq])[2], run.step(x[seq]))
                seq += 1
            peer.ok("model", "swap", {"name": name, "to": to, "streams": "carry"})
            run.swap(to, "carry")
        np.testing.assert_array_equal(step(peer, "a", seq + 1, x[seq])[2], run.step(x[seq]))


def test_after_a_swap_with_keep_no_more_streams_are_swapped(tmp_path, x):
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        peer.ok("open", "a", "m@1", 8)
        run = Run("m@1")
        peer.ok("model", "swap", CARRY)
        peer.ok("model", "swap", {"name": "m@1", "to": "m@2", "streams": "keep"})
        for k in range(3):
            np.testing.assert_array_equal(step(peer, "a", k + 1, x[k])[2], run.step(x[k]))
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        np.testing.assert_array_equal(step(peer, "a", 4, x[3])[2], run.step(x[3]))


def test_what_a_client_says_it_repeats_is_answered_by_the_version_before(tmp_path, x):
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        run = Run("m@1")
        peer.ok("open", "a", "m@1", 8)
        for k in range(3):
            np.testing.assert_array_equal(step(peer, "a", k + 1, x[k])[2], run.step(x[k]))
        peer.ok("model", "swap", CARRY)
        assert peer.ok("open", "a", "m", 8)[0] == 3
        assert peer.ok("sync", "a")
        again = peer.ok("step", "a", 3, x[2:5].tobytes(), 3)[2]  # as after a crash
        expected = np.stack([run.step(each) for each in x[3:5]])
        np.testing.assert_array_equal(np.frombuffer(again, np.float32)[-expected.size :],
                                      expected.ravel())  # fmt: skip
        ((error, result),) = peer.ok("batch", ["a"], [6], x[5].tobytes(), False, [6])
        assert error is None
        np.testing.assert_array_equal(np.frombuffer(result[2], np.float32), run.step(x[5]))
        peer.ok("reset", "a", 7, 7)
        run = Run("m@1")
        y = peer.ok("step", "a", 8, x[7].tobytes(), 8)[2]
        np.testing.assert_array_equal(np.frombuffer(y, np.float32), run.step(x[7]))
        run.swap("m@2", "carry")
        y = peer.ok("step", "a", 9, x[8].tobytes(), 8)[2]
        np.testing.assert_array_equal(np.frombuffer(y, np.float32), run.step(x[8]))


def test_a_reset_and_an_unnumbered_step_are_swapped_too(tmp_path, x):
    with served(MODELS, tmp_path, ("m@1", "m@2")) as peer:
        for stream in ("numbered", "unnumbered"):
            peer.ok("open", stream, "m@1", 8)
        step(peer, "numbered", 1, x[0])
        step(peer, "unnumbered", 0, x[0])
        peer.ok("model", "swap", CARRY)
        peer.ok("reset", "numbered", 2)
        run, other = Run("m@2"), Run("m@1")
        np.testing.assert_array_equal(step(peer, "numbered", 3, x[1])[2], run.step(x[1]))
        other.step(x[0])
        other.swap("m@2", "carry")
        np.testing.assert_array_equal(step(peer, "unnumbered", 0, x[1])[2], other.step(x[1]))


@pytest.mark.parametrize(
    ("names", "options", "code"),
    [
        (("m@1", "m@3"), {"name": "m@1", "to": "m@3", "streams": "carry"}, "bad_params"),
        (("m@1", "m@2"), {"name": "m@1", "to": "m@4", "streams": "carry"}, "unknown_model"),
        (("m@1", "other@1"), {"name": "m@1", "to": "other@1"}, "bad_params"),
    ],
)
def test_a_swap_that_cannot_be_is_refused(tmp_path, x, names, options, code):
    models = {**MODELS, "other@1": MODELS["m@1"]}
    with served(models, tmp_path, names) as peer:
        peer.ok("open", "a", "m@1", 8)
        assert peer.error("model", "swap", options)[0] == code
        np.testing.assert_array_equal(step(peer, "a", 1, x[0])[2], Run("m@1").step(x[0]))


def test_without_records_streams_keep_their_version():
    with serving({name: MODELS[name] for name in ("m@1", "m@2")}) as server:
        peer = Peer(server.endpoints[0])
        assert peer.error("model", "swap", CARRY)[0] == "not_supported"
        peer.ok("model", "swap", {"name": "m@1", "to": "m@2"})
        peer.socket.close()
