"""Recordings of streams: equal to what they were sent, and what is measured of them."""

from __future__ import annotations

import contextlib
from typing import cast

import numpy as np
import pytest

from streamrnn.engine.sequences import Sequences
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.spec import InputSpec, LayerSpec
from streamrnn.training.memory.recording import measure_recording
from streamrnn_client import Client
from streamrnn_client.errors import BadParams, UnknownStream
from streamrnn_server.shard.memory.recording import RecordingEnd, RecordingState
from streamrnn_server.testing import serving
from tests.support.models import (
    EVERY_KIND_OF_INPUT,
    exploding_model,
    random_graph,
    random_inputs,
    random_model,
)
from tests.support.peer import RARELY_S, Peer, until

TOKENS = (InputSpec("token", kind="token", num_categories=11, embedding_size=5),)
MODELS = {
    "lstm": lambda rng: random_model(rng, [("lstm", 24)], 3, 2),
    "inputs": lambda rng: random_model(rng, [("gru", 20)], EVERY_KIND_OF_INPUT),
    "tokens": lambda rng: random_model(rng, [("lstm", 9)], TOKENS),
    "lags": lambda rng: random_graph(
        (TimeConvSpec(4, kernel=3, dilation=2), MemorySpec(1), LayerSpec("lstm", 5))
    ),
}


class Recorded:
    """A server of one model, `m`, that measures only when it is told to."""

    def __init__(self, server, model):
        self.server, self.model = server, model
        self.diagnostics = server.control.diagnostics
        self.recorder = server.control.shards[0].recorder
        self.diagnostics.stop()
        self.peer = Peer(server.endpoints[0])

    def look(self):
        """Let the thread's work be done now."""
        self.diagnostics._measure_at_s = 0.0
        self.diagnostics.look()

    def step(self, stream, x, first, last):
        for k in range(first, last):
            self.peer.ok("step", stream, k + 1, x[k].tobytes())

    def entry(self, number=0):
        return self.recorder.table[number]

    def inputs(self, x, number=0):
        """Return the recorded inputs as x's type."""
        entry = self.entry(number)
        num_bytes = int(entry["num_steps"]) * int(entry["step_bytes"])
        data = self.recorder.part(int(entry["inputs"]), num_bytes)
        return np.frombuffer(data, x.dtype).reshape(-1, x.shape[1])

    def row(self, number=0):
        entry = self.entry(number)
        return self.recorder.part(int(entry["row"]), int(entry["row_bytes"]))


@contextlib.contextmanager
def recorded(model, **options):
    with serving({"m": model}, **{"diagnostics_streams": 1, **options}) as server:
        found = Recorded(server, model)
        try:
            yield found
        finally:
            found.peer.socket.close()


@pytest.fixture(scope="module")
def lstm():
    return MODELS["lstm"](np.random.default_rng(7))


@pytest.fixture
def x(rng, lstm):
    return random_inputs(rng, lstm.spec, 1, 600)[0]


def row_after(model, x, num_steps):
    sequences = Sequences(model, x)
    states = sequences.new_states(1)
    sequences.run(np.array([0]), np.array([num_steps]), states)
    return states[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_recording_holds_the_row_and_every_input_to_the_bit(name):
    rng = np.random.default_rng(5)
    model = MODELS[name](rng)
    x = random_inputs(rng, model.spec, 1, 60)[0]
    with recorded(model) as it:
        it.peer.ok("open", "s", "m", 16)
        it.step("s", x, 0, 7)
        assert it.entry()["state"] == RecordingState.EMPTY
        it.recorder.order()
        it.step("s", x, 7, 10)
        it.peer.ok("step", "s", 11, x[10:26].tobytes())  # a chunk
        it.peer.ok("step", "s", 11, x[10:26].tobytes())  # once more: not applied
        it.peer.ok("step", "s", 26, x[25:30].tobytes())  # the first of it is old
        it.peer.error("step", "s", 40, x[30].tobytes())
        it.peer.error("step", "s", 31, b"123")
        if not model.spec.is_token:
            it.peer.ok("batch", ["s"], [31], x[30].tobytes())
            it.peer.ok("step", "s", 32, [float(v) for v in x[31]])
            it.peer.ok("step", "s", 33, x[32].tobytes())
        num_steps = 30 if model.spec.is_token else 33
        entry = it.entry()
        assert (entry["state"], entry["first_seq"]) == (RecordingState.GOING, 7)
        assert it.inputs(x).tobytes() == x[7:num_steps].tobytes()
        assert it.row() == row_after(model, x, 7).tobytes()
        assert entry["id"][: entry["id_bytes"]].tobytes() == b"ss"


def test_a_chunk_that_is_under_way_is_recorded_from_one_of_its_steps_on(lstm, x):
    with recorded(lstm) as it:
        it.peer.ok("open", "s", "m", 256)
        seq = 0
        while it.entry()["state"] == RecordingState.EMPTY:
            it.peer.send("step", "s", seq + 1, x[seq : seq + 200].tobytes())
            it.recorder.order()
            it.peer.receive()
            seq += 200
            assert seq < 600
        first = int(it.entry()["first_seq"])
        assert it.inputs(x).tobytes() == x[first:seq][:256].tobytes()
        assert it.row() == row_after(lstm, x, first).tobytes()


def test_unnumbered_steps_are_recorded_too(lstm, x):
    with recorded(lstm) as it:
        it.peer.ok("open", "s", "m", 16)
        it.recorder.order()
        for k in range(5):
            it.peer.ok("step", "s", 0, x[k].tobytes())
        assert it.inputs(x).tobytes() == x[:5].tobytes()
        assert it.entry()["state"] == RecordingState.GOING


def end_by_reset(it, x):
    it.peer.ok("reset", "s", 11)
    return RecordingEnd.RESET, 10


def end_by_close(it, x):
    it.peer.ok("close", "s")
    return RecordingEnd.CLOSED, 10


def end_by_rollback(it, x):
    it.peer.ok("rollback", "s", 11, "kept")
    return RecordingEnd.ROLLED_BACK, 10


def end_by_its_length(it, x):
    it.step("s", x, 10, 256)
    assert it.entry()["state"] == RecordingState.GOING
    it.step("s", x, 256, 260)
    return RecordingEnd.FULL, 257


def end_by_eviction(it, x):
    it.peer.ok("sync", "s")
    it.peer.ok("open", "t", "m", 16)  # there is room for one
    return RecordingEnd.EVICTED, 10


def end_by_order(it, x):
    it.entry()["is_unwanted"] = 1
    it.recorder.order()
    it.step("s", x, 10, 11)
    return RecordingEnd.DROPPED, 10


ENDS = [
    end_by_reset,
    end_by_close,
    end_by_rollback,
    end_by_its_length,
    end_by_eviction,
    end_by_order,
]


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
@pytest.mark.parametrize("end", ENDS)
def test_a_recording_ends_with_whatever_is_no_step(lstm, x, tmp_path, end, durability):
    options = {
        "state_dir": tmp_path,
        "durability": durability,
        "checkpoint_interval_s": RARELY_S,
        "max_streams": 1 if end is end_by_eviction else 4,
    }
    with recorded(lstm, **options) as it:
        it.peer.ok("open", "s", "m", 16)
        it.peer.ok("snapshot", "s", "kept")
        it.step("s", x, 0, 1)
        it.recorder.order()
        it.step("s", x, 1, 10)
        why, last = end(it, x)
        entry = it.entry()
        assert (entry["state"], entry["ended_as"]) == (RecordingState.ENDED, why)
        assert it.inputs(x).tobytes() == x[1:last].tobytes()
        slot = int(entry["slot"])
        assert it.server.control.shards[0].headers[slot]["recording"] == 0
        # Python has it until it has looked; what comes next is not mixed with it.
        it.recorder.order()
        it.peer.ok("open", "t", "m", 16)
        it.peer.ok("step", "t", 1, x[20].tobytes())
        assert it.inputs(x).tobytes() == x[1:last].tobytes()
        it.look()
        assert it.entry()["state"] == RecordingState.EMPTY
        it.peer.ok("step", "t", 2, x[21].tobytes())
        it.peer.ok("step", "t", 3, x[22].tobytes())
        assert it.inputs(x).tobytes() == x[21:23].tobytes()
        assert it.entry()["serial"] == 2


@pytest.mark.parametrize("durability", ["none", "always"])
def test_the_step_that_made_a_state_nan_is_the_last_one_recorded(tmp_path, durability):
    model = exploding_model()
    x = np.ones((12, 1), np.float32)
    options = {} if durability == "none" else {"state_dir": tmp_path, "durability": durability}
    with recorded(model, **options) as it:
        it.peer.ok("open", "s", "m", 16)
        it.recorder.order()
        last = 0
        for k in range(12):
            error, _ = it.peer.call("step", "s", k + 1, x[k].tobytes())
            last = k
            if error is not None:
                assert error[0] == "quarantined"
                break
        entry = it.entry()
        assert (entry["state"], entry["ended_as"]) == (
            RecordingState.ENDED,
            RecordingEnd.QUARANTINED,
        )
        assert it.inputs(x).tobytes() == x[: last + 1].tobytes()
        it.peer.error("step", "s", last + 2, x[0].tobytes())
        assert entry["num_steps"] == last + 1
        it.look()
        it.recorder.order()
        found = it.peer.ok("diagnostics", "s")  # not recorded: it takes no steps
        assert (found["is_recorded"], it.entry()["state"]) == (False, RecordingState.EMPTY)


def test_diagnostics_are_of_what_the_stream_did(lstm, x):
    with recorded(lstm) as it:
        it.peer.ok("open", "s", "m", 16)
        it.step("s", x, 0, 100)
        found = it.peer.ok("diagnostics", "s")
        assert found == {"is_recorded": True, "num_recorded": 0, "measured": None}
        it.step("s", x, 100, 190)
        it.look()
        it.look()  # of one that is going, what was there when it was looked at before
        found = it.peer.ok("diagnostics", "s")
        assert found["num_recorded"] == 90
        right = measure_recording(lstm, row_after(lstm, x, 100), x[100:190], 100)
        measured = found["measured"]
        assert measured["age_s"] >= 0
        assert measured["ended"] is None
        assert {name: measured[name] for name in right} == right
        who = {"stream": "s", "model": "m", "shard": 0, "first_seq": 100}
        assert {name: measured[name] for name in who} == who
        stats = it.peer.ok("stats")
        told = stats["diagnostics"]["m"]
        assert (told["num_measured"], told["num_steps"]) == (1, 90)
        [layer] = told["layers"]
        assert layer["half_life_steps"] == right["layers"][0]["half_life"]["median"]
        assert layer["rms"] == pytest.approx(right["layers"][0]["rms"])
        assert [each["stream"] for each in stats["recorded"]] == ["s"]
        it.step("s", x, 190, 356)  # to its end, and on
        it.look()
        found = it.peer.ok("diagnostics", "s")
        assert (found["num_recorded"], found["measured"]["ended"]) == (0, "full")
        assert found["measured"]["num_steps"] == 256


def test_one_that_is_asked_for_takes_the_place_of_one_that_is_not(lstm, x):
    with recorded(lstm, diagnostics_streams=2) as it:
        for stream in ("a", "b", "c", "d"):
            it.peer.ok("open", stream, "m", 16)
            it.recorder.order()
            it.step(stream, x, 0, 3)
        assert it.peer.ok("diagnostics", "a")["num_recorded"] == 2 + 1
        assert it.peer.ok("diagnostics", "c")["is_recorded"]
        it.step("b", x, 3, 5)  # which is not recorded any more
        it.step("c", x, 3, 6)
        assert it.inputs(x, 1).tobytes() == x[3:6].tobytes()
        assert it.inputs(x, 0).tobytes() == x[:3].tobytes()
        assert it.row(1) == row_after(lstm, x, 3).tobytes()
        found = it.peer.ok("diagnostics", "d")  # both places are asked for
        assert (found["is_recorded"], found["num_recorded"]) == (False, 0)
        it.peer.ok("close", "a")
        it.look()
        it.recorder.order()
        assert it.peer.ok("diagnostics", "d")["is_recorded"]


def test_a_closed_streams_diagnostics_are_not_told_of_its_successor(lstm, x):
    with recorded(lstm) as it:
        it.peer.ok("open", "s", "m", 16)
        it.peer.ok("diagnostics", "s")
        it.step("s", x, 0, 40)
        it.peer.ok("close", "s")
        it.look()
        assert it.diagnostics.streams()[0]["num_steps"] == 40
        assert it.peer.error("diagnostics", "s") == ("unknown", {"stream": "s"})
        it.peer.ok("open", "s", "m", 16)
        assert it.peer.ok("diagnostics", "s")["measured"] is None


def test_a_stream_on_disk_is_brought_back_and_recorded(lstm, x, tmp_path):
    options = {"state_dir": tmp_path, "durability": "checkpoint", "max_streams": 1}
    with recorded(lstm, **options) as it:
        it.peer.ok("open", "s", "m", 16)
        it.step("s", x, 0, 10)
        it.peer.ok("sync", "s")
        it.peer.ok("open", "t", "m", 16)
        it.peer.ok("sync", "t")
        assert it.peer.ok("diagnostics", "s")["is_recorded"]
        it.step("s", x, 10, 15)
        assert it.inputs(x).tobytes() == x[10:15].tobytes()
        assert it.row() == row_after(lstm, x, 10).tobytes()
        assert it.entry()["first_seq"] == 10


def test_a_client_asks_the_shard_of_the_stream(lstm, x):
    with (
        serving({"m": lstm}, num_shards=2, diagnostics_streams=16) as server,
        Client(server.endpoints[0]) as client,
    ):
        assert server.control.diagnostics is not None
        server.control.diagnostics.stop()
        for name in range(8):
            client.stream(name).steps(x[:3])
            found = client.diagnostics(name)
            assert found == {"is_recorded": True, "num_recorded": 0, "measured": None}
            client.stream(name).steps(x[3:7])
        assert {
            client.diagnostics(cast(int, np.int64(name)))["num_recorded"] for name in range(4)
        } == {4}
        with pytest.raises(UnknownStream):
            client.diagnostics("0")
        with pytest.raises(BadParams):
            client.diagnostics(cast(int, True))
        with Client(server.endpoints[1]) as other:  # which has asked nothing before
            assert {other.diagnostics(name)["num_recorded"] for name in range(4)} == {4}


def test_without_recordings_there_are_no_diagnostics(lstm, x):
    with serving({"m": lstm}, diagnostics_streams=0) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "s", "m", 16)
        peer.ok("step", "s", 1, x[0].tobytes())
        assert peer.error("diagnostics", "s")[0] == "not_supported"
        assert "diagnostics" not in peer.ok("stats")
        peer.socket.close()


@pytest.mark.parametrize("params", [[], [None], ["s", 1], [-1], [b"s"]])
def test_wrong_parameters_are_refused(lstm, params):
    with recorded(lstm) as it:
        assert it.peer.error("diagnostics", *params)[0] == "bad_params"


def test_a_model_that_is_too_large_is_served_and_not_recorded(rng):
    model = random_model(rng, [("gru", 1200)], 1, 1)
    x = np.ones((3, 1), np.float32)
    with recorded(model) as it:
        it.peer.ok("open", "s", "m", 16)
        it.recorder.order()
        it.step("s", x, 0, 3)
        assert it.entry()["state"] == RecordingState.EMPTY
        assert not it.peer.ok("diagnostics", "s")["is_recorded"]


def test_a_fault_of_a_measurement_ends_nothing(lstm, x, monkeypatch):
    with serving({"m": lstm}, diagnostics_streams=1) as server:
        diagnostics = server.control.diagnostics

        def fail(*_):
            raise RuntimeError("made up")

        monkeypatch.setattr(diagnostics, "_measure_recording", fail)
        peer = Peer(server.endpoints[0])
        peer.ok("open", "s", "m", 16)
        peer.ok("diagnostics", "s")
        for k in range(20):
            peer.ok("step", "s", k + 1, x[k].tobytes())
        peer.ok("reset", "s", 21)
        until(lambda: peer.ok("stats")["num_errors_internal"] == 1)
        until(lambda: peer.ok("diagnostics", "s")["is_recorded"])  # its place is free again
        peer.ok("step", "s", 22, x[0].tobytes())
        peer.socket.close()
