"""Answers GET requests over HTTP/1.1, in a thread of its own; one answer a connection.

Whoever connects may be hostile: a connection has some seconds for all of it, a request some KiB,
and when there are too many connections the oldest makes way, one that has not asked yet before one
that waits for its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from streamrnn.errors import StartError
from streamrnn_server.config import Endpoint
from streamrnn_server.event_log import EventLog
from streamrnn_server.worker import OnFailure, Worker

__all__ = ["MAX_CONNECTIONS", "Answer", "HttpServer", "Route"]

MAX_CONNECTIONS = 16
_MAX_REQUEST_BYTES = 8192
_WITHIN_S = 10.0  # from the connection's beginning to its end
_BACKLOG = 16  # as many may be open besides, for a moment
_BEAT_EVERY_S = 0.5
_TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What is sent back."""

    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


Route = Callable[[str], Awaitable[Answer]]  # takes what the client accepts


class HttpServer:
    """Bound from its creation on, answering between `start` and `stop`.

    Attributes
    ----------
    url : str
        Where it is.

    Raises
    ------
    StartError
        If the address cannot be bound.
    """

    def __init__(self, address: Endpoint, log: EventLog) -> None:
        numeric = address.numeric()
        family = socket.AF_INET6 if numeric.host.startswith("[") else socket.AF_INET
        host = "" if numeric.host == "*" else numeric.host.strip("[]")
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, address.port))
            self._socket.listen(_BACKLOG)
        except (OSError, UnicodeError) as error:  # the latter of what can be no name
            self._socket.close()
            where = str(address).removeprefix("tcp://")
            reason = getattr(error, "strerror", None) or error
            raise StartError(f"cannot bind --metrics {where}: {reason}") from error
        self.url = f"http://{address.host}:{self._socket.getsockname()[1]}"
        self._log = log
        self._routes: Mapping[str, Route] = {}
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._note)
        self._ended = asyncio.Event()
        # The oldest first; whether its request is here.
        self._connections: dict[asyncio.Task[Any], bool] = {}
        self.worker = Worker("http", self._serve)

    def start(self, routes: Mapping[str, Route], on_failure: OnFailure) -> None:
        """Begin to answer, by path; ``on_failure`` is called if the thread ends by an exception."""
        self._routes = routes
        self.worker.start(on_failure)

    def stop(self) -> None:
        """End; connections that there are, are cut."""
        if self.worker.has_begun:
            self._loop.call_soon_threadsafe(self._ended.set)
            self.worker.join()
        self._socket.close()
        self._loop.close()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        server = await asyncio.start_server(
            self._serve_one, sock=self._socket, limit=_MAX_REQUEST_BYTES, backlog=_BACKLOG
        )
        while not self._ended.is_set():
            self.worker.beat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _BEAT_EVERY_S)
        server.close()

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):  # no file is left for a connection, say
            self._log.write("warning", "no metrics", reason=error.strerror or type(error).__name__)
        else:
            self._log.write_fault("no metrics", error or RuntimeError())

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MAX_CONNECTIONS:
            silent = (each for each, has_asked in self._connections.items() if not has_asked)
            oldest = next(silent, next(iter(self._connections)))
            del self._connections[oldest]
            oldest.cancel()
        self._connections[task] = False
        try:
            async with asyncio.timeout(_WITHIN_S):
                head = await _read_head(reader)
                self._connections[task] = True
                method, answer = await self._answer(head)
                writer.write(_encode(answer, with_body=method != "HEAD"))
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            pass  # it has gone, or was too slow, or had to make way
        finally:
            self._connections.pop(task, None)
            writer.transport.abort()

    async def _answer(self, head: str | None) -> tuple[str, Answer]:
        if head is None:
            return "", _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        first, *lines = head.split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return "", _refusal(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return method, _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        route = self._routes.get(target.partition("?")[0])
        if route is None:
            return method, _refusal(HTTPStatus.NOT_FOUND, " ".join(self._routes))
        accepted = (line.partition(":") for line in lines)
        accepts = ",".join(value for name, _, value in accepted if name.lower() == "accept")
        try:
            return method, await route(accepts.strip())
        except Exception as error:  # a fault of ours must not end the thread
            self._log.write_fault("a request over HTTP failed", error)
            return method, _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


async def _read_head(reader: asyncio.StreamReader) -> str | None:
    """Return what comes before a body; None if it is too much."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError:
        return None


def _refusal(status: HTTPStatus, *words: str) -> Answer:
    return Answer(status, "\n".join((status.phrase, *words, "")).encode())


def _encode(answer: Answer, with_body: bool) -> bytes:
    lines = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        *["Allow: GET, HEAD"] * (answer.status == HTTPStatus.METHOD_NOT_ALLOWED),
        "Cache-Control: no-store",
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(lines).encode("latin-1") + answer.body * with_body
