"""The options of ``streamrnn serve``: of the command line, the environment and a file.

What says anything about an option first, in this order, counts; else it has its default.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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

__all__ = ["Settings", "add_options", "print_settings", "read_toml", "settings_of"]

_PREFIX = "STREAMRNN_SERVE_"
_MODELS, _CONFIG = "models", "config"
_CREDENTIALS = "$CREDENTIALS_DIRECTORY/"  # what a path may begin with
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Settings(NamedTuple):
    """All that a command line, the environment and a file have said."""

    models: list[str]
    config: ServerConfig
    ready_file: Path | None
    supervise: bool
    log_format: str
    log_level: str
    sources: Mapping[str, str]  # of what is no default, by the option's name


class _Option:
    """An option of ``streamrnn serve``; ``settings`` are those of `ArgumentParser.add_argument`."""

    def __init__(
        self,
        flag: str,
        help: str,
        parse: Callable[[str, str], Any] | None = None,  # takes where it is from, for StartError
        **settings: Any,
    ) -> None:
        self.flag, self.help, self.parse, self.settings = flag, help, parse, settings
        self.name = flag.removeprefix("--")
        self.is_switch = settings.get("action") == "store_true"
        self.is_list = settings.get("action") == "append"

    def value(self, given: Any, source: str) -> Any:
        """Return what was given, as the environment or a file give it, checked.

        Raises
        ------
        StartError
            If it is no such value; it names the source.
        """
        if self.is_switch:
            known = given if isinstance(given, bool) else _WORDS.get(str(given).lower())
            if known is None:
                raise StartError(f"{source} is {given!r}; it must be true or false")
            return known
        if self.is_list:
            parts = given.split(",") if isinstance(given, str) else given
            if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
                raise StartError(f"{source} is {given!r}; it must be a list of texts")
            return [part.strip() for part in parts if part.strip()]
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise StartError(f"{source} is {given!r}; it must be a text or a number")
        convert, choices = self.settings.get("type", str), self.settings.get("choices")
        try:
            value = convert(str(given))
        except ValueError:
            raise StartError(
                f"{source} is {given!r}; it must be a number, of the kind that {self.flag} takes"
            ) from None
        if choices is not None and value not in choices:
            raise StartError(f"{source} is {given!r}; it must be one of {', '.join(choices)}")
        return value


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
        parse=_parse_path,
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
    "backup_dir": _Option(
        "--backup-dir",
        "a folder for backups, which 'streamrnn state backup ADDRESS NAME' has this server write "
        "(docs/deployment.md)",
        parse=_parse_path,
        metavar="DIR",
    ),
    "curve_secret_key": _Option(
        "--curve-secret-key",
        "this server's NAME.key_secret: connections are encrypted and need keys ('streamrnn keys')",
        parse=_parse_path,
        metavar="FILE",
    ),
    "curve_clients": _Option(
        "--curve-clients",
        "the clients' public keys, USER.key each (or one such file); a stream belongs to the "
        "user who opened it",
        parse=_parse_path,
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
    "user_memory_bytes": _Option(
        "--user-memory",
        "most bytes that the states of one user's streams may take in memory, like 512M (any "
        "number within --memory-budget)",
        parse_bytes,
        metavar="BYTES",
    ),
    "user_steps_per_s": _Option(
        "--user-steps-per-s",
        "most steps a second of one user (0: any number); he is told busy, and when to come again",
        type=int,
        metavar="N",
    ),
    "user_limits_file": _Option(
        "--user-limits",
        "TOML with max_streams, max_bytes and max_steps_per_s of single users, which may change "
        "while the server runs (docs/deployment.md)",
        parse=_parse_path,
        metavar="FILE",
    ),
    "max_steps_per_s": _Option(
        "--max-steps-per-s",
        "most steps a second of all users together (0: any number)",
        type=int,
        metavar="N",
    ),
    "metrics": _Option(
        "--metrics",
        "answer /metrics, /healthz and /readyz over HTTP there: a PORT of this machine, or "
        "HOST:PORT (docs/monitoring.md)",
        parse_metrics_address,
        metavar="ADDRESS",
    ),
    "diagnostics_streams": _Option(
        "--diagnostics-streams",
        "record so many streams at a time, and tell what their networks remember "
        "(docs/monitoring.md; 0: none) (%(default)s)",
        type=int,
        metavar="N",
    ),
    "models_dir": _Option(
        "--models-dir",
        "the one folder from which 'streamrnn model load' may load weight files while it runs "
        "(docs/live-models.md)",
        parse=_parse_path,
        metavar="DIR",
    ),
    "watch_models": _Option(
        "--watch-models",
        "load what appears in --models-dir as NAME@VERSION.safetensors by itself; what new streams "
        "get does not change by that",
        action="store_true",
    ),
    "max_loads": _Option(
        "--max-loads",
        "most models that are loaded while it runs (%(default)s), those unloaded since among them; "
        "with --models-dir",
        type=int,
        metavar="N",
    ),
    "insecure": _Option(
        "--insecure",
        "bind an address that other machines can reach, without keys",
        action="store_true",
    ),
}

# What sets no field of `ServerConfig`, but is of the program.
_PROGRAM_OPTIONS = {
    "ready_file": _Option(
        "--ready-file",
        "write pid, endpoints, instance when ready",
        parse=_parse_path,
        metavar="FILE",
    ),
    "supervise": _Option(
        "--supervise",
        "start the server again when it has crashed (docs/deployment.md)",
        action="store_true",
    ),
    "log_format": _Option("--log-format", "(%(default)s)", choices=FORMATS),
    "log_level": _Option("--log-level", "(%(default)s)", choices=LEVELS),
}
_PROGRAM_DEFAULTS = {"ready_file": None, "supervise": False, "log_format": "text"}
_PROGRAM_DEFAULTS["log_level"] = "info"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the models and all options to a command's parser; what is not given is None."""
    parser.add_argument(
        _MODELS,
        nargs="*",
        metavar="MODEL",
        help="weight file, as PATH or NAME=PATH (NAME: the file's, less its suffix)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML with options by name, such as state-dir, and models, a list; the command line "
        f"and the environment ({_PREFIX}STATE_DIR, ...) come before it",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print all options as such a file, and where each is from, and end",
    )
    defaults = {**vars(ServerConfig()), **_PROGRAM_DEFAULTS}
    for name, option in (_OPTIONS | _PROGRAM_OPTIONS).items():
        text = option.help.replace("%(default)s", str(defaults[name]))
        parser.add_argument(
            option.flag, dest=name, default=None, help=text.replace("%", "%%"), **option.settings
        )
    parser.set_defaults(wrong_usage=parser.error)


def settings_of(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return what the options of `add_options` say, with environment and file.

    Raises
    ------
    StartError
        If something makes no sense.
    """
    options = _OPTIONS | _PROGRAM_OPTIONS
    _check_variables(environ, [each.name for each in options.values()])
    file, path = _read_file(args.config, environ, [each.name for each in options.values()])
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field, option in options.items():
        variable = _variable(option.name)
        value, source = getattr(args, field), option.flag
        if value is None and environ.get(variable):  # an empty one is as good as none
            value, source = option.value(environ[variable], variable), variable
        elif value is None and option.name in file:
            source = f"{option.name} in {path}"
            value = option.value(file[option.name], source)
        if value is None:
            continue
        if option.parse is not None:
            value = option.parse(value, source)
        values[field] = tuple(value) if isinstance(value, list) else value
        sources[option.name] = "command line" if source == option.flag else source
    program = {name: values.pop(name, default) for name, default in _PROGRAM_DEFAULTS.items()}
    if values.get("state_dir") is not None:
        values.setdefault("durability", "checkpoint")
    values = {field: value for field, value in values.items() if value is not None}
    named = _models_of(environ, file, path)
    return Settings(args.models or named, ServerConfig(**values), sources=sources, **program)


def _variable(name: str) -> str:
    return _PREFIX + name.upper().replace("-", "_")


def _check_variables(environ: Mapping[str, str], names: list[str]) -> None:
    """Refuse what is meant for us and is no option."""
    known = [_variable(name) for name in (*names, _MODELS, _CONFIG)]
    for variable in environ:
        if variable.startswith(_PREFIX) and variable not in known:
            raise StartError(f"{variable} is no option of serve{_nearest(variable, known)}")


def _nearest(name: str, known: list[str]) -> str:
    return "".join(f"; did you mean {each}?" for each in difflib.get_close_matches(name, known, 1))


def _read_file(
    given: Path | None, environ: Mapping[str, str], names: list[str]
) -> tuple[dict[str, Any], Path | None]:
    """Return what the file of options says, and where it is; nothing if there is none."""
    path = given or (Path(environ[_variable(_CONFIG)]) if environ.get(_variable(_CONFIG)) else None)
    if path is None:
        return {}, None
    found = read_toml(path, "options", max_mib=1)
    for name in found:
        if name not in (*names, _MODELS):
            raise StartError(f"{name!r} in {path} is no option{_nearest(name, [*names, _MODELS])}")
    return found, path


def _models_of(environ: Mapping[str, str], file: Mapping[str, Any], path: Path | None) -> list[str]:
    """Return the models that the environment names, separated as in PATH, or else the file."""
    named = environ.get(_variable(_MODELS))
    if named:
        return [each for each in named.split(os.pathsep) if each]
    models = file.get(_MODELS, [])
    if not isinstance(models, list) or not all(isinstance(each, str) for each in models):
        raise StartError(f"{_MODELS} in {path} is {models!r}; it must be a list of texts")
    return models


def print_settings(settings: Settings) -> str:
    """Return all options as a file for ``--config``, and where each is from."""
    lines = [f"{_MODELS} = {_toml(settings.models)}"]
    values = {**vars(settings.config), **settings._asdict()}
    for field, option in (_OPTIONS | _PROGRAM_OPTIONS).items():
        value = values[field]
        source = settings.sources.get(option.name, "default")
        if value is None or (field in ("user_disk_bytes", "user_memory_bytes") and not value):
            lines.append(f"# {option.name} is not set")
            continue
        if field == "metrics":
            value = str(value).removeprefix("tcp://").replace("*", "0")
        lines.append(f"{option.name} = {_toml(value)}  # {json.dumps(source)[1:-1]}")
    return "\n".join((*lines, ""))


def _toml(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: Path, what: str, max_mib: int) -> dict[str, Any]:
    """Return what a file says; raise a `StartError` if it is too long or cannot be read.

    ``what`` names its contents in errors: "options".
    """
    try:
        with path.open("rb") as file:
            data = file.read((max_mib << 20) + 1)
        if len(data) > max_mib << 20:
            raise StartError(f"{path} is no file of {what}: it has more than {max_mib} MiB")
        return tomllib.loads(data.decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(f"cannot read the {what} in {path}: {reason}") from error
