"""The options of ``streamrnn serve`` that set a `ServerConfig`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn_client.protocol import DURABILITIES
from streamrnn_server.config import (
    DEVICES,
    ServerConfig,
    parse_bytes,
    parse_endpoint,
    parse_metrics_address,
)

__all__ = ["add_options", "config_of"]


class _Option:
    """An option of ``streamrnn serve``; ``settings`` are those of `ArgumentParser.add_argument`."""

    def __init__(
        self,
        flag: str,
        help: str,
        parse: Callable[[str, str], Any] | None = None,  # after argparse; StartError if it is wrong
        **settings: Any,
    ) -> None:
        self.flag, self.parse = flag, parse
        self.settings = {"help": help, **settings}


# Field of `ServerConfig` -> what sets it.
_OPTIONS = {
    "bind": _Option(
        "--bind",
        "where to listen (%(default)s); port 0 lets the system choose",
        parse_endpoint,
        metavar="ADDRESS",
    ),
    "advertise": _Option(
        "--advertise",
        "where clients find the server, if they see it elsewhere (NAT, containers)",
        lambda text, option: parse_endpoint(text, option) if text else None,
        metavar="ADDRESS",
    ),
    "num_shards": _Option(
        "--shards",
        "threads, each with a port of its own, counted up (%(default)s)",
        type=int,
        metavar="N",
    ),
    "precision": _Option(
        "--precision",
        "how the CPU stores weights: float32, bfloat16, int8 ('streamrnn inspect --precision' "
        "says what fewer bits cost a model); how a GPU rounds what it multiplies: float32, tf32, "
        "bfloat16, or int8 weights as the CPU's (%(default)s)",
        choices=tuple(dict.fromkeys(itertools.chain(*DEVICE_PRECISIONS.values()))),
    ),
    "device": _Option(
        "--device",
        "what computes the steps (%(default)s); auto: what a short measurement finds faster",
        choices=DEVICES,
    ),
    "max_streams": _Option(
        "--max-streams",
        "most streams open at once (%(default)s); takes memory only for those that are, "
        "but a GPU's for all of them",
        type=int,
        metavar="N",
    ),
    "memory_budget_bytes": _Option(
        "--memory-budget",
        "most memory for streams, like 2G or 512M (half of the machine's or container's); "
        "when it is reached, streams that rest and are on disk make way, or new ones are told busy",
        parse_bytes,
        metavar="BYTES",
    ),
    "idle_limit_s": _Option(
        "--idle-limit",
        "let go of streams that were idle for so many seconds (0: never); with --state-dir "
        "they come back from disk, without it they are closed",
        type=int,
        metavar="S",
    ),
    "state_dir": _Option(
        "--state-dir",
        "keep streams on disk (docs/STATE.md)",
        type=Path,
        metavar="DIR",
    ),
    "durability": _Option(
        "--durability",
        "checkpoint: changed streams every --checkpoint-interval (the default with "
        "--state-dir); always: every step before its reply; none",
        choices=DURABILITIES,
    ),
    "checkpoint_interval_s": _Option(
        "--checkpoint-interval",
        "how often changed streams are written (%(default)s)",
        type=float,
        metavar="S",
    ),
    "time_to_live_s": _Option(
        "--time-to-live",
        "forget streams that nobody has used for so many seconds of serving (0: never)",
        type=int,
        metavar="S",
    ),
    "curve_secret_key": _Option(
        "--curve-secret-key",
        "this server's NAME.key_secret: connections are encrypted and need keys ('streamrnn keys')",
        type=Path,
        metavar="FILE",
    ),
    "curve_clients": _Option(
        "--curve-clients",
        "the clients' public keys, USER.key each (or one such file); a stream belongs to the "
        "user who opened it",
        type=Path,
        metavar="DIR",
    ),
    "admins": _Option(
        "--admin",
        "a user who may see the totals of all users by 'streamrnn status' (again for each)",
        action="append",
        metavar="USER",
    ),
    "user_share": _Option(
        "--user-share",
        "percent of --max-streams, of calls that Python answers, and of the state directory's disk "
        "that one user may take (%(default)s)",
        type=int,
        metavar="PERCENT",
    ),
    "user_disk_bytes": _Option(
        "--user-disk",
        "most bytes that one user's streams and snapshots may take in the state directory, like "
        "10G (--user-share of its disk)",
        parse_bytes,
        metavar="BYTES",
    ),
    "metrics": _Option(
        "--metrics",
        "answer /metrics, /healthz and /readyz over HTTP there: a PORT of this machine, or "
        "HOST:PORT (docs/monitoring.md)",
        parse_metrics_address,
        metavar="ADDRESS",
    ),
    "insecure": _Option(
        "--insecure",
        "bind an address that other machines can reach, without keys",
        action="store_true",
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that set a `ServerConfig` to a command's parser."""
    defaults = vars(ServerConfig())
    # Not shown: they depend on the machine and on other options.
    for name in ("memory_budget_bytes", "durability", "user_disk_bytes", "admins"):
        defaults[name] = None
    for name, option in _OPTIONS.items():
        parser.add_argument(option.flag, dest=name, default=defaults[name], **option.settings)


def config_of(args: argparse.Namespace) -> ServerConfig:
    """Return what the options of `add_options` say; StartError if it makes no sense."""
    values = {}
    for name, option in _OPTIONS.items():
        value = getattr(args, name)
        if option.parse is not None and isinstance(value, str):
            value = option.parse(value, option.flag)
        elif isinstance(value, list):
            value = tuple(value)
        if value is not None:
            values[name] = value
    if args.state_dir is not None:
        values.setdefault("durability", "checkpoint")
    return ServerConfig(**values)
