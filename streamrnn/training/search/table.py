"""What a search tried, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamrnn.errors import counted

__all__ = ["search_lines"]

_HEADER = ("layers", "learning rate", "lags", "seed", "updates", "best after", "validation loss")
MEASURES = ("rmse", "cross_entropy", "binary_cross_entropy", "pinball", "mae")


def search_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Format a search's report: the trials in their order, and the spread over the seeds."""
    if not report:
        return
    rows = [_HEADER, *(_cells(trial) for trial in report["trials"])]
    kept = _kept(report["trials"]) if "seeds" in report else None
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEADER))]
    yield f"search: {counted(len(rows) - 1, 'training')}, judged by the validation part" + (
        "; of those of the full length the best is kept" if kept is not None else ""
    )
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  " + "  ".join(cells) + "  kept" * (number - 1 == kept)
    found = report.get("seeds", {})
    if len(found.get("seeds", ())) > 1:
        test = (
            f"test {measure} of {target} {_spread(measures[measure])}"
            for target, measures in found["test"].items()
            for measure in MEASURES
            if measure in measures
        )
        yield (
            f"{len(found['seeds'])} seeds, mean and spread: validation loss "
            f"{_spread(found['validation'])}, {', '.join(test)}; seed {found['best']} is kept"
        )


def _cells(trial: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "+".join(trial["layers"]),
        f"{trial['learning_rate']:g}",
        str(trial["lags"]),
        str(trial["seed"]),
        f"{trial['updates']:,}" if trial["updates"] else "all",
        f"{trial['best_update']:,}",
        "diverged" if trial["loss"] is None else f"{trial['loss']:#.4g}",
    )


def _kept(trials: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the number of the best trial of the full length, which alone are tested."""
    whole = [k for k, trial in enumerate(trials) if trial["test"] and trial["loss"] is not None]
    return min(whole, key=lambda k: trials[k]["loss"]) if whole else None


def _spread(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "unknown"
    spread = "" if found["spread"] is None else f" +- {found['spread']:.2g}"
    return f"{found['mean']:#.4g}{spread}"
