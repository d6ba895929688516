"""``streamrnn bench training``: trained, judged, and written down row by row."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from streamrnn_bench.report.results import commit, header
from streamrnn_bench.training.fetch import fetch
from streamrnn_bench.training.measure import Measured, measure_file
from streamrnn_bench.training.rivals import require_peers
from streamrnn_bench.training.show import lines, markdown
from streamrnn_bench.training.tasks import tasks_named, tasks_of

__all__ = ["run_training"]


def run_training(args: argparse.Namespace, json_path: Path | None) -> int:
    """Measure the chosen series, and print the table; return 0, whatever the figures are.

    Series that the JSON file holds already, of the same commit, are not measured again.
    Raises a `BenchError` if a series cannot be fetched or measured.
    """
    require_peers()
    tasks = tasks_named(args.series) if args.series else tasks_of(args.set or "judged")
    settings: dict[str, Any] = {"budget": args.budget} if args.budget else {}
    paths = {task.name: fetch(task) for task in tasks}  # all of them before an hour goes by
    print(header())
    print(f"torch {version('torch')}, scikit-learn {version('scikit-learn')}; one thread each")
    outcomes = _kept(json_path)
    for task in tasks:
        if task.name not in outcomes:
            print(f"{task.name} ...", file=sys.stderr, flush=True)
            outcomes[task.name] = measure_file(task, paths[task.name], settings)
            if json_path is not None:
                with json_path.open("a") as file:
                    file.write(json.dumps(outcomes[task.name].to_dict()) + "\n")
    chosen = [outcomes[task.name] for task in tasks]
    print(*lines(chosen), sep="\n")
    if args.markdown:
        Path(args.markdown).write_text("\n".join(markdown(chosen)) + "\n")
    return 0


def _kept(path: Path | None) -> dict[str, Measured]:
    """Return what was measured with these sources, by series; nothing where files differ."""
    if path is None or not path.exists() or commit().endswith("+"):
        return {}
    plain = (json.loads(line) for line in path.read_text().splitlines())
    found = (Measured.from_dict(each) for each in plain if each["commit"] == commit())
    return {measured.series: measured for measured in found}
