"""``streamrnn serve`` as a process that never outlives its ``with`` block."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from streamrnn.errors import StartError
from streamrnn_bench.child_process import start_child
from streamrnn_bench.server.processes import defer_signals

__all__ = ["PREFERRED_PORT", "ServerProcess", "usable_port"]

PREFERRED_PORT = 7070
QUIET_WITHIN_S = 180.0  # the log of a start: one that compiles tells of it every few seconds
STOP_WITHIN_S = 10.0
LOOK_EVERY_S = 0.02
SLOW_S = 3.0


def _nothing() -> None:
    pass


class ServerProcess:
    """Server of one model on 127.0.0.1, started by `start` in a ``with`` block.

    Clients connect to ``address``. Its log is in ``log_path`` until the block ends.
    """

    def __init__(self, model_path: Path, port: int) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        self._directory = tempfile.TemporaryDirectory(prefix="streamrnn-demo-")
        self._ready_path = Path(self._directory.name) / "ready"
        self.log_path = Path(self._directory.name) / "server.log"
        self._command = [
            *(sys.executable, "-m", "streamrnn_server", "serve", str(model_path)),
            *("--bind", self.address, "--ready-file", str(self._ready_path)),
            *("--state-dir", str(Path(self._directory.name) / "state")),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._launched_s = 0.0

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        """Process id; 0 while there is none."""
        return self._process.pid if self._process else 0

    def start(self, slow: Callable[[], None] = _nothing) -> float:
        """Start the process and wait until it is ready: `launch` and `wait_until_ready`."""
        self.launch()
        return self.wait_until_ready(slow)

    def launch(self) -> None:
        """Start the process; only in the main thread, as its end would end the server."""
        self._ready_path.unlink(missing_ok=True)
        self._launched_s = time.perf_counter()
        # A signal before the assignment would leave a process that is never stopped.
        with open(self.log_path, "ab") as log, defer_signals():
            self._process = start_child(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_until_ready(self, slow: Callable[[], None] = _nothing) -> float:
        """Wait until the launched process is ready; return the seconds since its launch.

        Calls ``slow`` once if that takes longer than usual. Raises a `StartError` if the process
        ends instead, or has logged nothing for minutes.
        """
        assert self._process is not None
        log_bytes, grew_at_s = -1, self._launched_s
        while not self._ready_path.exists():
            try:
                code = self._process.wait(LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                now_s = time.perf_counter()
                if now_s - self._launched_s >= SLOW_S:
                    slow()
                    slow = _nothing
                if (size := self.log_path.stat().st_size) != log_bytes:
                    log_bytes, grew_at_s = size, now_s
                if now_s - grew_at_s < QUIET_WITHIN_S:
                    continue
                raise StartError(
                    f"the server is not ready after {now_s - self._launched_s:.0f} s, and has "
                    f"said nothing for {QUIET_WITHIN_S:.0f} s. {self._last_words()}"
                ) from None
            raise StartError(f"the server ended with code {code}. {self._last_words()}")
        return time.perf_counter() - self._launched_s

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Send SIGTERM and wait for the end; send SIGKILL if that does not help."""
        if self._process is None:
            return
        with defer_signals():
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_WITHIN_S)
            self.kill()

    def wait(self) -> int:
        """Wait until the process ends by itself; return its exit code."""
        return self._process.wait() if self._process is not None else 0

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return f"Its last words: {lines[-1]}" if lines else "It said nothing"


def usable_port(asked: int | None) -> int:
    """Choose a port that was free a moment ago.

    Without ``asked`` the default one if it is free, else any; a `StartError` if ``asked`` is in
    use.
    """
    for port in [PREFERRED_PORT, 0] if asked is None else [asked]:
        with socket.socket() as probe:
            # As the server will: ports that an earlier run left in TIME_WAIT are usable.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if asked is not None:
                    raise StartError(
                        f"port {asked} cannot be used ({error.strerror}); choose another --port"
                    ) from error
                continue
            return int(probe.getsockname()[1])
    raise StartError("no port is free on 127.0.0.1")
