"""What answers Prometheus and whoever looks after the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from streamrnn_server.config import Endpoint
from streamrnn_server.control.dispatcher import Control
from streamrnn_server.event_log import EventLog
from streamrnn_server.monitor.health import Health, trouble
from streamrnn_server.monitor.http import Answer, HttpServer
from streamrnn_server.monitor.metrics import Metrics
from streamrnn_server.storage.state_dir import StateDir
from streamrnn_server.worker import OnFailure

__all__ = ["Monitor"]

_RENDER_WITHIN_S = 5.0


class Monitor:
    """Answers ``/metrics``, ``/healthz`` and ``/readyz``; bound from its creation on.

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
        self._http = HttpServer(address, log)
        self._renderer = ThreadPoolExecutor(1, "metrics")
        self.url = self._http.url

    def start(
        self,
        control: Control,
        disk: StateDir | None,
        health: Health,
        is_stopping: Callable[[], bool],
        on_failure: OnFailure,
    ) -> None:
        """Begin to answer; ``on_failure`` is called if the thread ends by an exception."""
        self._metrics, self._health = Metrics(control, disk), health
        self._disk, self._is_stopping = disk, is_stopping
        routes = {"/metrics": self._answer_metrics, "/healthz": self._alive, "/readyz": self._ready}
        self._http.start(routes, on_failure)

    def stop(self) -> None:
        """End; connections that there are, are cut."""
        self._http.stop()
        self._renderer.shutdown(wait=False, cancel_futures=True)

    async def _answer_metrics(self, accepts: str) -> Answer:
        # Not in this thread: what is asked of the disk may wait for it.
        loop = asyncio.get_running_loop()
        rendered = loop.run_in_executor(self._renderer, self._metrics.text, accepts)
        try:
            body, content_type = await asyncio.wait_for(rendered, _RENDER_WITHIN_S)
        except TimeoutError:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, "the disk does not answer")
        return Answer(HTTPStatus.OK, body, content_type)

    async def _alive(self, accepts: str) -> Answer:
        stuck = await self._health.stuck()
        if stuck:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, f"stuck: {', '.join(stuck)}")
        return _said(HTTPStatus.OK, "alive")

    async def _ready(self, accepts: str) -> Answer:
        if self._is_stopping():
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")
        wrong = [] if self._disk is None else trouble(self._disk.state())
        if wrong:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, *wrong)
        return _said(HTTPStatus.OK, "ready")


def _said(status: HTTPStatus, *lines: str) -> Answer:
    return Answer(status, "\n".join((*lines, "")).encode())
