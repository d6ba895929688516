"""Routing ids of any length, from a peer that speaks ZMTP by hand: libzmq takes them all."""

from __future__ import annotations

import contextlib
import socket

import msgpack
import numpy as np
import pytest

from streamrnn import Engine
from streamrnn_client.protocol import encode_request
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.peer import TIMEOUT_MS, Peer, step, until

NUM_INPUTS = 3
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
LONGEST = 255


def frame(body, more=False, command=False):
    flags = more + 4 * command
    if len(body) > 255:
        return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def message(frames):
    last = len(frames) - 1
    return b"".join(frame(body, more=k < last) for k, body in enumerate(frames))


class RawPeer:
    """A connection that gives itself a routing id."""

    def __init__(self, endpoint, routing_id):
        host, port = endpoint.removeprefix("tcp://").split(":")
        self.socket = socket.create_connection((host, int(port)), TIMEOUT_MS / 1000)
        self.stream = self.socket.makefile("rb")
        properties = {b"Socket-Type": b"DEALER", b"Identity": routing_id}
        ready = b"\x05READY" + b"".join(
            bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
            for name, value in properties.items()
        )
        self.socket.sendall(GREETING + frame(ready, command=True))
        self.stream.read(64)
        self.read_frame()

    def send(self, *messages):
        self.socket.sendall(b"".join(map(message, messages)))

    def read_frame(self):
        flags = self.stream.read(1)[0]
        length = int.from_bytes(self.stream.read(8 if flags & 2 else 1), "big")
        return self.stream.read(length)

    def close(self):
        self.stream.close()
        self.socket.close()


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS, 2)


@pytest.fixture
def server(model):
    with serving({"m": model}) as server:
        yield server


@pytest.fixture
def victim(server):
    peer = Peer(server.endpoints[0])
    yield peer
    peer.socket.close()


def test_a_routing_id_of_the_longest_length_is_answered(server):
    for routing_id in (b"A" * LONGEST, b"\1"):
        with contextlib.closing(RawPeer(server.endpoints[0], routing_id)) as peer:
            peer.send([encode_request(5, "step", ["nosuch", 1, bytes(12)])])
            kind, msgid, error, _ = msgpack.unpackb(peer.read_frame())
        assert (kind, msgid, error[0]) == (1, 5, "unknown")


@pytest.mark.parametrize("num_bytes", [LONGEST + 1, 257, 300, 1024, 1_000_000])
def test_what_comes_from_a_longer_one_is_read_away_and_counted(
    server, victim, model, rng, num_bytes
):
    x = rng.standard_normal((3, NUM_INPUTS)).astype(np.float32)
    expected = Engine(model).steps("s", x)
    names = [f"v{k}" for k in range(50)]
    for name in names:
        victim.ok("open", name, "m", 4)
        np.testing.assert_array_equal(step(victim, name, 1, x[0])[2], expected[0])
    num_before = victim.ok("stats")["num_too_broken_to_answer"]
    request = encode_request(5, "hello", [{}])
    several = [request, encode_request(6, "close", ["v0"]), b"", request]
    with contextlib.closing(RawPeer(server.endpoints[0], b"A" * num_bytes)) as peer:
        peer.send([request], several, [b""], [request])
        until(lambda: victim.ok("stats")["num_too_broken_to_answer"] == num_before + 4)
    for t in (1, 2):
        for name in names:
            np.testing.assert_array_equal(step(victim, name, t + 1, x[t])[2], expected[t])
    stats = victim.ok("stats")
    assert stats["num_too_broken_to_answer"] == num_before + 4
    assert stats["num_extra_frames"] == 0
