"""The outcomes as a table for the terminal, and as one for the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from streamrnn.training.baselines.compare import percent
from streamrnn_bench.training.measure import Against, Measured

__all__ = ["lines", "markdown", "outcome"]

# The columns beside ours: the names of what may stand in each.
RIVALS = {
    "PyTorch": ("pytorch",),
    "AR": ("autoregression",),
    "seasonal": ("seasonal",),
    "last value": ("persistence",),
    "regression": ("linear", "logistic"),
    "boosting": ("boosting",),
}
NAMES = {"rmse": "rmse", "cross_entropy": "nats"}
HEADER = ("series", "targets", "", "ours", *RIVALS, "best in validation", "ours to it", "holds")


def _row(measured: Measured) -> list[str]:
    chosen = measured.against[measured.rival]
    errors = []
    for names in RIVALS.values():
        found = [measured.against[name].error for name in names if name in measured.against]
        errors.append(_number(found[0]) if found else "")
    return [
        measured.series,
        f"{measured.num_targets:,}",
        NAMES.get(measured.metric, measured.metric),
        _number(measured.ours),
        *errors,
        chosen.label.partition(" (")[0],
        _ratio(chosen),
        "yes" if chosen.holds else "no",
    ]


def _number(value: float) -> str:
    return f"{value:#.4g}".rstrip(".")


def _ratio(against: Against) -> str:
    if against.high > 1e6:
        return f"{against.ratio:.3f}"
    return f"{against.ratio:.3f} ({against.low:.3f} to {against.high:.3f})"


def lines(outcomes: Sequence[Measured]) -> list[str]:
    """Return aligned columns, and how many hold."""
    rows = [list(HEADER), *map(_row, outcomes)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    found = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [*found, outcome(outcomes)]


def outcome(outcomes: Sequence[Measured]) -> str:
    """Say on how many ours is not worse than the rival."""
    held = sum(measured.holds() for measured in outcomes)
    but = sum(measured.holds(with_boosting=False) for measured in outcomes)
    return (
        f"not worse, beyond the 95 % interval and {percent(0.03)}, than the rival that is best in "
        f"validation: on {held} of {len(outcomes)}; gradient boosting left out: on {but}"
    )


def markdown(outcomes: Sequence[Measured]) -> list[str]:
    """Return a Markdown table; the best error of a row is bold."""
    found = ["| " + " | ".join(HEADER) + " |", "| --- " * len(HEADER) + "|"]
    for measured in outcomes:
        row = _row(measured)
        numbers = {k: float(row[k]) for k in range(3, 4 + len(RIVALS)) if row[k]}
        best = min(numbers.values())
        for k, value in numbers.items():
            row[k] = f"**{row[k]}**" if value == best else row[k]
        found.append("| " + " | ".join(row) + " |")
    return found
