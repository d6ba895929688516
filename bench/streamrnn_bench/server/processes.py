"""Servers, echoes and load generators as processes that end in every case."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from streamrnn_bench.child_process import start_child
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.step.cases import Case

__all__ = [
    "Load",
    "Server",
    "anonymous_kib",
    "defer_signals",
    "echo",
    "load",
    "run_module",
    "server",
    "serving",
    "stopping_cleanly",
    "temporary_model",
    "wait_for",
]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_START_WITHIN_S = 600.0  # the first time, all of the server is compiled, on a busy machine even so
_STOP_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.02
_TOLD_LINES = 5


@contextlib.contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, and leave no process."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread, which handles signals
        before = {n: signal.signal(n, leave) for n in _ENDING[1:]}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of a block that starts or ends a process."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread, where no signal comes
        before = {n: signal.signal(n, note) for n in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in noted[:1]:
            signal.raise_signal(first)


@contextlib.contextmanager
def run_module(
    module: str, *arguments: str, python: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run a module, end it with the block, and report its output if that fails.

    ``python`` is what runs it, in place of this program's own ``python -m``.
    """
    process = None
    with tempfile.TemporaryFile("w+") as said:
        try:
            with defer_signals():
                process = start_child(
                    [*(python or (sys.executable, "-m")), module, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    # Ctrl-C is for the parent, which then ends its processes in order.
                    start_new_session=True,
                )
            yield process
        except BenchError as error:
            said.seek(0)
            last = said.read().splitlines()[-_TOLD_LINES:]
            if not last:
                raise
            raise BenchError(f"{error}; {module} said: {' | '.join(last)}") from error
        finally:
            if process is not None:
                with defer_signals():
                    _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    """Return what a process wrote into its ready file."""
    give_up_at_s = time.monotonic() + _START_WITHIN_S
    while not path.exists():
        if process.poll() is not None:
            raise BenchError(f"a process ended with code {process.returncode} before it was ready")
        if time.monotonic() > give_up_at_s:
            raise BenchError(f"a process was not ready within {_START_WITHIN_S:.0f} s")
        time.sleep(_LOOK_EVERY_S)
    return path.read_text()


@contextlib.contextmanager
def temporary_model(case: Case) -> Iterator[Path]:
    """Write a case's model into a file that the end of the block removes."""
    with tempfile.TemporaryDirectory(prefix="streamrnn-bench-") as directory:
        path = Path(directory) / "model.safetensors"
        case.model().save(path)
        yield path


class Server(NamedTuple):
    """Server process that is ready; ``ready_s`` is its start-up, to about 0.02 s."""

    endpoint: str  # of the first shard
    endpoints: tuple[str, ...]
    pid: int
    ready_s: float


@contextlib.contextmanager
def server(model: Path, *arguments: str) -> Iterator[Server]:
    """Run ``streamrnn serve`` with more arguments.

    Its ready file is in the model's directory. Raises a `BenchError` if it does not start.
    """
    began_s = time.monotonic()
    ready = model.with_name(f"server-{time.monotonic_ns()}.ready")
    always = ("serve", str(model), "--bind", "tcp://127.0.0.1:0", "--ready-file", str(ready))
    with run_module("streamrnn_server", *always, *arguments) as process:
        told = json.loads(wait_for(ready, process))
        endpoints = tuple(told["endpoints"])
        yield Server(endpoints[0], endpoints, told["pid"], time.monotonic() - began_s)


@contextlib.contextmanager
def serving(model: Path, *arguments: str) -> Iterator[str]:
    """Run ``streamrnn serve`` as `server` does; yield its endpoint."""
    with server(model, *arguments) as process:
        yield process.endpoint


@contextlib.contextmanager
def echo(case: Case, directory: Path) -> Iterator[str]:
    """Run a bare echo with replies as long as the server's; yield its endpoint.

    Its ready file is in ``directory``. Raises a `BenchError` if it does not start.
    """
    ready = directory / f"echo-{time.monotonic_ns()}.ready"
    arguments = ("--y-bytes", str(4 * case.hidden_size), "--ready-file", str(ready))
    with run_module("streamrnn_bench.server.echo", *arguments) as process:
        yield wait_for(ready, process)


class Load:
    """Process of `streamrnn_bench.server.load_generator`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command of the load generator, and return its findings.

        Raises a `BenchError` if a reply was missing or wrong, or the process has ended.
        """
        self.begin(**command)
        return self.end()

    def begin(self, **command: Any) -> None:
        """Send a command, whose findings `end` returns: others may work meanwhile."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for the command that `begin` has sent, and do what `ask` does."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the load generator has ended")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise BenchError(found["error"])
        return found


@contextlib.contextmanager
def load(
    endpoint: str, case: Case, num_streams: int, is_echo: bool = False, *arguments: str
) -> Iterator[Load]:
    """Run a load generator with more arguments; each stream has one step in flight."""
    always = ["--endpoint", endpoint, "--case", str(case), "--num-streams", str(num_streams)]
    always += ["--echo"] * is_echo
    with run_module("streamrnn_bench.server.load_generator", *always, *arguments) as process:
        yield Load(process)


def anonymous_kib(pid: int) -> int:
    """Return a process's anonymous memory; a `BenchError` if the system is not Linux."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError as error:
        raise BenchError(f"memory cannot be measured here: {error}") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
