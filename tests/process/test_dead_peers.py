"""Peers that are gone are found by TCP: no PING of ZMTP is sent, by a server or by a client."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import closing

import msgpack
import numpy as np
import pytest
import zmq

from streamrnn_client import Client, aio
from streamrnn_client.protocol import encode_request
from streamrnn_server.testing import serving
from tests.fuzz.zmtp import RawPeer, frame
from tests.support.models import random_model

MAX_DEAD_S = 30
NUM_PINGS = 200


@pytest.fixture(scope="module")
def server():
    model = random_model(np.random.default_rng(3), [("gru", 12)])
    with serving({"m": model}, num_shards=2) as server:
        yield server


def connections(port):
    """Return copies of this process's TCP connections at a port, the servers' and the clients'."""
    servers: list[socket.socket] = []
    clients: list[socket.socket] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # it is no socket, or has been closed meanwhile
            continue
        try:
            here, there = one.getsockname(), one.getpeername()
            ours = one.family in (socket.AF_INET, socket.AF_INET6)
        except OSError:
            ours = False
        if ours and port in (here[1], there[1]):
            (servers if here[1] == port else clients).append(one)
        else:
            one.close()
    return servers, clients


def assert_that_it_is_watched(one):
    def option(name, level=socket.IPPROTO_TCP):
        return one.getsockopt(level, getattr(socket, name))

    with closing(one):
        assert option("SO_KEEPALIVE", socket.SOL_SOCKET) == 1
        silent_s = option("TCP_KEEPIDLE") + option("TCP_KEEPINTVL") * option("TCP_KEEPCNT")
        assert 0 < silent_s <= MAX_DEAD_S
        assert 0 < option("TCP_USER_TIMEOUT") <= 1000 * MAX_DEAD_S


def test_the_kernel_watches_both_ends_of_each_connection(server):
    def check():
        servers, clients = connections(int(server.endpoints[0].rpartition(":")[2]))
        assert servers
        assert clients
        for one in (*servers, *clients):
            assert_that_it_is_watched(one)

    async def check_async():
        async with aio.Client(server.endpoints[0], timeout_s=20) as client:
            await client.hello()
            check()

    with Client(server.endpoints[0], timeout_s=20) as client:
        client.hello()
        check()
        (connection,) = client._driver._local.links[0]._connections.values()
        assert connection.socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
    asyncio.run(check_async())


def test_a_server_sends_no_pings(server):
    routers = [each for each in server._sockets if each.type == zmq.ROUTER]
    assert len(routers) == 2
    assert [router.getsockopt(zmq.HEARTBEAT_IVL) for router in routers] == [0, 0]


def read_frames(peer):
    """Yield flags and body of each frame that comes after the handshake."""
    while True:
        flags, size = peer.read(2)
        if flags & 2:
            size = int.from_bytes(bytes([size]) + peer.read(7), "big")
        yield flags, peer.read(size)


def test_a_peer_that_pings_is_answered_and_hurts_nobody(server):
    """Its own PINGs are answered by libzmq; what it gets are PONGs and replies, and no PING."""
    peer = RawPeer(int(server.endpoints[0].rpartition(":")[2]))
    for k in range(NUM_PINGS):
        peer.send(frame(b"\x04PING\x00\x00" + b"%03d" % k, command=True))
        peer.send(frame(encode_request(k, "hello", [{}])))
    pongs, replies = [], []
    for flags, body in read_frames(peer):
        if flags & 4:
            pongs.append(body)
        else:
            replies.append(msgpack.unpackb(body)[1])
        if len(replies) == NUM_PINGS:
            break
    assert replies == list(range(NUM_PINGS))
    assert pongs == [b"\x04PONG%03d" % k for k in range(NUM_PINGS)]
    peer.reset()
    with Client(server.endpoints[0]) as client:
        assert client.hello().instance == server.control.instance
