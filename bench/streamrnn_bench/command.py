"""``streamrnn bench``: measure against the machine's limits and against a bare echo."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from streamrnn_bench.cases import Case, parse_case
from streamrnn_bench.results import BenchError, Result, header, table, write_json

__all__ = ["BENCHMARKS", "configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        The command's own parser.
    """
    parser.add_argument(
        "name", metavar="NAME", nargs="?", choices=BENCHMARKS, help=", ".join(BENCHMARKS) + "; all"
    )
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object a line")
    parser.add_argument(
        "--cases",
        metavar="CASE",
        nargs="+",
        help="layers such as 'lstm 64->128' or gru:16:32, instead of the benchmark's own",
    )


def _step(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.step import CASES, measure_steps

    return measure_steps(cases or CASES)


BENCHMARKS: dict[str, Callable[[argparse.Namespace, Sequence[Case]], Iterator[Result]]] = {
    "step": _step,
}


def run(args: argparse.Namespace) -> int:
    """Measure, and print tables.

    Parameters
    ----------
    args : argparse.Namespace
        As `configure` declared them.

    Returns
    -------
    int
        0, whatever the figures are.

    Raises
    ------
    BenchError
        If a measurement cannot be made, or what was to be measured gave wrong results.
    """
    cases = [parse_case(text) for text in args.cases or ()]
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(args.json, "w")) if args.json else None
        print(header())
        for name in [args.name] if args.name else BENCHMARKS:
            results = list(BENCHMARKS[name](args, cases))
            print(f"\n{name}\n{table(results)}", flush=True)
            if file is not None:
                write_json(results, file)
                file.flush()
    return 0
