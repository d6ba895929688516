"""What a server says of itself in `hello`, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from streamrnn_client import errors
from streamrnn_client.protocol import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_WINDOW,
    MAX_BATCH,
    MAX_WINDOW,
    PROTOCOL_VERSION,
)
from streamrnn_client.protocol.codes import kind_of
from streamrnn_client.words import counted

__all__ = ["ServerInfo"]

_WILDCARD = re.compile(r"tcp://(?:\*|0\.0\.0\.0|\[::\]):(\d+)")


@dataclass(frozen=True)
class ServerInfo:
    """What the server says of itself in `hello`.

    Attributes
    ----------
    server : str
        The server's version.
    instance : str
        Differs after every start of the server.
    durability : str
        ``none``, ``checkpoint`` or ``always``.
    arithmetic : str
        Device, precision and kernel version: outputs are equal to the bit under one of them.
    endpoints : tuple of str
        One for each shard.
    num_shards : int
        Number of shards; each is a thread with an endpoint of its own.
    default_window, max_window : int
        Unacknowledged steps of one stream.
    max_message_bytes : int
        Of one request.
    max_in_flight : int
        Unanswered requests of one client.
    max_batch : int
        Streams in one request.
    models : tuple of str
        Their names.
    features : tuple of str
        What an older server lacks: ``batch_columns``, ``received``, ``origins``.
    """

    server: str
    instance: str
    durability: str
    arithmetic: str
    endpoints: tuple[str, ...]
    num_shards: int
    default_window: int = DEFAULT_WINDOW
    max_window: int = MAX_WINDOW
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    max_in_flight: int = 1000
    max_batch: int = MAX_BATCH
    models: tuple[str, ...] = field(default=())
    features: tuple[str, ...] = field(default=())

    @classmethod
    def from_map(cls, reply: Any, address: str) -> ServerInfo:
        """Read the result of `hello`, skipping unknown keys; ``address`` is where it was asked.

        Raises `NotSupported` if the server speaks another protocol.
        """
        version = reply.get("protocol") if isinstance(reply, dict) else None
        if type(version) is not int or version != PROTOCOL_VERSION:
            raise errors.NotSupported(
                f"the server speaks protocol {version!r}, this client {PROTOCOL_VERSION}: "
                "install streamrnn-client in the server's version",
                {"protocol": version, "expected": PROTOCOL_VERSION},
            )
        known = {
            item.name: _checked(item.name, item.type, reply[item.name])
            for item in fields(cls)
            if item.name in reply
        }
        try:
            info = cls(**known)
        except TypeError as error:
            raise errors.NotSupported(
                f"hello lacks something that this client needs: {error}"
            ) from None
        if info.num_shards != len(info.endpoints):
            raise errors.NotSupported(
                f"{counted(info.num_shards, 'shard')}, but "
                f"{counted(len(info.endpoints), 'endpoint')}"
            )
        return replace(info, endpoints=tuple(_reachable(e, address) for e in info.endpoints))


def _checked(name: str, kind: Any, value: Any) -> Any:
    """Return a field of `hello` in its type; raise `NotSupported` if it has another one."""
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and type(value) is int and value >= 1:
        return value
    is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if kind == "tuple[str, ...]" and is_list:
        return tuple(value)
    expected = {"str": "a string", "int": "a whole number from 1"}.get(kind, "a list of strings")
    raise errors.NotSupported(
        f"{name} in hello is {kind_of(value)}; expected was {expected}: the server is another "
        "program, or of a version that this client does not know",
        {"field": name},
    )


def _reachable(endpoint: str, address: str) -> str:
    """Return an endpoint; all addresses of a host are none, and the one that we use is."""
    wildcard = _WILDCARD.fullmatch(endpoint)
    return endpoint if wildcard is None else f"{address.rpartition(':')[0]}:{wildcard[1]}"
