"""A stream as its user sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from streamrnn_client._drivers.blocking import BlockingDriver
from streamrnn_client._session import transfer
from streamrnn_client._session.session import Session
from streamrnn_client._session.stream_state import StreamState
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.sampling import Sampler

__all__ = ["Stream", "StreamView"]


class StreamView:
    """What a client knows of a stream; `Client.stream` makes it."""

    __slots__ = ("_driver", "_state")

    def __init__(self, driver: Any, state: StreamState) -> None:
        self._driver = driver
        self._state = state

    @property
    def id(self) -> str | int:
        """The stream's id."""
        return self._state.id

    @property
    def model(self) -> ModelInfo:
        """The model that it belongs to."""
        return self._state.model

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the elements of x."""
        return self._state.model.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the elements of y."""
        return self._state.model.output_names

    @property
    def last_seq(self) -> int:
        """Number of the last step applied; after your own restart go on with the next one."""
        return self._state.last_seq

    @property
    def durable_seq(self) -> int:
        """Number of the last step that survives a crash of the server; 0 without durability."""
        return self._state.durable_seq

    @property
    def window(self) -> int:
        """The most steps that may be unacknowledged; `steps` keeps to it by itself."""
        return self._state.window

    @property
    def numbered(self) -> bool:
        """Whether steps carry numbers, which makes sending them again safe."""
        return self._state.numbered

    def __repr__(self) -> str:
        state = self._state
        lost = ", state lost" if state.lost else ""
        return f"<Stream {state.id!r} of {state.model.name!r}, last_seq {state.last_seq}{lost}>"


class Stream(StreamView):
    """One client's sequence, whose state lives in the server.

    Several threads may use one stream; their calls are applied one after the other.
    """

    __slots__ = ()
    _driver: BlockingDriver

    def step(
        self, x: Any, seq: int | None = None, *, within_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Apply one step and return its output.

        Parameters
        ----------
        x : array_like, shape (num_inputs,), or mapping, or table with one row
            In the model's order, or by name (categories by name or index).
        seq : int or None
            The step's number, to number by your source's rows; None for ``last_seq + 1``. The
            number of a step that was applied before, with the same x, returns its output again.
            Numbers have no holes: where your source's rows have, count the rows that you send and
            keep which row was the last one.
        within_s : float or None
            For how many seconds from now the output is of use. A step that would be computed later
            is refused (`Late`) and its number stays free; one that was computed in time is
            returned, also if its answer comes later.

        Returns
        -------
        ndarray, dtype float32, shape (output_size,)

        Raises
        ------
        InputError
            If x does not fit the model; nothing was applied, the number stays free.
        StateLost
            If the server no longer has the state, and what it lacks was not kept.
        ReadOnly
            If the server could not write its disk for so long that no more steps can be kept;
            the step was not sent.
        RequestTimeout, ConnectionLost
            If no answer came. On a numbered stream the same call again is safe.
        Gap, Conflict, Stale
            If the number does not fit.
        Late, Busy
            If it was too late, or there was no room or no budget for it in time.
        """
        return self._driver.step(self._state, x, seq, within_s)

    def steps(
        self, x: Any, seq: int | None = None, *, within_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Apply many steps, split by the window, and return all outputs.

        Parameters
        ----------
        x : array_like, shape (T, num_inputs), or mapping, or table
            In the model's order, or by name with T values each. A table (a pandas DataFrame) is
            taken by the names of its columns, whatever their order. A text model takes a text.
        seq : int or None
            Number of the first step; None for ``last_seq + 1``.
        within_s : float or None
            As in `step`; of all of them together.

        Returns
        -------
        ndarray, dtype float32, shape (T, output_size)

        Raises
        ------
        StreamRNNClientError
            As `step`; ``.completed`` holds the outputs of the steps before the one that failed,
            and ``last_seq`` tells how far the stream is.
        """
        return self._driver.run(Session.steps, self._state, x, seq, within_s)

    def sample(
        self,
        text: str | None = None,
        num_tokens: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Go on from a text, or begin one: apply it, draw a token, apply that, and so on.

        What was yielded has been applied: the state stays in the server. Nothing else may step the
        stream meanwhile.

        Parameters
        ----------
        text : str or None
            At least one token, applied as by `steps` when the first piece is asked for. None: the
            unknown token, which stands for whatever was before; so a new stream can begin.
        num_tokens : int or None
            How many tokens are drawn; None for as many as are asked for.
        temperature : float
            Each probability p becomes ``p ** (1 / temperature)``; 0 takes the most probable token.
        top_k : int
            Draw among the k most probable tokens; 0 for all.
        top_p : float
            Draw among the most probable tokens that have this share of the probability together
            (after temperature and top_k); 1 for all.
        seed : int or None
            The same seed draws the same text from the same state; None for another every time.

        Yields
        ------
        str
            The text of one token; never the unknown one.

        Raises
        ------
        BadParams
            If a parameter cannot be used.
        NotSupported
            If the model takes no text.
        StreamRNNClientError
            As `step`, while text is drawn.
        """
        sampler = self._state.model.sampler(
            text,
            num_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        return self._drawn(sampler)

    def _drawn(self, sampler: Sampler) -> Iterator[str]:
        for block in sampler.blocks():
            y = self.steps(block)[-1]
        for _ in sampler.turns():
            token, piece = sampler.draw(y)
            y = self.step(token)
            yield piece

    def reset(self) -> None:
        """Set the state back to that of a new stream; takes a number, like a step."""
        self._driver.run(Session.reset, self._state)

    def close(self) -> bool:
        """Close the stream: the server forgets its state. True if there was one."""
        return self._driver.run(Session.close, self._state)

    def resync(self) -> int:
        """Take the server's word for the last step applied, and return it.

        For going on with other input after a call that got no answer.
        """
        return self._driver.run(Session.resync, self._state)

    def sync(self) -> int:
        """Have the stream's last step written to disk.

        Returns
        -------
        int
            ``durable_seq``; below ``last_seq`` only if the server cannot write its disk now.

        Raises
        ------
        NotSupported
            If the server keeps nothing on disk.
        """
        return self._driver.run(Session.sync, self._state)

    def export(self) -> bytes:
        """Return the stream's whole state as a record, to keep or to import elsewhere.

        Returns
        -------
        bytes
            As of ``last_seq``. The format is that of docs/STATE.md.

        Raises
        ------
        StreamRNNClientError
            As the server says; StateLost as in `step`.
        """
        return self._driver.run(transfer.export_stream, self._state)

    def fork(self, stream: str | int) -> Stream:
        """Make another stream with the same state and the same numbers, to try a continuation.

        Parameters
        ----------
        stream : str or int
            The new stream's id.

        Returns
        -------
        Stream

        Raises
        ------
        Exists
            If there is such a stream already; nothing was changed.
        ReadOnly
            If the server cannot write its disk now; nothing was changed.
        """
        return Stream(self._driver, self._driver.run(transfer.fork, self._state, stream))

    def snapshot(self, name: str) -> int:
        """Keep the present state under a name, for `rollback`.

        Parameters
        ----------
        name : str
            1 to 128 bytes of UTF-8; a snapshot of the same name is replaced.

        Returns
        -------
        int
            The number of the last step that is in it.

        Raises
        ------
        NotSupported
            If the server keeps nothing on disk.
        """
        return self._driver.run(transfer.snapshot, self._state, name)

    def rollback(self, name: str | None = None) -> int:
        """Bring back the state of a snapshot; numbers go on, for this takes one, like a step.

        Parameters
        ----------
        name : str or None
            The snapshot's; None for the last state on disk (see `sync`).

        Returns
        -------
        int
            The number that it took; the next step is the one after it.

        Raises
        ------
        UnknownSnapshot
            If there is no such snapshot; no number was taken.
        NotSupported
            If the server keeps nothing on disk.
        """
        return self._driver.run(transfer.rollback, self._state, name)
