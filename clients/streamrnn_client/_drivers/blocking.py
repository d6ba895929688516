"""The blocking driver: runs operations with sockets of its own for every thread."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import zmq

from streamrnn_client._drivers.sockets import Connection
from streamrnn_client._session.exchange import Call, Exchange
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.stream_state import Claim, StreamState
from streamrnn_client.errors import ClientClosed
from streamrnn_client.options import Options

__all__ = ["BlockingDriver"]

P = ParamSpec("P")
T = TypeVar("T")
_MAX_POLL_S = 0.25  # so that a thread notices that another one has closed the client


class BlockingDriver:
    """Run a session's operations, one at a time in each thread."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.session = Session(
            options.address, self._release, options.max_kept_steps, options.max_kept_bytes
        )
        self.is_closed = False
        self._claims = threading.Condition(threading.Lock())
        self._num_waiting = 0
        self._local = threading.local()
        self._links: weakref.WeakSet[_Link] = weakref.WeakSet()

    def close(self) -> None:
        """Close all sockets; a thread with a call under way closes its own at the call's end."""
        self.is_closed = True
        for link in list(self._links):
            link.close_when_idle()

    def run(
        self,
        operation: Callable[Concatenate[Session, Exchange, P], Operation[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation to its end in this thread and return its result."""
        link = self._link()
        try:
            with link.in_use:
                return self._drive(link, operation(self.session, link.exchange, *args, **kwargs))
        finally:
            if self.is_closed:
                link.close_when_idle()

    def _link(self) -> _Link:
        link: _Link | None = getattr(self._local, "link", None)
        if link is None or link.is_closed:
            if self.is_closed:
                raise ClientClosed("this client was closed; make a new one")
            link = self._local.link = _Link(self.options)
            self._links.add(link)
        return link

    def _drive(self, link: _Link, operation: Operation[T]) -> T:
        try:
            wanted = next(operation)
            while True:
                try:
                    if isinstance(wanted, Call):
                        self._wait(link, wanted)
                    else:
                        self._claim(wanted)
                except BaseException as error:
                    operation.throw(error)  # which releases its streams
                    raise
                wanted = operation.send(None)
        except StopIteration as stop:
            return stop.value

    def _wait(self, link: _Link, call: Call) -> None:
        while not call.done:
            if self.is_closed or link.is_closed:
                raise ClientClosed("the client was closed while a call was under way")
            link.work()

    def _claim(self, claim: Claim) -> None:
        with self._claims:
            while any(state.claimed for state in claim.states):
                self._num_waiting += 1
                self._claims.wait()
                self._num_waiting -= 1
                if self.is_closed:
                    raise ClientClosed("the client was closed while a call waited for its stream")
            for state in claim.states:
                state.claimed = True

    def _release(self, states: Sequence[StreamState]) -> None:
        with self._claims:
            for state in states:
                state.claimed = False
            if self._num_waiting:
                self._claims.notify_all()


class _Link:
    """The sockets of one thread; a ZeroMQ socket must not be shared."""

    def __init__(self, options: Options) -> None:
        connections: dict[str, Connection[zmq.Socket[bytes]]] = {}
        self._keys = options.keys
        # The exchange must not refer to the link: a cycle would put off the closing of sockets.
        self.exchange = Exchange(
            time.monotonic,
            timeout_s=options.timeout_s,
            resend_s=options.resend_s,
            is_connected=lambda endpoint: (
                endpoint in connections and connections[endpoint].is_connected
            ),
        )
        self.in_use = threading.Lock()
        self.is_closed = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._connections = connections
        self._poller = zmq.Poller()
        self._only: zmq.Socket[bytes] | None = None

    def work(self) -> None:
        """Send what is to be sent, wait for the next event, and take it."""
        exchange = self.exchange
        while exchange.outbox:
            call = exchange.outbox.popleft()
            connection = self._connection(call.endpoint)
            try:
                connection.socket.send(call.payload, zmq.NOBLOCK)
            except zmq.Again:
                exchange.send_failed(call)
                connection.renew()
        remaining_s = exchange.next_at() - time.monotonic()
        if remaining_s <= 0:
            exchange.tick()
            return
        timeout_ms = math.ceil(1000 * min(remaining_s, _MAX_POLL_S))
        if self._only is not None:
            if self._only.poll(timeout_ms):
                exchange.receive(self._only.recv(zmq.NOBLOCK))
            return
        for socket, _ in self._poller.poll(timeout_ms):
            exchange.receive(socket.recv(zmq.NOBLOCK))

    def close_when_idle(self) -> None:
        """Close, unless a call is under way: then its thread does it at the call's end."""
        if not self.in_use.acquire(blocking=False):
            return
        try:
            self.is_closed = True
            for connection in self._connections.values():
                connection.socket.close()
            self._connections.clear()
        finally:
            self.in_use.release()

    def __del__(self) -> None:
        self.close_when_idle()

    def _connection(self, endpoint: str) -> Connection[zmq.Socket[bytes]]:
        connection = self._connections.get(endpoint)
        if connection is None:
            socket = self._context.socket(zmq.DEALER)
            connection = Connection(socket, endpoint, self._keys)
            self._connections[endpoint] = connection
            self._poller.register(socket, zmq.POLLIN)
            self._only = socket if len(self._connections) == 1 else None
        return connection
