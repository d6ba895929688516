"""``streamrnn bench load ADDRESS``: load on a running server, from a process of its own."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from streamrnn_bench.commands.reports import write_reports
from streamrnn_bench.report.results import BenchError, header, write_json
from streamrnn_bench.report.runs import runs_of

__all__ = ["LOAD", "configure_load", "run_load"]

LOAD = "load"
_PATTERNS = ("fixed", "poisson", "bursts", "together")


def configure_load(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``bench load`` alone."""
    of_load = parser.add_argument_group("load", "on a server that runs, at ADDRESS")
    of_load.add_argument(
        "--rate",
        metavar="R",
        help="steps a second of each stream, sent whatever the server does (an open loop), such as "
        "10, or 1..100 for streams of different rates; latency is from when a step was due. "
        "Without it a stream sends when it has an answer (a closed loop)",
    )
    of_load.add_argument(
        "--arrivals",
        choices=_PATTERNS,
        default="poisson",
        help="how a stream's steps follow each other: at one distance, at random, --burst of them "
        "at once, or at one distance and all streams together (%(default)s)",
    )
    of_load.add_argument(
        "--burst", metavar="N", type=int, default=8, help="of bursts (%(default)s)"
    )
    of_load.add_argument(
        "--in-flight",
        metavar="N",
        type=int,
        default=0,
        help="messages of a stream on their way at once, a power of two (4; in a closed loop 1)",
    )
    of_load.add_argument(
        "--chunk", metavar="T", type=int, default=1, help="steps of a message (%(default)s)"
    )
    of_load.add_argument(
        "--batch",
        metavar="B",
        type=int,
        default=1,
        help="streams that are stepped by one message (%(default)s)",
    )
    of_load.add_argument(
        "--models", metavar="NAME", nargs="+", default=(), help="of streams in turn (all)"
    )
    of_load.add_argument(
        "--life",
        metavar="N",
        type=int,
        default=0,
        help="messages of a stream, on average, until it is closed and another opened (no end)",
    )
    of_load.add_argument(
        "--threads",
        metavar="N",
        type=int,
        default=1,
        help="of the generator, a connection each; at least one for each shard (%(default)s)",
    )
    for name, default, words in (
        ("--duration", "", "that is measured (10s, with --find 3s)"),
        ("--warm-up", "1s", "before it"),
        ("--ramp", "", "over which streams begin, before that (none)"),
        ("--timeout", "5s", "after which an answer is not awaited any more"),
    ):
        shown = f" ({default})" if default else ""
        of_load.add_argument(name, metavar="TIME", default=default, help=words + shown)
    of_load.add_argument(
        "--stable",
        metavar="PERCENT",
        type=float,
        help="end when p99 and steps/s of five seconds in a row differ by no more",
    )
    of_load.add_argument(
        "--find",
        choices=("streams", "rate"),
        help="find the most streams at their rate, or steps a second of all, with --p99",
    )
    of_load.add_argument(
        "--p99", metavar="TIME", default="1ms", help="that is not to be exceeded (%(default)s)"
    )
    of_load.add_argument(
        "--tolerance",
        metavar="PERCENT",
        type=float,
        default=5.0,
        help="by which more would be too much (%(default)g)",
    )
    of_load.add_argument("--seed", metavar="N", type=int, default=0, help="of what is random")
    of_load.add_argument(
        "--verify",
        metavar="MODEL",
        type=Path,
        help="the model's file: compare the first outputs of the first streams with it",
    )
    of_load.add_argument(
        "--keep-streams", action="store_true", help="do not close the streams at the end"
    )
    of_load.add_argument(
        "--curve-key", type=Path, metavar="FILE", help="your NAME.key_secret, if it asks for keys"
    )
    of_load.add_argument("--server-key", type=Path, metavar="FILE", help="the server's NAME.key")


def run_load(args: argparse.Namespace, json_path: Path | None) -> int:
    """Load the server, and print what was found; return 0, or 1 if steps had no answer.

    Raises a `BenchError` if it cannot be done, or the server does not speak the protocol.
    """
    if len(args.paths) != 1:
        raise BenchError("bench load needs the address of a server, such as tcp://127.0.0.1:7070")
    from streamrnn_bench.load.capacity import Goal, describe_capacity, find_capacity
    from streamrnn_bench.load.options import LoadOptions, parse_rate, parse_time_s
    from streamrnn_bench.load.run import load_once
    from streamrnn_bench.load.target import find_target

    given = {
        name: getattr(args, name)
        for name in (each.name for each in dataclasses.fields(LoadOptions))
        if getattr(args, name, None) is not None
    }
    given["rate"] = parse_rate(args.rate) if args.rate else None
    given["models"] = tuple(args.models)
    given["streams"] = args.streams or LoadOptions.streams
    for name in ("duration", "warm_up", "ramp", "timeout"):
        text = getattr(args, name) or ""
        if name == "duration" and not text:
            text = "3s" if args.find else "10s"
        given[f"{name}_s"] = parse_time_s(text) if text and text.strip("0s.") else 0.0
    options = LoadOptions(**given)
    if not 0.1 <= args.tolerance <= 100:
        raise BenchError(f"--tolerance is {args.tolerance:g}; it is from 0.1 to 100 percent")
    print(header())
    with find_target(
        str(args.paths[0]),
        options.models,
        args.curve_key,
        args.server_key,
        options.timeout_s,
        options.seed,
    ) as (client, target):
        if args.find:
            goal = Goal(args.find, parse_time_s(args.p99), args.tolerance / 100)
            capacity, result = find_capacity(target, options, goal, print)
            results, is_good = [result], True
            print(f"\n{describe_capacity(goal, options, capacity)}")
        else:
            found = load_once(client, target, options, print)
            results, is_good = list(found.results), found.is_good
    if json_path is not None:
        with json_path.open("w") as file:
            write_json(results, file)
    if results:
        write_reports(args, [runs_of(results)])
    return 0 if is_good else 1
