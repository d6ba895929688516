"""The asyncio driver: runs operations with one set of sockets for the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import zmq
import zmq.asyncio

from streamrnn_client._drivers.sockets import Connection
from streamrnn_client._session.exchange import Call, Exchange
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.stream_state import Claim, StreamState
from streamrnn_client.errors import ClientClosed
from streamrnn_client.options import Options

__all__ = ["EventLoopDriver"]

P = ParamSpec("P")
T = TypeVar("T")


class EventLoopDriver:
    """Run a session's operations, any number at once, in one event loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.session = Session(
            options.address, self._release, options.max_kept_steps, options.max_kept_bytes
        )
        self.is_closed = False
        self._hub: _Hub | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    async def close(self) -> None:
        """Close all sockets; calls under way end with `ClientClosed`."""
        self.is_closed = True
        if self._hub is not None:
            await self._hub.close()

    def _open_hub(self) -> _Hub:
        if self.is_closed:
            raise ClientClosed("this client was closed; make a new one")
        if self._hub is None:
            self._hub = _Hub(self.options)
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
        try:
            wanted = next(running)
            while True:
                try:
                    if isinstance(wanted, Call):
                        await hub.wait(wanted)
                    else:
                        await self._claim(wanted)
                except BaseException as error:
                    running.throw(error)  # which releases its streams
                    raise
                wanted = running.send(None)
        except StopIteration as stop:
            return stop.value

    async def _claim(self, claim: Claim) -> None:
        while any(state.claimed for state in claim.states):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(turn)
            try:
                await turn
            finally:
                self._waiting.discard(turn)
            if self.is_closed:
                raise ClientClosed("the client was closed while a call waited for its stream")
        for state in claim.states:
            state.claimed = True

    def _release(self, states: Sequence[StreamState]) -> None:
        for state in states:
            state.claimed = False
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)


def _set_waiter(call: Call) -> None:
    if not call.waiter.done():
        call.waiter.set_result(None)


class _Hub:
    """The sockets of one event loop, a task that reads each, and one that minds the clock."""

    def __init__(self, options: Options) -> None:
        self.exchange = Exchange(
            time.monotonic,
            timeout_s=options.timeout_s,
            resend_s=options.resend_s,
            is_connected=lambda endpoint: (
                endpoint in self._connections and self._connections[endpoint].is_connected
            ),
        )
        self._keys = options.keys
        self._context = zmq.asyncio.Context.instance()
        self._connections: dict[str, Connection[zmq.asyncio.Socket]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    async def wait(self, call: Call) -> None:
        """Send what is to be sent and wait until a call is settled."""
        if call.done:
            return
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.waiter = settled
        call.on_settled = _set_waiter
        self._send()
        self._set_alarm(call.next_at)
        await settled

    async def close(self) -> None:
        """Settle all calls with `ClientClosed`, end the tasks and close the sockets."""
        self.exchange.abandon_all()
        if self._alarm is not None:
            self._alarm.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._tasks.clear()

    def _send(self) -> None:
        exchange = self.exchange
        while exchange.outbox:
            call = exchange.outbox.popleft()
            connection = self._connection(call.endpoint)
            # With NOBLOCK the future is done at once, with the outcome in it.
            sending = connection.socket.send(call.payload, zmq.NOBLOCK)
            if isinstance(cast("asyncio.Future[Any]", sending).exception(), zmq.Again):
                exchange.send_failed(call)
                connection.renew()
                self._set_alarm(call.next_at)

    def _set_alarm(self, due: float) -> None:
        """Have `_ring` called when a call is due, unless it will be called before that anyway."""
        if self._alarm is not None:
            if self._alarm_at <= due:
                return
            self._alarm.cancel()
        self._alarm_at = due
        delay_s = max(0.0, due - time.monotonic())
        self._alarm = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.exchange.tick()
        self._send()
        due = self.exchange.next_at()
        if due < float("inf"):
            self._set_alarm(due)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            self.exchange.receive(await socket.recv())
            self._send()
            if self.exchange.is_postponed:
                self._set_alarm(self.exchange.next_at())

    def _connection(self, endpoint: str) -> Connection[zmq.asyncio.Socket]:
        connection = self._connections.get(endpoint)
        if connection is None:
            socket = self._context.socket(zmq.DEALER)
            connection = Connection(socket, endpoint, self._keys)
            self._connections[endpoint] = connection
            self._tasks.append(asyncio.get_running_loop().create_task(self._read(socket)))
        return connection
