"""What ``streamrnn inspect --data`` shows: what a model remembers over the streams of a file."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from streamrnn.commands.arguments import add_reading, column_list, reading_settings
from streamrnn.errors import DataError
from streamrnn.model.model import Model

__all__ = ["add_data", "data_facts", "data_lines"]

MAX_ROWS = 5000  # of a picture


def add_data(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    group = parser.add_argument_group("what it remembers, over the streams of a file")
    group.add_argument("--data", metavar="FILE", help="a table with the model's inputs, or a text")
    group.add_argument("--time", metavar="COLUMN", help="orders the rows (default: as trained)")
    group.add_argument(
        "--group", metavar="COLUMN,...", help="tells streams apart (default: as trained)"
    )
    group.add_argument(
        "--predict",
        metavar="COLUMN,...",
        help="what the outputs are to be, of an imported model (default: as trained, else outputs "
        "are compared with themselves)",
    )
    group.add_argument(
        "--horizon",
        type=int,
        default=0,
        metavar="ROWS",
        help="of --predict, later rows (default 0)",
    )
    group.add_argument(
        "--unit", type=int, metavar="N", help="draw this unit's gates over the longest stream"
    )
    group.add_argument(
        "--layer", type=int, metavar="K", help="the unit's layer, from 1 (default: the first)"
    )
    group.add_argument(
        "--rows", default="1-100", metavar="A-B", help="of --unit, from 1 (default 1-100)"
    )
    group.add_argument(
        "--plot", metavar="FILE.png", help="draw losses and gradients, or --unit, as a picture too"
    )
    add_reading(parser)


def data_facts(args: argparse.Namespace, model: Model) -> tuple[dict[str, Any], list[str]]:
    """Measure; return the facts as JSON types, and the drawing of a unit, line by line."""
    from streamrnn.training.memory.file import read_streams, remember
    from streamrnn.training.predict import trained_options

    if not 0 <= args.horizon <= 1_000_000:
        raise DataError(f"--horizon is {args.horizon}; it must be from 0 to 1000000 rows")
    group = None if args.group is None else column_list(args.group)
    dataset, has_targets = read_streams(
        model,
        args.data,
        args.time,
        group,
        trained_options(model.spec, **reading_settings(args)),
        column_list(args.predict or ""),
        args.horizon,
    )
    facts = {"file": args.data} | remember(model, dataset, has_targets)
    if args.unit is not None:
        return facts, _drawn(args, model, dataset)
    from streamrnn.training.memory.pictures import memory_text, write_memory

    if args.plot:
        write_memory(facts, Path(args.plot))
    is_drawn = sys.stdout.isatty() or args.plot
    return facts, memory_text(facts, shutil.get_terminal_size().columns) if is_drawn else []


def _drawn(args: argparse.Namespace, model: Model, dataset: Any) -> list[str]:
    """Draw a unit over some steps of the longest stream."""
    from streamrnn.reference.gates import run_gates
    from streamrnn.training.memory.file import first_steps
    from streamrnn.training.memory.trace import trace_of, trace_text, write_trace

    matched = re.fullmatch(r"(\d{1,9})-(\d{1,9})", args.rows)
    first, last = (int(text) for text in matched.groups()) if matched else (0, 0)
    if not 1 <= first < last or last - first >= MAX_ROWS:
        raise DataError(
            f"--rows is {args.rows!r}; it must be two rows such as 1-100, from 1 and at most "
            f"{MAX_ROWS}"
        )
    x, names = first_steps(dataset, last)
    last = min(last, x.shape[1])
    if first >= last:
        raise DataError(f"--rows is {args.rows}, but the longest stream has {x.shape[1]} rows")
    layers = {each.layer + 1: each for each in run_gates(model, x)[1]}
    number = min(layers, default=0) if args.layer is None else args.layer
    if number not in layers:
        known = ", ".join(map(str, layers)) or "none"
        raise DataError(f"layer {number} is not recurrent; recurrent layers are {known}")
    found = layers[number]
    state = "c" if "c" in found.states else "h"
    num_units = found.states[state].shape[2]
    if not 0 <= args.unit < num_units:
        raise DataError(f"--unit is {args.unit}; layer {number} has units 0 to {num_units - 1}")
    title = f"unit {args.unit} of layer {number} ({found.cell}): gate 0 forgets, gate 1 keeps"
    steps = slice(first - 1, last)
    trace = trace_of(found, args.unit, steps, title, names[steps])
    if args.plot:
        write_trace(trace, Path(args.plot))
    return trace_text(trace, min(shutil.get_terminal_size().columns, 100)).splitlines()


def data_lines(facts: dict[str, Any]) -> list[str]:
    """Format the facts as lines of text."""
    from streamrnn.training.memory.fading import fading_lines
    from streamrnn.training.memory.history import history_lines
    from streamrnn.training.memory.units import unit_lines

    lines = [f"over {facts['file']}"]
    if facts["history"]:
        lines += [f"  {line}" for line in history_lines(facts["history"])]
    if facts["gradients"]:
        lines += [f"  {line}" for line in fading_lines(facts["gradients"])]
    else:
        lines.append("  gradients by lag are measured of plain stacks of recurrent layers alone")
    for units in facts["units"]:
        lines += [f"  {line}" for line in unit_lines(units)]
    return lines
