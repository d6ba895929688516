"""A parent process that starts the serving process again when it has crashed.

libzmq ends the process where an assertion of its own fails, which a hostile peer can bring about.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamrnn.errors import StartError
from streamrnn_server.config import Endpoint, ServerConfig
from streamrnn_server.event_log import EventLog

__all__ = ["Supervisor", "fixed_port", "supervised"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OWN_SIGNALS = (signal.SIGCHLD, signal.SIGALRM)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_VARIABLE = "STREAMRNN_SUPERVISED"  # of the child's environment: parent's pid, restarts, port
_FINAL_CODES = (0, 2, 3)  # stopped, wrong usage, cannot start: another start would change nothing
_FINAL_SIGNALS = tuple(-number for number in STOP_SIGNALS)  # somebody has stopped the child
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.1, 10.0  # before a restart; it doubles
_CALM_S = 60.0  # after so long without a crash the pause is the least again
_MAX_PORT_TRIES = 100


def supervised(config: ServerConfig) -> ServerConfig | None:
    """In the process that a supervisor has started, see to it that it ends with its parent.

    Returns
    -------
    ServerConfig or None
        With what the supervisor has fixed; None in any other process.
    """
    told = os.environ.pop(_VARIABLE, None)
    if told is None:
        return None
    parent, num_restarts, port = map(int, told.split())
    if sys.platform == "linux":
        # As when it is asked to stop: it takes a last checkpoint.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOP_SIGNALS, *_OWN_SIGNALS))
    if os.getppid() != parent:  # it had ended before
        raise StartError("the supervisor has ended")
    return replace(config, bind=Endpoint(config.bind.host, port), num_restarts=num_restarts)


@dataclass
class Supervisor:
    """Runs a command, this program's by default, again and again until it ends of its own accord.

    Signals are blocked and waited for, so that none is lost between two instructions.
    """

    log: EventLog
    port: int = 0
    command: Sequence[str] = ()
    min_pause_s: float = _MIN_PAUSE_S
    max_pause_s: float = _MAX_PAUSE_S
    num_restarts: int = 0

    def run(self) -> int:
        """Return the exit code of the command's last run."""
        stop = {
            number
            for number in STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
        }
        awaited = stop | set(_OWN_SIGNALS)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        try:
            return self._run(awaited)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _run(self, awaited: set[signal.Signals]) -> int:
        pause_s = self.min_pause_s
        while True:
            began_s = time.monotonic()
            code, was_stopped = self._run_once(awaited)
            if was_stopped or code in _FINAL_CODES or code in _FINAL_SIGNALS:
                return code if code >= 0 else 128 - code
            if time.monotonic() - began_s >= _CALM_S:
                pause_s = self.min_pause_s
            self.num_restarts += 1
            self.log.write(
                "error",
                "the server has crashed: it is started again",
                how=_how(code),
                in_s=pause_s,
                num_restarts=self.num_restarts,
            )
            if _is_stopped_within(pause_s, awaited):
                return 0
            pause_s = min(2 * pause_s, self.max_pause_s)

    def _run_once(self, awaited: set[signal.Signals]) -> tuple[int, bool]:
        """Run the command; return how it ended, and whether we were asked to stop it."""
        told = f"{os.getpid()} {self.num_restarts} {self.port}"
        command = list(self.command) or [sys.executable, *sys.orig_argv[1:]]
        try:
            child = subprocess.Popen(command, env={**os.environ, _VARIABLE: told})
        except OSError as error:  # no memory, too many processes: perhaps not for long
            self.log.write("error", "the server cannot be started", reason=str(error))
            return 1, False
        was_stopped = False
        while child.poll() is None:
            number = signal.sigwait(awaited)
            if number in STOP_SIGNALS:
                was_stopped = True
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(number)
        return child.returncode, was_stopped


def _is_stopped_within(pause_s: float, awaited: set[signal.Signals]) -> bool:
    """Wait; return early, and True, when a signal asks to stop."""
    signal.setitimer(signal.ITIMER_REAL, pause_s)
    try:
        while True:
            number = signal.sigwait(awaited)
            if number == signal.SIGALRM:
                return False
            if number in STOP_SIGNALS:
                return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def fixed_port(config: ServerConfig) -> int:
    """Return the port to bind, chosen now if the system may: after a restart it is the same.

    Clients could not find the server again otherwise.
    """
    if config.bind.port:
        return config.bind.port
    host = config.bind.numeric().host.strip("[]").replace("*", "")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_MAX_PORT_TRIES):
        with contextlib.ExitStack() as sockets:
            try:
                first = _bound(sockets, family, host, 0)
                for k in range(1, config.num_shards):
                    _bound(sockets, family, host, first + k)
            except (OSError, OverflowError):
                continue
            return first
    raise StartError(f"cannot find a free port at {config.bind}; name one (--bind)")


def _bound(sockets: contextlib.ExitStack, family: int, host: str, port: int) -> int:
    one: Any = sockets.enter_context(socket.socket(family))
    one.bind((host, port))
    return int(one.getsockname()[1])
