"""Report of a training, or of an evaluation, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from streamrnn.errors import counted
from streamrnn.training.baselines.bootstrap import Interval
from streamrnn.training.baselines.compare import sides
from streamrnn.training.data.dataset import PARTS
from streamrnn.training.memory.fading import fading_lines
from streamrnn.training.memory.history import history_lines
from streamrnn.training.memory.probe import OFTEN, SETTLED
from streamrnn.training.memory.units import unit_lines
from streamrnn.training.quantiles import interval_lines, quantile_tables
from streamrnn.training.search.table import search_lines

__all__ = ["evaluation_lines", "report_lines"]

# Of each loss, the measure that is compared.
MEASURES = ("rmse", "cross_entropy", "binary_cross_entropy", "pinball", "mae")
# Of reports that do not say what a baseline is, by versions before 0.2.
NAMES = {
    "persistence": "persistence (the last value again)",
    "autoregression": "linear autoregression",
    "constant": "always the training mean",
}
WIDTH = 38


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """Format ``TrainingResult.report`` (or ``model.spec.training``) as lines of text."""
    data, config, updates = report["data"], report["config"], report["updates"]
    streams = f" in {data['num_streams']} streams" if data["num_streams"] > 1 else ""
    num_rows = counted(data["num_rows"], "row")
    yield f"{data['file']}: {num_rows}{streams}; {', '.join(config['layers'])}"
    if config.get("feedback"):  # files of earlier versions do not tell
        yield f"read again at the next step: {', '.join(config['feedback'])}"
    if config["difference"]:
        yield f"seen as changes, because they drift or as told: {', '.join(config['difference'])}"
    gaps = {name: policy for name, policy in config["missing"].items() if policy != "error"}
    if gaps:
        listed = ", ".join(f"{name} ({policy})" for name, policy in gaps.items())
        yield f"missing values: {listed}; missing targets count for nobody"
    tables = {"baselines": report["baselines"], "comparison": report.get("comparison", {})}
    tables["errors"] = report["errors"]["test"]
    tables["unit"] = config.get("tokens", "")
    tables["own"] = "the model before the refit" if "refit" in report else "this model"
    rows = data.get("split", f"the last {config['split'][2]:.0%} of each stream")
    in_tables = yield from quantile_tables("test error", rows, tables)
    for target in tables["errors"]:
        if target in in_tables:
            continue
        yield from _table(f"test error of {target}", rows, target, tables)
        measure = _measure(tables["errors"][target])
        by_part = (f"{part} {report['errors'][part][target][measure]:#.4g}" for part in PARTS)
        yield f"  by part: {', '.join(by_part)}"
        yield from _verdict(target, tables)
    yield from interval_lines(report.get("intervals", {}))
    if tables["comparison"]:
        yield (
            "the baselines were fitted to the training and the validation part (what they choose, "
            "they choose by the validation part); the network to the training part"
        )
    yield from search_lines(report.get("search", {}))
    yield _updates_line(updates)
    yield from _end_lines(config, updates)
    if updates["clipped_share"] >= OFTEN and updates["num_updates"] >= SETTLED:
        yield (
            f"clipped in {updates['clipped_share']:.0%} of the updates: lower the rate "
            f"(--learning-rate {config['learning_rate'] / 3:.2g}), or raise --clip-norm"
        )
    if "refit" in report:
        yield from _refit_lines(report["refit"])
    yield from _memory_lines(report["memory"])


def evaluation_lines(found: dict[str, Any]) -> Iterator[str]:
    """Format what `streamrnn.training.unseen.evaluate_file` returns as lines of text."""
    streams = f" in {found['num_streams']} streams" if found["num_streams"] > 1 else ""
    yield f"{found['file']}: {counted(found['num_rows'], 'row')}{streams}"
    if found["is_training_file"]:
        which, whose = "most", "of the part that it did not see"
        if found["is_refit"]:
            which, whose = "all", "of the model before its refit, in the part that this did not see"
        yield (
            f"this is the file that the model was trained with: {which} of its rows were learned "
            "from, and the errors below flatter the model. `streamrnn inspect` shows those "
            f"{whose}"
        )
    elif found["has_training_rows"]:
        yield (
            "rows of the file that the model was trained with are in this one: where they are "
            "judged, the errors below flatter the model"
        )
    if found["in_sample"]["num_rows"]:
        yield from _in_sample_lines(found)
    for target, count in found["unknown_classes"].items():
        yield (
            f"classes that the model does not know are not judged: {counted(count, 'row')} of "
            f"{target}"
        )
    for target in found["not_judged"]:
        yield f"the file holds no value of {target} to judge: it is left out"
    if found["warmup_rows"]:
        warm_up = counted(found["warmup_rows"], "row")
        yield f"not judged, for it warms up: the first {warm_up} of every stream"
    in_tables = yield from quantile_tables("error", "", found)
    for target in found["errors"]:
        if target in in_tables:
            continue
        yield from _table(f"error of {target}", "", target, found)
        yield from _verdict(target, found)
    yield from interval_lines(found["intervals"])


def _in_sample_lines(found: dict[str, Any]) -> Iterator[str]:
    in_sample = found["in_sample"]
    ranges = [
        f"{first:,} to {last:,}{f' of {name}' if name else ''}"
        for name, (first, last) in in_sample["rows"].items()
    ]
    more = f" and of {counted(len(ranges) - 3, 'more stream')}" if len(ranges) > 3 else ""
    rows = counted(found["num_rows"], "row")
    yield (
        f"in-sample: {in_sample['num_rows']:,} of {rows}, in time order "
        f"{', '.join(ranges[:3])}{more}"
    )
    for target, own in in_sample["errors"].items():
        other = in_sample["other_errors"].get(target)
        measure = _measure(own)
        beside = f", of the other rows {other[measure]:#.4g}" if other else ", and no other row"
        yield f"  {target}: {measure} of the in-sample rows {own[measure]:#.4g}{beside}"


def _measure(errors: dict[str, float]) -> str:
    return next(name for name in MEASURES if name in errors)


def _table(title: str, rows: str, target: str, tables: dict[str, Any]) -> Iterator[str]:
    """Yield the errors of a target, the smallest first."""
    own, unit = tables["errors"][target], tables.get("unit", "")
    measure = _measure(own)
    comparison = tables["comparison"].get(target, {"against": {}})
    against = comparison["against"]
    num_targets = counted(comparison["num_targets"], "target") if against else ""
    yield f"{title} ({'; '.join(item for item in (measure, rows, num_targets) if item)}):"
    lines = [(own[measure], _line(tables.get("own", "this model"), own, measure, unit))]
    for name, by_target in tables["baselines"].items():
        if target in by_target:
            other = by_target[target]
            entry = against.get(name, {"label": NAMES.get(name, name)})
            line = _line(entry["label"], other, measure, unit)
            if "ratio" in entry:
                line += f"  ({_beside(entry)})"
            elif other[measure] > 0:
                line += f"  ({1 - own[measure] / other[measure]:+.0%} by the model)"
            lines.append((other[measure], line))
    for _, line in sorted(lines):
        yield f"  {line}"
    if against:
        drawn = {entry["drawn"] for entry in against.values() if _interval(entry).is_bounded}
        if drawn:
            yield f"  95 % intervals by a bootstrap of {', '.join(sorted(drawn))}"
        else:
            had = ", ".join(sorted({entry["drawn"] for entry in against.values()}))
            yield f"  95 % intervals need more than {had}"


def _line(name: str, errors: dict[str, float], measure: str, unit: str) -> str:
    accuracy = f"  accuracy {errors['accuracy']:.1%}" if "accuracy" in errors else ""
    bits = f"= {errors[measure] / math.log(2):#.4g} bits per {unit}" if unit else ""
    return f"{name:<{WIDTH}}{errors[measure]:<#8.4g}{bits}{accuracy}".rstrip()


def _verdict(target: str, tables: dict[str, Any]) -> Iterator[str]:
    if target in tables["comparison"]:
        yield f"verdict on {target}: {tables['comparison'][target]['verdict']}"


def _interval(entry: dict[str, Any]) -> Interval:
    return Interval(entry["ratio"], entry["low"], entry["high"])


def _beside(entry: dict[str, Any]) -> str:
    found = _interval(entry)
    words, low, high = sides(found)
    interval = f": {low} to {high}" if found.is_bounded else ""
    return f"the model's is {words}{interval}"


def _updates_line(updates: dict[str, Any]) -> str:
    epochs = f"epoch {updates['best_epoch']:.4g} of {updates['num_epochs']:.4g}"
    clipped = f"{updates['clipped_share']:.0%} of them clipped"
    if "best_update" not in updates:  # files of earlier versions do not tell
        return f"best {epochs}, {counted(updates['num_updates'], 'update')}, {clipped}"
    return (
        f"best after {updates['best_update']:,} of {counted(updates['num_updates'], 'update')} "
        f"({epochs}), {clipped}"
    )


def _end_lines(config: dict[str, Any], updates: dict[str, Any]) -> Iterator[str]:
    """Say so if the training ended before it was done, and what to do."""
    if updates.get("was_stopped"):
        yield "stopped before its end: --resume goes on"
        return
    best, last = updates.get("best_update", 0), updates["num_updates"]
    most = config.get("updates") or 0
    was_bound = last >= most if most else updates["num_epochs"] >= config["epochs"]
    # The average still moves by a hair when the learning rate has come to its end.
    if was_bound and best > 0.95 * last:
        which = "the last ones" if best == last else "nearly the last ones"
        yield (
            f"the best weights are {which}: more updates may do better; try --updates {4 * last}"
            + (" --epochs 0" if config["epochs"] else "")
        )


def _refit_lines(refit: dict[str, Any]) -> Iterator[str]:
    first, last = refit["rows"]
    times = f" ({refit['times'][0]} to {refit['times'][1]})" if refit["times"] else ""
    updates = counted(refit["num_updates"], "update")
    yield (
        f"refit: this model learned from all rows, {first} to {last}{times} of the file with "
        f"sha256 {refit['sha256'][:16]}, by {updates}, as many as the best "
        "weights took. It was not itself measured, for no row is left: the errors above are of the "
        "model before the refit, which is kept beside it (.chosen)"
    )


def _memory_lines(memory: dict[str, Any]) -> Iterator[str]:
    history = memory.get("history")  # files of earlier versions have gradient_by_lag instead
    if history:
        yield from history_lines(history)
    if memory.get("gradients"):
        yield from fading_lines(memory["gradients"])
    for units in memory.get("units", ()):
        yield from unit_lines(units)
    if history and not history["has_skill"]:
        return
    if memory["forgets"]:
        steps = counted(memory["horizon_steps"], "step")
        yield f"memory: a new stream answers like an old one after {steps}"
    else:
        yield f"memory: the start is not forgotten within {counted(memory['tried_steps'], 'step')}"
    fading = memory.get("gradient_by_lag")
    if fading:
        lags = sorted(fading, key=int)  # a file has its keys in the order of letters
        listed = "  ".join(f"{lag}: {fading[lag]:.2g}" for lag in lags)
        yield f"gradient by lag (1 = no fading): {listed}"
