"""Processes that compile the server into the disk cache during the training."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from types import TracebackType

from streamrnn_bench.child_process import start_child
from streamrnn_bench.demo.output import Output
from streamrnn_bench.server.processes import defer_signals

__all__ = ["COMPILES", "Compilation"]

COMPILES = "The first start on a machine compiles: up to a minute."
_WARMUP = (sys.executable, "-m", "streamrnn_server.startup.warmup")
_LOOK_EVERY_S = 0.1
_SLOW_S = 2.0


class Compilation:
    """Fill the server's compile cache; the ``with`` block ends its processes.

    A process that fails is ignored: the server compiles what is left, and reports why it cannot.
    """

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Compilation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with defer_signals():
            for process in self._processes:
                process.kill()
                process.wait()
        self._log.close()

    def start(self, *options: str) -> None:
        """Start `streamrnn_server.startup.warmup` with options; only in the main thread."""
        with defer_signals():
            self._processes.append(
                start_child(
                    [*_WARMUP, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                )
            )

    def wait(self, output: Output) -> bool:
        """Wait for all processes; return whether progress was shown."""
        began = time.perf_counter()
        while self._is_running() and time.perf_counter() - began < _SLOW_S:
            time.sleep(_LOOK_EVERY_S)
        if not self._is_running():
            return False
        output.say(COMPILES)
        console = output.console
        with console.status("compiling") if console.is_terminal else nullcontext() as status:
            while self._is_running():
                time.sleep(_LOOK_EVERY_S)
                if status is not None:
                    status.update(self._last_line())
        return True

    def _is_running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def _last_line(self) -> str:
        """Return the last log line of a process, without its time: ``compiling admit``."""
        with suppress(OSError):
            text = self._read_log()
            if " compiling " in text:
                return "compiling " + text.rpartition(" compiling ")[2].splitlines()[0]
        return "compiling"

    def _read_log(self) -> str:
        # Not by `seek`: the processes write at the position that they share with this file.
        with open(f"/proc/self/fd/{self._log.fileno()}", errors="replace") as file:
            return file.read()
