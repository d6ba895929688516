"""What wakes the control thread from any other: a ping, news, or the end."""

from __future__ import annotations

import contextlib
import socket
import threading

from streamrnn.errors import StreamRNNError

__all__ = ["Wakes"]

# No signal's number, which Python writes by itself: see `signal.set_wakeup_fd`.
_PING, _NEWS = 255, 254
_MAX_AT_ONCE = 4096


class Wakes:
    """A way to wake the control thread.

    Attributes
    ----------
    pinged : int
        The number of the last ping.
    heard : int
        The last that the control thread has heard.
    failure : StreamRNNError or None
        Why the end is asked for, if a thread has failed.
    """

    def __init__(self) -> None:
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._lock = threading.Lock()
        self.pinged = self.heard = 0
        self.failure: StreamRNNError | None = None

    @property
    def woken(self) -> socket.socket:
        """What the control thread polls."""
        return self._woken

    @property
    def file(self) -> int:
        """A file that stands for `stop` when anything is written to it."""
        return self._wake.fileno()

    def ping(self) -> int:
        """Ask the control thread, and by it all shards, to hear a new number; return it."""
        with self._lock:
            self.pinged = number = self.pinged + 1
        self._send(_PING)
        return number

    def news(self) -> None:
        """Say that something was done in another thread."""
        self._send(_NEWS)

    def stop(self) -> None:
        """Ask for the end. From any thread, also from a signal's handler."""
        self._send(0)

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):  # it was asked often enough, or has ended
            self._wake.send(bytes([number]))

    def take(self) -> tuple[bool, bool, bool]:
        """Return whether there was a ping, whether there are news, and whether to stop."""
        wakes = self._woken.recv(_MAX_AT_ONCE)
        return _PING in wakes, _NEWS in wakes, bool(wakes.strip(bytes([_PING, _NEWS])))

    def close(self) -> None:
        """Close both ends."""
        self._woken.close()
        self._wake.close()
