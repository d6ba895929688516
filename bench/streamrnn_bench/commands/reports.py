"""``streamrnn bench report`` and ``compare``: what earlier runs have written, shown again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from streamrnn_bench.report.compare import compare_runs, comparison_table
from streamrnn_bench.report.page import html_page
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.report.runs import Runs, read_runs
from streamrnn_bench.report.side_by_side import runs_table, write_csv

__all__ = ["REPORTS", "write_reports"]


def _report(args: argparse.Namespace) -> int:
    """Show runs side by side; of several machines too."""
    sides = _sides([Path(path) for path in args.paths])
    if not sides:
        raise BenchError("bench report needs files that `streamrnn bench --json` wrote")
    for side in sides:
        print(side)
    print(f"\n{runs_table(sides)}")
    write_reports(args, sides)
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Say what differs between two sides; return 0 whatever it is."""
    sides = _sides([Path(path) for path in args.paths])
    if len(sides) != 2:
        raise BenchError(f"bench compare needs two files or directories, got {len(sides)}")
    a, b = sides
    print(f"A {a}\nB {b}")
    if a.machine != b.machine or a.cores != b.cores:
        print("Not one machine: what differs may be the machine.")
    print(f"\n{comparison_table(compare_runs(a, b, args.run_noise / 100))}")
    left_out = set(a.results) ^ set(b.results)
    if left_out:
        print(f"\nOnly one side has measured {len(left_out)} more.")
    print(
        "\nBetter is faster, or less memory. All verdicts together are right with 95 %. From one "
        f"run a side a difference below {args.run_noise:g} % does not count (--run-noise): two "
        "runs of one program differ too. Four runs a side (--runs 4) show by how much."
    )
    write_reports(args, sides)
    return 0


REPORTS = {"report": _report, "compare": _compare}


def _sides(paths: Sequence[Path]) -> list[Runs]:
    sides = [read_runs(path) for path in paths]
    names = [side.name for side in sides]
    if len(set(names)) < len(names):  # a/bench.jsonl and b/bench.jsonl
        sides = [side.renamed(str(path)) for side, path in zip(sides, paths, strict=True)]
    return sides


def write_reports(args: argparse.Namespace, sides: Sequence[Runs]) -> None:
    """Write the page and the CSV file that were asked for."""
    if args.html:
        args.html.write_text(html_page(sides), "utf-8")
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            write_csv(sides, file)
