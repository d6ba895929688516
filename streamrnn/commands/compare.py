"""``streamrnn compare``: train several cells on a table, and say which one to keep."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from streamrnn.commands.arguments import count
from streamrnn.commands.printable import printable
from streamrnn.commands.settings import given_settings
from streamrnn.commands.train import add_input, finite, make_config, source_of
from streamrnn.errors import TrainingError, TrainingStopped
from streamrnn.training.cells.compare import (
    CELLS,
    MODEL_ENDING,
    NUM_SEEDS,
    UNITS,
    Candidate,
    compare_cells,
    rate_budget,
    stacks_of,
)
from streamrnn.training.cells.table import comparison_lines
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.run.outputs import check_model_path, check_outputs
from streamrnn.training.run.progress import TrainingProgress
from streamrnn.training.search.budget import AUTO, OFF

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--cells",
        default=",".join(CELLS),
        metavar="CELL,...",
        help="what to compare: rnn, gru, lstm, with a size (gru:16) or stacked (lstm:32+gru:16) "
        f"(default {','.join(CELLS)})",
    )
    parser.add_argument(
        "--units", type=count, default=UNITS, metavar="N", help=f"of each layer (default {UNITS})"
    )
    parser.add_argument(
        "--seeds",
        type=count,
        default=NUM_SEEDS,
        metavar="N",
        help=f"trainings of each cell, from 2 (default {NUM_SEEDS})",
    )
    parser.add_argument(
        "--budget",
        metavar="N",
        help="learning rates that each cell may try, or off (default: 3, and off where the rate, "
        "--updates or --epochs is given)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="keep each cell's best model, as gru-32.safetensors (default: none is kept)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a comparison (-o) that was stopped"
    )
    add_input(parser)


def run(args: argparse.Namespace) -> int:
    """Train, compare and print; return the exit code."""
    config, given = make_config(args), given_settings(args)
    if "layers" in given:
        raise TrainingError("layers are what is compared: give --cells, such as lstm:64,gru:64")
    source = source_of(args)
    budget = rate_budget(args.budget or (OFF if source else AUTO), given)
    cells = args.cells.split(",")
    inputs = {"the data": Path(config.path), "the input": Path(args.input)}
    if args.resume and args.output is None:
        raise TrainingError("--resume goes on with what -o FOLDER keeps; give the folder")
    places = _places(args.output, stacks_of(cells, args.units), inputs)
    stop = StopSignals("stopping: what is done is kept" if places else "stopping: nothing is kept")

    def keep(candidate: Candidate) -> None:
        if places:
            candidate.result.save(places[candidate.layers])

    try:
        with TrainingProgress() as progress:
            found = compare_cells(
                config,
                cells,
                units=args.units,
                seeds=args.seeds,
                budget=budget,
                progress=progress,
                threads=args.threads,
                on_trial=progress.end_trial,
                on_candidate=keep,
                stop=stop,
                places=places,
                resume=args.resume,
            )
    except TrainingStopped as error:
        how = f"To go on, give the same command with --resume ({args.output} holds what is done)"
        if args.output is None:
            how = "Nothing is left of it; with -o FOLDER a comparison can be gone on with"
        print(f"streamrnn: {error}. {how}", file=sys.stderr)
        return 128 + stop.received
    if args.json:
        models = {stack: str(path) for stack, path in places.items()}
        print(json.dumps(finite(found.report | {"models": models}), allow_nan=False))
        return 0
    for line in comparison_lines(found.report):
        print(printable(line))
    for stack, path in places.items():
        print(f"{path}: {stack}; the engine reproduces the trainer's outputs")
    return 0


def _places(folder: str | None, stacks: list[str], inputs: dict[str, Path]) -> dict[str, Path]:
    """Return where each model goes; refuse, before the training, what could not be written."""
    if folder is None:
        return {}
    Path(folder).mkdir(exist_ok=True)
    places = {s: Path(folder) / f"{s.replace(':', '-')}{MODEL_ENDING}" for s in stacks}
    check_outputs({f"the model {stack}": path for stack, path in places.items()}, inputs)
    for path in places.values():
        check_model_path(path)
    return places
