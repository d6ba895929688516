"""The client of StreamRNN: recurrent networks served one time step at a time.

Public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamrnn_client._version import __version__

if TYPE_CHECKING:
    from streamrnn_client.client import Client
    from streamrnn_client.errors import PartialFailure, StateLost, StreamRNNClientError
    from streamrnn_client.stream import Stream
    from streamrnn_client.times import time_features

__all__ = [
    "Client",
    "PartialFailure",
    "StateLost",
    "Stream",
    "StreamRNNClientError",
    "__version__",
    "time_features",
]

_HOMES = {"Client": "client", "Stream": "stream", "time_features": "times"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
