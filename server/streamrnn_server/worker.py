"""Threads of the server's own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

__all__ = ["OnFailure", "Worker"]

OnFailure = Callable[[str, BaseException], None]  # takes the thread's name


class Worker:
    """A thread that takes no signals, and cannot end in silence.

    Parameters
    ----------
    name : str
    work : callable
        What it does; it returns when the thread is to end.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, on_failure: OnFailure) -> None:
        """Begin; ``on_failure`` is called if the thread ends by an exception."""
        self._on_failure = on_failure
        self._thread.start()

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
