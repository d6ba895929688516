"""What a service manager is told: that the server is ready, that it moves, that it stops.

The protocol of systemd, sd_notify(3): datagrams to a socket that the environment names. Without it
nothing is told to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Mapping

from streamrnn_server.event_log import EventLog
from streamrnn_server.monitor.health import Health
from streamrnn_server.worker import Worker

__all__ = ["Notifier", "Watchdog"]

# Whoever wants to hear more often would keep a core busy; and threads wait for no longer.
_MIN_WATCHDOG_S, _MAX_WATCHDOG_S = 0.003, 1e6


class Notifier:
    """Tells the service manager that has started this process, if one has.

    Attributes
    ----------
    watchdog_s : float or None
        Within which time it wants to hear that the process moves.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s: float | None = None
        is_meant = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        with contextlib.suppress(ValueError, OverflowError):
            within_s = int(environ.get("WATCHDOG_USEC", "")) / 1e6
            if self._address and is_meant and within_s > 0:
                self.watchdog_s = min(max(within_s, _MIN_WATCHDOG_S), _MAX_WATCHDOG_S)

    def tell(self, *lines: str) -> None:
        """Send lines such as ``READY=1``; if nobody takes them, the server serves all the same."""
        if not self._address.startswith(("/", "@")):
            return
        address = self._address.encode(errors="surrogateescape")
        if address.startswith(b"@"):
            address = b"\0" + address[1:]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.setblocking(False)
            one.sendto("\n".join(lines).encode(), address)


class Watchdog:
    """Tells, in a thread of its own, that all threads of a server move, as long as they do.

    Parameters
    ----------
    notifier : Notifier
        Whose manager ends the process when it has not heard so for a while.
    health : Health
    log : EventLog
    """

    def __init__(self, notifier: Notifier, health: Health, log: EventLog) -> None:
        self._notifier, self._health, self._log = notifier, health, log
        self._ended = threading.Event()
        self._worker = Worker("watchdog", self._serve)

    def start(self) -> None:
        """Begin, if the manager wants to hear of it."""
        if self._notifier.watchdog_s is not None:
            self._worker.start(lambda name, error: self._log.write_fault("no watchdog", error))

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._worker.join()

    def _serve(self) -> None:
        assert self._notifier.watchdog_s is not None
        with asyncio.Runner() as runner:
            while not self._ended.wait(self._notifier.watchdog_s / 3):
                stuck = runner.run(self._health.stuck())
                if stuck:
                    self._log.write("error", "threads do not move", threads=", ".join(stuck))
                else:
                    self._notifier.tell("WATCHDOG=1")
