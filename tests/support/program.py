"""The server and other code as child processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamrnn_bench.child_process import start_child

__all__ = ["TIMEOUT_S", "DurableProgram", "Program", "run_python", "streamrnn", "until"]

TIMEOUT_S = 120
NUM_PORTS = 3  # of an address: as many shards as a test ever starts
ROOT = Path(__file__).parents[2]


def streamrnn(*arguments) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-m", "streamrnn_server", *map(str, arguments)]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells, and leave the core to those who are waited for."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


class Program:
    """``streamrnn serve`` at a free port, ready when the block begins, killed at its end."""

    def __init__(self, *arguments):
        self.command = streamrnn("serve", *arguments, "--bind", "tcp://127.0.0.1:0")

    def __enter__(self):
        pipe = subprocess.PIPE
        process: Any = start_child(self.command, stdout=pipe, stderr=pipe, text=True)
        self.process = process
        self.ready_line = self.process.stdout.readline()
        self.endpoint = next(
            (word for word in self.ready_line.split() if word.startswith("tcp://")), None
        )
        return self

    def end(self, number=signal.SIGTERM):
        """Return the exit code, stdout, stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out, err

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class DurableProgram:
    """``streamrnn serve`` with a state directory, always at the same address, to be killed."""

    def __init__(self, model, state, durability="checkpoint", interval_s=0.05, **options):
        self.endpoint = f"tcp://127.0.0.1:{free_ports(NUM_PORTS)}"
        self.command = streamrnn(
            *("serve", model, "--bind", self.endpoint, "--state-dir", state),
            *("--durability", durability, "--checkpoint-interval", interval_s),
        )
        self.state = Path(state)
        self.options: dict[str, Any] = options  # of `subprocess.Popen`
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.kill()

    def start(self, num_shards=1):
        """Start it and wait until it is ready."""
        self.begin(num_shards)
        assert self.process is not None
        assert self.process.stdout is not None
        assert "ready" in self.process.stdout.readline(), "the server did not start"

    def begin(self, num_shards=1):
        """Start it, and do not wait."""
        command = [*self.command, "--shards", str(num_shards)]
        self.process = start_child(command, stdout=subprocess.PIPE, text=True, **self.options)

    def end(self, number):
        """Send a signal and return the exit code; one that has ended is left alone."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        self.process.wait(TIMEOUT_S)
        self.process.stdout.close()
        return self.process.returncode

    def kill(self):
        self.end(signal.SIGKILL)


def free_ports(num: int) -> int:
    """Return the first of ports that follow each other and are free."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for k in range(1, num):
                    with socket.socket() as another:
                        another.bind(("127.0.0.1", port + k))
            except (OSError, OverflowError):
                continue
            return port
