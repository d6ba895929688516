"""Threads of the server's own."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

__all__ = ["DISK_PATIENCE_S", "OnFailure", "Worker"]

_PATIENCE_S = 5.0
DISK_PATIENCE_S = 60.0  # of a thread that may wait for a disk

OnFailure = Callable[[str, BaseException], None]  # takes the thread's name


class Worker:
    """A thread that takes no signals, and cannot end in silence.

    Parameters
    ----------
    name : str
    work : callable
        What it does; it returns when the thread is to end.
    patience_s : float
        After so long without a `beat` it is stuck.
    """

    def __init__(
        self, name: str, work: Callable[[], None], patience_s: float = _PATIENCE_S
    ) -> None:
        self.name = name
        self._work, self._patience_s = work, patience_s
        self._beat_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, on_failure: OnFailure) -> None:
        """Begin; ``on_failure`` is called if the thread ends by an exception."""
        self._on_failure = on_failure
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """Note that the thread moves; called by itself, again and again."""
        self._beat_at_s = time.monotonic()

    def is_stuck(self) -> bool:
        """Tell whether the thread has not moved for too long, or has ended."""
        is_late = time.monotonic() - self._beat_at_s > self._patience_s
        return self.has_begun and (is_late or not self._thread.is_alive())

    @property
    def has_begun(self) -> bool:
        """Whether it was started."""
        return self._thread.ident is not None

    def join(self) -> None:
        """Wait until it has ended, if it was started."""
        if self.has_begun:
            self._thread.join()

    def _run(self) -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            self._work()
        except BaseException as error:
            self._on_failure(self._thread.name, error)
