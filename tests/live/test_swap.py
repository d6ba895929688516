"""Streams that go on as another version of their model, while they are stepped."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.model.model import Model
from streamrnn_client import Client
from streamrnn_server.testing import serving
from tests.live.versions import MODELS, NUM_INPUTS, Run, folder, swapped_after
from tests.support.peer import Peer, served, step

NUM_STREAMS, NUM_STEPS = 40, 300
CARRY = {"name": "m@1", "to": "m@2", "streams": "carry"}
REPLAY = {"name": "m@1", "to": "m@3", "streams": "replay"}
HISTORY = 5
POLICIES = [("keep", "m@3"), ("carry", "m@2"), ("reset", "m@3"), ("replay", "m@3")]


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
    history = () if policy == "reset" else (f"m={HISTORY}",)
    options = {"durability": durability, "checkpoint_interval_s": 0.02, "num_shards": 2}
    options["history"] = history
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
        swapped_after(x[k, :num_done], np.concatenate(y[k]), "m@1", to, policy, HISTORY)
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


def replayed(x: np.ndarray) -> Run:
    """Return a stream of the new version that the last of these inputs have primed."""
    run = Run("m@1", HISTORY)
    for each in x:
        run.step(each)
    run.swap("m@3", "replay")
    return run


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_the_inputs_that_are_kept_survive_whatever_the_state_does(tmp_path, x, durability):
    """A restart, a fork, a rollback; a reset begins with none."""
    options = {"durability": durability, "history": (f"{HISTORY}",)}
    with served(MODELS, tmp_path, ("m@1", "m@3"), **options) as peer:
        for k, stream in enumerate(("few", "enough", "more", "back", "anew")):
            peer.ok("open", stream, "m@1", 16)
            peer.ok("step", stream, 1, x[: 2 + 3 * min(k, 2)].tobytes())
        peer.ok("snapshot", "back", "here")
        for stream in ("back", "anew"):
            peer.ok("step", stream, 9, x[50:60].tobytes())
        peer.ok("rollback", "back", 19, "here")
        peer.ok("reset", "anew", 19)
        step(peer, "anew", 20, x[0])
        peer.ok("fork", "more", "copy")
    with served(MODELS, tmp_path, ("m@1", "m@3"), **options) as peer:
        peer.ok("model", "swap", REPLAY)
        for stream, last, taken in (
            ("few", 2, x[:2]),
            ("enough", 5, x[:5]),
            ("more", 8, x[:8]),
            ("copy", 8, x[:8]),
            ("back", 19, x[:8]),
            ("anew", 20, x[:1]),
        ):
            run = replayed(taken)
            for k in range(2):
                answer = step(peer, stream, last + 1 + k, x[20 + k])[2]
                np.testing.assert_array_equal(answer, run.step(x[20 + k]), err_msg=stream)
        stats = peer.ok("stats")
        assert (stats["num_swapped"], stats["num_primed"]) == (6, 2 + 5 + 5 + 5 + 5 + 1)
        assert stats["num_steps"] == 12


@pytest.mark.parametrize(("history", "num_taken"), [(3, 3), (9, 5), (0, 0)])
def test_another_history_takes_of_a_record_what_there_is_room_for(tmp_path, x, history, num_taken):
    with served(MODELS, tmp_path, ("m@1", "m@3"), history=(f"{HISTORY}",)) as peer:
        peer.ok("open", "a", "m@1", 16)
        peer.ok("step", "a", 1, x[:12].tobytes())
        if not history:
            peer.ok("model", "swap", REPLAY)  # and there is nothing to replay any more
    with served(MODELS, tmp_path, ("m@1", "m@3"), history=(f"m={history}",)) as peer:
        if history:
            peer.ok("model", "swap", REPLAY)
        run = replayed(x[12 - num_taken : 12])
        np.testing.assert_array_equal(step(peer, "a", 13, x[12])[2], run.step(x[12]))


def test_a_swap_onwards_waits_until_a_stream_is_primed(tmp_path, x):
    """A stream that is swapped twice has both histories: that of the first swap, and its own."""
    names = ("m@1", "m@2", "m@3")
    with served(MODELS, tmp_path, names, history=(f"{HISTORY}",)) as peer:
        peer.ok("open", "a", "m@1", 16)
        peer.ok("step", "a", 1, x[:8].tobytes())
        peer.ok("model", "swap", {"name": "m@1", "to": "m@3", "streams": "replay"})
        peer.ok("model", "swap", {"name": "m@3", "to": "m@2", "streams": "replay"})
        run = replayed(x[:8])
        run.swap("m@2", "replay")
        np.testing.assert_array_equal(step(peer, "a", 9, x[8])[2], run.step(x[8]))
        assert peer.ok("stats")["num_primed"] == 2 * HISTORY


def test_what_the_new_version_would_refuse_is_left_out(tmp_path, x):
    """Each version has transforms of its own, and says whether a value may be missing."""
    spec = MODELS["m@1"].spec

    def version(name, **changes):
        inputs = (dataclasses.replace(spec.inputs[0], **changes), *spec.inputs[1:])
        model = MODELS[name]
        return Model(dataclasses.replace(model.spec, inputs=inputs), model.parameters)

    models = {"m@1": version("m@1", missing="hold"), "m@2": version("m@2", center=2.0, scale=0.5)}
    x = x[:6].copy()
    x[3, 0] = np.nan
    with served(models, tmp_path, ("m@1", "m@2"), history=("4",)) as peer:
        peer.ok("open", "a", "m@1", 16)
        peer.ok("step", "a", 1, x[:5].tobytes())
        peer.ok("model", "swap", {"name": "m@1", "to": "m@2", "streams": "replay"})
        expected = Engine(models["m@2"]).steps("a", x[[1, 2, 4, 5]])[-1]
        np.testing.assert_array_equal(step(peer, "a", 6, x[5])[2], expected)
        assert peer.ok("stats")["num_primed"] == 3


def test_a_replay_of_inputs_that_are_not_there_or_mean_something_else_is_refused(tmp_path):
    spec = MODELS["m@3"].spec
    inputs = (dataclasses.replace(spec.inputs[0], unit="K"), *spec.inputs[1:])
    other = Model(dataclasses.replace(spec, inputs=inputs), MODELS["m@3"].parameters)
    models = {"m@1": MODELS["m@1"], "m@3": other, "n@1": MODELS["m@1"], "n@2": MODELS["m@2"]}
    with served(models, tmp_path, tuple(models), history=("m=3",)) as peer:
        code, _ = peer.error("model", "swap", REPLAY)
        assert code == "bad_params"
        assert spec.inputs[0].name in str(peer.call("model", "swap", REPLAY)[0])
        names = {"name": "n@1", "to": "n@2", "streams": "replay"}
        assert peer.error("model", "swap", names)[0] == "not_supported"
        assert {each["name"]: each.get("history") for each in peer.ok("models")} == {
            "m@1": 3, "m@3": 3, "n@1": None, "n@2": None, "m": 3, "n": None
        }  # fmt: skip
