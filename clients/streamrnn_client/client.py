"""The blocking client."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import zmq

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
from streamrnn_client.stream import Stream

__all__ = ["Client"]

T = TypeVar("T")
Id = TypeVar("Id", bound=str | int)
_MAX_POLL_S = 0.25  # so that a thread notices that another one has closed the client


class Client:
    """A connection to a StreamRNN server.

    Several threads may share one client: each gets sockets of its own, and calls on one stream are
    applied one after the other. Leaving ``with Client(...)`` closes the connection, never a
    stream: the streams' states stay in the server.

    Parameters
    ----------
    address : str
        For instance ``tcp://127.0.0.1:7070``. Nothing is sent before the first call.
    timeout_s : float
        How long a request may take, all its repetitions counted.
    resend_s : float
        How long to wait for an answer before a request is sent again, under the same number;
        doubles every time, up to 2 s. Unnumbered steps are never sent again.
    max_kept_steps, max_kept_bytes : int
        How much of each stream's input is kept until the server has it on disk, so that a crash
        of the server costs nothing; at the bound a call waits for the disk. Of no effect where
        the server has none (``hello().durability``).
    curve_key, server_key : str or path, optional
        Where the server asks for keys: your file NAME.key_secret (``streamrnn keys NAME`` makes
        it), and the server's NAME.key, or the public key itself (40 characters).

    Raises
    ------
    BadParams
        If the address, a time or a key is none.
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
        self._is_closed = False
        self._claims = threading.Condition(threading.Lock())
        self._num_waiting = 0
        self._local = threading.local()
        self._links: weakref.WeakSet[_Link] = weakref.WeakSet()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self._options.address}{', closed' if self._is_closed else ''}>"

    def close(self) -> None:
        """Close the connection; streams stay open in the server. Safe to call twice."""
        self._is_closed = True
        for link in list(self._links):
            link.close_when_idle()

    def hello(self) -> ServerInfo:
        """Ask the server who it is: versions, instance, durability, shards, limits.

        Returns
        -------
        ServerInfo
        """
        return self._run(self._core.hello(self._exchange()))

    def models(self) -> dict[str, ModelInfo]:
        """Ask for the models that are served.

        Returns
        -------
        dict
            Name -> `ModelInfo`, with the names of inputs and outputs and the whole spec.
        """
        return self._run(self._core.list_models(self._exchange()))

    def stats(self) -> dict[str, Any]:
        """Ask for the server's counters.

        Returns
        -------
        dict
        """
        return self._run(self._core.stats(self._exchange()))

    def stream(
        self,
        stream: str | int,
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
        initial_state: bytes | None = None,
    ) -> Stream:
        """Open a stream, new or known to the server; ``last_seq`` tells where to go on.

        Parameters
        ----------
        stream : str or int
            1 to 128 bytes of UTF-8, or 0 to 2**64 - 1; 7 and "7" are two streams.
        model : str or None
            The model's name; None for the only one.
        window : int or None
            The most unacknowledged steps; the server grants a power of two not above it. A stream
            that is open already keeps its own. None for the server's default, 16.
        numbered : bool
            Whether steps carry numbers, so that none is lost or applied twice when an answer does
            not arrive. Without, nothing is ever sent again.
        initial_state : bytes or None
            A record from `Stream.export` for a stream that must be new: it begins with that
            state, and its steps with number 1. None for the model's own initial state.

        Returns
        -------
        Stream

        Raises
        ------
        StateLost
            If this client had stepped the stream further than the server knows of. Open it again
            to begin anew.
        UnknownModel, WrongModel, Busy
            If the server says so.
        Exists, Mismatch, Damaged
            If there is such a stream already, or the initial state cannot be used.
        """
        if initial_state is not None:
            args = (stream, initial_state, model, window, numbered)
            operation = _moving.open_with_state(self._core, self._exchange(), *args)
            return Stream(self, self._run(operation))
        return self.streams([stream], model, window=window, numbered=numbered)[0]

    def streams(
        self,
        streams: Iterable[str | int],
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
    ) -> list[Stream]:
        """Open many streams of one model with one request.

        Parameters
        ----------
        streams : iterable of str or int
            Their ids, each once.
        model : str or None
            As in `stream`.
        window : int or None
            As in `stream`.
        numbered : bool
            As in `stream`.

        Returns
        -------
        list of Stream

        Raises
        ------
        PartialFailure
            If some could not be opened; the others are open.
        """
        states, _ = self._run(
            _batching.open_streams(self._core, self._exchange(), streams, model, window, numbered)
        )
        return [Stream(self, state) for state in states]

    def rows(
        self,
        streams: Iterable[str | int],
        model: str | None = None,
        *,
        window: int | None = None,
        numbered: bool = True,
    ) -> Rows:
        """Open many streams of one model, to be stepped together by `batch`.

        Parameters
        ----------
        streams : iterable of str or int
            Their ids, each once, in the order of the rows of X.
        model : str or None
            As in `stream`.
        window : int or None
            As in `stream`.
        numbered : bool
            As in `stream`.

        Returns
        -------
        Rows
        """
        return self._run(
            _batching.open_rows(self._core, self._exchange(), streams, model, window, numbered)
        )

    def batch(self, rows: Rows, x: Any) -> npt.NDArray[np.float32]:
        """Apply one step of each of many streams: the fast form.

        Parameters
        ----------
        rows : Rows
            From `rows`.
        x : array_like, shape (B, num_inputs), or mapping
            One row a stream.

        Returns
        -------
        ndarray, dtype float32, shape (B, output_size)

        Raises
        ------
        PartialFailure
            If some streams failed: ``.results`` holds what succeeded, ``.errors`` why not.
        RequestTimeout, ConnectionLost
            If nothing was answered; the same call again is safe on numbered streams.
        """
        return self._run(_batching.batch(self._core, self._exchange(), rows, x))

    def step_many(
        self, inputs: Mapping[Id, Any], model: str | None = None
    ) -> dict[Id, npt.NDArray[np.float32]]:
        """Apply one step of each of many streams; those not seen before are opened.

        Parameters
        ----------
        inputs : mapping
            Stream id -> x, as `Stream.step` takes it.
        model : str or None
            Of the streams that are opened; None for the only one.

        Returns
        -------
        dict
            Stream id -> float32[output_size].

        Raises
        ------
        PartialFailure
            If some streams failed: ``.results`` holds what succeeded, ``.errors`` why not. A
            stream whose state was lost stays lost until `stream` opens it anew.
        """
        return self._run(_batching.step_many(self._core, self._exchange(), inputs, model))

    def import_stream(
        self,
        stream: str | int,
        record: bytes,
        model: str | None = None,
        *,
        numbered: bool = True,
    ) -> Stream:
        """Make a stream from a record; it goes on after the record's last step.

        Parameters
        ----------
        stream : str or int
            The new stream's id; it may be that of the stream that was exported elsewhere.
        record : bytes
            From `Stream.export`, or from ``streamrnn state export``.
        model : str or None
            The model's name; None for the only one.
        numbered : bool
            Whether the record is of a numbered stream.

        Returns
        -------
        Stream
            On disk, where the server has one; ``last_seq`` tells where to go on.

        Raises
        ------
        Exists
            If there is such a stream already; nothing was changed.
        Mismatch, Damaged
            If the record is of another model or arithmetic, or torn; nothing was changed.
        """
        args = (stream, record, model, numbered)
        operation = _moving.import_stream(self._core, self._exchange(), *args)
        return Stream(self, self._run(operation))

    def sync(self) -> bool:
        """Have all that was applied to this client's streams written to disk.

        Returns
        -------
        bool
            True when it is there; False if the server cannot write its disk now.

        Raises
        ------
        NotSupported
            If the server keeps nothing on disk.
        """
        return self._run(_moving.sync_all(self._core, self._exchange()))

    # ---- driving operations -------------------------------------------------------------------

    def _exchange(self) -> Exchange:
        link: _Link | None = getattr(self._local, "link", None)
        if link is None or link.is_closed:
            if self._is_closed:
                raise ClientClosed("this client was closed; make a new one")
            link = self._local.link = _Link(self._options)
            self._links.add(link)
        return link.exchange

    def _run(self, operation: Operation[T]) -> T:
        link: _Link = self._local.link
        try:
            with link.in_use:
                return self._drive(link, operation)
        finally:
            if self._is_closed:
                link.close_when_idle()

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
                    operation.throw(error)  # which lets go of what it holds
                    raise
                wanted = operation.send(None)
        except StopIteration as stop:
            return stop.value

    def _wait(self, link: _Link, call: Call) -> None:
        while not call.done:
            if self._is_closed or link.is_closed:
                raise ClientClosed("the client was closed while a call was under way")
            link.work()

    def _claim(self, claim: Claim) -> None:
        with self._claims:
            while any(state.claimed for state in claim.states):
                self._num_waiting += 1
                self._claims.wait()
                self._num_waiting -= 1
                if self._is_closed:
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
        sockets: dict[str, zmq.Socket[bytes]] = {}
        self._keys = options.keys
        # The exchange must not refer to the link: a cycle would put off the closing of sockets.
        self.exchange = Exchange(
            time.monotonic,
            timeout_s=options.timeout_s,
            resend_s=options.resend_s,
            is_connected=lambda endpoint: is_connected(sockets.get(endpoint)),
        )
        self.in_use = threading.Lock()
        self.is_closed = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._sockets = sockets
        self._poller = zmq.Poller()
        self._only: zmq.Socket[bytes] | None = None

    def work(self) -> None:
        """Send what is to be sent, wait for the next event, and take it."""
        exchange = self.exchange
        while exchange.outbox:
            call = exchange.outbox.popleft()
            try:
                self._socket(call.endpoint).send(call.payload, zmq.NOBLOCK)
            except zmq.Again:
                exchange.not_sent(call)
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
            for socket in self._sockets.values():
                socket.close()
            self._sockets.clear()
        finally:
            self.in_use.release()

    def __del__(self) -> None:
        self.close_when_idle()

    def _socket(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._sockets.get(endpoint)
        if socket is None:
            socket = self._context.socket(zmq.DEALER)
            self._sockets[endpoint] = socket
            configure(socket, endpoint, self._keys)
            self._poller.register(socket, zmq.POLLIN)
            self._only = socket if len(self._sockets) == 1 else None
        return socket
