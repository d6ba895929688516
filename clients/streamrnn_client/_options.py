"""What a client is told when it is made, and the socket options that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import zmq

from streamrnn_client.errors import BadParams

__all__ = ["Monitor", "Options", "configure"]

_CONNECTION_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


@dataclass(frozen=True)
class Options:
    """Checked arguments of a client; seconds."""

    address: str
    timeout_s: float = 5.0
    resend_s: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.address, str) or "://" not in self.address:
            raise BadParams(
                f"the address is {self.address!r}; expected is for instance 'tcp://127.0.0.1:7070'"
            )
        for name in ("timeout_s", "resend_s"):
            value = getattr(self, name)
            if not 0 < value < 1e6:
                raise BadParams(f"{name} is {value!r}; it must be a number of seconds above 0")


def configure(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Set all options whose default would hang or flood, then connect."""
    socket.linger = 0  # every request has a reply, so nothing that matters waits at the end
    socket.sndhwm = 10_000
    socket.rcvhwm = 0  # bounded by what was asked
    socket.ipv6 = "[" in endpoint
    socket.immediate = False
    socket.reconnect_ivl = 50
    socket.reconnect_ivl_max = 1000
    socket.heartbeat_ivl = 5000
    socket.heartbeat_timeout = 15_000
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise BadParams(f"cannot connect to {endpoint!r}: {error}; is it an address?") from None


class Monitor:
    """Whether a socket has a connection, looked up only when somebody asks."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> None:
        address = f"inproc://streamrnn-monitor-{id(self):x}-{socket.underlying:x}"
        socket.monitor(address, _CONNECTION_EVENTS)
        self._events = context.socket(zmq.PAIR)
        # A monitor whose queue is full would hold up libzmq's own thread.
        self._events.rcvhwm = 0
        self._events.linger = 0
        self._events.connect(address)
        self._is_connected = False

    def is_connected(self) -> bool:
        """Read the events since the last time and say what they come to."""
        while self._events.poll(0):
            event = self._events.recv_multipart()[0]
            self._is_connected = int.from_bytes(event[:2], "little") != zmq.EVENT_DISCONNECTED
        return self._is_connected

    def close(self) -> None:
        """Close; the monitored socket is closed by whoever owns it."""
        self._events.close()
