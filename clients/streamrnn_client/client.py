"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from streamrnn_client._drivers.blocking import BlockingDriver
from streamrnn_client._session import batch, transfer
from streamrnn_client._session.replay_log import MAX_KEPT_BYTES, MAX_KEPT_STEPS
from streamrnn_client._session.session import Session
from streamrnn_client._session.stream_group import Rows
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.options import Options, load_keys
from streamrnn_client.server_info import ServerInfo
from streamrnn_client.stream import Stream

__all__ = ["Client"]

Id = TypeVar("Id", bound=str | int)


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
        options = Options(address, timeout_s, resend_s, max_kept_steps, max_kept_bytes, keys)
        self._driver = BlockingDriver(options)

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
        closed = ", closed" if self._driver.is_closed else ""
        return f"<Client of {self._driver.options.address}{closed}>"

    def close(self) -> None:
        """Close the connection; streams stay open in the server. Safe to call twice."""
        self._driver.close()

    def hello(self) -> ServerInfo:
        """Ask the server who it is: versions, instance, durability, shards, limits.

        Returns
        -------
        ServerInfo
        """
        return self._driver.run(Session.hello)

    def models(self) -> dict[str, ModelInfo]:
        """Ask for the models that are served.

        Returns
        -------
        dict
            Name -> `ModelInfo`, with the names of inputs and outputs and the whole spec.
        """
        return self._driver.run(Session.list_models)

    def stats(self) -> dict[str, Any]:
        """Ask for the server's counters.

        Returns
        -------
        dict
        """
        return self._driver.run(Session.stats)

    def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """Send the first shard a request that belongs to no stream, such as an administrator's.

        It is sent again if no answer comes. ``docs/protocol.md`` says what there is.

        Parameters
        ----------
        method : str
            Its name.
        params : list or tuple
            Of what MessagePack can write.

        Returns
        -------
        object
            The result, as it came.

        Raises
        ------
        BadParams, TooLarge
            If that cannot be sent; or as the server says.
        """
        return self._driver.run(Session.request, method, params)

    def diagnostics(self, stream: str | int) -> dict[str, Any]:
        """Ask what a stream's network does, and have its steps recorded for that.

        A server measures a recording when it has some steps, and whenever it has twice as many:
        ask again. It records few streams at a time, of which it has chosen most by itself.

        Parameters
        ----------
        stream : str or int
            Any open stream that you may use.

        Returns
        -------
        dict
            ``is_recorded`` (False: as many as can be are, or the model is too large for it),
            ``num_recorded`` (steps so far), ``measured`` (None before the first time; its parts are
            in docs/monitoring.md).

        Raises
        ------
        UnknownStream, Forbidden
            If the stream is not open, or another user's.
        NotSupported
            If the server records no streams.
        """
        return self._driver.run(Session.diagnostics, stream)

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
            return Stream(self._driver, self._driver.run(transfer.open_with_state, *args))
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
        args = (streams, model, window, numbered)
        states, _ = self._driver.run(batch.open_streams, *args)
        return [Stream(self._driver, state) for state in states]

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
        return self._driver.run(batch.open_rows, streams, model, window, numbered)

    def batch(
        self, rows: Rows, x: Any, *, within_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Apply one step of each of many streams: the fast form.

        Parameters
        ----------
        rows : Rows
            From `rows`.
        x : array_like, shape (B, num_inputs), or mapping, or table
            One row a stream; by name as in `Stream.steps`.
        within_s : float or None
            As in `Stream.step`.

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
        return self._driver.run(batch.step_rows, rows, x, within_s)

    def step_many(
        self, inputs: Mapping[Id, Any], model: str | None = None, *, within_s: float | None = None
    ) -> dict[Id, npt.NDArray[np.float32]]:
        """Apply one step of each of many streams; those not seen before are opened.

        Parameters
        ----------
        inputs : mapping
            Stream id -> x, as `Stream.step` takes it.
        model : str or None
            Of the streams that are opened; None for the only one.
        within_s : float or None
            As in `Stream.step`, for the steps.

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
        return self._driver.run(batch.step_many, inputs, model, within_s)

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
        return Stream(self._driver, self._driver.run(transfer.import_stream, *args))

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
        return self._driver.run(transfer.sync_all)
