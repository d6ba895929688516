"""A training's report as a picture: its losses, its errors, and its forecasts of the test part."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import TrainingError
from streamrnn.model.tensor_file import replace_file
from streamrnn.training.baselines.target import Prediction, Target, targets_of
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.evaluate import CarriedOutputs, NetworkOutputs, outputs_of
from streamrnn.training.memory.pictures import draw_memory
from streamrnn.training.network.lags import network_of
from streamrnn.training.train import TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_figure", "write_figure"]

MAX_TARGETS = 4  # that get a row of panels
MAX_ROWS = 300  # of the test part that are drawn
MAX_CLASSES = 20  # of a table of confusions
_MADE_BY = "StreamRNN"

BLOCK_ELEMENTS = 4_000_000  # rows times classes that are predicted at once

Doubles = NDArray[np.float64]
Outputs = NetworkOutputs | CarriedOutputs


def check_figure(path: Path) -> None:
    """Refuse what cannot be drawn, or would write over another's file."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            "the picture needs the package matplotlib: pip install 'streamrnn[plot]'"
        ) from error
    if path.suffix.lower() != ".png":
        raise TrainingError(f"{path}: the picture is a PNG file; name it .png")
    if path.exists():
        with open(path, "rb") as file:
            start = file.read(4096)
        if not (start.startswith(b"\x89PNG") and _MADE_BY.encode() in start):
            raise TrainingError(
                f"{path} exists and is no picture of a training; it is not overwritten: name "
                "another file"
            )


def write_figure(result: TrainingResult, path: Path) -> None:
    """Draw a training as a PNG file."""
    from matplotlib.figure import Figure

    dataset = result.dataset
    found = targets_of(dataset.config, dataset.spec)
    drawn = [list(own) for _, own in groupby(found, lambda item: (item.column, item.horizon))]
    drawn = drawn[:MAX_TARGETS]
    # Of quantiles the one that is nearest to the median stands for the others.
    targets = [min(own, key=lambda item: abs(item.quantile - 0.5)) for own in drawn]
    figure = Figure(figsize=(12, 3.6 * (2 + len(targets))), layout="constrained")
    axes = figure.subplots(2 + len(targets), 2, squeeze=False)
    _draw_losses(axes[0, 0], result)
    _draw_errors(axes[0, 1], result, targets[0])
    network = network_of(result.measured.spec, result.measured.parameters)
    outputs = outputs_of(network, dataset)
    draw_memory(axes[-1, 0], axes[-1, 1], result.report["memory"])
    for row, target, own in zip(axes[1:-1], targets, drawn, strict=True):
        if target.num_classes:
            _draw_classes(row[0], row[1], dataset, target, outputs)
        else:
            _draw_numbers(row[0], row[1], dataset, target, outputs, own)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100, metadata={"Software": _MADE_BY})
    replace_file(path, data.getvalue())


def _draw_losses(axes: Axes, result: TrainingResult) -> None:
    updates = [evaluation.num_updates for evaluation in result.history]
    for name in ("train", "validation"):
        losses = [getattr(evaluation, name) for evaluation in result.history]
        axes.plot(updates, losses, label=name)
    best = result.report["updates"]["best_update"]
    axes.axvline(best, color="grey", linestyle=":", label=f"best after {best}")
    if min(min(each.train, each.validation) for each in result.history) > 0:
        axes.set_yscale("log")
    axes.set(title="loss", xlabel="updates")
    axes.legend()


def _draw_errors(axes: Axes, result: TrainingResult, target: Target) -> None:
    """Draw the test errors of the model and its baselines, the smallest on top."""
    report = result.report
    against = report["comparison"][target.name]["against"]
    bars = [(report["errors"]["test"][target.name][target.metric], "this model")]
    for name, errors in report["baselines"].items():
        if target.name in errors:
            label = against.get(name, {}).get("label", name)
            bars.append((errors[target.name][target.metric], label))
    bars.sort(reverse=True)
    colors = ["C0" if label == "this model" else "lightgrey" for _, label in bars]
    drawn = axes.barh([label for _, label in bars], [error for error, _ in bars], color=colors)
    axes.bar_label(drawn, fmt="%.4g", padding=3)
    axes.margins(x=0.15)
    axes.set(title=f"test error of {target.name}", xlabel=target.metric)


def _draw_numbers(
    left: Axes,
    right: Axes,
    dataset: Dataset,
    target: Target,
    outputs: Outputs,
    quantiles: list[Target],
) -> None:
    """Draw the end of the test part with its forecasts, and all residuals of that part."""
    residuals = []
    for stream in dataset.streams:
        rows = stream.rows("test")
        if rows.stop > rows.start:
            truth, values = _in_units(stream, target, rows, outputs.predict(target, stream, rows))
            residuals.append(truth - values)
    longest = max(dataset.streams, key=lambda item: item.stops[2] - item.stops[1])
    rows = longest.rows("test")
    rows = slice(max(rows.start, rows.stop - MAX_ROWS), rows.stop)
    truth, values = _in_units(longest, target, rows, outputs.predict(target, longest, rows))
    steps = np.arange(rows.start, rows.stop) + target.horizon
    left.plot(steps, truth, color="black", linewidth=1, label="truth")
    if len(quantiles) > 1:
        ends = [quantiles[0], quantiles[-1]]
        band = [
            _in_units(longest, end, rows, outputs.predict(end, longest, rows))[1] for end in ends
        ]
        label = " to ".join(f"q{end.quantile:g}" for end in ends)
        left.fill_between(steps, *band, color="C0", alpha=0.25, linewidth=0, label=label)
    which = f"q{target.quantile:g}" if target.metric == "pinball" else "forecast"
    left.plot(steps, values, color="C0", linewidth=1, label=which)
    where = f" of {longest.name}" if longest.name else ""
    left.set(title=f"{target.name}: end of the test part{where}", xlabel="row")
    left.legend()
    known = np.concatenate(residuals)
    known = known[np.isfinite(known)]
    right.hist(known, bins=50, color="C0")
    right.axvline(0.0, color="black", linewidth=1)
    title = f"residuals of {target.name}: mean {known.mean():.3g}, deviation {known.std():.3g}"
    right.set_title(title, fontsize="medium", wrap=True)
    right.set(xlabel="truth - forecast")


def _in_units(
    stream: Stream, target: Target, rows: slice, found: Prediction
) -> tuple[Doubles, Doubles]:
    """Return truth and forecast in the user's units, NaN where the truth is missing."""
    item = target.spec.outputs[target.output]
    shift = stream.level[rows, target.output].astype(np.float64) + item.center + item.origin
    return target.truth(stream, rows) * item.scale + shift, found.values * item.scale + shift


def _draw_classes(
    left: Axes, right: Axes, dataset: Dataset, target: Target, outputs: Outputs
) -> None:
    """Draw which classes are taken for which, and how sure the model was of the right one."""
    truth, chosen, right_log = (
        np.concatenate(found)
        for found in zip(*_classes_in_blocks(dataset, target, outputs), strict=True)
    )
    most = np.argsort(-np.bincount(truth, minlength=target.num_classes), kind="stable")
    most = np.sort(most[:MAX_CLASSES])
    shown = np.array([np.bincount(chosen[truth == k], minlength=target.num_classes) for k in most])
    shown = shown[:, most]
    left.imshow(shown / np.maximum(shown.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0)
    names = [output.name for output in target.spec.outputs]
    if len(names) != target.num_classes:
        names = ["no", "yes"]
    labels = [names[k] for k in most]
    left.set_xticks(range(len(labels)), labels, rotation=90)
    left.set_yticks(range(len(labels)), labels)
    left.set(title=f"{target.name}: test part", xlabel="chosen", ylabel="truth")
    right.hist(np.exp(right_log), bins=np.linspace(0, 1, 41), color="C0")
    right.set(title="probability of the right class", xlabel="probability", ylabel="rows")


def _classes_in_blocks(
    dataset: Dataset, target: Target, outputs: Outputs
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Doubles]]:
    """Yield true and chosen classes of the test part, and how sure the model was of the former."""
    length = max(1, BLOCK_ELEMENTS // target.num_classes)
    for stream in dataset.streams:
        rows = stream.rows("test")
        for start in range(rows.start, rows.stop, length):
            block = slice(start, min(start + length, rows.stop))
            found, known = outputs.predict(target, stream, block), target.truth(stream, block)
            present = ~np.isnan(known)
            index = known[present].astype(np.int64)
            assert found.classes is not None  # a target of classes
            yield index, found.classes[present], found.values[present, index]
