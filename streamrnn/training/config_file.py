"""The TOML form of a training's configuration."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any

from streamrnn.errors import ModelFileError, StreamRNNError, TrainingError, suggestion
from streamrnn.model.checks import shown
from streamrnn.model.tensor_file import replace_file
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.reading.source import STDIN

__all__ = ["SECTIONS", "is_written_config", "read_config", "write_config"]

_FIRST_LINE = "# All of a training: `streamrnn train THIS_FILE -o MODEL` repeats it to the bit."
_FILES = ("path", "start_from")
_MAX_FILE_BYTES = 2**20

# Where each setting stands in a TOML file, and what is said beside it.
SECTIONS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "path": "relative to this file",
        "tokens": "char or word: the file is a text; empty: a table",
        "vocabulary": "most tokens of a text, the unknown one included; 0: by tokens",
        "predict": "target columns",
        "time": "column that orders the rows; empty: the file's order; auto: the only one of dates",
        "group": "columns that tell streams apart; none: one stream",
        "inputs": "columns that the network sees",
        "categorical": "columns of numbers that are names",
        "horizon": "predict the values so many rows ahead, such as 1, 24",
        "season": "rows after which the target repeats; 0: found",
        "split": "training, validation, test",
        "split_by": "time, date, stream, file or column:NAME; auto: by the data",
        "loss_on": "every row, or the last of each stream; auto: by the target",
        "difference": "inputs seen as changes",
        "difference_target": "targets learned as changes; auto: of the inputs seen as such",
        "missing": "per input: error, hold, mean or mask",
        "time_features": "inputs made of the time (UTC): hour, weekday, month, elapsed",
        "other": "names in at most so many training rows are one, other, as are new ones; 0: none",
    },
    "reading": {
        "delimiter": "of cells; empty: by the first lines",
        "encoding": "empty: UTF-8, or what a byte order mark says",
        "decimal": ". or ,",
        "thousands": "what parts groups of three digits; empty: nothing",
        "na": "cells that mean a missing value, beside empty ones",
        "skip_rows": "lines of the file to leave out, as 2 or 1-3",
        "date_format": "as %d.%m.%Y; empty: ISO 8601",
    },
    "model": {
        "layers": "from the input to the output; empty: by the search, or lstm:32",
        "feedback": "read at the next step: head (a Jordan network), layer2:layer1",
        "lags": "steps of inputs that the outputs see in a linear path; 0: none; -1: by the search",
        "embedding_size": "0: by the number of categories; -1: one-hot",
    },
    "training": {
        "loss": "mse, mae, huber, pinball, cross_entropy, binary_cross_entropy; auto: by target",
        "quantiles": "of pinball, an output for each, such as 0.1, 0.5, 0.9",
        "huber_delta": "error, in scales of the target, from which on huber is linear",
        "class_weights": "balanced, or NAME=WEIGHT",
        "updates": "changes of the weights, at most; 0: by the data, or by epochs",
        "epochs": "passes over the training part, at most; 0: as many as the updates take",
        "batch_size": "rows trained at once; 0: by the data",
        "truncation_steps": "steps that a gradient goes back; 0: by the data",
        "start_from": "a model whose weights it begins with, relative to this file; empty: drawn",
        "initialisation": "of recurrent matrices: orthogonal or uniform",
        "forget_bias": "of an LSTM's forget gates at the start",
        "chrono_steps": "longest time that gates remember at the start; 0: by forget_bias",
        "optimiser": "adamw or sgd",
        "momentum": "of sgd",
        "learning_rate": "peak of the schedule; 0: by the search, or 0.003",
        "schedule": "cosine, constant or plateau",
        "plateau_patience": "evaluations without a better error, after which plateau halves it",
        "warmup": "share of the training over which the rate rises",
        "weight_decay": "decoupled, of the matrices",
        "noise": "added to inputs in training, in their scales; negative: by the target",
        "dropout": "share of what layers give to others that is set to 0 in training",
        "input_dropout": "share of the inputs that is set to 0 in training",
        "clip_norm": "bound on the norm of the whole gradient",
        "averaging": "moving average of the weights; 0: none",
        "patience": "evaluations without a better validation error; 0: two fifths of them",
        "seed": "of all chance",
        "refit": "train once more, on every row; the measured model is kept as MODEL.chosen",
    },
}


def read_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read a TOML file, such as `write_config` has written.

    Sections are ``[data]``, ``[model]`` and ``[training]``; absent keys have their defaults,
    and paths are taken relative to the file. Raises `TrainingError` if it is no TOML,
    or a section, key or value is not known.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise TrainingError(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        sections = tomllib.loads(text.decode().replace("\r\n", "\n"))
    except OSError as error:
        raise TrainingError(f"{path} cannot be opened: {error.strerror}") from error
    except RecursionError as error:
        raise TrainingError(f"{path} is not valid TOML: it is nested too deep") from error
    except ValueError as error:  # no UTF-8, no TOML, a number of thousands of digits
        raise TrainingError(f"{path} is not valid TOML: {error}") from error
    try:
        config = TrainingConfig(**_flatten(sections))
    except StreamRNNError as error:
        raise TrainingError(f"{path}: {error}") from error
    files = [name for name in _FILES if getattr(config, name) not in ("", STDIN)]
    directory = os.path.dirname(path)
    return config.replace(
        **{name: os.path.join(directory, getattr(config, name)) for name in files}
    )


def write_config(config: TrainingConfig, path: str | os.PathLike[str]) -> None:
    """Write a TOML file that `read_config` understands, with paths relative to it.

    Raises `TrainingError` if it cannot be written.
    """
    lines = [_FIRST_LINE]
    directory = os.path.dirname(os.path.abspath(path))
    tables = []
    for section, comments in SECTIONS.items():
        lines += ["", f"[{section}]"]
        for name, comment in comments.items():
            value = getattr(config, name)
            if name in _FILES and value not in ("", STDIN):
                value = os.path.relpath(value, directory)
            if isinstance(value, dict):
                tables.append((f"{section}.{name}", value))
            else:
                lines.append(f"{name} = {_toml(value)}  # {comment}")
    for title, table in tables:
        lines += ["", f"[{title}]"]
        lines += [f"{_toml(key)} = {_toml(value)}" for key, value in table.items()]
    try:
        replace_file(path, ("\n".join(lines) + "\n").encode())
    except ModelFileError as error:
        raise TrainingError(str(error)) from error


def is_written_config(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is one that `write_config` has written."""
    try:
        with open(path, "rb") as file:
            return file.readline(len(_FIRST_LINE) + 2).decode().rstrip() == _FIRST_LINE
    except (OSError, UnicodeDecodeError):
        return False


def _flatten(sections: Mapping[str, Any]) -> dict[str, Any]:
    home = {name: section for section, names in SECTIONS.items() for name in names}
    values: dict[str, Any] = {}
    for section, table in sections.items():
        if section not in SECTIONS or not isinstance(table, dict):
            hint = suggestion(section, SECTIONS)
            raise TrainingError(
                f"unknown section or key {shown(section)}{hint}; the sections are "
                f"{', '.join(SECTIONS)}"
            )
        for name, value in table.items():
            if home.get(name) != section:
                known = [key for key, place in home.items() if place == section]
                elsewhere = f"; it belongs into [{home[name]}]" if name in home else ""
                raise TrainingError(
                    f"unknown key {shown(name)} in [{section}]"
                    f"{elsewhere or suggestion(name, known)}; known are {', '.join(known)}"
                )
            values[name] = value
    return values


def _toml(value: Any) -> str:
    """Format one value as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        plain = (c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped)
        return f'"{"".join(plain)}"'
    return str(value).lower() if isinstance(value, bool) else repr(value)
