"""Report of a training as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["report_lines"]

# Of each loss, the measure that is compared.
MEASURES = ("rmse", "cross_entropy", "binary_cross_entropy")
NAMES = {
    "persistence": "persistence (the last value again)",
    "autoregression": "linear autoregression, 60 lags",
    "constant": "always the training mean",
}


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """Format ``TrainingResult.report`` (or ``model.spec.training``) as lines of text."""
    data, config, updates = report["data"], report["config"], report["updates"]
    streams = f" in {data['num_streams']} streams" if data["num_streams"] > 1 else ""
    yield f"{data['file']}: {data['num_rows']} rows{streams}; {', '.join(config['layers'])}"
    if config.get("feedback"):  # files of earlier versions do not tell
        yield f"read again at the next step: {', '.join(config['feedback'])}"
    if config["difference"]:
        yield f"seen as changes, because they drift or as told: {', '.join(config['difference'])}"
    gaps = {name: policy for name, policy in config["missing"].items() if policy != "error"}
    if gaps:
        listed = ", ".join(f"{name} ({policy})" for name, policy in gaps.items())
        yield f"missing values: {listed}; missing targets count for nobody"
    for target, errors in report["errors"]["test"].items():
        measure = next(name for name in MEASURES if name in errors)
        own = errors[measure]
        share = data.get("split", f"the last {config['split'][2]:.0%} of each stream")
        yield f"test error of {target} ({measure}; {share}):"
        yield f"  {'this model':<36}{own:.4g}" + _accuracy(errors)
        for name, baseline in report["baselines"].items():
            if target in baseline:
                other = baseline[target][measure]
                better = f"  ({1 - own / other:+.0%} by the model)" if other > 0 else ""
                yield f"  {NAMES[name]:<36}{other:.4g}{_accuracy(baseline[target])}{better}"
        parts = (
            f"{part} {report['errors'][part][target][measure]:.4g}" for part in report["errors"]
        )
        yield f"  by part: {', '.join(parts)}"
    yield (
        f"best epoch {updates['best_epoch']} of {updates['num_epochs']}, {updates['num_updates']} "
        f"updates, {updates['clipped_share']:.0%} of them clipped"
    )
    yield from _memory_lines(report["memory"])


def _accuracy(errors: dict[str, float]) -> str:
    return f"  accuracy {errors['accuracy']:.1%}" if "accuracy" in errors else ""


def _memory_lines(memory: dict[str, Any]) -> Iterator[str]:
    if memory["forgets"]:
        yield f"memory: a new stream answers like an old one after {memory['horizon_steps']} steps"
    else:
        yield f"memory: the start is not forgotten within {memory['tried_steps']} steps"
    fading = memory["gradient_by_lag"]
    if fading:
        lags = sorted(fading, key=int)  # a file has its keys in the order of letters
        listed = "  ".join(f"{lag}: {fading[lag]:.2g}" for lag in lags)
        yield f"gradient by lag (1 = no fading): {listed}"
