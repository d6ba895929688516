"""Configuration of a training: settings, their defaults and their checks."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from streamrnn.errors import TrainingError, suggestion
from streamrnn.model.checks import MAX_SIZE, shown
from streamrnn.model.spec import MISSING
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.network.losses import LOSSES
from streamrnn_client.times import TIME_FEATURES

__all__ = ["PARTS", "TrainingConfig", "checked_setting", "possible_names"]

PARTS = ("train", "validation", "test")
SPLITS = ("auto", "time", "date", "stream", "file", "column")

_MAX_HORIZON = 1_000_000
MAX_LAGS = 512
# What a search chooses, with what it is where there is none.
DEFAULTS: dict[str, Any] = {"layers": ("lstm:32",), "learning_rate": 3e-3, "lags": 0}
_MAX_INT = 2**64  # far above any setting, and a float can hold it


def possible_names(names: tuple[str, ...]) -> list[str]:
    """Return what a list of columns may name: some hold commas and were split at them."""
    longest = min(len(names), 4)
    return [
        comma.join(names[start : start + size]).strip()
        for size in range(1, longest + 1)
        for start in range(len(names) - size + 1)
        for comma in (",", ", ")[:size]
    ]


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides how a model comes out; with the data, it repeats to the bit.

    What is left empty, 0 or ``auto`` is chosen from the data (its training part only); `train`
    returns the configuration with everything chosen.

    Attributes
    ----------
    path : str
        CSV with a header, Parquet or .npz (`streamrnn.training.data.reading.read.read_table`).
    tokens : str
        ``char`` or ``word``: the file is a text, whose next character or word is predicted.
    vocabulary : int
        The most tokens of a text: the most frequent ones and the unknown one; 0: 1000 characters,
        2000 words.
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
    horizon : tuple of int
        The targets of a row are the target column's values so many rows later; empty (or -1): 1, or
        0 for an .npz file with y.
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
    difference_target : tuple of str
        Targets learned as changes, of those whose inputs are seen so; ``("auto",)``: all of them.
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
        Such as ``("lstm:32", "gru:16")``, from the input to the output; empty: by a search, or
        ``lstm:32``.
    feedback : tuple of str
        Outputs that an earlier layer reads at the next step, as ``SOURCE`` or ``SOURCE:LAYER``
        (``("head",)``: a Jordan network): `parse_layers`.
    lags : int
        Steps of the inputs, the newest one included, that the outputs see directly, through a
        linear path beside the layers; 0: none. -1: by a search, or none.
    embedding_size : int
        Of categorical inputs with more than 8 categories; 0: by their number. -1: one-hot always.
    loss : str
        ``mse``, ``mae``, ``huber``, ``pinball``, ``cross_entropy``, ``binary_cross_entropy`` or
        ``auto``.
    quantiles : tuple of float
        Of ``pinball``, rising: an output for each of every target and horizon.
    huber_delta : float
        Error from which on ``huber`` is linear, in scales (standard deviations in the training
        part) of the target, or of its changes where it is learned as such.
    class_weights : tuple of str
        ``("balanced",)``, or weights such as ``("red=2",)``, which count in the loss alone.
    updates : int
        Changes of the weights at most, which are validated `NUM_EVALUATIONS` times on the way; 0:
        by the data, unless ``epochs`` bound them.
    epochs : int
        Passes over the training part at most; 0: as many as the updates take. Without ``updates``
        each of them is validated.
    batch_size : int
        B, rows trained at once; long streams are cut so that there are about so many. 0: by the
        streams' lengths.
    truncation_steps : int
        Steps that a gradient goes back; 0: by the streams' lengths.
    start_from : str
        A model, trained or imported before, whose weights the training begins with; empty: drawn.
    initialisation : str
        Of recurrent matrices: ``orthogonal``, each gate by itself, or ``uniform``, as PyTorch's.
    forget_bias : float
        Of an LSTM's forget gates at the start.
    chrono_steps : int
        The longest time that gates shall remember at the start (chrono initialisation, instead of
        ``forget_bias``); 0: none.
    optimiser : str
        ``adamw`` or ``sgd``.
    momentum : float
        Of ``sgd``.
    learning_rate : float
        Peak of the schedule; 0: by a search, or 0.003.
    schedule : str
        ``cosine``, ``constant``, or ``plateau``: halved after evaluations without a better one.
    plateau_patience : int
        Evaluations without a better validation error after which ``plateau`` halves the rate.
    warmup : float
        Share of the training over which the rate rises.
    weight_decay : float
        Decoupled, of the matrices.
    noise : float
        Standard deviation of normal noise that is added, in training alone, to every input that is
        a number, in its scale. Negative: 0.6 where streams have one class each, else 0.
    dropout, input_dropout : float
        Share of what layers give, and of the inputs, that is set to 0 in training.
    clip_norm : float
        Bound on the norm of the whole gradient.
    averaging : float
        Decay of the moving average of the weights that is validated and kept; 0: no average.
    patience : int
        Evaluations without a better validation error before the training stops; 0: by their number.
    seed : int
        Of all chance.
    refit : bool
        Train once more, on every row, by as many updates as the best epoch had made.
    """

    path: str = ""
    tokens: str = ""
    vocabulary: int = 0
    predict: tuple[str, ...] = ()
    time: str = "auto"
    group: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    horizon: tuple[int, ...] = ()
    season: int = 0
    split: tuple[float, ...] = (0.6, 0.2, 0.2)
    split_by: str = "auto"
    loss_on: str = "auto"
    difference: tuple[str, ...] = ("auto",)
    difference_target: tuple[str, ...] = ("auto",)
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
    layers: tuple[str, ...] = ()
    feedback: tuple[str, ...] = ()
    lags: int = -1
    embedding_size: int = 0
    loss: str = "auto"
    quantiles: tuple[float, ...] = ()
    huber_delta: float = 1.0
    class_weights: tuple[str, ...] = ()
    updates: int = 0
    epochs: int = 0
    batch_size: int = 0
    truncation_steps: int = 0
    start_from: str = ""
    initialisation: str = "orthogonal"
    forget_bias: float = 1.0
    chrono_steps: int = 0
    optimiser: str = "adamw"
    momentum: float = 0.9
    learning_rate: float = 0.0
    schedule: str = "cosine"
    plateau_patience: int = 5
    warmup: float = 0.02
    weight_decay: float = 0.0
    noise: float = -1.0
    dropout: float = 0.0
    input_dropout: float = 0.0
    clip_norm: float = 1.0
    averaging: float = 0.99
    patience: int = 0
    seed: int = 0
    refit: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            object.__setattr__(self, item.name, _checked(item.name, value, item.type))
        object.__setattr__(self, "group", tuple(name for name in self.group if name))
        if self.horizon == (-1,):
            object.__setattr__(self, "horizon", ())
        parse_layers(self.layers or DEFAULTS["layers"], self.feedback)
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
        self._check_forecasts()
        self._check_ranges()

    def _check_choices(self) -> None:
        for name in ("group", "categorical", "time_features", "missing") if self.tokens else ():
            if value := getattr(self, name):
                raise TrainingError(
                    f"{name} is {shown(value)}, but a text (tokens is {self.tokens}) has no "
                    "columns, only its tokens in their order; leave it out"
                )
        kind, _, column = self.split_by.partition(":")
        if kind not in SPLITS or (kind == "column") != bool(column):
            raise TrainingError(
                f"split_by is {shown(self.split_by)}{suggestion(kind, SPLITS)}; known are time, "
                "date, stream, file, column:NAME and auto"
            )
        for name, known in (
            ("loss", ("auto", *LOSSES)),
            ("initialisation", ("orthogonal", "uniform")),
            ("optimiser", ("adamw", "sgd")),
            ("schedule", ("cosine", "constant", "plateau")),
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

    def _check_forecasts(self) -> None:
        seen: set[int] = set()
        for rows in self.horizon:
            if not 0 <= rows <= _MAX_HORIZON:
                raise TrainingError(
                    f"horizon is {shown(rows)}; it must be from 0 to {_MAX_HORIZON} rows"
                )
            if rows in seen:
                raise TrainingError(f"horizon names {rows} rows twice")
            seen.add(rows)
        counts = (len(self.predict), len(self.horizon), len(self.quantiles))
        num_outputs = math.prod(max(count, 1) for count in counts)
        if num_outputs > MAX_SIZE:
            raise TrainingError(
                "{} targets, {} horizons and {} quantiles are too many outputs: ".format(*counts)
                + f"{num_outputs}; at most {MAX_SIZE} are"
            )
        levels = (0.0, *self.quantiles, 1.0)
        if not all(low < high for low, high in pairwise(levels)):
            given = ", ".join(f"{level:g}" for level in self.quantiles)
            raise TrainingError(
                f"quantiles are {given}; they must lie between 0 and 1, in rising order"
            )
        if self.quantiles and self.loss not in ("auto", "pinball"):
            raise TrainingError(f"quantiles are learned by pinball, not by {self.loss}")
        if self.loss == "pinball" and not self.quantiles:
            raise TrainingError("pinball needs to know which quantiles: --quantiles 0.1,0.5,0.9")

        if self.start_from and self.lags > 0:
            raise TrainingError("start_from and lags: a linear path is fitted anew; leave one out")

    def _check_ranges(self) -> None:
        for name, least, most in (
            ("season", 0, 1_000_000),
            ("other", 0, 1_000_000),
            ("vocabulary", 0, MAX_SIZE),
            ("lags", -1, MAX_LAGS),
            ("embedding_size", -1, 65_536),
            ("updates", 0, 1_000_000_000),
            ("epochs", 0, 1_000_000),
            ("batch_size", 0, 65_536),
            ("truncation_steps", 0, 100_000),
            ("huber_delta", 1e-6, 1e6),
            ("forget_bias", -100.0, 100.0),
            ("chrono_steps", 0, 1_000_000),
            ("momentum", 0.0, 0.99999),
            ("learning_rate", 0.0, 10.0),
            ("plateau_patience", 1, 1_000_000),
            ("warmup", 0.0, 0.9),
            ("weight_decay", 0.0, 100.0),
            ("noise", -1.0, 100.0),
            ("dropout", 0.0, 0.95),
            ("input_dropout", 0.0, 0.95),
            ("clip_norm", 1e-9, 1e9),
            ("averaging", 0.0, 0.99999),
            ("patience", 0, 1_000_000),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise TrainingError(f"{name} is {shown(value)}; it must be from {least} to {most}")

    @property
    def open_settings(self) -> tuple[str, ...]:
        """Those that a search may choose."""
        blank = {"layers": (), "learning_rate": 0.0, "lags": -1}
        return tuple(name for name, value in blank.items() if getattr(self, name) == value)

    def with_defaults(self) -> TrainingConfig:
        """Return it with what a search would choose set to what it is without one."""
        return self.replace(**{name: DEFAULTS[name] for name in self.open_settings})

    @property
    def farthest(self) -> int:
        """The largest horizon; the parts are cut for it."""
        return max(self.horizon, default=1)

    def read_options(self) -> ReadOptions:
        """Return how a text file is written."""
        return ReadOptions(**{item.name: getattr(self, item.name) for item in fields(ReadOptions)})

    def kinds(self) -> dict[str, str]:
        """Return which columns are text, whatever their cells look like."""
        named = [name for names in (self.group, self.categorical) for name in possible_names(names)]
        return dict.fromkeys((*named, *self.split_column), "text")

    @property
    def split_column(self) -> tuple[str, ...]:
        """The column that says the parts, if one does."""
        kind, _, name = self.split_by.partition(":")
        return (name,) if kind == "column" else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON types, without the directories of files."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain |= {"path": Path(self.path).name, "start_from": Path(self.start_from).name}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
        }

    def replace(self, **changes: Any) -> TrainingConfig:
        """Return a copy with some values changed."""
        return replace(self, **changes)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrainingConfig:
        """Read a TOML file, as `streamrnn.training.config_file.read_config` does."""
        from streamrnn.training.config_file import read_config

        return read_config(path)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a TOML file, as `streamrnn.training.config_file.write_config` does."""
        from streamrnn.training.config_file import write_config

        write_config(self, path)


def checked_setting(name: str, value: Any) -> Any:
    """Return a setting in its proper type, or raise `TrainingError` with what was expected."""
    [kind] = [item.type for item in fields(TrainingConfig) if item.name == name]
    return _checked(name, value, kind)


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Return a value in its proper type, or raise with what was expected."""
    if kind.startswith("tuple"):
        element = next(each for each in (float, int, str) if each.__name__ in kind)
        items = [value] if isinstance(value, str | int | float) else value
        if isinstance(items, list | tuple) and all(_is_a(item, element) for item in items):
            return tuple(element(item) for item in items)
        named = {float: "numbers", int: "whole numbers", str: "strings"}[element]
        expected = f"a list of {named}"
    elif kind.startswith("dict"):
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return dict(value)
        expected = "a table of strings"
    else:
        wanted, expected = {
            "str": (str, "a string"),
            "int": (int, "a whole number"),
            "float": (float, "a number"),
            "bool": (bool, "true or false"),
        }[kind]
        if _is_a(value, wanted):
            return wanted(value)
    raise TrainingError(f"{name} is {shown(value)}; it must be {expected}")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float and isinstance(value, int):
        return abs(value) < _MAX_INT
    return isinstance(value, kind)
