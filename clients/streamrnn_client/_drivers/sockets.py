"""A DEALER socket with the options of this client."""

from __future__ import annotations

from typing import Any

import zmq

from streamrnn_client.errors import BadParams
from streamrnn_client.options import Keys

__all__ = ["configure", "is_connected"]


def configure(socket: zmq.Socket[Any], endpoint: str, keys: Keys | None = None) -> None:
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
    if keys is not None:
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        socket.curve_serverkey = keys.server
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise BadParams(f"cannot connect to {endpoint!r}: {error}; is it an address?") from None


def is_connected(socket: zmq.Socket[Any] | None) -> bool:
    """Tell whether a socket of ours has a connection: only then it takes messages."""
    return socket is not None and bool(int(socket.get(zmq.EVENTS)) & zmq.POLLOUT)
