"""The client for asyncio: the same operations as `streamrnn_client.Client`, driven by a loop.

::

    async with aio.Client("tcp://127.0.0.1:7070") as client:
        stream = await client.stream("sensor-7", model="co2")
        y = await stream.step(x)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import zmq
import zmq.asyncio

from streamrnn_client._session import batch as _batching
from streamrnn_client._session import transfer as _moving
from streamrnn_client._session.exchange import Call, Exchange
from streamrnn_client._session.replay_log import MAX_KEPT_BYTES, MAX_KEPT_STEPS
from streamrnn_client._session.session import Core, Operation
from streamrnn_client._session.stream_group import Rows
from streamrnn_client._session.stream_state import Claim, ServerInfo, StreamState
from streamrnn_client.errors import ClientClosed
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.options import Options, configure, is_connected, load_keys
from streamrnn_client.stream import StreamView

__all__ = ["Client", "Stream"]

T = TypeVar("T")
Id = TypeVar("Id", bound=str | int)


class Stream(StreamView):
    """One client's sequence, whose state lives in the server; see `streamrnn_client.Stream`.

    Several tasks may use one stream; their calls are applied one after the other.
    """

    __slots__ = ()
    _client: Client

    async def step(self, x: Any, seq: int | None = None) -> npt.NDArray[np.float32]:
        """Await `streamrnn_client.Stream.step`.

        Parameters
        ----------
        x, seq : as there
        """
        client = self._client
        return await client._run(client._core.step(client._exchange(), self._state, x, seq))

    async def steps(self, x: Any, seq: int | None = None) -> npt.NDArray[np.float32]:
        """Await `streamrnn_client.Stream.steps`.

        Parameters
        ----------
        x, seq : as there
        """
        client = self._client
        return await client._run(client._core.steps(client._exchange(), self._state, x, seq))

    async def reset(self) -> None:
        """Await `streamrnn_client.Stream.reset`."""
        client = self._client
        await client._run(client._core.reset(client._exchange(), self._state))

    async def close(self) -> bool:
        """Await `streamrnn_client.Stream.close`."""
        client = self._client
        return await client._run(client._core.close(client._exchange(), self._state))

    async def resync(self) -> int:
        """Await `streamrnn_client.Stream.resync`."""
        client = self._client
        return await client._run(client._core.resync(client._exchange(), self._state))

    async def sync(self) -> int:
        """Await `streamrnn_client.Stream.sync`."""
        client = self._client
        operation = client._core.sync(client._exchange(), self._state)
        return await client._run(operation)

    async def export(self) -> bytes:
        """Await `streamrnn_client.Stream.export`."""
        client = self._client
        operation = _moving.export_stream(client._core, client._exchange(), self._state)
        return await client._run(operation)

    async def fork(self, stream: str | int) -> Stream:
        """Await `streamrnn_client.Stream.fork`.

        Parameters
        ----------
        stream : as there
        """
        client = self._client
        operation = _moving.fork(client._core, client._exchange(), self._state, stream)
        return Stream(client, await client._run(operation))

    async def snapshot(self, name: str) -> int:
        """Await `streamrnn_client.Stream.snapshot`.

        Parameters
        ----------
        name : as there
        """
        client = self._client
        operation = _moving.snapshot(client._core, client._exchange(), self._state, name)
        return await client._run(operation)

    async def rollback(self, name: str | None = None) -> int:
        """Await `streamrnn_client.Stream.rollback`.

        Parameters
        ----------
        name : as there
        """
        client = self._client
        operation = _moving.rollback(client._core, client._exchange(), self._state, name)
        return await client._run(operation)


class Client:
    """A connection to a StreamRNN server, for one event loop.

    Any number of tasks may share one client. Leaving ``async with Client(...)`` closes the
    connection, never a stream. Every method does what the method of the same name of
    `streamrnn_client.Client` does.

    Parameters
    ----------
    address : str
        For instance ``tcp://127.0.0.1:7070``. Nothing is sent before the first call.
    timeout_s : float
        How long a request may take, all its repetitions counted.
    resend_s : float
        How long to wait for an answer before a request is sent again; doubles every time.
    max_kept_steps, max_kept_bytes : int
        How much of each stream's input is kept until the server has it on disk, so that a crash
        of the server costs nothing; at the bound a call waits for the disk. Of no effect where
        the server has none (``hello().durability``).
    curve_key, server_key : str or path, optional
        Where the server asks for keys, as in `streamrnn_client.Client`.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 5.0,
        resend_s: float = 0.5,
        max_kept_steps: int = MAX_KEPT_STEPS,
        max_kept_bytes: int = MAX_KEPT_BYTES,
        curve_key: str | PathLike[str] | None = None,
        server_key: str | PathLike[str] | None = None,
    ) -> None:
        keys = load_keys(curve_key, server_key)
        self._options = Options(address, timeout_s, resend_s, max_kept_steps, max_kept_bytes, keys)
        self._core = Core(address, self._release, max_kept_steps, max_kept_bytes)
        self._hub: _Hub | None = None
        self._is_closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<aio.Client of {self._options.address}{', closed' if self._is_closed else ''}>"

    async def close(self) -> None:
        """Close the connection; streams stay open in the server. Safe to call twice."""
        self._is_closed = True
        if self._hub is not None:
            await self._hub.close()

    async def hello(self) -> ServerInfo:
        """Await `streamrnn_client.Client.hello`."""
        return await self._run(self._core.hello(self._exchange()))

    async def models(self) -> dict[str, ModelInfo]:
        """Await `streamrnn_client.Client.models`."""
        return await self._run(self._core.list_models(self._exchange()))

    async def stats(self) -> dict[str, Any]:
        """Await `streamrnn_client.Client.stats`."""
        return await self._run(self._core.stats(self._exchange()))

    async def stream(
        self,
        stream: str | int,
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
        initial_state: bytes | None = None,
    ) -> Stream:
        """Await `streamrnn_client.Client.stream`.

        Parameters
        ----------
        stream, model, window, numbered, initial_state : as there
        """
        if initial_state is not None:
            args = (stream, initial_state, model, window, numbered)
            operation = _moving.open_with_state(self._core, self._exchange(), *args)
            return Stream(self, await self._run(operation))
        return (await self.streams([stream], model, window=window, numbered=numbered))[0]

    async def streams(
        self,
        streams: Iterable[str | int],
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
    ) -> list[Stream]:
        """Await `streamrnn_client.Client.streams`.

        Parameters
        ----------
        streams, model, window, numbered : as there
        """
        states, _ = await self._run(
            _batching.open_streams(self._core, self._exchange(), streams, model, window, numbered)
        )
        return [Stream(self, state) for state in states]

    async def rows(
        self,
        streams: Iterable[str | int],
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
    ) -> Rows:
        """Await `streamrnn_client.Client.rows`.

        Parameters
        ----------
        streams, model, window, numbered : as there
        """
        return await self._run(
            _batching.open_rows(self._core, self._exchange(), streams, model, window, numbered)
        )

    async def batch(self, rows: Rows, x: Any) -> npt.NDArray[np.float32]:
        """Await `streamrnn_client.Client.batch`.

        Parameters
        ----------
        rows, x : as there
        """
        return await self._run(_batching.batch(self._core, self._exchange(), rows, x))

    async def step_many(
        self, inputs: Mapping[Id, Any], model: str | None = None
    ) -> dict[Id, npt.NDArray[np.float32]]:
        """Await `streamrnn_client.Client.step_many`.

        Parameters
        ----------
        inputs, model : as there
        """
        return await self._run(_batching.step_many(self._core, self._exchange(), inputs, model))

    async def import_stream(
        self,
        stream: str | int,
        record: bytes,
        model: str | None = None,
        *,
        numbered: bool = True,
    ) -> Stream:
        """Await `streamrnn_client.Client.import_stream`.

        Parameters
        ----------
        stream, record, model, numbered : as there
        """
        args = (stream, record, model, numbered)
        operation = _moving.import_stream(self._core, self._exchange(), *args)
        return Stream(self, await self._run(operation))

    async def sync(self) -> bool:
        """Await `streamrnn_client.Client.sync`."""
        return await self._run(_moving.sync_all(self._core, self._exchange()))

    # ---- driving operations -------------------------------------------------------------------

    def _exchange(self) -> Exchange:
        if self._is_closed:
            raise ClientClosed("this client was closed; make a new one")
        if self._hub is None:
            self._hub = _Hub(self._options)
        return self._hub.exchange

    async def _run(self, operation: Operation[T]) -> T:
        hub = self._hub
        assert hub is not None
        try:
            wanted = next(operation)
            while True:
                try:
                    if isinstance(wanted, Call):
                        await hub.wait(wanted)
                    else:
                        await self._claim(wanted)
                except BaseException as error:
                    operation.throw(error)  # which lets go of what it holds
                    raise
                wanted = operation.send(None)
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
            if self._is_closed:
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
            is_connected=lambda endpoint: is_connected(self._sockets.get(endpoint)),
        )
        self._keys = options.keys
        self._context = zmq.asyncio.Context.instance()
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
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
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()
        self._tasks.clear()

    def _send(self) -> None:
        exchange = self.exchange
        while exchange.outbox:
            call = exchange.outbox.popleft()
            # With NOBLOCK the future is done at once, with the outcome in it.
            sending = self._socket(call.endpoint).send(call.payload, zmq.NOBLOCK)
            if isinstance(cast("asyncio.Future[Any]", sending).exception(), zmq.Again):
                exchange.not_sent(call)
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
            if self.exchange.is_put_off:
                self._set_alarm(self.exchange.next_at())

    def _socket(self, endpoint: str) -> zmq.asyncio.Socket:
        socket = self._sockets.get(endpoint)
        if socket is None:
            socket = self._context.socket(zmq.DEALER)
            self._sockets[endpoint] = socket
            configure(socket, endpoint, self._keys)
            self._tasks.append(asyncio.get_running_loop().create_task(self._read(socket)))
        return socket
