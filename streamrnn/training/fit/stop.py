"""Ctrl-C and SIGTERM while a network is trained: the first asks to stop, the second ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]

NOTICE = "stopping: the best so far is saved"


class StopSignals:
    """A context manager to be asked, by a call, whether a signal has come.

    ``received`` is its number, else 0; then the notice is written. Outside the main thread, to
    which signals go, none comes.
    """

    def __init__(self, notice: str = NOTICE) -> None:
        self.received = 0
        self._notice = f"\n{notice}; once more to end at once\n".encode()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Not one that is ignored, as a shell does for what runs in its background.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Tell whether to stop."""
        return bool(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            # As Python does by itself, but so that files are put away for SIGTERM too.
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.received = number
        with contextlib.suppress(OSError):
            os.write(
                2, self._notice
            )  # a buffered write here may come into the middle of another one
