"""Peers that speak ZMTP by hand, and badly: what a libzmq socket would never send.

Framing is that of ZMTP 3.0 (rfc.zeromq.org/spec/23).
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable

__all__ = ["ABORTING", "ATTACKS", "GREETING", "RawPeer", "frame"]

_TIMEOUT_S = 2.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_NUM_HEAVY = 4_000_000
_HEAVY = (
    b"\x94\x00\x01\xa4step\x93\xa1a\x00\xdd" + _NUM_HEAVY.to_bytes(4, "big") + b"\x01" * _NUM_HEAVY
)
_LINGER_AND_RESET = struct.pack("ii", 1, 0)


def frame(body: bytes, more: bool = False, command: bool = False) -> bytes:
    """Return one frame."""
    flags = (1 if more else 0) | (4 if command else 0)
    if len(body) > 255:
        return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


class RawPeer:
    """A TCP connection to a server, with or without a handshake."""

    def __init__(self, port: int, identity: bytes | None = None, handshake: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self.socket.settimeout(_TIMEOUT_S)
        if not handshake:
            return
        self.socket.sendall(GREETING)
        properties = [(b"Socket-Type", b"DEALER")]
        if identity is not None:
            properties.append((b"Identity", identity))
        ready = b"\x05READY" + b"".join(
            bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
            for name, value in properties
        )
        self.socket.sendall(frame(ready, command=True))
        # libzmq ends a connection whose peer sends messages before it has had its READY.
        self.read(len(GREETING))
        self.read(self.read(2)[1])

    def send(self, data: bytes) -> None:
        """Send bytes; a peer that does not take them in time is an `OSError`."""
        self.socket.sendall(data)

    def read(self, num_bytes: int) -> bytes:
        """Return so many bytes; a connection that ends before is an `OSError`."""
        data = b""
        while len(data) < num_bytes:
            part = self.socket.recv(num_bytes - len(data))
            if not part:
                raise ConnectionAbortedError("the server has ended the connection")
            data += part
        return data

    def reset(self) -> None:
        """End the connection by a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AND_RESET)
        self.socket.close()

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


def _garbage(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Send a broken greeting."""
    peer = RawPeer(port, handshake=False)
    data = bytearray(GREETING)
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    peer.send(bytes(data[: rng.randrange(len(data) + 1)]) + rng.randbytes(rng.randrange(100)))
    peer.reset() if rng.random() < 0.5 else peer.close()
    return 1


def _identities(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Send from a peer with an odd routing id."""
    size = rng.choice((1, 4, 6, 16, 254, 255, 256, 300, 1000, 70_000))
    identity = b"i" + rng.randbytes(size - 1)
    peer = RawPeer(port, identity)
    num = rng.randrange(1, 20)
    peer.send(b"".join(frame(message()) for _ in range(num)))
    peer.close()
    return num


def _frames(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Send messages of several frames, or of none, and then break one off."""
    peer = RawPeer(port)
    num = rng.randrange(1, 30)
    for _ in range(num):
        parts = [message() for _ in range(rng.choice((0, 1, 2, 3, 40)))]
        peer.send(b"".join(frame(part, more=True) for part in parts) + frame(b""))
    peer.send(frame(message(), more=True)[: rng.randrange(1, 12)])
    peer.reset()
    return num


def _commands(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Send commands that a server does not expect."""
    peer = RawPeer(port)
    num = rng.randrange(1, 30)
    for _ in range(num):
        name = rng.choice((b"PING", b"PONG", b"ERROR", b"READY", b"SUBSCRIBE", b"CANCEL", b"HELLO"))
        body = bytes([rng.choice((len(name), 0, 255))]) + name + rng.randbytes(rng.randrange(40))
        peer.send(frame(body, command=True) + frame(message()))
    peer.close()
    return num


def _lengths(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Claim a length that never comes."""
    peer = RawPeer(port)
    length = rng.choice((2**63 - 1, 2**63, 2**64 - 1, 2**40, 2**31, 64 * 2**20, 9 * 2**20))
    peer.send(bytes([2]) + length.to_bytes(8, "big") + rng.randbytes(1000))
    peer.reset() if rng.random() < 0.5 else peer.close()
    return 1


def _endless(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Send a message that never ends, some MiB of it."""
    peer = RawPeer(port)
    part = frame(bytes(rng.choice((1, 1000, 60_000))), more=True)
    num = 2 * 2**20 // len(part)
    num_at_once = max(65536 // len(part), 1)
    for _ in range(num // num_at_once):
        peer.send(part * num_at_once)
    peer.reset()
    return 1


def _slow(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Ask for much and read nothing."""
    peer = RawPeer(port)
    ask = frame(b"\x94\x00\x01\xa5hello\x91\x80")
    num = 0
    try:
        for _ in range(rng.choice((1, 5, 20))):
            peer.send(ask * 500)
            num += 500
    except OSError:  # the server takes no more, as it should
        pass
    peer.reset()
    return num


def _squat(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Claim the routing ids that libzmq gives out next; libzmq 4.3.5 may abort (`ABORTING`)."""
    first = RawPeer(port)
    first.close()
    peers = [RawPeer(port, b"\0" + rng.randbytes(4)) for _ in range(8)]
    for peer in peers:
        peer.send(frame(message()))
        peer.close()
    return len(peers)


def _ping_on_full_pipe(rng: random.Random, port: int, message: Callable[[], bytes]) -> int:
    """Fill a pipe with messages and PINGs between them, and reset (libzmq's issue 4841).

    libzmq 4.3.5 aborts when it reads on and answers a PING on the connection that is gone
    (`ABORTING`). A few large messages keep the server from reading meanwhile.
    """
    peer, other = RawPeer(port), RawPeer(port)
    with contextlib.suppress(OSError):
        other.send(frame(_HEAVY) * 8)
        pair = frame(message()) + frame(b"\x04PING\x00\x00", command=True)
        peer.send(pair * min(30_000, 2**23 // len(pair)))
    time.sleep(rng.uniform(0.1, 0.5))  # until libzmq has noticed that the pipe is full
    peer.reset()
    other.close()
    return 1


ATTACKS = (_garbage, _identities, _frames, _commands, _lengths, _endless, _slow)
ABORTING = (_squat, _ping_on_full_pipe)
