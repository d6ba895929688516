"""The blocking driver: runs operations with sockets of its own for every thread."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import zmq

from streamrnn_client._drivers.sockets import Connection, send_outbox
from streamrnn_client._session.exchange import Call, Exchange, result_of
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.stream_state import StreamState, step_parts
from streamrnn_client._session.turns import Claim, Era, give_back, has_turn, take, turn_timeout
from streamrnn_client.errors import ClientClosed, NotSupported, StreamRNNClientError
from streamrnn_client.inputs import Array
from streamrnn_client.options import Options

__all__ = ["BlockingDriver"]

P = ParamSpec("P")
T = TypeVar("T")
_MAX_POLL_S = 0.25  # so that a thread notices that another one has closed the client


class BlockingDriver:
    """Run a session's operations, one at a time in each thread.

    A signal handler or a `__del__` may call in the midst of another call of the same thread: it
    gets sockets of its own, and never waits for a stream. An interrupt may come at any line.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.session = Session(
            options.address, self._release, options.max_kept_steps, options.max_kept_bytes
        )
        self.is_closed = False
        self._begin_era()

    def _begin_era(self) -> None:
        """Begin with no sockets and no locks: after a fork the old ones are the parent's."""
        self._pid = os.getpid()
        self._era = Era()
        # Reentrant, and held only where no call waits: a call may be interrupted by another one.
        self._lock = threading.RLock()
        self._local = threading.local()
        self._links: weakref.WeakSet[_Link] = weakref.WeakSet()

    def close(self) -> None:
        """Close all sockets; a thread with a call under way closes its own at the call's end."""
        self.is_closed = True
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close_when_idle()

    def run(
        self,
        operation: Callable[Concatenate[Session, Exchange, P], Operation[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation to its end in this thread and return its result."""

        def work(link: _Link, claims: list[Claim]) -> T:
            return self._drive(
                link, claims, operation(self.session, link.exchange, *args, **kwargs)
            )

        return self._guard(work)

    def step(self, state: StreamState, x: Any, seq: int | None, within_s: float | None) -> Array:
        """Apply one step as `Session.step` does, straight where nothing stands in its way."""
        is_plain = seq is None and within_s is None
        if not is_plain or not state.numbered or self.session.is_spread:
            return self.run(Session.step, state, x, seq, within_s)
        return self._guard(self._step, state, state.model.step_array(x))

    def _guard(
        self,
        work: Callable[Concatenate[_Link, list[Claim], P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do the work of a call with sockets of its own, and leave nothing of it behind."""
        if self._pid != os.getpid():
            self._era.is_over = True
            self._begin_era()
        link = self._link()
        claims: list[Claim] = []
        try:
            while not link.in_use.acquire(blocking=False):
                link = self._link()
            result = work(link, claims, *args, **kwargs)
            self._end(claims)
            self._free(link)
            return result
        except BaseException as error:
            link.exchange.abandon_all()
            self._end(claims, error)
            self._free(link)
            if isinstance(error, StreamRNNClientError) and self._is_nested(link):
                error.is_of_another_call = True
            raise

    def _step(self, link: _Link, claims: list[Claim], state: StreamState, x: Array) -> Array:
        y = self._step_straight(link, claims, state, x)
        if y is None:
            self._end(claims)
            y = self._drive(link, claims, self.session.step(link.exchange, state, x, None))
        return y

    def _step_straight(
        self, link: _Link, claims: list[Claim], state: StreamState, x: Array
    ) -> Array | None:
        """Apply one step; None if it must go the general way, and nothing was sent."""
        session, exchange = self.session, link.exchange
        claim = Claim((state,))
        claim.era = self._era
        claims.append(claim)
        with self._lock:
            if not exchange.is_idle or not take(claim, may_wait=False):
                return None
        if state.unfinished is not None or (
            state.replay_log is not None and state.replay_log.is_full(1)
        ):
            return None
        seq = session.next_seq(state, None, 1)
        claim.before = (state.last_seq,)
        started = time.monotonic()
        msgid, payload = exchange.encode(*step_parts(state, seq, x, session.received(state)))
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
        return self._drive(link, claims, session.finish_step(exchange, state, call, seq, x))

    def _link(self) -> _Link:
        """Return sockets of this thread that no call uses."""
        if self.is_closed:
            raise ClientClosed("this client was closed; make a new one")
        links: list[_Link] | None = getattr(self._local, "links", None)
        if links is None:
            links = self._local.links = []
        for link in links:
            if not link.in_use.locked():
                return link
        link = _Link(self.options)
        links.append(link)
        with self._lock:
            self._links.add(link)
        return link

    def _is_nested(self, link: _Link) -> bool:
        """Return whether another call of this thread goes on only when this one has ended."""
        links = getattr(self._local, "links", ())
        return any(each.in_use.locked() for each in links if each is not link)

    def _free(self, link: _Link) -> None:
        if link.in_use.locked():
            link.in_use.release()
        if self.is_closed:
            link.close_when_idle()

    def _drive(self, link: _Link, claims: list[Claim], operation: Operation[T]) -> T:
        try:
            wanted = next(operation)
            while True:
                try:
                    if isinstance(wanted, Call):
                        self._wait(link, wanted)
                    else:
                        claims.append(wanted)
                        self._claim(link, wanted)
                except BaseException as error:
                    operation.throw(error)  # which abandons its requests
                    raise
                wanted = operation.send(None)
        except StopIteration as stop:
            return stop.value

    def _wait(self, link: _Link, call: Call) -> None:
        while not call.done:
            if self.is_closed or link.is_closed:
                raise ClientClosed("the client was closed while a call was under way")
            link.check_process()
            link.work()

    def _claim(self, link: _Link, claim: Claim) -> None:
        link.check_process()
        claim.era = self._era
        started = time.monotonic()
        turn = threading.Lock()
        turn.acquire()
        claim.wake = turn.release
        with self._lock:
            is_nested = self._is_nested(link)
            if take(claim, may_wait=not is_nested):
                return
        if is_nested:
            raise NotSupported(
                f"this call, from a signal handler or a __del__, has interrupted another one, and "
                f"stream {claim.states[0].id!r} or another of its streams is in use: it cannot be "
                "waited for here, and nothing was sent. Call again when the other call has ended"
            )
        claim.deadline = started + self.options.timeout_s
        while (remaining_s := claim.remaining_s(time.monotonic())) > 0:
            turn.acquire(timeout=min(remaining_s, _MAX_POLL_S))
            if self.is_closed:
                raise ClientClosed("the client was closed while a call waited for its stream")
            with self._lock:
                if has_turn(claim):
                    return
        raise turn_timeout(claim, self.options.timeout_s)

    def _release(self, claim: Claim) -> None:
        with self._lock:
            give_back(claim)

    def _end(self, claims: Sequence[Claim], error: BaseException | None = None) -> None:
        with self._lock:
            for claim in claims:
                give_back(claim, error)


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
        self.pid = os.getpid()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._connections = connections
        self._poller = zmq.Poller()

    def check_process(self) -> None:
        """Raise `ClientClosed` in the child of a fork: the sockets are the parent's."""
        if self.pid != os.getpid():
            raise ClientClosed("the process was forked in the midst of this call: call again")

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
        send_outbox(exchange, self._connection)
        remaining_s = exchange.next_at() - time.monotonic()
        timeout_ms = math.ceil(1000 * min(max(remaining_s, 0), _MAX_POLL_S))
        ready = self._poller.poll(timeout_ms)
        for socket, _ in ready:
            exchange.receive(socket.recv(zmq.NOBLOCK))
        if not ready and remaining_s <= 0:  # what has come was read first
            exchange.tick()

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
