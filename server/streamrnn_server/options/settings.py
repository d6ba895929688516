"""What command line, environment and file say of the options of ``streamrnn serve``.

What says anything about an option first, in this order, counts; else it has its default.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamrnn.errors import StartError
from streamrnn_server.config import ServerConfig
from streamrnn_server.options.options import (
    CONFIG,
    MODELS,
    OPTIONS,
    PREFIX,
    PROGRAM_DEFAULTS,
    PROGRAM_OPTIONS,
)
from streamrnn_server.options.toml_file import read_toml

__all__ = ["Settings", "print_settings", "settings_of"]


class Settings(NamedTuple):
    """All that a command line, the environment and a file have said."""

    models: list[str]
    config: ServerConfig
    ready_file: Path | None
    supervise: bool
    log_format: str
    log_level: str
    sources: Mapping[str, str]  # of what is no default, by the option's name


def settings_of(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return what the options of `add_options` say, with environment and file.

    Raises
    ------
    StartError
        If something makes no sense.
    """
    options = OPTIONS | PROGRAM_OPTIONS
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
    program = {name: values.pop(name, default) for name, default in PROGRAM_DEFAULTS.items()}
    if values.get("state_dir") is not None:
        values.setdefault("durability", "checkpoint")
    values = {field: value for field, value in values.items() if value is not None}
    named = _models_of(environ, file, path)
    return Settings(args.models or named, ServerConfig(**values), sources=sources, **program)


def _variable(name: str) -> str:
    return PREFIX + name.upper().replace("-", "_")


def _check_variables(environ: Mapping[str, str], names: list[str]) -> None:
    """Refuse what is meant for us and is no option."""
    known = [_variable(name) for name in (*names, MODELS, CONFIG)]
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in known:
            raise StartError(f"{variable} is no option of serve{_nearest(variable, known)}")


def _nearest(name: str, known: list[str]) -> str:
    return "".join(f"; did you mean {each}?" for each in difflib.get_close_matches(name, known, 1))


def _read_file(
    given: Path | None, environ: Mapping[str, str], names: list[str]
) -> tuple[dict[str, Any], Path | None]:
    """Return what the file of options says, and where it is; nothing if there is none."""
    path = given or (Path(environ[_variable(CONFIG)]) if environ.get(_variable(CONFIG)) else None)
    if path is None:
        return {}, None
    found = read_toml(path, "options", max_mib=1)
    for name in found:
        if name not in (*names, MODELS):
            raise StartError(f"{name!r} in {path} is no option{_nearest(name, [*names, MODELS])}")
    return found, path


def _models_of(environ: Mapping[str, str], file: Mapping[str, Any], path: Path | None) -> list[str]:
    """Return the models that the environment names, separated as in PATH, or else the file."""
    named = environ.get(_variable(MODELS))
    if named:
        return [each for each in named.split(os.pathsep) if each]
    models = file.get(MODELS, [])
    if not isinstance(models, list) or not all(isinstance(each, str) for each in models):
        raise StartError(f"{MODELS} in {path} is {models!r}; it must be a list of texts")
    return models


def print_settings(settings: Settings) -> str:
    """Return all options as a file for ``--config``, and where each is from."""
    lines = [f"{MODELS} = {_toml(settings.models)}"]
    values = {**vars(settings.config), **settings._asdict()}
    for field, option in (OPTIONS | PROGRAM_OPTIONS).items():
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
