"""Connections: DEALER sockets with the options of this client."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import zmq

from streamrnn_client._drivers.names import numeric_endpoints
from streamrnn_client._session.exchange import Exchange
from streamrnn_client.errors import BadParams
from streamrnn_client.options import Keys

__all__ = ["Connection", "send_outbox"]

S = TypeVar("S", bound="zmq.Socket[Any]")
_ID_BYTES = 16
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.1, 2.0  # between two tries to connect; it doubles
_DEAD_AFTER_MS = 30_000  # without a sign of life from the other side's kernel


class Connection(Generic[S]):
    """A socket to one endpoint. Who lost the connection calls `renew` until it is there again.

    Every connection has a routing id of its own. A server keeps an id as long as it believes in
    the connection that brought it, which after a broken network is longer than we do, and a second
    one with that id it would not hear. So libzmq, which would take the old id, must not reconnect.
    """

    def __init__(self, socket: S, endpoint: str, keys: Keys | None = None) -> None:
        self.socket = socket
        self._endpoint = endpoint
        self._connected_to = ""
        self._num_tries = 0
        self._pause_s = _MIN_PAUSE_S
        self._next_at = 0.0
        _configure(socket, keys)
        try:
            self._connect()
        except (zmq.ZMQError, ValueError) as error:  # or it is no Unicode
            socket.close()
            raise BadParams(f"cannot connect to {endpoint!r}: {error}; is it an address?") from None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection: only then the socket takes messages."""
        return bool(int(self.socket.get(zmq.EVENTS)) & zmq.POLLOUT)

    def renew(self) -> None:
        """Connect anew, unless the last try was a moment ago and may still succeed."""
        now = time.monotonic()
        if now < self._next_at:
            return
        # Nobody who waits for a connection lets so much time pass: there was one in between.
        was_connected = now > self._next_at + self._pause_s + _MIN_PAUSE_S
        self._pause_s = _MIN_PAUSE_S if was_connected else min(2 * self._pause_s, _MAX_PAUSE_S)
        with contextlib.suppress(zmq.ZMQError):  # libzmq has given it up by itself
            self.socket.disconnect(self._connected_to)
        self._connect()

    def _connect(self) -> None:
        # A zero at the beginning would stand for ids that servers give.
        self.socket.setsockopt(zmq.ROUTING_ID, b"\1" + secrets.token_bytes(_ID_BYTES - 1))
        # A host may have several addresses, and a server listen at one of them only.
        endpoints = numeric_endpoints(self._endpoint)
        self._connected_to = endpoints[self._num_tries % len(endpoints)]
        self._num_tries += 1
        self.socket.ipv6 = "[" in self._connected_to
        self.socket.connect(self._connected_to)
        self._next_at = time.monotonic() + self._pause_s


def send_outbox(exchange: Exchange, connection_to: Callable[[str], Connection[Any]]) -> bool:
    """Send what stands in an outbox; return whether something could not be sent now."""
    has_failed = False
    while exchange.outbox:
        call = exchange.outbox.popleft()
        if call.done:  # abandoned
            continue
        connection = connection_to(call.endpoint)
        try:
            connection.socket.send(call.payload, zmq.NOBLOCK)
        except zmq.Again:
            exchange.send_failed(call)
            connection.renew()
            has_failed = True
    return has_failed


def _configure(socket: zmq.Socket[Any], keys: Keys | None) -> None:
    """Set all options whose default would hang or flood."""
    socket.linger = 0  # every request has a reply, so nothing that matters waits at the end
    socket.sndhwm = socket.rcvhwm = 0  # bounded by what was asked
    # Nothing waits in a queue for a connection: what cannot be sent now is not sent, and known not
    # to be. An unnumbered step then cannot go out long after its caller has given up.
    socket.immediate = True
    socket.reconnect_ivl = -1
    # The kernels find out whether the other side is there. A ping of ZMTP could end a server whose
    # queue is full (libzmq 4.3.5 asserts that it can answer).
    socket.heartbeat_ivl = 0
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = socket.tcp_keepalive_intvl = 5
    socket.tcp_keepalive_cnt = 5
    socket.tcp_maxrt = _DEAD_AFTER_MS
    if keys is not None:
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        socket.curve_serverkey = keys.server
