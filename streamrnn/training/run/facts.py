"""The report of a training: what it was told, what came of it, and how good that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import streamrnn
from streamrnn.model.spec import NUM_SAMPLE_STEPS
from streamrnn.training.baselines.compare import compare, measures
from streamrnn.training.baselines.families import baselines_to_dict, fit_baselines
from streamrnn.training.data.dataset import PARTS, Dataset
from streamrnn.training.data.seen_rows import seen_rows_to_dict
from streamrnn.training.data.streams import times_of_rows
from streamrnn.training.diagnostics import Memory
from streamrnn.training.evaluate import outputs_of
from streamrnn.training.fit.loop import Fit
from streamrnn.training.memory.drift import input_ranges
from streamrnn.training.quantiles import measure_intervals

__all__ = ["first_and_last_time", "make_report"]


def first_and_last_time(dataset: Dataset) -> list[str]:
    """Return the times of the first and the last row as they are written; none without times."""
    table, name = dataset.table, dataset.config.time
    times = times_of_rows(table, name)
    if times is None:
        return []
    rows = (int(np.argmin(times)), int(np.argmax(times)))
    return [str(table.column(name).texts(row, row + 1)[0]) for row in rows]


def make_report(dataset: Dataset, fitted: Fit, memory: Memory) -> dict[str, Any]:
    """Measure what was fitted, and its baselines beside it; JSON types."""
    rows = [stream.stops[2] + dataset.config.farthest for stream in dataset.streams]
    network = outputs_of(fitted.network, dataset)
    baselines = fit_baselines(dataset)
    # In the order of the rows: then a network of many classes runs through them once.
    errors = {part: measures(dataset, part, network.predict) for part in PARTS[:2]}
    found = compare(dataset, "test", network.predict, baselines)
    return {
        "data": {
            "file": Path(dataset.config.path).name,
            "sha256": dataset.table.sha256,
            "num_rows": int(sum(rows)),
            "num_streams": len(rows),
            "split": dataset.split.says,
        },
        "config": dataset.config.to_dict(),
        "versions": {"streamrnn": streamrnn.__version__, "numpy": np.__version__},
        "errors": errors | {"test": found["errors"]},
        "baselines": found["baselines"],
        "comparison": found["comparison"],
        "fitted": baselines_to_dict(baselines),
        "intervals": measure_intervals(dataset, network.z),
        "memory": memory.to_dict(),
        "sample": _sample(dataset),
        "seen": seen_rows_to_dict(dataset, 1),
        "inputs": input_ranges(dataset, 0),
        "updates": {
            "num_epochs": fitted.num_epochs,
            "best_epoch": fitted.best_epoch,
            "best_update": fitted.best_update,
            "num_updates": fitted.num_updates,
            "clipped_share": fitted.clipped_share,
            "max_gradient_norm": fitted.max_gradient_norm,
        },
    }


def _sample(dataset: Dataset) -> list[list[float | None]]:
    """Return some steps of the validation part as a sample; None where x is missing."""
    stream = max(dataset.streams, key=lambda stream: stream.stops[1] - stream.stops[0])
    x = stream.x[stream.rows("validation")][:NUM_SAMPLE_STEPS]
    x = x + np.array([item.origin for item in dataset.spec.inputs])
    return [[None if np.isnan(value) else float(value) for value in row] for row in x]
