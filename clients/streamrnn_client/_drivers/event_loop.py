"""The asyncio driver: runs operations with one set of sockets for the event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import zmq

from streamrnn_client._drivers.sockets import Connection, send_outbox
from streamrnn_client._session.exchange import Call, Exchange
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.turns import Claim, Era, give_back, has_turn, take, turn_timeout
from streamrnn_client.errors import ClientClosed, NotSupported
from streamrnn_client.options import Options

__all__ = ["EventLoopDriver"]

P = ParamSpec("P")
T = TypeVar("T")
_MAX_RECEIVED = 1000  # messages, before other tasks have their turn
_POLL_S = 0.002  # where an event loop cannot watch a socket


class EventLoopDriver:
    """Run a session's operations, any number at once, in one event loop after another."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.session = Session(
            options.address, give_back, options.max_kept_steps, options.max_kept_bytes
        )
        self.is_closed = False
        self._hub: _Hub | None = None

    async def close(self) -> None:
        """Close all sockets; calls under way end with `ClientClosed`."""
        self.is_closed = True
        if self._hub is not None:
            self._hub.close()

    def _open_hub(self) -> _Hub:
        """Return the sockets of the running loop; those of a loop that has ended are closed."""
        hub = self._hub
        loop = asyncio.get_running_loop()
        is_of_parent = hub is not None and hub.pid != os.getpid()
        if hub is not None and hub.loop is loop and not hub.is_closed and not is_of_parent:
            return hub
        if self.is_closed:
            raise ClientClosed("this client was closed; make a new one")
        if hub is not None and not is_of_parent:
            if hub.loop is not loop and hub.loop.is_running():
                raise NotSupported(
                    "this client is in use in another event loop, which runs in another thread; "
                    "make an aio.Client for each loop that runs at the same time"
                )
            hub.close()
        if hub is not None:
            hub.era.is_over = True
        self._hub = _Hub(self.options, loop)
        return self._hub

    async def run(
        self,
        operation: Callable[Concatenate[Session, Exchange, P], Operation[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation to its end in the running loop and return its result."""
        hub = self._open_hub()
        running = operation(self.session, hub.exchange, *args, **kwargs)
        claims: list[Claim] = []
        try:
            result = await self._drive(hub, running, claims)
        except BaseException as error:
            for claim in claims:
                give_back(claim, error)
            raise
        for claim in claims:
            give_back(claim)
        return result

    async def _drive(self, hub: _Hub, operation: Operation[T], claims: list[Claim]) -> T:
        try:
            wanted = next(operation)
            while True:
                try:
                    if isinstance(wanted, Call):
                        await hub.wait(wanted)
                    else:
                        claims.append(wanted)
                        await self._claim(hub, wanted)
                except BaseException as error:
                    operation.throw(error)  # which abandons its requests
                    raise
                wanted = operation.send(None)
        except StopIteration as stop:
            return stop.value

    async def _claim(self, hub: _Hub, claim: Claim) -> None:
        claim.era = hub.era
        if take(claim):
            return
        claim.deadline = time.monotonic() + self.options.timeout_s
        while (remaining_s := claim.remaining_s(time.monotonic())) > 0:
            turn: asyncio.Future[None] = hub.loop.create_future()
            claim.wake = partial(_settle, turn)
            alarm = hub.loop.call_later(remaining_s, _settle, turn)
            try:
                await turn
            finally:
                alarm.cancel()
            if self.is_closed or hub.is_closed:
                raise ClientClosed("the client was closed while a call waited for its stream")
            if has_turn(claim):
                return
        raise turn_timeout(claim, self.options.timeout_s)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(None)


def _set_waiter(call: Call) -> None:
    _settle(call.waiter)


class _Hub:
    """The sockets of one event loop, which says when to read them, and its alarm."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.exchange = Exchange(
            time.monotonic,
            timeout_s=options.timeout_s,
            resend_s=options.resend_s,
            is_connected=lambda endpoint: (
                endpoint in self._connections and self._connections[endpoint].is_connected
            ),
        )
        self.loop = loop
        self.pid = os.getpid()
        self.era = Era()
        self.is_closed = False
        self._keys = options.keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._connections: dict[str, Connection[zmq.Socket[bytes]]] = {}
        self._must_poll = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    async def wait(self, call: Call) -> None:
        """Send what is to be sent and wait until a call is settled."""
        if call.done:
            return
        if self.is_closed:
            raise ClientClosed("the client was closed while a call was under way")
        settled: asyncio.Future[None] = self.loop.create_future()
        call.waiter = settled
        call.on_settled = _set_waiter
        self._work()
        self._set_alarm(call.next_at)
        if settled.done():  # an answer as quick as that must not keep others from their turn
            await asyncio.sleep(0)
        await settled

    def close(self) -> None:
        """Settle all calls with `ClientClosed` and close the sockets."""
        self.is_closed = True
        self.exchange.abandon_all()
        if self._alarm is not None:
            self._alarm.cancel()
        for connection in self._connections.values():
            if not self.loop.is_closed() and not self._must_poll:
                self.loop.remove_reader(int(connection.socket.get(zmq.FD)))
            connection.socket.close()
        self._connections.clear()

    def __del__(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()

    def _work(self) -> None:
        """Send what is to be sent and take what has come, until there is neither.

        A ZeroMQ socket announces what has come once, and any use of the socket takes the
        announcement away: so this follows every use.
        """
        num_received = 0
        while not self.is_closed:
            if send_outbox(self.exchange, self._connection):
                self._set_alarm(self.exchange.next_at())
            num_new = self._receive()
            num_received += num_new
            if not num_new:
                return
            if num_received > _MAX_RECEIVED:
                self.loop.call_soon(self._work)
                return

    def _receive(self) -> int:
        exchange, num_received = self.exchange, 0
        for connection in list(self._connections.values()):
            socket = connection.socket
            while num_received < _MAX_RECEIVED and int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
                num_received += 1
                exchange.receive(socket.recv(zmq.NOBLOCK))
                if exchange.is_postponed:
                    self._set_alarm(exchange.next_at())
        return num_received

    def _set_alarm(self, due: float) -> None:
        """Have `_ring` called when a call is due, unless it will be called before that anyway."""
        if self._alarm is not None:
            if self._alarm_at <= due:
                return
            self._alarm.cancel()
        if self._must_poll:
            due = min(due, time.monotonic() + _POLL_S)
        self._alarm_at = due
        delay_s = max(0.0, due - time.monotonic())
        self._alarm = self.loop.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._work()  # what has come is read before anything is given up
        self.exchange.tick()
        self._work()
        due = self.exchange.next_at()
        if due < float("inf"):
            self._set_alarm(due)

    def _connection(self, endpoint: str) -> Connection[zmq.Socket[bytes]]:
        connection = self._connections.get(endpoint)
        if connection is None:
            socket = self._context.socket(zmq.DEALER)
            connection = Connection(socket, endpoint, self._keys)
            self._connections[endpoint] = connection
            try:
                self.loop.add_reader(int(socket.get(zmq.FD)), self._work)
            except NotImplementedError:  # the one that Windows begins with
                self._must_poll = True
        return connection
