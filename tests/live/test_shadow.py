"""Shadow runs: what they tell is what both versions answer, and streams know nothing of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from streamrnn.engine.sequences import Sequences
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec
from streamrnn_client import Client
from streamrnn_server.cli import main
from streamrnn_server.control.about import diagnostics as looking
from streamrnn_server.live.differences import Differences
from streamrnn_server.shard.memory.recording import RecordingState
from streamrnn_server.testing import serving
from tests.live.versions import MODELS
from tests.support.models import (
    EVERY_KIND_OF_INPUT,
    exploding_model,
    random_graph,
    random_inputs,
    random_model,
    random_parameters,
    text_model,
)
from tests.support.peer import Peer, until

PAIR = {"name": "m@1", "to": "m@2"}


def other_weights(model, **changes):
    """Return another version of a model, of which perhaps a part of the description differs."""
    spec = dataclasses.replace(model.spec, **changes)
    return Model(spec, random_parameters(np.random.default_rng(9), spec))


def pair_of(model, **changes):
    return {"m@1": model, "m@2": other_weights(model, **changes)}


def of_every_input():
    return random_model(np.random.default_rng(5), [("gru", 20)], EVERY_KIND_OF_INPUT)


def with_memories():
    layers = (TimeConvSpec(4, kernel=3, dilation=2), MemorySpec(1), LayerSpec("lstm", 5))
    return random_graph(layers)


class Shadowed:
    """A server of two versions whose recordings are looked at when it is told to."""

    def __init__(self, server):
        self.server, self.peer = server, Peer(server.endpoints[0])
        self.diagnostics = server.control.diagnostics
        self.diagnostics._end.set()
        self.diagnostics.worker.join()
        self.x, self.y, self.begun = {}, {}, {}

    def shadow(self, **options):
        return self.peer.ok("model", "shadow", options)

    def look(self):
        self.diagnostics.look()

    def open(self, stream, x, name="m@1"):
        self.peer.ok("open", stream, name, 16)
        self.x[stream], self.y[stream] = x, []

    def step(self, num_steps, *streams):
        """Step streams in turn."""
        for _ in range(num_steps):
            for stream in streams:
                x, y = self.x[stream], self.y[stream]
                answer = self.peer.ok("step", stream, len(y) + 1, x[len(y)].tobytes())
                y.append(np.frombuffer(answer[2], np.float32))

    def end(self):
        """Let the time be over, and return what came of it."""
        self.diagnostics.shadow._run.seconds = 0.0
        self.look()
        until(lambda: self.shadow()["state"] not in ("recording", "comparing"))
        return self.shadow()

    def places(self):
        return [
            (int(each["state"]), int(each["model"]), int(each["asker"]))
            for each in self.server.control.shards[0].recorder.table
        ]


@contextlib.contextmanager
def shadowed(models, **options):
    with serving(models, **{"diagnostics_streams": 2, **options}) as server:
        it = Shadowed(server)
        try:
            yield it
        finally:
            it.peer.socket.close()


@pytest.fixture
def seen(monkeypatch):
    """Return what is compared, by the sums that it goes into."""
    found: dict[int, list[Any]] = {}
    add = Differences.add

    def note(self, old, new):
        found.setdefault(id(self), []).append((old.copy(), new.copy()))
        add(self, old, new)

    monkeypatch.setattr(Differences, "add", note)
    return found


def run_from(model, x, state=None):
    """Return the outputs of an engine, to the bit, and the states that they end in."""
    sequences = Sequences(model, x)
    states = sequences.new_states(1)
    if state is not None:
        states[:] = state
    y = sequences.run(np.array([0]), np.array([len(x)]), states)
    return y, states


def expected_facts(old, new):
    """Return of one number a step what `Differences.facts` tells, computed plainly."""
    error = new.astype(np.float64) - old.astype(np.float64)
    return {
        "mean": np.abs(error).mean(axis=0),
        "max": np.abs(error).max(axis=0),
        "shift": error.mean(axis=0),
        "spread": old.astype(np.float64).std(axis=0),
    }


MADE = {
    "inputs": of_every_input,
    "memories": with_memories,
    "tokens": lambda: text_model("character", list("abcdefgh")),
    "lstm": lambda: MODELS["m@1"],
}


@pytest.mark.parametrize("name", MADE)
def test_both_are_compared_to_the_bit_and_streams_go_on_as_ever(name, rng, seen):
    models = pair_of(MADE[name](), training={"when": "later"}, warmup_steps=7)
    x = random_inputs(rng, models["m@1"].spec, 3, 60)
    with shadowed(models) as it:
        for k, stream in enumerate("abc"):
            it.open(stream, x[k])
        it.open("new", x[0], "m@2")
        it.step(5, "a", "b", "new")
        assert it.shadow(streams=2, **PAIR)["state"] == "recording"
        it.look()
        it.step(40, "new", "a", "b")
        it.peer.ok("close", "b")
        it.look()
        assert it.shadow()["num_recorded"] == 1  # the one that has closed
        told = it.end()
        it.step(10, "a", "new")
    for stream, model in {"a": "m@1", "b": "m@1", "new": "m@2"}.items():
        y, _ = run_from(models[model], it.x[stream][: len(it.y[stream])])
        np.testing.assert_array_equal(np.stack(it.y[stream]), y)
    assert (told["state"], told["num_streams"], told["num_refused"]) == ("done", 2, 0)
    right: dict[str, list[Any]] = {"carry": [], "reset": [], "warmup": []}
    for stream in "ba":  # as they were recorded
        _, state = run_from(models["m@1"], it.x[stream][:5])
        recorded = it.x[stream][5:45]
        old = np.stack(it.y[stream])[5:45]
        right["carry"].append((old, run_from(models["m@2"], recorded, state)[0]))
        begun, _ = run_from(models["m@2"], recorded)
        right["warmup"].append((old[:7], begun[:7]))
        right["reset"].append((old[7:], begun[7:]))
    compared = {
        tuple(np.concatenate(each).tobytes() for each in zip(*parts, strict=True))
        for parts in seen.values()
    }
    for mode, parts in right.items():
        old, new = (np.concatenate(each) for each in zip(*parts, strict=True))
        assert (old.tobytes(), new.tobytes()) in compared, mode
        facts = told["reset"]["warmup"] if mode == "warmup" else told[mode]
        assert facts["num_steps"] == len(old)
        assert facts["num_not_finite"] == {"old": 0, "new": 0}
        plain = expected_facts(old, new)
        for key, values in plain.items():
            given = [output[key] for output in facts["outputs"]]
            np.testing.assert_allclose(given, values, rtol=1e-9, atol=1e-12, err_msg=key)
        assert [each["max"] for each in facts["outputs"]] == plain["max"].tolist()
        same = (old.argmax(axis=1) == new.argmax(axis=1)).mean() if name == "tokens" else None
        assert facts["same_class"] == same
    assert told["reset"]["warmup_steps"] == 7


def test_what_cannot_be_carried_is_compared_from_nothing(rng):
    x = random_inputs(rng, MODELS["m@1"].spec, 1, 60)[0]
    with shadowed(MODELS) as it:
        it.open("a", x)
        it.shadow(name="m@1", to="m@3", steps=20)
        it.look()
        it.step(30, "a")
        it.look()
        it.look()  # of one that is going, what was there when it was looked at before
        assert it.shadow()["num_recorded"] == 1
        told = it.end()
        assert told["carry"] is None
        assert (told["reset"]["num_steps"], told["same_inputs"]) == (20, True)
        y, _ = run_from(MODELS["m@3"], x[:20])
        right = expected_facts(np.stack(it.y["a"])[:20], y)["max"]
        assert [each["max"] for each in told["reset"]["outputs"]] == right.tolist()


def test_streams_of_the_version_alone_are_recorded_and_each_once(rng):
    x = random_inputs(rng, MODELS["m@1"].spec, 1, 200)[0]
    with shadowed(MODELS) as it:
        for stream in "xy":
            it.open(stream, x, "m@3")
            it.look()
            it.step(1, stream)
        recording = RecordingState.GOING, 2, 0
        assert it.places() == [recording, recording]
        it.open("a", x)
        it.shadow(streams=3, steps=4, **PAIR)
        it.look()
        it.step(2, "x", "y")
        assert it.places() == [recording, recording]
        it.step(1, "a")
        assert (RecordingState.GOING, 0, -1) in it.places()
        it.step(6, "a")
        it.look()
        it.look()
        assert it.shadow()["num_recorded"] == 1
        for _ in range(3):
            it.step(6, "a")
            it.look()
            it.look()
        assert it.shadow()["num_recorded"] == 1
        told = it.end()
        assert (told["state"], told["num_streams"], told["carry"]["num_steps"]) == ("done", 1, 4)
        it.look()
        it.step(2, "a", "x", "y")
        it.look()
        it.step(2, "a", "x", "y")
        assert -1 not in [asker for state, _, asker in it.places() if state != 0]


def test_a_recording_that_is_another_one_meanwhile_is_not_compared(rng):
    x = random_inputs(rng, MODELS["m@1"].spec, 1, 60)[0]
    with shadowed(MODELS, diagnostics_streams=1) as it:
        it.open("a", x)
        it.shadow(streams=1, steps=4, **PAIR)
        it.look()
        it.step(9, "a")
        recorder, shadow = it.server.control.shards[0].recorder, it.diagnostics.shadow
        serial = int(recorder.table[0]["serial"])
        shadow.look(recorder, 0, serial - 1, 4)
        assert it.shadow()["num_recorded"] == 0
        shadow.look(recorder, 0, serial, 4)
        assert it.shadow()["num_recorded"] == 1


def test_a_run_ends_with_its_last_stream_or_when_it_is_stopped(rng):
    x = random_inputs(rng, MODELS["m@1"].spec, 1, 60)[0]
    with shadowed(MODELS) as it:
        assert it.shadow() == {"state": None}
        it.open("a", x)
        first = it.shadow(streams=1, **PAIR)
        again = it.shadow(streams=1, **PAIR)  # whose answer was lost
        assert again["elapsed_s"] >= first["elapsed_s"]
        assert it.peer.error("model", "shadow", {"name": "m@1", "to": "m@3"})[0] == "exists"
        it.look()
        it.step(9, "a")
        it.peer.ok("reset", "a", 10)
        it.look()
        until(lambda: it.shadow()["state"] == "done")
        assert it.shadow()["carry"]["num_steps"] == 9
        assert it.shadow(**PAIR)["state"] == "recording"
        stopped = it.shadow(stop=True)
        assert (stopped["state"], stopped["num_streams"]) == ("stopped", 0)
        assert it.shadow() == stopped
        assert it.shadow(stop=True) == stopped


def test_without_a_step_in_time_a_run_fails_in_words(rng):
    with shadowed(MODELS) as it:
        it.open("a", random_inputs(rng, MODELS["m@1"].spec, 1, 9)[0])
        it.shadow(**PAIR)
        it.look()
        told = it.end()
        assert told["state"] == "failed"
        assert "none took a step" in told["reason"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"name": "m@1", "to": "m@9"}, "unknown_model"),
        ({"name": "m@1", "to": "m@1"}, "bad_params"),
        ({"name": "m@1", "to": "wide"}, "bad_params"),
        ({"name": "m@1", "to": "large"}, "not_supported"),
        ({"name": "large", "to": "m@1"}, "not_supported"),
        ({"name": "m@1"}, "bad_params"),
        ({"steps": 3}, "bad_params"),
        ({**PAIR, "steps": 257}, "bad_params"),
        ({**PAIR, "streams": 0}, "bad_params"),
        ({**PAIR, "streams": True}, "bad_params"),
        ({**PAIR, "seconds": 0}, "bad_params"),
        ({**PAIR, "seconds": float("nan")}, "bad_params"),
        ({**PAIR, "stop": False}, "bad_params"),
    ],
)
def test_what_cannot_be_compared_is_refused(refusing, options, code):
    assert refusing.error("model", "shadow", options)[0] == code
    assert refusing.ok("model", "shadow", {}) == {"state": None}


@pytest.fixture(scope="module")
def refusing():
    rng = np.random.default_rng(3)
    large = random_model(rng, [("gru", 1200)], 3, 2)
    models = {**MODELS, "wide": random_model(rng, [("gru", 8)], 4, 2), "large": large}
    with shadowed(models) as it:
        yield it.peer


def test_where_nothing_is_recorded_there_is_no_shadow():
    with serving(MODELS, diagnostics_streams=0) as server:
        peer = Peer(server.endpoints[0])
        assert peer.error("model", "shadow", PAIR)[0] == "not_supported"
        peer.socket.close()


def test_steps_whose_outputs_are_nan_are_counted_and_left_out():
    old = random_model(np.random.default_rng(1), [("rnn_relu", 16)], 1, 2)
    models = {"m@1": old, "m@2": Model(old.spec, exploding_model().parameters)}
    x = np.ones((30, 1), np.float32)
    with shadowed(models) as it:
        it.open("a", x)
        it.shadow(**PAIR)
        it.look()
        it.step(30, "a")
        it.look()
        told = it.end()
    y, _ = run_from(models["m@2"], x)
    number = int((~np.isfinite(y)).any(axis=1).sum())
    assert 0 < number < 30
    for facts in (told["carry"], told["reset"]):
        assert facts["num_not_finite"] == {"old": 0, "new": number}
        assert facts["num_steps"] == 30 - number
    json.dumps(told, allow_nan=False)


def test_inputs_that_the_new_version_refuses_end_a_streams_part(rng):
    old = random_model(rng, [("gru", 8)], [InputSpec("a", missing="hold", origin=1000.0)], 1)
    models = pair_of(old, inputs=(InputSpec("a", origin=1001.0),))
    x = random_inputs(rng, old.spec, 1, 20, missing_share=0.0)[0]
    x[8] = np.nan
    with shadowed(models) as it:
        it.open("a", x)
        it.shadow(**PAIR)
        it.look()
        it.step(20, "a")
        it.look()
        told = it.end()
    assert (told["num_refused"], told["carry"]) == (1, None)
    assert told["reset"]["num_steps"] == 8
    assert told["reset"]["num_not_finite"] == {"old": 0, "new": 0}  # nothing beyond is computed
    y, _ = run_from(models["m@2"], x[:8].astype(np.float64) + 1000.0)  # less its own origin
    right = expected_facts(np.stack(it.y["a"])[:8], y)["max"]
    assert [each["max"] for each in told["reset"]["outputs"]] == right.tolist()


def test_a_fault_of_a_comparison_ends_the_run_alone(rng, monkeypatch):
    x = random_inputs(rng, MODELS["m@1"].spec, 1, 9)[0]

    def fail(*_):
        raise RuntimeError("made up")

    with shadowed(MODELS) as it:
        monkeypatch.setattr(Differences, "add", fail)
        it.open("a", x)
        it.shadow(streams=1, **PAIR)
        it.look()
        it.step(5, "a")
        it.peer.ok("close", "a")
        it.look()
        until(lambda: it.shadow()["state"] == "failed")
        monkeypatch.undo()
        assert it.peer.ok("stats")["num_errors_internal"] == 1
        assert it.shadow(**PAIR)["state"] == "recording"


def test_the_command_waits_for_the_end_and_says_it_in_words(rng, capsys, monkeypatch):
    monkeypatch.setattr(looking, "_LOOK_EVERY_S", 0.02)
    x = random_inputs(rng, MODELS["m@1"].spec, 1, 400)[0]
    with serving(MODELS) as server, Client(server.endpoints[0]) as client:
        address = server.endpoints[0]

        def say(*words):
            capsys.readouterr()
            code = main(["model", "shadow", address, *words])
            return code, capsys.readouterr()

        assert say()[1].out == "no shadow run since the server's start\n"
        stream = client.stream("a", model="m@1")
        client.call("model", ["shadow", {**PAIR, "streams": 1}])
        begun = server.control.shards[0].recorder.table
        until(lambda: stream.step(x[0]) is not None and -1 in begun["asker"])
        for row in x:  # until it is recorded whole
            stream.step(row)
        code, said = say("m@1", "m@2", "--streams", "1")
        assert code == 0
        assert "m@2 beside m@1: 1 stream, 256 steps" in said.out
        assert "carry, the state goes on: 256 steps" in said.out
        assert "reset, from nothing (m@2 names no warm-up): 256 steps" in said.out
        assert "y1: differs by" in said.out
        assert json.loads(say("--json")[1].out)["num_streams"] == 1
        code, said = say("m@3", "m@1", "--seconds", "0.05")
        assert code == 1
        assert "no stream of 'm@3' was recorded" in said.err
        client.call("model", ["shadow", PAIR])
        assert "stopped" in say("--stop")[1].out
