"""kill -9 of the server under a minimal replaying client.

`make soak` kills it 1,000 times in each durability (STREAMRNN_SOAK_KILLS times, if that is set).
"""

from __future__ import annotations

import os
import signal
import time

import msgpack
import numpy as np
import pytest
import zmq

from streamrnn import Engine
from streamrnn.state.journal import JOURNAL_DIRECTORY, segment_paths
from streamrnn_client.protocol import encode_request
from tests.support.models import random_model
from tests.support.peer import RARELY_S
from tests.support.program import TIMEOUT_S, DurableProgram

pytestmark = pytest.mark.slow

NUM_INPUTS, NUM_STREAMS, WINDOW, NUM_STEPS = 3, 8, 8, 400
NUM_KILLS = int(os.environ.get("STREAMRNN_SOAK_KILLS", 1000))
MAX_START_S = 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = random_model(np.random.default_rng(3), [("lstm", 24)], NUM_INPUTS, 2)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model.save(path)
    return model, path


class Replaying:
    """A client of few lines that keeps what is above durable_seq, and sends it again.

    It knows nothing of the server but the protocol: after silence it opens every stream anew, and
    goes on after last_seq.
    """

    def __init__(self, endpoint, inputs, expected):
        self.endpoint, self.inputs, self.expected = endpoint, inputs, expected
        self.acknowledged = [0] * len(inputs)
        self.durable = [0] * len(inputs)
        self.sent = [0] * len(inputs)
        self.answered = [0] * len(inputs)  # of what was sent since the server came back
        self.num_lost = 0
        self.connect()

    def connect(self):
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(self.endpoint)

    def recover(self, is_always):
        """Connect anew, and begin after what the server still has."""
        self.socket.close()
        self.connect()
        for k in range(len(self.inputs)):
            self.socket.send(encode_request(k, "open", [k, None, WINDOW]))
        for _ in self.inputs:
            assert self.socket.poll(TIMEOUT_S * 1000)
            _, k, error, result = msgpack.unpackb(self.socket.recv())
            assert error is None, error
            last, durable, _ = result
            # What was told to be on disk is there; with `always`, all that was answered.
            assert last >= self.durable[k]
            assert last == durable
            if is_always:
                assert last >= self.acknowledged[k]
            self.num_lost += max(0, self.acknowledged[k] - last)
            self.durable[k] = last
            # A window of steps that were applied is sent again, to see that it is remembered.
            self.sent[k] = self.answered[k] = max(0, last - WINDOW)

    def run(self, until):
        """Step all streams, a window ahead, until it is time; True when all is done."""
        num = len(self.inputs)
        while time.monotonic() < until and min(self.acknowledged) < NUM_STEPS:
            for k in range(num):
                while self.sent[k] < min(self.answered[k] + WINDOW, NUM_STEPS):
                    seq = self.sent[k] + 1
                    x = self.inputs[k][seq - 1].tobytes()
                    self.socket.send(encode_request(seq * num + k, "step", [k, seq, x]))
                    self.sent[k] = seq
            if self.socket.poll(20):
                self.take(num)
        return min(self.acknowledged) == NUM_STEPS

    def take(self, num):
        _, msgid, error, result = msgpack.unpackb(self.socket.recv())
        assert error is None, error
        seq, k = divmod(msgid, num)
        last, durable, y = result
        assert last == seq
        np.testing.assert_array_equal(np.frombuffer(y, np.float32), self.expected[k][seq - 1])
        self.answered[k] = seq
        self.acknowledged[k] = max(self.acknowledged[k], seq)
        self.durable[k] = max(self.durable[k], durable)


def kill_many_times(model, directory, durability, num_kills, seed):
    model, path = model
    rng = np.random.default_rng(seed)
    shape = (NUM_STREAMS, NUM_STEPS, NUM_INPUTS)
    inputs = rng.standard_normal(shape).astype(np.float32)
    engine = Engine(model)
    expected = [engine.steps(k, x) for k, x in enumerate(inputs)]
    with DurableProgram(path, directory, durability) as program:
        program.start()
        return kill_and_compare(program, inputs, expected, durability, num_kills, rng)


def kill_and_compare(program, inputs, expected, durability, num_kills, rng):
    client = Replaying(program.endpoint, inputs, expected)
    try:
        client.recover(False)
        for _ in range(num_kills):
            client.run(time.monotonic() + rng.uniform(0, 0.15))
            program.kill()
            if rng.random() < 0.2:  # once more as it starts, perhaps in the midst of a replay
                program.begin()
                time.sleep(rng.uniform(0, MAX_START_S))
                program.kill()
            program.start()
            client.recover(durability == "always")
            if min(client.acknowledged) == NUM_STEPS:  # all over again, as other streams would be
                client = begin_again(client)
        assert client.run(time.monotonic() + TIMEOUT_S)
    finally:
        client.socket.close()
    assert program.end(signal.SIGTERM) == 0
    assert segment_paths(program.state / JOURNAL_DIRECTORY) == []
    return client.num_lost


def begin_again(client):
    for k in range(NUM_STREAMS):
        client.socket.send(encode_request(k, "close", [k]))
    for _ in range(NUM_STREAMS):
        assert msgpack.unpackb(client.socket.recv())[3] is True
    client.socket.close()
    fresh = Replaying(client.endpoint, client.inputs, client.expected)
    fresh.num_lost = client.num_lost
    fresh.recover(False)
    return fresh


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_kills_change_no_bit(model, tmp_path, durability):
    num_lost = kill_many_times(model, tmp_path, durability, 3, 0)
    if durability == "checkpoint":
        assert num_lost > 0, "no kill came at a moment when something was not on disk"


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_a_thousand_kills_change_no_bit(model, tmp_path, durability):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    kill_many_times(model, tmp_path, durability, NUM_KILLS, seed)


def test_a_clean_stop_loses_nothing(model, tmp_path):
    model, path = model
    x = np.ones((20, NUM_INPUTS), np.float32)
    with DurableProgram(path, tmp_path, interval_s=RARELY_S) as program:
        program.start()
        stop_and_go_on(model, program, x)


def stop_and_go_on(model, program, x):
    client = Replaying(program.endpoint, [x] * 3, [Engine(model).steps("s", x)] * 3)
    client.recover(False)
    for k in range(3):
        for seq in range(1, WINDOW + 1):
            request = encode_request(seq * 3 + k, "step", [k, seq, x[seq - 1].tobytes()])
            client.socket.send(request)
    for _ in range(3 * WINDOW):
        client.take(3)
    assert program.end(signal.SIGTERM) == 0
    program.start()
    client.recover(True)
    assert client.durable == [WINDOW] * 3
    client.socket.close()
