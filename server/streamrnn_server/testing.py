"""Servers for tests: in this process, or as the program that users run."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streamrnn.model.model import Model
from streamrnn_server.config import Endpoint, ServerConfig
from streamrnn_server.event_log import EventLog
from streamrnn_server.server import Server

__all__ = ["serving"]


@contextmanager
def serving(models: Mapping[str, Model], **options: Any) -> Iterator[Server]:
    """Run a server in this process while the block runs.

    Parameters
    ----------
    models : mapping of str to Model
        What to serve.
    **options
        Fields of `ServerConfig`; by default the address is a free port of 127.0.0.1.

    Yields
    ------
    Server
        Ready; its ``endpoints`` say where.
    """
    config = ServerConfig(**{"bind": Endpoint("127.0.0.1", 0), **options})
    server = Server(models, config, EventLog(stream=io.StringIO()))
    thread = threading.Thread(target=server.run, name="control")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
        server.close()
