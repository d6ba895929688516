"""Messages between a shard and the control thread: questions, commands and replies."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from streamrnn_server.shard import structs as w

__all__ = ["Ask", "Caller", "Order", "command", "parse_ask"]


class Ask(NamedTuple):
    """What a shard asks Python for: numbers, whom to answer, and a body."""

    ask: int
    msgid: int
    code: int
    details: tuple[int, ...]
    model: int
    kind: int
    form: int
    num_items: int
    identity: bytes
    body: bytes
    owner: int = 0
    columns: int = 0
    client: int = 0
    charge: int = 0
    came_at_s: float = 0.0  # on the monotonic clock


def parse_ask(message: bytes, payload: bytes | None = None) -> Ask:
    """Read the frames of a shard's question; a second one is its body."""
    ask = np.frombuffer(message, w.Ask.dtype, 1)[0]
    begin = w.ASK_BYTES + int(ask["identity_bytes"])
    numbers = ["msgid", "code", "model", "kind", "form", "num_items", "owner", "columns"]
    numbers += ["client", "charge"]
    return Ask(
        ask=int(ask["what"]),
        details=tuple(ask["detail"].tolist()),
        identity=message[w.ASK_BYTES : begin],
        body=message[begin:] if payload is None else payload,
        came_at_s=time.monotonic(),
        **{name: int(ask[name]) for name in numbers},
    )


class Order(NamedTuple):
    """Frames for a shard: a command, or a reply that it sends on."""

    shard: int
    frames: list[bytes]


class Caller(NamedTuple):
    """Whom to answer: a client of a shard; or, without an identity, a pending fork."""

    shard: int
    identity: bytes
    msgid: int
    user: str = ""  # the name, where there are users


def command(what: int, values: dict[str, int] | None = None, *parts: bytes) -> list[bytes]:
    """Write the frames of a command: its fields by name, and what follows them."""
    head = w.Command.one()
    head["what"] = what
    for name, value in (values or {}).items():
        head[name] = value
    return [b"", b"".join([head.tobytes(), *parts])]
