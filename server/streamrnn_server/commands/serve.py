"""``streamrnn serve``."""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from streamrnn.errors import DeviceError, StartError
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn_client.protocol.messages import DEFAULT_PORT, DURABILITIES
from streamrnn_server.config import DEVICES
from streamrnn_server.event_log import FORMATS, LEVELS
from streamrnn_server.storage.malloc import keep_freed_memory

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        The subcommand's.
    """
    parser.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help="weight file, as PATH or NAME=PATH (NAME: the file's, less its suffix)",
    )
    parser.add_argument(
        "--bind",
        default=f"tcp://127.0.0.1:{DEFAULT_PORT}",
        metavar="ADDRESS",
        help="where to listen (%(default)s); port 0 lets the system choose",
    )
    parser.add_argument(
        "--advertise",
        metavar="ADDRESS",
        help="where clients find the server, if they see it elsewhere (NAT, containers)",
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=1,
        metavar="N",
        help="threads, each with a port of its own, counted up (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(dict.fromkeys(itertools.chain(*DEVICE_PRECISIONS.values()))),
        default="float32",
        help="how the CPU stores weights: float32, bfloat16, int8 ('streamrnn inspect --precision' "
        "says what fewer bits cost a model); how a GPU rounds what it multiplies: float32, tf32, "
        "bfloat16 (%(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="what computes the steps (%(default)s); auto: what a short measurement finds faster",
    )
    parser.add_argument(
        "--max-streams",
        type=int,
        default=1 << 20,
        metavar="N",
        help="most streams open at once (%(default)s); takes memory only for those that are, "
        "but a GPU's for all of them",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="BYTES",
        help="most memory for streams, like 2G or 512M (half of the machine's or container's); "
        "when it is reached, streams that rest and are on disk make way, or new ones are told busy",
    )
    parser.add_argument(
        "--idle-limit",
        type=int,
        default=0,
        metavar="S",
        help="let go of streams that were idle for so many seconds (0: never); with --state-dir "
        "they come back from disk, without it they are closed",
    )
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="keep streams on disk (docs/state-format.md)"
    )
    parser.add_argument(
        "--durability",
        choices=DURABILITIES,
        help="checkpoint: changed streams every --checkpoint-interval (the default with "
        "--state-dir); always: every step before its reply; none",
    )
    parser.add_argument(
        "--checkpoint-interval",
        type=float,
        default=1.0,
        metavar="S",
        help="how often changed streams are written (%(default)s)",
    )
    parser.add_argument(
        "--time-to-live",
        type=int,
        default=0,
        metavar="S",
        help="forget streams that nobody has used for so many seconds of serving (0: never)",
    )
    parser.add_argument(
        "--curve-secret-key",
        type=Path,
        metavar="FILE",
        help="this server's NAME.key_secret: connections are encrypted and need keys "
        "('streamrnn keys')",
    )
    parser.add_argument(
        "--curve-clients",
        type=Path,
        metavar="DIR",
        help="the clients' public keys, USER.key each (or one such file); a stream belongs to the "
        "user who opened it",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="bind an address that other machines can reach, without keys",
    )
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="write pid, endpoints, instance when ready"
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text")
    parser.add_argument("--log-level", choices=LEVELS, default="info")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Parameters
    ----------
    args : argparse.Namespace
        What `configure` asked for.

    Returns
    -------
    int
        0 after a clean end.

    Raises
    ------
    StartError
        If the server cannot start.
    """
    began_s = time.monotonic()
    faulthandler.enable()  # a damaged state file may end the process: then the log says where
    # What can be refused at once is refused before the compilers are loaded.
    from streamrnn_server.config import ServerConfig, parse_bytes, parse_endpoint

    budget = {}
    if args.memory_budget is not None:
        budget["memory_budget_bytes"] = parse_bytes(args.memory_budget, "--memory-budget")
    config = ServerConfig(
        bind=parse_endpoint(args.bind, "--bind"),
        advertise=parse_endpoint(args.advertise, "--advertise") if args.advertise else None,
        num_shards=args.shards,
        max_streams=args.max_streams,
        **budget,
        idle_limit_s=args.idle_limit,
        insecure=args.insecure,
        curve_secret_key=args.curve_secret_key,
        curve_clients=args.curve_clients,
        precision=args.precision,
        device=args.device,
        state_dir=args.state_dir,
        durability=args.durability or ("none" if args.state_dir is None else "checkpoint"),
        checkpoint_interval_s=args.checkpoint_interval,
        time_to_live_s=args.time_to_live,
    )
    from streamrnn_server.event_log import EventLog
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
    except DeviceError as error:
        # A crash: what was in the GPU's memory is gone, and must not be missed on disk.
        log.write("error", str(error))
        print(f"streamrnn: {error}", file=sys.stderr, flush=True)
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
