"""``streamrnn train``: train a model on a table, or as a configuration says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from streamrnn.commands.arguments import add_reading, column_list, reading_settings
from streamrnn.errors import TrainingError
from streamrnn.training.config import TrainingConfig
from streamrnn.training.progress import TrainingProgress
from streamrnn.training.report import report_lines
from streamrnn.training.train import train_to_file

__all__ = ["configure", "make_config", "run"]

# Options that set one value of the configuration: name, type, metavar, help.
VALUES: tuple[tuple[str, type, str, str], ...] = (
    ("time", str, "COLUMN", "orders the rows (ISO dates or numbers)"),
    ("split-by", str, "HOW", "time, date, stream, file or column:NAME (default: by the data)"),
    ("loss-on", str, "ROWS", "every row, or the last of each stream (default: by the target)"),
    ("horizon", int, "ROWS", "how many rows ahead (default 1)"),
    ("season", int, "ROWS", "after which the target repeats, for a baseline (default: found)"),
    ("other", int, "ROWS", "names in at most so many training rows, and new ones, are one: other"),
    ("loss", str, "LOSS", "mse, cross_entropy or binary_cross_entropy (default: by the target)"),
    ("epochs", int, "N", "at most (default 200, fewer for long data)"),
    ("batch-size", int, "B", "rows trained at once (default: by the data)"),
    ("truncation-steps", int, "N", "steps that a gradient goes back (default 64)"),
    ("learning-rate", float, "RATE", "peak (default 0.003)"),
    ("clip-norm", float, "NORM", "bound on the gradient's norm (default 1)"),
    ("patience", int, "N", "epochs without improvement before stopping (default 60)"),
    ("seed", int, "N", "of all chance (default 0)"),
)
# Options that take a list, separated by commas.
LISTS: tuple[tuple[str, str, str], ...] = (
    ("predict", "COLUMN,...", "target columns"),
    ("group", "COLUMN,...", "tells the streams of one long table apart"),
    ("inputs", "COLUMN,...", "columns the network sees (default: all but time and group)"),
    ("categorical", "COLUMN,...", "columns of numbers that are names of categories"),
    ("difference", "COLUMN,...", "inputs seen as changes (default: those that drift; none: '')"),
    (
        "time-features",
        "NAME,...",
        "inputs made of the time, in UTC: hour, weekday, month, elapsed (default: none)",
    ),
    ("layers", "CELL:SIZE,...", "such as lstm:32,gru:16 (default lstm:32)"),
    (
        "feedback",
        "SOURCE[:LAYER],...",
        "outputs that an earlier layer (the first, layer1) reads at the next step: head makes a "
        "Jordan network; layer2:layer1 (default: none)",
    ),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "input",
        metavar="DATA|CONFIG.toml",
        help="a table (CSV, Parquet, .npz; - for standard input), or a configuration",
    )
    parser.add_argument("-o", "--output", required=True, metavar="MODEL", help="weight file")
    for name, metavar, description in LISTS:
        parser.add_argument(f"--{name}", metavar=metavar, help=description)
    for name, kind, metavar, description in VALUES:
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=description)
    parser.add_argument(
        "--missing",
        action="append",
        metavar="COLUMN=POLICY",
        help="error, hold, mean or mask (default: hold where values are missing); repeatable",
    )
    add_reading(parser)


def make_config(args: argparse.Namespace) -> TrainingConfig:
    """Turn the arguments into a configuration; options override a TOML file."""
    given: dict[str, Any] = {}
    for name, _, _ in LISTS:
        text = getattr(args, name.replace("-", "_"))
        if text is not None:
            key = name.replace("-", "_")
            given[key] = tuple(item for item in column_list(text) if item.strip())
    for name, _, _, _ in VALUES:
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            given[name.replace("-", "_")] = value
    for text in args.missing or ():
        column, equals, policy = text.rpartition("=")
        if not equals:
            raise TrainingError(f"--missing {text!r}: write COLUMN=POLICY, such as co2=hold")
        given.setdefault("missing", {})[column] = policy
    given |= reading_settings(args)
    if Path(args.input).suffix.lower() == ".toml":
        return TrainingConfig.read(args.input).replace(**given)
    return TrainingConfig(path=args.input, **given)


def run(args: argparse.Namespace) -> int:
    """Train, report, and print where the files are; return the exit code."""
    config = make_config(args)
    with TrainingProgress() as progress:
        result = train_to_file(config, args.output, progress)
    for line in report_lines(result.report):
        print(line)
    print(f"{args.output}: the model; the engine reproduces the trainer's outputs")
    print(f"{Path(args.output).with_suffix('.toml')}: the configuration that repeats it")
    return 0
