"""A raw client, and servers for it in this process."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from streamrnn_client.protocol import ErrorCode, encode_request
from streamrnn_server.testing import serving

__all__ = ["RARELY_S", "Peer", "random_id", "served", "step", "step_or_busy", "until"]

TIMEOUT_MS = 20_000
MAX_TRIES = 100_000
RARELY_S = 3600.0  # a checkpoint interval: no checkpoint but those that are asked for


def random_id():
    """Return a routing id as a client must have one where there are keys."""
    return b"\1" + secrets.token_bytes(15)


class Peer:
    """A DEALER socket and the msgids of its requests."""

    def __init__(self, endpoint):
        self.socket: Any = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTING_ID, random_id())
        self.socket.connect(endpoint)
        self.msgid = 0

    def send(self, method, *params):
        """Return the msgid."""
        self.msgid += 1
        self.socket.send(encode_request(self.msgid, method, params))
        return self.msgid

    def receive(self):
        """Return msgid, error, result."""
        assert self.socket.poll(TIMEOUT_MS), "no reply came"
        kind, msgid, error, result = msgpack.unpackb(self.socket.recv())
        assert kind == 1
        assert error is None or result is None
        return msgid, error, result

    def call(self, method, *params):
        """Return error, result."""
        sent = self.send(method, *params)
        msgid, error, result = self.receive()
        assert msgid == sent
        return error, result

    def ok(self, method, *params):
        """Return the result of a request that must succeed."""
        error, result = self.call(method, *params)
        assert error is None
        return result

    def error(self, method, *params):
        """Return code, detail of a request that must fail."""
        error, result = self.call(method, *params)
        assert result is None
        code, message, detail = error
        assert code in {each.wire for each in ErrorCode}
        assert message
        return code, detail


@contextlib.contextmanager
def served(models, directory, names=("m",), **options) -> Iterator[Peer]:
    """Serve some of the models with a state directory; yield a peer of the first shard."""
    options = {"durability": "checkpoint", "checkpoint_interval_s": RARELY_S, **options}
    chosen = {name: models[name] for name in names}
    with serving(chosen, state_dir=directory, **options) as server:
        peer = Peer(server.endpoints[0])
        try:
            yield peer
        finally:
            peer.socket.close()


def step(peer, stream, seq, x):
    """Return last_seq, durable_seq, y."""
    last, durable, y = peer.ok("step", stream, seq, x.tobytes())
    return last, durable, np.frombuffer(y, np.float32)


def step_or_busy(peer, stream, seq, x, expected) -> bool:
    """Try to make a step and check its output; False if the server was busy."""
    error, result = peer.call("step", stream, seq, x[seq - 1].tobytes())
    if error is not None:
        assert error[0] == "busy"
        assert error[2]["retry_after_ms"] > 0
        return False
    np.testing.assert_array_equal(np.frombuffer(result[2], np.float32), expected[seq - 1])
    return True


def until(condition):
    """Ask a server until something is so, and leave it the core in between."""
    for _ in range(MAX_TRIES):
        if condition():
            return
        time.sleep(0.001)
    pytest.fail("it never came")
