"""``streamrnn serve``."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

from streamrnn.errors import StartError, StreamRNNError
from streamrnn_server.config import add_options, config_of
from streamrnn_server.event_log import FORMATS, LEVELS, EventLog
from streamrnn_server.storage.malloc import keep_freed_memory

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help="weight file, as PATH or NAME=PATH (NAME: the file's, less its suffix)",
    )
    add_options(parser)
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="write pid, endpoints, instance when ready"
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text")
    parser.add_argument("--log-level", choices=LEVELS, default="info")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; return 0 after a clean end."""
    began_s = time.monotonic()
    faulthandler.enable()  # a damaged state file may end the process: then the log says where
    # What can be refused at once is refused before the compilers are loaded.
    config = config_of(args)
    from streamrnn_server.models import load_models

    log = EventLog(args.log_format, args.log_level)
    models = load_models(args.model)
    from streamrnn_server.server import Server

    keep_freed_memory()
    signals = _Signals()
    server = Server(models, config, log)
    signals.hand_over(server.wake_file, server.stop)
    passed_s = time.monotonic() - began_s
    names = ", ".join(models)
    if args.ready_file is not None:
        _write_ready_file(
            args.ready_file,
            {
                "pid": os.getpid(),
                "endpoints": server.endpoints,
                "instance": server.control.instance,
                "durability": config.durability,
                "precision": config.precision,
                "device": server.device,
            },
        )
    how = f"durability {config.durability}, {config.precision} on {server.device}"
    how += ", clients need keys" * config.has_users
    print(
        f"streamrnn: ready at {' '.join(server.endpoints)} serving {names} "
        f"({how}, {passed_s:.1f} s)",
        flush=True,
    )
    log.write("info", "ready", endpoints=" ".join(server.endpoints), models=names, pid=os.getpid())
    try:
        server.run()
    except BaseException as error:
        # A crash: what was in memory is gone, and no part of it must reach the disk.
        try:
            if isinstance(error, StreamRNNError):
                log.write("error", str(error))
                print(f"streamrnn: {error}", file=sys.stderr, flush=True)
            else:
                log.write_fault("the server has failed", error)
                traceback.print_tb(error.__traceback__)
        finally:
            os._exit(1)
    signal.set_wakeup_fd(-1)
    server.close()
    log.write("info", "stopped")
    return 0


class _Signals:
    """SIGINT and SIGTERM: noted while the server starts, then handed to it."""

    def __init__(self) -> None:
        self._noted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True

    def hand_over(self, wake_file: int, stop: object) -> None:
        signal.set_wakeup_fd(wake_file, warn_on_full_buffer=False)
        if self._noted and callable(stop):
            stop()


def _write_ready_file(path: Path, content: dict[str, object]) -> None:
    """Write the file whole or not at all, so that who waits for it never reads half of it."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            file.write(json.dumps(content) + "\n")
        os.replace(file.name, path)
    except OSError as error:
        print(f"streamrnn: cannot write --ready-file {path}: {error}", file=sys.stderr)
        raise StartError(f"cannot write --ready-file {path}: {error}") from error
