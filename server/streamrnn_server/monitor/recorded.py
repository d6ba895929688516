"""Metrics of what the networks of recorded streams do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["diagnostic_metrics"]

_OF_LAYERS = {
    "half_life_steps": (
        "half_life_steps",
        "Steps after which half of a unit's state is left, the median of units and recordings.",
    ),
    "saturated_gates_ratio": ("saturated", "Share of gates below 0.01 or above 0.99."),
    "dead_units": ("dead", "Units whose output does not change during a recording."),
}


def diagnostic_metrics(by_model: Mapping[str, Any] | None) -> Iterator[Metric]:
    """Yield the metrics of ``diagnostics`` in `stats`; none where nothing is recorded."""
    if by_model is None:
        return
    measured = CounterMetricFamily(
        "streamrnn_recordings_measured", "Recordings of streams measured.", labels=["model"]
    )
    beyond = GaugeMetricFamily(
        "streamrnn_inputs_beyond_training_ratio",
        "Share of input values beyond all of the training.",
        labels=["model"],
    )
    warmup = GaugeMetricFamily(
        "streamrnn_warmup_distance_ratio",
        "How far new streams are off after their warm-up, as a share of the outputs' spread.",
        labels=["model"],
    )
    rms = GaugeMetricFamily(
        "streamrnn_state_rms",
        "Root mean square of a layer's states.",
        labels=["model", "layer", "state"],
    )
    for model, told in by_model.items():
        measured.add_metric([model], told["num_measured"])
        if told["beyond"] is not None:
            beyond.add_metric([model], told["beyond"])
        if told["warmup"] is not None and told["warmup"]["distance"] is not None:
            warmup.add_metric([model], told["warmup"]["distance"])
        for layer in told["layers"]:
            for state, value in layer["rms"].items():
                rms.add_metric([model, str(layer["layer"] + 1), state], value)
    yield from (measured, beyond, warmup, rms)
    for name, (key, help) in _OF_LAYERS.items():
        metric = GaugeMetricFamily(f"streamrnn_{name}", help, labels=["model", "layer"])
        for model, told in by_model.items():
            for layer in told["layers"]:
                if layer[key] is not None:
                    metric.add_metric([model, str(layer["layer"] + 1)], layer[key])
        yield metric
