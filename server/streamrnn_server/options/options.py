"""The options of ``streamrnn serve``, each with its flag, its words and what reads it."""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

from streamrnn.errors import StartError
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn_client.protocol import DURABILITIES
from streamrnn_server.config import (
    DEVICES,
    ServerConfig,
    parse_bytes,
    parse_endpoint,
    parse_metrics_address,
)
from streamrnn_server.event_log import FORMATS, LEVELS
from streamrnn_server.options.option import Option

__all__ = [
    "CONFIG",
    "MODELS",
    "OPTIONS",
    "PREFIX",
    "PROGRAM_DEFAULTS",
    "PROGRAM_OPTIONS",
    "add_options",
]

PREFIX = "STREAMRNN_SERVE_"  # of variables of the environment
MODELS, CONFIG = "models", "config"
_CREDENTIALS = "$CREDENTIALS_DIRECTORY/"  # what a path may begin with


def _parse_path(text: str, option: str) -> Path:
    """Read a path; an empty one would be the directory that the server happens to be in."""
    if not text or "\0" in text:
        raise StartError(f"{option} {text!r} is no path")
    if not text.startswith(_CREDENTIALS):
        return Path(text)
    directory = os.environ.get(_CREDENTIALS[1:-1])
    if not directory:
        raise StartError(
            f"{option} is {text!r}, and there is no CREDENTIALS_DIRECTORY: systemd sets it for "
            "services with LoadCredential="
        )
    return Path(directory, text.removeprefix(_CREDENTIALS))


# Field of `ServerConfig` -> what sets it.
OPTIONS = {
    "bind": Option(
        "--bind",
        "where to listen (%(default)s); port 0 lets the system choose",
        parse_endpoint,
        metavar="ADDRESS",
    ),
    "advertise": Option(
        "--advertise",
        "where clients find the server, if they see it elsewhere (NAT, containers)",
        lambda text, option: parse_endpoint(text, option) if text else None,
        metavar="ADDRESS",
    ),
    "num_shards": Option(
        "--shards",
        "threads, each with a port of its own, counted up (%(default)s)",
        type=int,
        metavar="N",
    ),
    "precision": Option(
        "--precision",
        "how the CPU stores weights: float32, bfloat16, int8 ('streamrnn inspect --precision' "
        "says what fewer bits cost a model); how a GPU rounds what it multiplies: float32, tf32, "
        "bfloat16, or int8 weights as the CPU's (%(default)s)",
        choices=tuple(dict.fromkeys(itertools.chain(*DEVICE_PRECISIONS.values()))),
    ),
    "device": Option(
        "--device",
        "what computes the steps (%(default)s); auto: what a short measurement finds faster",
        choices=DEVICES,
    ),
    "max_streams": Option(
        "--max-streams",
        "most streams open at once (%(default)s); takes memory only for those that are, "
        "but a GPU's for all of them",
        type=int,
        metavar="N",
    ),
    "memory_budget_bytes": Option(
        "--memory-budget",
        "most memory for streams, like 2G or 512M (half of the machine's or container's); "
        "when it is reached, streams that rest and are on disk make way, or new ones are told busy",
        parse_bytes,
        metavar="BYTES",
    ),
    "idle_limit_s": Option(
        "--idle-limit",
        "let go of streams that were idle for so many seconds (0: never); with --state-dir "
        "they come back from disk, without it they are closed",
        type=int,
        metavar="S",
    ),
    "state_dir": Option(
        "--state-dir",
        "keep streams on disk (docs/STATE.md)",
        parse=_parse_path,
        metavar="DIR",
    ),
    "durability": Option(
        "--durability",
        "checkpoint: changed streams every --checkpoint-interval (the default with "
        "--state-dir); always: every step before its reply; none",
        choices=DURABILITIES,
    ),
    "checkpoint_interval_s": Option(
        "--checkpoint-interval",
        "how often changed streams are written (%(default)s)",
        type=float,
        metavar="S",
    ),
    "time_to_live_s": Option(
        "--time-to-live",
        "forget streams that nobody has used for so many seconds of serving (0: never)",
        type=int,
        metavar="S",
    ),
    "backup_dir": Option(
        "--backup-dir",
        "a folder for backups, which 'streamrnn state backup ADDRESS NAME' has this server write "
        "(docs/deployment.md)",
        parse=_parse_path,
        metavar="DIR",
    ),
    "curve_secret_key": Option(
        "--curve-secret-key",
        "this server's NAME.key_secret: connections are encrypted and need keys ('streamrnn keys')",
        parse=_parse_path,
        metavar="FILE",
    ),
    "curve_clients": Option(
        "--curve-clients",
        "the clients' public keys, USER.key each (or one such file); a stream belongs to the "
        "user who opened it",
        parse=_parse_path,
        metavar="DIR",
    ),
    "admins": Option(
        "--admin",
        "a user who may see the totals of all users by 'streamrnn status' (again for each)",
        action="append",
        metavar="USER",
    ),
    "user_share": Option(
        "--user-share",
        "percent of --max-streams, of calls that Python answers, and of the state directory's disk "
        "that one user may take (%(default)s)",
        type=int,
        metavar="PERCENT",
    ),
    "user_disk_bytes": Option(
        "--user-disk",
        "most bytes that one user's streams and snapshots may take in the state directory, like "
        "10G (--user-share of its disk)",
        parse_bytes,
        metavar="BYTES",
    ),
    "user_memory_bytes": Option(
        "--user-memory",
        "most bytes that the states of one user's streams may take in memory, like 512M (any "
        "number within --memory-budget)",
        parse_bytes,
        metavar="BYTES",
    ),
    "user_steps_per_s": Option(
        "--user-steps-per-s",
        "most steps a second of one user (0: any number); he is told busy, and when to come again",
        type=int,
        metavar="N",
    ),
    "user_limits_file": Option(
        "--user-limits",
        "TOML with max_streams, max_bytes and max_steps_per_s of single users, which may change "
        "while the server runs (docs/deployment.md)",
        parse=_parse_path,
        metavar="FILE",
    ),
    "max_steps_per_s": Option(
        "--max-steps-per-s",
        "most steps a second of all users together (0: any number)",
        type=int,
        metavar="N",
    ),
    "metrics": Option(
        "--metrics",
        "answer /metrics, /healthz and /readyz over HTTP there: a PORT of this machine, or "
        "HOST:PORT (docs/monitoring.md)",
        parse_metrics_address,
        metavar="ADDRESS",
    ),
    "diagnostics_streams": Option(
        "--diagnostics-streams",
        "record so many streams at a time, and tell what their networks remember "
        "(docs/monitoring.md; 0: none) (%(default)s)",
        type=int,
        metavar="N",
    ),
    "models_dir": Option(
        "--models-dir",
        "the one folder from which 'streamrnn model load' may load weight files while it runs "
        "(docs/live-models.md)",
        parse=_parse_path,
        metavar="DIR",
    ),
    "watch_models": Option(
        "--watch-models",
        "load what appears in --models-dir as NAME@VERSION.safetensors by itself; what new streams "
        "get does not change by that",
        action="store_true",
    ),
    "max_loads": Option(
        "--max-loads",
        "most models that are loaded while it runs (%(default)s), those unloaded since among them; "
        "with --models-dir",
        type=int,
        metavar="N",
    ),
    "history": Option(
        "--history",
        "keep so many of each stream's last inputs, to prime another version with them "
        "('streamrnn model swap --streams replay'); NAME=N for one model (again for each)",
        action="append",
        metavar="[NAME=]N",
    ),
    "insecure": Option(
        "--insecure",
        "bind an address that other machines can reach, without keys",
        action="store_true",
    ),
}

# What sets no field of `ServerConfig`, but is of the program.
PROGRAM_OPTIONS = {
    "ready_file": Option(
        "--ready-file",
        "write pid, endpoints, instance when ready",
        parse=_parse_path,
        metavar="FILE",
    ),
    "supervise": Option(
        "--supervise",
        "start the server again when it has crashed (docs/deployment.md)",
        action="store_true",
    ),
    "log_format": Option("--log-format", "(%(default)s)", choices=FORMATS),
    "log_level": Option("--log-level", "(%(default)s)", choices=LEVELS),
}
PROGRAM_DEFAULTS = {"ready_file": None, "supervise": False, "log_format": "text"}
PROGRAM_DEFAULTS["log_level"] = "info"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the models and all options to a command's parser; what is not given is None."""
    parser.add_argument(
        MODELS,
        nargs="*",
        metavar="MODEL",
        help="weight file, as PATH or NAME=PATH (NAME: the file's, less its suffix)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML with options by name, such as state-dir, and models, a list; the command line "
        f"and the environment ({PREFIX}STATE_DIR, ...) come before it",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print all options as such a file, and where each is from, and end",
    )
    defaults = {**vars(ServerConfig()), **PROGRAM_DEFAULTS}
    for name, option in (OPTIONS | PROGRAM_OPTIONS).items():
        text = option.help.replace("%(default)s", str(defaults[name]))
        parser.add_argument(
            option.flag, dest=name, default=None, help=text.replace("%", "%%"), **option.settings
        )
    parser.set_defaults(wrong_usage=parser.error)
