"""The client for asyncio: the same operations as `streamrnn_client.Client`, driven by a loop.

::

    async with aio.Client("tcp://127.0.0.1:7070") as client:
        stream = await client.stream("sensor-7", model="co2")
        y = await stream.step(x)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from streamrnn_client._drivers.event_loop import EventLoopDriver
from streamrnn_client._session import batch, transfer
from streamrnn_client._session.replay_log import MAX_KEPT_BYTES, MAX_KEPT_STEPS
from streamrnn_client._session.session import Session
from streamrnn_client._session.stream_group import Rows
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.options import Options, load_keys
from streamrnn_client.sampling import Sampler
from streamrnn_client.server_info import ServerInfo
from streamrnn_client.stream import StreamView

__all__ = ["Client", "Stream"]

Id = TypeVar("Id", bound=str | int)


class Stream(StreamView):
    """One client's sequence, whose state lives in the server; see `streamrnn_client.Stream`.

    Several tasks may use one stream; their calls are applied one after the other.
    """

    __slots__ = ()
    _driver: EventLoopDriver

    async def step(
        self, x: Any, seq: int | None = None, *, within_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Await `streamrnn_client.Stream.step`."""
        return await self._driver.run(Session.step, self._state, x, seq, within_s)

    async def steps(
        self, x: Any, seq: int | None = None, *, within_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Await `streamrnn_client.Stream.steps`."""
        return await self._driver.run(Session.steps, self._state, x, seq, within_s)

    def sample(
        self,
        text: str | None = None,
        num_tokens: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> AsyncIterator[str]:
        """Await `streamrnn_client.Stream.sample`."""
        sampler = self._state.model.sampler(
            text,
            num_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        return self._drawn(sampler)

    async def _drawn(self, sampler: Sampler) -> AsyncIterator[str]:
        for block in sampler.blocks():
            y = (await self.steps(block))[-1]
        for _ in sampler.turns():
            token, piece = sampler.draw(y)
            y = await self.step(token)
            yield piece

    async def reset(self) -> None:
        """Await `streamrnn_client.Stream.reset`."""
        await self._driver.run(Session.reset, self._state)

    async def close(self) -> bool:
        """Await `streamrnn_client.Stream.close`."""
        return await self._driver.run(Session.close, self._state)

    async def resync(self) -> int:
        """Await `streamrnn_client.Stream.resync`."""
        return await self._driver.run(Session.resync, self._state)

    async def sync(self) -> int:
        """Await `streamrnn_client.Stream.sync`."""
        return await self._driver.run(Session.sync, self._state)

    async def export(self) -> bytes:
        """Await `streamrnn_client.Stream.export`."""
        return await self._driver.run(transfer.export_stream, self._state)

    async def fork(self, stream: str | int) -> Stream:
        """Await `streamrnn_client.Stream.fork`."""
        return Stream(self._driver, await self._driver.run(transfer.fork, self._state, stream))

    async def snapshot(self, name: str) -> int:
        """Await `streamrnn_client.Stream.snapshot`."""
        return await self._driver.run(transfer.snapshot, self._state, name)

    async def rollback(self, name: str | None = None) -> int:
        """Await `streamrnn_client.Stream.rollback`."""
        return await self._driver.run(transfer.rollback, self._state, name)


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
        options = Options(address, timeout_s, resend_s, max_kept_steps, max_kept_bytes, keys)
        self._driver = EventLoopDriver(options)

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
        closed = ", closed" if self._driver.is_closed else ""
        return f"<aio.Client of {self._driver.options.address}{closed}>"

    async def close(self) -> None:
        """Close the connection; streams stay open in the server. Safe to call twice."""
        await self._driver.close()

    async def hello(self) -> ServerInfo:
        """Await `streamrnn_client.Client.hello`."""
        return await self._driver.run(Session.hello)

    async def models(self) -> dict[str, ModelInfo]:
        """Await `streamrnn_client.Client.models`."""
        return await self._driver.run(Session.list_models)

    async def stats(self) -> dict[str, Any]:
        """Await `streamrnn_client.Client.stats`."""
        return await self._driver.run(Session.stats)

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """Await `streamrnn_client.Client.call`."""
        return await self._driver.run(Session.request, method, params)

    async def diagnostics(self, stream: str | int) -> dict[str, Any]:
        """Await `streamrnn_client.Client.diagnostics`."""
        return await self._driver.run(Session.diagnostics, stream)

    async def stream(
        self,
        stream: str | int,
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
        initial_state: bytes | None = None,
    ) -> Stream:
        """Await `streamrnn_client.Client.stream`."""
        if initial_state is not None:
            args = (stream, initial_state, model, window, numbered)
            return Stream(self._driver, await self._driver.run(transfer.open_with_state, *args))
        return (await self.streams([stream], model, window=window, numbered=numbered))[0]

    async def streams(
        self,
        streams: Iterable[str | int],
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
    ) -> list[Stream]:
        """Await `streamrnn_client.Client.streams`."""
        args = (streams, model, window, numbered)
        states, _ = await self._driver.run(batch.open_streams, *args)
        return [Stream(self._driver, state) for state in states]

    async def rows(
        self,
        streams: Iterable[str | int],
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
    ) -> Rows:
        """Await `streamrnn_client.Client.rows`."""
        return await self._driver.run(batch.open_rows, streams, model, window, numbered)

    async def batch(
        self, rows: Rows, x: Any, *, within_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Await `streamrnn_client.Client.batch`."""
        return await self._driver.run(batch.step_rows, rows, x, within_s)

    async def step_many(
        self, inputs: Mapping[Id, Any], model: str | None = None, *, within_s: float | None = None
    ) -> dict[Id, npt.NDArray[np.float32]]:
        """Await `streamrnn_client.Client.step_many`."""
        return await self._driver.run(batch.step_many, inputs, model, within_s)

    async def import_stream(
        self,
        stream: str | int,
        record: bytes,
        model: str | None = None,
        *,
        numbered: bool = True,
    ) -> Stream:
        """Await `streamrnn_client.Client.import_stream`."""
        args = (stream, record, model, numbered)
        return Stream(self._driver, await self._driver.run(transfer.import_stream, *args))

    async def sync(self) -> bool:
        """Await `streamrnn_client.Client.sync`."""
        return await self._driver.run(transfer.sync_all)
