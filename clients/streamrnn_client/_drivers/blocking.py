"""The blocking driver: runs operations with sockets of its own for every thread."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import zmq

from streamrnn_client._drivers.sockets import Connection
from streamrnn_client._session.exchange import Call, Exchange, result_of
from streamrnn_client._session.session import Operation, Session, step_parts
from streamrnn_client._session.stream_state import Claim, StreamState
from streamrnn_client.errors import ClientClosed, StreamRNNClientError
from streamrnn_client.inputs import Array
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
        self._claims_lock = threading.Lock()
        self._claims = threading.Condition(self._claims_lock)
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

    def step(self, state: StreamState, x: Any, seq: int | None) -> Array:
        """Apply one step as `Session.step` does, straight where nothing stands in its way."""
        link = self._link()
        if seq is None and state.numbered and not self.session.is_spread:
            x = state.model.step_array(x)
            if link.in_use.acquire(blocking=False):
                try:
                    y = self._step_straight(link, state, x)
                finally:
                    link.in_use.release()
                    if self.is_closed:
                        link.close_when_idle()
                if y is not None:
                    return y
        return self.run(Session.step, state, x, seq)

    def _step_straight(self, link: _Link, state: StreamState, x: Array) -> Array | None:
        """Apply one step; None if it must go the general way, and nothing was sent."""
        session, exchange = self.session, link.exchange
        if not exchange.is_idle or not self._claim_now(state):
            return None
        try:
            if state.replay_log is not None and state.replay_log.is_full(1):
                return None
            seq = session.next_seq(state, None, 1)
            started = time.monotonic()
            msgid, payload = exchange.encode(*step_parts(state, seq, x))
            if not link.send(session.address, payload):
                return None
            reply = link.receive(session.address)
            result = None if reply is None else result_of(reply, msgid)
            if result is not None:
                return session.accept(state, result, seq, 1, x)
            # It is under way: the general way goes on with it.
            call = exchange.adopt(session.address, "step", payload, msgid, started)
            if reply is not None:
                exchange.receive(reply)
            return self._drive(link, session.finish_step(exchange, state, call, seq, x))
        except BaseException as error:
            state.in_doubt |= not isinstance(error, StreamRNNClientError)
            raise
        finally:
            self._release((state,))

    def _claim_now(self, state: StreamState) -> bool:
        """Claim a stream if nobody has it."""
        with self._claims_lock:
            is_free = not state.claimed
            state.claimed = True
        return is_free

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
        with self._claims_lock:
            for state in states:
                state.claimed = False
            if self._num_waiting:
                self._claims.notify_all()


class _Link:
    """The sockets of one thread; a ZeroMQ socket must not be shared."""

    def __init__(self, options: Options) -> None:
        connections: dict[str, Connection[zmq.Socket[bytes]]] = {}
        self._keys = options.keys
        longest_s = min(options.resend_s, options.timeout_s, _MAX_POLL_S)
        self._recv_timeout_ms = math.ceil(1000 * longest_s)
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

    def send(self, endpoint: str, payload: bytes) -> bool:
        """Send at once; False if nothing was ever sent there, or there is no connection."""
        connection = self._connections.get(endpoint)
        if connection is None:
            return False
        try:
            connection.socket.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self, endpoint: str) -> bytes | None:
        """Wait for a message; None if none came before there may be something else to do."""
        try:
            return self._connections[endpoint].socket.recv()
        except zmq.Again:
            return None

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
            socket.rcvtimeo = self._recv_timeout_ms
        return connection
