"""Configuration of a training: settings, defaults, and the TOML form."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from streamrnn.errors import ModelFileError, StreamRNNError, TrainingError, suggestion
from streamrnn.model.checks import shown
from streamrnn.model.graph import HEAD
from streamrnn.model.layers.base import BEFORE, INPUT
from streamrnn.model.spec import CELLS, MISSING, LayerSpec
from streamrnn.model.tensor_file import replace_file
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.network.losses import LOSSES
from streamrnn_client.times import TIME_FEATURES

__all__ = ["PARTS", "SECTIONS", "TrainingConfig", "is_written_config", "parse_layers"]

_FIRST_LINE = "# All of a training: `streamrnn train THIS_FILE -o MODEL` repeats it to the bit."

PARTS = ("train", "validation", "test")
SPLITS = ("auto", "time", "date", "stream", "file", "column")

_MAX_FILE_BYTES = 2**20
_MAX_INT = 2**64  # far above any setting, and a float can hold it

# Where each setting stands in a TOML file, and what is said beside it.
SECTIONS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "path": "relative to this file",
        "predict": "target columns",
        "time": "column that orders the rows; empty: the file's order; auto: the only one of dates",
        "group": "columns that tell streams apart; none: one stream",
        "inputs": "columns that the network sees",
        "categorical": "columns of numbers that are names",
        "horizon": "predict the value so many rows ahead",
        "season": "rows after which the target repeats; 0: found",
        "split": "training, validation, test",
        "split_by": "time, date, stream, file or column:NAME; auto: by the data",
        "loss_on": "every row, or the last of each stream; auto: by the target",
        "difference": "inputs seen as changes",
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
        "layers": "from the input to the output",
        "feedback": "read at the next step: head (a Jordan network), layer2:layer1",
        "embedding_size": "0: by the number of categories; -1: one-hot",
    },
    "training": {
        "loss": "mse, cross_entropy or binary_cross_entropy; auto: by the target",
        "epochs": "passes over the training part, at most; 0: by the data",
        "batch_size": "rows trained at once; 0: by the data",
        "truncation_steps": "steps that a gradient goes back",
        "learning_rate": "peak of the schedule",
        "schedule": "cosine or constant",
        "weight_decay": "decoupled, of the matrices",
        "clip_norm": "bound on the norm of the whole gradient",
        "averaging": "moving average of the weights; 0: none",
        "patience": "epochs without a better validation error",
        "seed": "of all chance",
    },
}


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides how a model comes out; with the data, it repeats to the bit.

    What is left empty, 0 or ``auto`` is chosen from the data (its training part only); `train`
    returns the configuration with everything chosen.

    Attributes
    ----------
    path : str
        CSV with a header, Parquet or .npz (`streamrnn.training.data.reading.read.read_table`).
    predict : tuple of str
        Target columns: numbers, or one column of classes.
    time : str
        Column that orders the rows (dates or numbers); empty: the rows are in order; ``auto``: the
        only column of dates, if there is one.
    group : tuple of str
        Columns that tell streams apart, as text.
    inputs : tuple of str
        Columns the network sees; empty: all but time and group (and, at horizon 0, the targets).
    categorical : tuple of str
        Columns of numbers to be taken as names of categories.
    horizon : int
        The target of a row is the target column's value so many rows later; -1: 1, or 0 for an
        .npz file with y.
    season : int
        Rows after which the target repeats, for the seasonal naive forecast that the network is
        compared with; 0: found in the training part, if there is one.
    split : tuple of float
        Shares of the training, validation and test part.
    split_by : str
        `streamrnn.training.data.split.split_streams` tells the kinds.
    loss_on : str
        ``every`` row, or the ``last`` of each stream; ``auto``: the last where many streams have
        one class or value each.
    difference : tuple of str
        Inputs seen as changes instead of levels; ``("auto",)``: those that are not stationary.
    missing : dict of str to str
        Per input ``error``, ``hold``, ``mean`` or ``mask``; absent: ``hold`` if any are missing.
    time_features : tuple of str
        ``hour``, ``weekday``, ``month``, ``elapsed``: inputs made of the time as
        `streamrnn_client.times` does.
    other : int
        Names of categorical inputs that occur in at most so many rows of the training part, or not
        at all, are one category ``other``; 0: there is none.
    delimiter, encoding, decimal, thousands, na, skip_rows, date_format
        How a text file is written: `streamrnn.training.data.reading.options.ReadOptions`.
    layers : tuple of str
        Such as ``("lstm:32", "gru:16")``, from the input to the output.
    feedback : tuple of str
        Outputs that an earlier layer reads at the next step, as ``SOURCE`` or ``SOURCE:LAYER``
        (``("head",)``: a Jordan network): `parse_layers`.
    embedding_size : int
        Of categorical inputs with more than 8 categories; 0: by their number. -1: one-hot always.
    loss : str
        ``mse``, ``cross_entropy``, ``binary_cross_entropy`` or ``auto``.
    epochs : int
        Passes over the training part at most; 0: 200, fewer when they are long.
    batch_size : int
        B, rows trained at once; long streams are cut so that there are about so many. 0: by size.
    truncation_steps : int
        Steps that a gradient goes back.
    learning_rate : float
        Peak of the schedule.
    schedule : str
        ``cosine`` or ``constant``.
    weight_decay : float
        Decoupled, of the matrices.
    clip_norm : float
        Bound on the norm of the whole gradient.
    averaging : float
        Decay of the moving average of the weights that is validated and kept; 0: no average.
    patience : int
        Epochs without a better validation error before the training stops.
    seed : int
        Of all chance.
    """

    path: str = ""
    predict: tuple[str, ...] = ()
    time: str = "auto"
    group: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    horizon: int = -1
    season: int = 0
    split: tuple[float, ...] = (0.6, 0.2, 0.2)
    split_by: str = "auto"
    loss_on: str = "auto"
    difference: tuple[str, ...] = ("auto",)
    missing: dict[str, str] = field(default_factory=dict)
    time_features: tuple[str, ...] = ()
    other: int = 0
    delimiter: str = ""
    encoding: str = ""
    decimal: str = "."
    thousands: str = ""
    na: tuple[str, ...] = ()
    skip_rows: tuple[str, ...] = ()
    date_format: str = ""
    layers: tuple[str, ...] = ("lstm:32",)
    feedback: tuple[str, ...] = ()
    embedding_size: int = 0
    loss: str = "auto"
    epochs: int = 0
    batch_size: int = 0
    truncation_steps: int = 64
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    averaging: float = 0.99
    patience: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            object.__setattr__(self, item.name, _checked(item.name, value, item.type))
        object.__setattr__(self, "group", tuple(name for name in self.group if name))
        parse_layers(self.layers, self.feedback)
        self.read_options()  # raises if one is not known
        if not self.path:
            raise TrainingError("the configuration names no data: set path (a CSV or .npz file)")
        shares = self.split
        # Written so that NaN is refused too.
        are_positive = len(shares) == 3 and all(share > 0 for share in shares)
        if not are_positive or not abs(sum(shares) - 1) <= 1e-6:
            raise TrainingError(
                f"split is {shown(list(shares))}; it must be three shares above 0 that sum to 1, "
                "such as [0.6, 0.2, 0.2]"
            )
        self._check_choices()
        self._check_ranges()

    def _check_choices(self) -> None:
        kind, _, column = self.split_by.partition(":")
        if kind not in SPLITS or (kind == "column") != bool(column):
            raise TrainingError(
                f"split_by is {shown(self.split_by)}{suggestion(kind, SPLITS)}; known are time, "
                "date, stream, file, column:NAME and auto"
            )
        for name, known in (
            ("loss", ("auto", *LOSSES)),
            ("schedule", ("cosine", "constant")),
            ("loss_on", ("auto", "every", "last")),
        ):
            value = getattr(self, name)
            if value not in known:
                hint = suggestion(value, known)
                raise TrainingError(f"{name} is {shown(value)}{hint}; known are {', '.join(known)}")
        for name in self.time_features:
            if name not in TIME_FEATURES:
                raise TrainingError(
                    f"time_features names {shown(name)}{suggestion(name, TIME_FEATURES)}; known "
                    f"are {', '.join(TIME_FEATURES)}"
                )
        for column, policy in self.missing.items():
            if policy not in MISSING:
                raise TrainingError(
                    f"missing of {shown(column)} is {shown(policy)}{suggestion(policy, MISSING)}; "
                    f"known are {', '.join(MISSING)}"
                )

    def _check_ranges(self) -> None:
        for name, least, most in (
            ("horizon", -1, 1_000_000),
            ("season", 0, 1_000_000),
            ("other", 0, 1_000_000),
            ("embedding_size", -1, 65_536),
            ("epochs", 0, 1_000_000),
            ("batch_size", 0, 65_536),
            ("truncation_steps", 1, 100_000),
            ("learning_rate", 1e-9, 10.0),
            ("weight_decay", 0.0, 100.0),
            ("clip_norm", 1e-9, 1e9),
            ("averaging", 0.0, 0.99999),
            ("patience", 1, 1_000_000),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise TrainingError(f"{name} is {shown(value)}; it must be from {least} to {most}")

    def read_options(self) -> ReadOptions:
        """Return how a text file is written."""
        return ReadOptions(**{item.name: getattr(self, item.name) for item in fields(ReadOptions)})

    def kinds(self) -> dict[str, str]:
        """Return which columns are text, whatever their cells look like."""
        return dict.fromkeys((*self.group, *self.categorical, *self.split_column), "text")

    @property
    def split_column(self) -> tuple[str, ...]:
        """The column that says the parts, if one does."""
        kind, _, name = self.split_by.partition(":")
        return (name,) if kind == "column" else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON types, without the directory of the data."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain["path"] = Path(self.path).name
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
        }

    def replace(self, **changes: Any) -> TrainingConfig:
        """Return a copy with some values changed."""
        return replace(self, **changes)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrainingConfig:
        """Read a TOML file, such as `write` has written.

        Sections are ``[data]``, ``[model]`` and ``[training]``; absent keys have their defaults,
        and the data's path is taken relative to the file. Raises `TrainingError` if it is no TOML,
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
            config = cls(**_flatten(sections))
        except StreamRNNError as error:
            raise TrainingError(f"{path}: {error}") from error
        return config.replace(path=os.path.join(os.path.dirname(path), config.path))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a TOML file that `read` understands, with the data's path relative to it.

        Raises `TrainingError` if it cannot be written.
        """
        lines = [_FIRST_LINE]
        data_path = os.path.relpath(self.path, os.path.dirname(os.path.abspath(path)))
        tables = []
        for section, comments in SECTIONS.items():
            lines += ["", f"[{section}]"]
            for name, comment in comments.items():
                value = data_path if name == "path" else getattr(self, name)
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
    """Tell whether a file is one that `TrainingConfig.write` has written."""
    try:
        with open(path, "rb") as file:
            return file.readline(len(_FIRST_LINE) + 2).decode().rstrip() == _FIRST_LINE
    except (OSError, UnicodeDecodeError):
        return False


def parse_layers(layers: tuple[str, ...], feedback: tuple[str, ...] = ()) -> tuple[LayerSpec, ...]:
    """Parse a stack such as ``("lstm:32", "gru:16")``, from the input to the output.

    ``feedback`` names what a layer reads beside: of ``head`` or a later layer the output of the
    step before. ``("head", "layer2")`` go into the first layer, ``("head:layer2",)`` into the
    second.

    Raises `TrainingError` if one cannot be read.
    """
    stack = []
    for text in layers:
        cell, _, size = text.strip().partition(":")
        if cell not in CELLS:
            raise TrainingError(
                f"layer {shown(text)}: unknown cell {shown(cell)}{suggestion(cell, CELLS)}; "
                f"known are {', '.join(CELLS)}"
            )
        if not re.fullmatch("0*[1-9][0-9]{0,8}", size):
            raise TrainingError(f"layer {shown(text)}: write cell and hidden size, such as lstm:32")
        stack.append(LayerSpec(cell, int(size)))
    if not stack:
        raise TrainingError("layers is empty; a network needs at least one, such as lstm:32")
    return _with_feedback(stack, feedback)


def _with_feedback(stack: list[LayerSpec], feedback: tuple[str, ...]) -> tuple[LayerSpec, ...]:
    """Name the layers that others read, and let those who get feedback read it."""
    names = [f"layer{k}" for k in range(1, len(stack) + 1)]
    sources = [*names, HEAD]
    reads: dict[int, tuple[str, ...]] = {}
    for text in feedback:
        source, _, target = text.strip().partition(":")
        target = target or names[0]
        if source not in sources or target not in names:
            wrong, known = (source, sources) if source not in sources else (target, names)
            raise TrainingError(
                f"feedback {shown(text)}: unknown {shown(wrong)}{suggestion(wrong, known)}; write "
                f"SOURCE or SOURCE:LAYER with {', '.join(known)}, such as head or layer2:layer1"
            )
        k = names.index(target)
        if sources.index(source) <= k:
            raise TrainingError(
                f"feedback {shown(text)}: it goes from a later layer or the head to an earlier "
                "one; a layer reads its own output of the step before in any case"
            )
        read = source + BEFORE
        if read in reads.setdefault(k, ()):
            raise TrainingError(f"feedback {shown(text)} stands there twice")
        reads[k] += (read,)
    used = {read.removesuffix(BEFORE) for more in reads.values() for read in more}
    used |= {names[k - 1] for k in reads if k}
    return tuple(
        replace(
            layer,
            name=names[k] if names[k] in used else "",
            reads=(names[k - 1] if k else INPUT, *reads[k]) if k in reads else (),
        )
        for k, layer in enumerate(stack)
    )


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


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Return a value in its proper type, or raise with what was expected."""
    if kind.startswith("tuple"):
        element = float if "float" in kind else str
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(_is_a(item, element) for item in items):
            return tuple(element(item) for item in items)
        expected = f"a list of {'numbers' if element is float else 'strings'}"
    elif kind.startswith("dict"):
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return dict(value)
        expected = "a table of strings"
    else:
        wanted = {"str": str, "int": int, "float": float}[kind]
        if _is_a(value, wanted):
            return wanted(value)
        expected = {"str": "a string", "int": "a whole number", "float": "a number"}[kind]
    raise TrainingError(f"{name} is {shown(value)}; it must be {expected}")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float and isinstance(value, int):
        return abs(value) < _MAX_INT
    return isinstance(value, kind)


def _toml(value: Any) -> str:
    """Format one value as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        plain = (c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped)
        return f'"{"".join(plain)}"'
    return repr(value)
