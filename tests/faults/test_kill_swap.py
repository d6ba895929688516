"""kill -9 in the midst of swaps: every stream is on one side or the other, and no step is lost.

`make soak` kills many more times (STREAMRNN_SOAK_KILLS, if that is set).
"""

from __future__ import annotations

import collections
import os
import time

import msgpack
import numpy as np
import pytest
import zmq

from streamrnn_client.protocol import encode_request
from tests.live.versions import MODELS, NUM_INPUTS, Run
from tests.support.program import TIMEOUT_S, DurableProgram

pytestmark = pytest.mark.slow

NUM_STREAMS, WINDOW, HISTORY = 8, 8, 6
MSGID_OF_SWAP = 2**31
NUM_KILLS = int(os.environ.get("STREAMRNN_SOAK_KILLS", 300))


class Source:
    """A stream that is stepped without end, and what it has answered, once and for all."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._x: list[np.ndarray] = []
        self._run, self._model = Run("m@1", HISTORY), "m@1"
        self.outputs: list[bytes] = []
        self.num_swaps = 0

    def x(self, seq: int) -> bytes:
        while len(self._x) < seq:
            self._x.append(self._rng.standard_normal(NUM_INPUTS).astype(np.float32))
        return self._x[seq - 1].tobytes()

    def check(self, seq: int, y: bytes, policy: str) -> None:
        """A step has one answer: of the model that the stream has, or of the one it goes on as."""
        if seq <= len(self.outputs):
            assert y == self.outputs[seq - 1], f"step {seq} was answered differently before"
            return
        assert seq == len(self.outputs) + 1
        x = self._x[seq - 1]
        before, inputs = self._run.state(), list(self._run.inputs)
        if self._run.step(x).tobytes() != y:
            other = {"m@1": "m@2", "m@2": "m@1"}[self._model]
            # After two swaps without a step in between it begins anew as what it was.
            for name in (other, self._model):
                self._run.inputs = collections.deque(inputs, HISTORY)
                self._run.swap(name, policy, before)
                if self._run.step(x).tobytes() == y:
                    self._model = name
                    break
            else:
                raise AssertionError(f"step {seq} is of neither version")
            self.num_swaps += 1
        self.outputs.append(y)


class Swapping:
    """A client that keeps what is above durable_seq, and an administrator who swaps."""

    def __init__(self, endpoint: str, policy: str, rng: np.random.Generator) -> None:
        self.endpoint, self.policy = endpoint, policy
        self.sources = [Source(np.random.default_rng(k)) for k in range(NUM_STREAMS)]
        self.durable, self.next = [0] * NUM_STREAMS, [1] * NUM_STREAMS
        self.answered = [0] * NUM_STREAMS
        self.socket: zmq.Socket[bytes] | None = None
        self.num_swaps = 0

    def recover(self) -> None:
        """Connect anew, and send again what the server has lost."""
        if self.socket is not None:
            self.socket.close()
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(self.endpoint)
        for k in range(NUM_STREAMS):
            self.socket.send(encode_request(k, "open", [k, "m", WINDOW]))
        for _ in range(NUM_STREAMS):
            k, (last, durable, _) = self._receive()
            assert last == durable >= self.durable[k]
            self.durable[k] = last
            # A window of steps that were applied is sent again, to see that it is remembered.
            self.answered[k] = max(0, last - WINDOW)
            self.next[k] = self.answered[k] + 1

    def begin_swap(self) -> None:
        assert self.socket is not None
        names = ("m@1", "m@2") if self.num_swaps % 2 == 0 else ("m@2", "m@1")
        options = {"name": names[0], "to": names[1], "streams": self.policy}
        self.socket.send(encode_request(MSGID_OF_SWAP, "model", ["swap", options]))
        self.num_swaps += 1

    def walk(self, until_s: float) -> None:
        """Step all streams, a window ahead."""
        assert self.socket is not None
        while time.monotonic() < until_s:
            for k, source in enumerate(self.sources):
                while self.next[k] <= self.answered[k] + WINDOW:
                    seq = self.next[k]
                    msgid = seq * NUM_STREAMS + k
                    # What had an answer before a crash is repeated, and not to be swapped.
                    received = seq if seq <= len(source.outputs) else 0
                    params = [k, seq, source.x(seq), received]
                    self.socket.send(encode_request(msgid, "step", params))
                    self.next[k] += 1
            if self.socket.poll(20):
                self._take()

    def _take(self) -> None:
        msgid, result = self._receive()
        if msgid == MSGID_OF_SWAP:
            return
        seq, k = divmod(msgid, NUM_STREAMS)
        last, durable, y = result
        assert last == seq
        self.sources[k].check(seq, y, self.policy)
        self.answered[k], self.durable[k] = seq, max(self.durable[k], durable)

    def _receive(self):
        assert self.socket is not None
        assert self.socket.poll(TIMEOUT_S * 1000), "no answer came"
        _, msgid, error, result = msgpack.unpackb(self.socket.recv())
        assert error is None, error
        return msgid, result


def kill_many_times(tmp_path, durability, policy, num_kills, seed):
    rng = np.random.default_rng(seed)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("m@2", "m@1")}
    for name, path in paths.items():
        MODELS[name].save(path)
    with DurableProgram(paths["m@2"], tmp_path / "state", durability) as program:
        place = program.command.index(str(paths["m@2"])) + 1
        program.command.insert(place, str(paths["m@1"]))  # at first, new streams get it
        program.command.extend(["--history", str(HISTORY)])
        program.start()
        client = Swapping(program.endpoint, policy, rng)
        client.recover()
        for _ in range(num_kills):
            client.walk(time.monotonic() + rng.uniform(0, 0.1))
            client.begin_swap()
            client.walk(time.monotonic() + rng.exponential(0.02))
            program.kill()
            program.start()
            client.recover()
        client.walk(time.monotonic() + 0.3)
        assert client.socket is not None
        client.socket.close()
    return sum(source.num_swaps for source in client.sources)


@pytest.mark.parametrize(
    ("durability", "policy"),
    [("checkpoint", "carry"), ("always", "reset"), ("checkpoint", "replay"), ("always", "replay")],
)
def test_a_kill_in_the_midst_of_a_swap_leaves_each_stream_on_one_side(tmp_path, durability, policy):
    assert kill_many_times(tmp_path, durability, policy, 3, 0) > 0


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["checkpoint", "always"])
@pytest.mark.parametrize("policy", ["carry", "reset", "replay"])
def test_many_kills_in_the_midst_of_swaps(tmp_path, durability, policy):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    kill_many_times(tmp_path, durability, policy, NUM_KILLS, seed)
