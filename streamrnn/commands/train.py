"""``streamrnn train``: train a model on a table, or as a configuration says."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamrnn.commands.arguments import count
from streamrnn.commands.printable import printable
from streamrnn.commands.settings import add_settings, given_settings, with_settings
from streamrnn.errors import TrainingError, TrainingStopped, counted
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.data.summary import summary_lines
from streamrnn.training.fit.chunks import choose_sizes
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.report import report_lines
from streamrnn.training.run.curve import learning_curve
from streamrnn.training.run.epoch_log import EpochLog
from streamrnn.training.run.figure import check_figure, write_figure
from streamrnn.training.run.outputs import (
    ENDINGS,
    check_outputs,
    chosen_path,
    configuration_path,
    search_path,
)
from streamrnn.training.run.progress import TrainingProgress
from streamrnn.training.run.threads import limit_threads
from streamrnn.training.search.budget import AUTO, OFF, Budget, parse_budget
from streamrnn.training.search.trial import Trial
from streamrnn.training.train import TrainingResult, train_to_file

__all__ = ["add_input", "configure", "finite", "make_config", "run", "source_of"]


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare what every command that trains takes: the data, the threads, the settings."""
    parser.add_argument(
        "input",
        metavar="DATA|CONFIG.toml",
        help="a table (CSV, Parquet, .npz; - for standard input), a text, or a configuration",
    )
    parser.add_argument(
        "--threads", type=count, default=1, metavar="N", help="of the matrix products (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_settings(parser)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-o", "--output", required=True, metavar="MODEL", help="weight file")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a training that was stopped"
    )
    parser.add_argument(
        "--budget",
        metavar="BUDGET",
        help="of a search for layers, learning rate and lags that are not given: off, a number of "
        "trials, or a time such as 60s or 5m (default: 6 trials for a table, unless one of them, "
        "--updates or --epochs is given; off for a configuration)",
    )
    parser.add_argument(
        "--seeds",
        type=count,
        default=0,
        metavar="N",
        help="trainings of which the best is kept (default: 3 after a search of little work, else "
        "1)",
    )
    parser.add_argument("--log", metavar="FILE", help="write one line of JSON an evaluation")
    parser.add_argument(
        "--plot",
        action="store_true",
        help="draw the learning curve at the end (default: on a terminal)",
    )
    parser.add_argument(
        "--report", metavar="FILE.png", help="draw losses, errors, forecasts and residuals"
    )
    add_input(parser)


def make_config(args: argparse.Namespace) -> TrainingConfig:
    """Turn the arguments into a configuration; options override a TOML file."""
    given = given_settings(args)
    if source_of(args) is not None:
        return with_settings(TrainingConfig.read(args.input), given)
    return TrainingConfig(path=args.input, **given)


def _budget(args: argparse.Namespace) -> Budget | None:
    if args.budget is not None:
        return parse_budget(args.budget)
    return parse_budget(AUTO if source_of(args) is None else OFF, given_settings(args))


def run(args: argparse.Namespace) -> int:
    """Train, report, and print where the files are; return the exit code."""
    config, stop = make_config(args), StopSignals()
    _check_outputs(args, config)
    try:
        result = _train(args, config, stop)
    except TrainingStopped as error:
        print(f"streamrnn: {error}. {_how_to_go_on(args)}", file=sys.stderr)
        return 128 + stop.received
    if args.report:
        with limit_threads(args.threads):
            write_figure(result, Path(args.report))
    if args.json:
        print(json.dumps(_facts(args, result), allow_nan=False))
    else:
        _print_result(args, result)
    if not result.was_stopped:
        return 0
    sys.stdout.flush()
    print(
        f"streamrnn: stopped after {counted(result.report['updates']['num_updates'], 'update')}, "
        f"{args.output} is the best so far. {_how_to_go_on(args)}",
        file=sys.stderr,
    )
    return 128 + stop.received


def _train(args: argparse.Namespace, config: TrainingConfig, stop: StopSignals) -> TrainingResult:
    with ExitStack() as stack:
        watchers: list[TrainingProgress | EpochLog] = [stack.enter_context(TrainingProgress())]
        if args.log:
            watchers.append(stack.enter_context(EpochLog(Path(args.log))))

        def on_trial(number: int, trial: Trial) -> None:
            for watcher in watchers:
                watcher.end_trial(number, trial)

        def watch(evaluation: Evaluation) -> None:
            for watcher in watchers:
                watcher(evaluation)

        return train_to_file(
            config,
            args.output,
            watch,
            source=source_of(args),
            resume=args.resume,
            begin=None if args.json else _print_summary,
            stop=stop,
            threads=args.threads,
            budget=_budget(args),
            seeds=args.seeds,
            on_trial=on_trial,
        )


def _print_summary(dataset: Dataset) -> None:
    for line in summary_lines(dataset):
        print(line)
    print(choose_sizes(dataset).describe())
    print(flush=True)


def source_of(args: argparse.Namespace) -> Path | None:
    """Return the configuration that is read, if one is."""
    path = Path(args.input)
    return path if path.suffix.lower() == ".toml" else None


def _check_outputs(args: argparse.Namespace, config: TrainingConfig) -> None:
    """Refuse, before the training, what could not be written after it."""
    given = {"the model": args.output, "the log": args.log, "the picture": args.report}
    outputs = {what: Path(path) for what, path in given.items() if path}
    inputs = {"the data": Path(config.path), "the input": Path(args.input)}
    if config.start_from:
        inputs["the model to start from"] = Path(config.start_from)
    check_outputs(outputs, inputs)
    model = outputs.pop("the model")
    if config.refit:
        inputs["the chosen model"] = chosen_path(model)
    inputs["the configuration"] = configuration_path(model, source_of(args))
    inputs["the checkpoint"] = model.with_name(f"{model.name}.checkpoint")
    inputs["the search"] = search_path(model)
    check_outputs(outputs, inputs)
    if args.report:
        check_figure(Path(args.report))
    if args.plot:
        learning_curve(())


def _how_to_go_on(args: argparse.Namespace) -> str:
    kept = [f"{args.output}.{end}" for end in ENDINGS]
    there = [path for path in kept if os.path.exists(path)]
    return (
        f"To go on, give the same command with --resume ({there[0]} holds the training)"
        if there
        else "Nothing is left of it"
    )


def _print_result(args: argparse.Namespace, result: TrainingResult) -> None:
    if args.plot or sys.stdout.isatty():
        try:
            print(learning_curve(result.history, min(shutil.get_terminal_size().columns, 100)))
        except TrainingError as error:
            print(error)
    for line in report_lines(result.report):
        print(printable(line))
    print(f"{args.output}: the model; the engine reproduces the trainer's outputs")
    if result.chosen:
        print(f"{chosen_path(Path(args.output))}: the model before the refit, which was measured")
    what = "of the training that was stopped" if result.was_stopped else "that repeats it"
    print(f"{result.configuration}: the configuration {what}")
    if args.report:
        print(f"{args.report}: the same as a picture")


def _facts(args: argparse.Namespace, result: TrainingResult) -> dict[str, Any]:
    facts = {
        "model": args.output,
        "configuration": str(result.configuration),
        "chosen": str(chosen_path(Path(args.output))) if result.chosen else None,
        "was_stopped": result.was_stopped,
        "history": [asdict(evaluation) for evaluation in result.history],
        "report": result.report,
    }
    plain: dict[str, Any] = finite(facts)
    return plain


def finite(value: Any) -> Any:
    """Put null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
