"""Every setting of a training as an option of the command line."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import fields
from typing import Any

from streamrnn.commands.arguments import add_reading, column_list, reading_settings
from streamrnn.errors import TrainingError, suggestion
from streamrnn.model.checks import shown
from streamrnn.training.config import TrainingConfig
from streamrnn.training.config_file import SECTIONS

__all__ = ["add_settings", "given_settings", "with_settings"]

KINDS: dict[str, str] = {item.name: str(item.type) for item in fields(TrainingConfig)}
_METAVARS = {"str": "TEXT", "int": "N", "float": "NUMBER", "dict": "COLUMN=POLICY"}
# Settings that name inputs: choices for a column that is no input any more say nothing.
_OF_INPUTS = ("difference", "missing")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare an option for every setting, and ``--set`` for any of them."""
    default = TrainingConfig(path="-")
    for section, comments in SECTIONS.items():
        if section == "reading":
            add_reading(parser)
            continue
        group = parser.add_argument_group(f"settings: {section}")
        for name, comment in comments.items():
            if name == "path":
                continue
            kind = KINDS[name]
            value = getattr(default, name)
            text = ",".join(str(item) for item in value) if isinstance(value, tuple) else value
            comment = comment.replace("%", "%%") + (f" (default {text})" if text else "")
            how: dict[str, Any] = {"metavar": _METAVARS.get(kind.split("[")[0], "A,B,...")}
            if kind == "bool":
                how = {"action": "store_true", "default": None}
            elif kind.startswith("dict"):
                how["action"] = "append"
            else:
                how["type"] = _scalar(kind)
            option = f"--{name.replace('_', '-')}"
            group.add_argument(option, dest=f"setting_{name}", help=comment, **how)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, as in a configuration (layers=lstm:64, missing.co2=hold, "
        "'inputs=[\"a,b\"]'); repeatable",
    )


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the settings that the command line gives, by name."""
    given = reading_settings(args)
    for name, kind in KINDS.items():
        value = getattr(args, f"setting_{name}", None)
        if value is None:
            continue
        if kind.startswith("dict"):
            given[name] = dict(_pair(f"--{name}", text) for text in value)
        elif kind.startswith("tuple"):
            given[name] = _list(name, kind, value)
        else:
            given[name] = value
    for text in args.set:
        key, value = _pair("--set", text)
        key, _, entry = key.partition(".")
        if key in SECTIONS and key not in KINDS:  # data.horizon=3
            key, _, entry = entry.partition(".")
        name = key.strip().replace("-", "_")
        kind = KINDS.get(name, "")
        if not kind or name == "path" or bool(entry) != kind.startswith("dict"):
            raise TrainingError(
                f"--set {shown(text)}: {shown(key)} is no setting{suggestion(key, KINDS)}; write "
                "KEY=VALUE, such as learning_rate=0.001 or missing.co2=hold"
            )
        if entry:
            given[name] = given.get(name, {}) | {entry: value}
        else:
            given[name] = _parsed(name, kind, value)
    return given


def with_settings(config: TrainingConfig, given: dict[str, Any]) -> TrainingConfig:
    """Put given settings over those of a file.

    What the file says of columns that are no inputs any more goes, and so does a loss that was
    chosen for other targets, or for none of the quantiles.
    """
    changes = dict(given)
    if "missing" in given:
        changes["missing"] = config.missing | given["missing"]
    inputs = given.get("inputs", ())
    for name in _OF_INPUTS if inputs else ():
        value = changes.get(name, getattr(config, name))
        own = set(given.get(name, ()))
        keys = [key for key in value if key in inputs or key in own or key == "auto"]
        changes[name] = {k: value[k] for k in keys} if isinstance(value, dict) else tuple(keys)
    if "predict" in given and "loss" not in given and given["predict"] != config.predict:
        changes["loss"] = "auto"
    if config.difference_target and {"predict", "inputs", "difference"} & set(given):
        changes.setdefault("difference_target", ("auto",))
    if given.get("quantiles") and "loss" not in given:
        changes["loss"] = "auto"
    return config.replace(**changes)


def _scalar(kind: str) -> type:
    return {"int": int, "float": float}.get(kind, str)


def _pair(option: str, text: str) -> tuple[str, str]:
    # A column's name may hold an equals sign, a policy none; a setting's name none either.
    key, equals, value = text.partition("=") if option == "--set" else text.rpartition("=")
    if not equals:
        example = (
            "KEY=VALUE, such as seed=1" if option == "--set" else "COLUMN=POLICY, such as co2=hold"
        )
        raise TrainingError(f"{option} {shown(text)}: write {example}")
    return key.strip(), value.strip() or value


def _list(name: str, kind: str, text: str) -> tuple[Any, ...]:
    """Split at commas, save those within double quotes."""
    items = [item.strip() for item in column_list(text)]
    return tuple(item if "str" in kind else _number(name, item) for item in items if item)


def _parsed(name: str, kind: str, text: str) -> Any:
    """Read a value as TOML where it is a list or quoted, else as its option would be."""
    if text[:1] in ("[", '"', "'"):
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise TrainingError(f"--set {name}={text[:60]} cannot be read: {error}") from error
        return tuple(value) if isinstance(value, list) else value
    if kind.startswith("tuple"):
        return _list(name, kind, text)
    if kind == "bool":
        return {"true": True, "false": False}.get(text, text)
    return _number(name, text) if kind in ("int", "float") else text


def _number(name: str, text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise TrainingError(f"{name} is {shown(text)}; it must be a number")
