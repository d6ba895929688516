"""``streamrnn evaluate``: judge a model, beside its baselines, on a file it has not seen."""

from __future__ import annotations

import argparse
import json

from streamrnn.commands.arguments import add_reading, column_list, reading_settings
from streamrnn.commands.printable import printable
from streamrnn.errors import DataError
from streamrnn.model.model import Model
from streamrnn.training.predict import trained_options
from streamrnn.training.report import evaluation_lines
from streamrnn.training.unseen import evaluate_file

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="weight file of `streamrnn train`")
    parser.add_argument("data", metavar="DATA", help="a table with the model's inputs and targets")
    parser.add_argument("--time", metavar="COLUMN", help="orders the rows (default: as trained)")
    parser.add_argument(
        "--group", metavar="COLUMN,...", help="tells streams apart (default: as trained)"
    )
    parser.add_argument(
        "--warmup",
        type=int,
        default=0,
        metavar="ROWS",
        help="rows at each stream's start that are not judged (default 0)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_reading(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate a file; return the exit code."""
    if args.warmup < 0:
        raise DataError(f"--warmup is {args.warmup}; it must be 0 or more rows")
    model = Model.load(args.model)
    group = None if args.group is None else column_list(args.group)
    options = trained_options(model.spec, **reading_settings(args))
    found = evaluate_file(model, args.data, args.time, group, options, args.warmup)
    if args.json:
        print(json.dumps(found, sort_keys=True, allow_nan=False))
    else:
        print("\n".join(printable(line) for line in evaluation_lines(found)))
    return 0
