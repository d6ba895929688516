"""``streamrnn serve``."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import json
import os
import signal
import tempfile
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from types import FrameType

from streamrnn.errors import StartError, StreamRNNError
from streamrnn_server.config import ServerConfig
from streamrnn_server.event_log import EventLog, UnbufferedFile
from streamrnn_server.options import Settings, add_options, print_settings, settings_of
from streamrnn_server.storage.malloc import keep_freed_memory
from streamrnn_server.supervisor import Supervisor, fixed_port, supervised

__all__ = ["configure", "run"]

_STDOUT = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP, or see to it that a child does.

    Returns
    -------
    int
        0 after a clean end.
    """
    began_s = time.monotonic()
    faulthandler.enable()  # a damaged state file may end the process: then the log says where
    signals = _Signals()
    # What can be refused at once is refused before the compilers are loaded.
    settings = settings_of(args)
    if args.print_config:
        print(print_settings(settings), end="")
        return 0
    if not settings.models:
        args.wrong_usage("no MODEL is named: give a weight file")
    log = EventLog(settings.log_format, settings.log_level)
    inherited = supervised(settings.config)
    if settings.supervise and inherited is None:
        return Supervisor(log, fixed_port(settings.config)).run()
    return _serve(settings, inherited or settings.config, log, signals, began_s)


def _serve(
    settings: Settings, config: ServerConfig, log: EventLog, signals: _Signals, began_s: float
) -> int:
    from streamrnn_server.startup.models import load_models

    warnings.showwarning = lambda message, *_, **__: log.write("warning", str(message))
    models = load_models(settings.models)
    ready_file = settings.ready_file
    if ready_file is not None:
        _write_ready_file(ready_file, None)
    from streamrnn_server.monitor.notify import Notifier, Watchdog
    from streamrnn_server.server import Server
    from streamrnn_server.startup.device import choose_device
    from streamrnn_server.startup.warmup import compile_all

    keep_freed_memory()
    config = replace(config, device=choose_device(models, config, log))
    compile_all(log, config.precision, config.device)
    signals.note()
    server = Server(models, config, log)
    signals.hand_over(server.wake_file, server.stop)
    passed_s = time.monotonic() - began_s
    names = ", ".join(models)
    told = {
        "pid": os.getpid(),
        "endpoints": server.endpoints,
        "instance": server.control.instance,
        "durability": config.durability,
        "precision": config.precision,
        "device": server.device,
        "metrics": server.metrics_url or None,
    }
    try:
        if ready_file is not None:
            _write_ready_file(ready_file, json.dumps(told) + "\n")
    except StartError:
        server.stop()  # the shards run already: without this the process would not end
        server.run()
        server.close()
        raise
    how = f"durability {config.durability}, {config.precision} on {server.device}"
    how += ", clients need keys" * config.has_users
    _say(
        f"streamrnn: ready at {' '.join(server.endpoints)} serving {names} "
        f"({how}, {passed_s:.1f} s)",
        log,
    )
    seen = {"metrics": server.metrics_url} if server.metrics_url else {}
    endpoints = " ".join(server.endpoints)
    log.write("info", "ready", endpoints=endpoints, models=names, pid=os.getpid(), **seen)
    notifier = Notifier()
    watchdog = Watchdog(notifier, server.health(), log)
    notifier.tell("READY=1", f"STATUS=serving {names} at {endpoints}")
    watchdog.start()
    try:
        server.run()
    except BaseException as error:
        # A crash: what was in memory is gone, and no part of it must reach the disk.
        try:
            if isinstance(error, StreamRNNError):
                log.write("error", str(error))
            else:
                text = "".join(traceback.format_tb(error.__traceback__))
                log.write_fault("the server has failed", error, traceback=text)
        finally:
            os._exit(1)
    signal.set_wakeup_fd(-1)
    notifier.tell("STOPPING=1")
    watchdog.stop()
    server.close()
    log.write("info", "stopped")
    return 0


def _say(line: str, log: EventLog) -> None:
    """Print a line; if nobody can read it, the server serves all the same."""
    try:
        UnbufferedFile(_STDOUT).write(line + "\n")
    except OSError as error:
        log.write("warning", "stdout cannot be written", reason=error.strerror or str(error))


class _Signals:
    """What ends the server.

    At first the signals end the process at once, whatever the compilers are doing: there is nothing
    to lose yet. From `note` on they are noted, and `hand_over` hands them to the server.
    """

    def __init__(self) -> None:
        self._noted = False
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        self._numbers = numbers
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

    def note(self) -> None:
        """Note what comes from now on."""
        for number in self._numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True

    def hand_over(self, wake_file: int, stop: object) -> None:
        signal.set_wakeup_fd(wake_file, warn_on_full_buffer=False)
        if self._noted and callable(stop):
            stop()


def _write_ready_file(path: Path, content: str | None) -> None:
    """Write the file whole or not at all, so that who waits for it never reads half of it.

    Without a content only try whether that could be.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as directory:
            whole = Path(directory, "ready")
            whole.touch(0o600)
            whole.write_text(content or "\n")  # a full disk takes empty files
            if content is not None:
                os.replace(whole, path)
    except OSError as error:
        raise StartError(f"cannot write --ready-file {path}: {error}") from error
