"""What a client is told when it is made, and the socket options that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zmq

from streamrnn_client._kept import MAX_KEPT_BYTES, MAX_KEPT_STEPS
from streamrnn_client.errors import BadParams

__all__ = ["Options", "configure", "is_connected"]


@dataclass(frozen=True)
class Options:
    """Checked arguments of a client; seconds."""

    address: str
    timeout_s: float = 5.0
    resend_s: float = 0.5
    max_kept_steps: int = MAX_KEPT_STEPS
    max_kept_bytes: int = MAX_KEPT_BYTES

    def __post_init__(self) -> None:
        if not isinstance(self.address, str) or "://" not in self.address:
            raise BadParams(
                f"the address is {self.address!r}; expected is for instance 'tcp://127.0.0.1:7070'"
            )
        for name in ("timeout_s", "resend_s"):
            value = getattr(self, name)
            if not 0 < value < 1e6:
                raise BadParams(f"{name} is {value!r}; it must be a number of seconds above 0")
        for name in ("max_kept_steps", "max_kept_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise BadParams(f"{name} is {value!r}; it must be a whole number from 1")


def configure(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Set all options whose default would hang or flood, then connect."""
    socket.linger = 0  # every request has a reply, so nothing that matters waits at the end
    socket.sndhwm = 10_000
    socket.rcvhwm = 0  # bounded by what was asked
    socket.ipv6 = "[" in endpoint
    # Nothing waits in a queue for a connection: what cannot be sent now is not sent, and known not
    # to be. An unnumbered step then cannot go out long after its caller has given up.
    socket.immediate = True
    socket.reconnect_ivl = 50
    socket.reconnect_ivl_max = 1000
    socket.heartbeat_ivl = 5000
    socket.heartbeat_timeout = 15_000
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise BadParams(f"cannot connect to {endpoint!r}: {error}; is it an address?") from None


def is_connected(socket: zmq.Socket[Any] | None) -> bool:
    """Tell whether a socket of ours has a connection: only then it takes messages."""
    return socket is not None and bool(int(socket.get(zmq.EVENTS)) & zmq.POLLOUT)
