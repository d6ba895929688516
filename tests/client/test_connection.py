"""Connections of a client over real sockets: lost, broken on one side, under which routing id."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamrnn_client import Client, aio
from tests.support.fake_server import SocketServer

PATIENT: dict[str, Any] = {"timeout_s": 20.0, "resend_s": 0.05}


class Tap:
    """A TCP forwarder that can break the client's side and keep the server's."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("tcp://").split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._clients: list[socket.socket] = []
        self._servers: list[socket.socket] = []
        self.sent = bytearray()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._clients.append(client)
                self._servers.append(server)
                for pair in ((client, server, self.sent), (server, client, bytearray())):
                    self._start(_pump, *pair)

    def cut(self) -> None:
        """Break all connections for the client; to the server they look alive."""
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break everything and wait for the threads."""
        for each in (self._listener, *self._clients, *self._servers):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._clients, *self._servers):
            each.close()


def _pump(source: socket.socket, sink: socket.socket, seen: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            seen += data
            sink.sendall(data)


@pytest.fixture
def server():
    with SocketServer() as server:
        yield server


@pytest.fixture
def tap(server):
    tap = Tap(server.address)
    yield tap
    tap.close()


def test_a_client_comes_back_while_the_server_believes_in_its_old_connection(server, tap):
    with Client(tap.address, **PATIENT) as client:
        stream = client.stream("a", "sum")
        for count in range(1, 4):
            assert stream.step([1, 0]).tolist() == [count, 0]
            tap.cut()
        assert stream.steps(np.ones((20, 2)))[-1].tolist() == [23, 20]


def test_an_async_client_comes_back_while_the_server_believes_in_its_old_connection(server, tap):
    async def run():
        async with aio.Client(tap.address, **PATIENT) as client:
            stream = await client.stream("a", "sum")
            for count in range(1, 4):
                assert (await stream.step([1, 0])).tolist() == [count, 0]
                tap.cut()

    asyncio.run(run())


def test_every_connection_has_a_new_random_id_and_sends_no_pings(server, tap):
    with Client(tap.address, **PATIENT) as client:
        stream = client.stream("a", "sum")
        for _ in range(3):
            stream.step([1, 0])
            tap.cut()
        stream.step([1, 0])
        connections = client._driver._links
        for link in connections:
            for connection in link._connections.values():
                assert connection.socket.heartbeat_ivl == 0
    # READY carries the id: its name, four bytes of length, and sixteen that begin with 1.
    ids = [part[4:20] for part in bytes(tap.sent).split(b"Identity")[1:]]
    assert len(ids) >= 3
    assert len(set(ids)) == len(ids)
    assert all(each[0] == 1 for each in ids)
