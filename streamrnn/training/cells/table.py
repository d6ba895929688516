"""A comparison of cells as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamrnn.errors import counted

__all__ = ["comparison_lines"]


def comparison_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Format `Comparison.report`: a line a cell, the best baseline, and the verdicts."""
    cells, targets = report["cells"], report["targets"]
    seeds = counted(len(cells[0]["seeds"]), "seed")
    yield f"{counted(len(cells), 'cell')}, {seeds} each, on the test part"
    yield f"parts: {report['split']}"
    names = {name: f"{found['metric']} of {name}" for name, found in targets.items()}
    header = ("layers", *names.values(), "parameters", "us a step", "uses steps", "learning rate")
    rows = [header, *(_cells(cell, targets) for cell in cells)]
    for name in dict.fromkeys(found["baseline"]["name"] for found in targets.values()):
        errors = (
            f"{found['baseline']['error']:#.4g}" if found["baseline"]["name"] == name else ""
            for found in targets.values()
        )
        rows.append((name, *errors, "", "", "", ""))
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    for row in rows:
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield ("  " + "  ".join(padded)).rstrip()
    for name, found in targets.items():
        yield f"{name}: {found['verdict']}"
        yield f"  beside something simpler, {found['keep']}: {found['baseline']['verdict']}"


def _cells(cell: Mapping[str, Any], targets: Mapping[str, Any]) -> tuple[str, ...]:
    errors = [_error(cell["test"][name]) for name in targets]
    if cell["num_diverged"]:
        errors[0] += f" ({cell['num_diverged']} diverged)"
    return (
        cell["layers"],
        *errors,
        f"{cell['num_parameters']:,}",
        f"{cell['step_us']:.3g}",
        _memory(cell["memory"]),
        f"{cell['learning_rate']:g}",
    )


def _error(found: Mapping[str, Any]) -> str:
    spread = "" if found["spread"] is None else f" +- {found['spread']:.2g}"
    return f"{found['mean']:#.4g}{spread}"


def _memory(memory: Mapping[str, Any]) -> str:
    if memory["uses_steps"] is None:
        return "unknown"
    if not memory["has_skill"]:
        return "no skill"
    is_most = memory["uses_steps"] == memory["tried_steps"] > 0
    return f"{memory['uses_steps']}{' or more' if is_most else ''}"
