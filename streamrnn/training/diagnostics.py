"""Memory of a trained network, and the warm-up that a new stream needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from streamrnn.model.model import Model
from streamrnn.training.data.dataset import Dataset, encode
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.memory.fading import measure_fading
from streamrnn.training.memory.history import measure_history
from streamrnn.training.memory.units import measure_layers
from streamrnn.training.network.network import Chunk, Network

__all__ = ["Memory", "measure_memory"]

NUM_WINDOWS, LEAST_WINDOWS = 32, 4
MAX_ELEMENTS = 16_000_000  # outputs at once, if there may be fewer windows
MAX_HORIZON = 1024
SAME = 0.01  # outputs closer than this share of their spread count as the same


@dataclass(frozen=True)
class Memory:
    """Memory of a trained network."""

    # Steps after which a new stream's outputs are within 1 % (of their spread) of those of a stream
    # that has seen everything; `tried_steps` if they never are.
    horizon_steps: int
    forgets: bool  # whether they ever were
    tried_steps: int  # number of steps that were tried
    # As `History.to_dict`, `Fading.to_dict` and `LayerUnits.to_dict` give them; None and nothing
    # where they are not measured.
    history: dict[str, Any] | None = None
    gradients: dict[str, Any] | None = None
    units: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"units": list(self.units)}


def _windows(dataset: Dataset, num_steps: int) -> list[tuple[int, int]]:
    """Return stream and first row of windows in the training part, evenly spread."""
    places = [
        (k, start)
        for k, stream in enumerate(dataset.streams)
        for start in range(1, stream.stops[0] - num_steps + 1, max(1, num_steps // 8))
    ]
    most = max(LEAST_WINDOWS, MAX_ELEMENTS // (num_steps * dataset.spec.output_size))
    num_windows = min(NUM_WINDOWS, most, len(places))
    chosen = np.linspace(0, len(places) - 1, num_windows).astype(int)
    return [places[k] for k in np.unique(chosen)]


def measure_memory(network: Network, dataset: Dataset) -> Memory:
    """Measure what a network remembers: its warm-up, loss by history, gradients by lag, units."""
    warmup = _measure_warmup(network, dataset)
    parameters = {name: np.asarray(value, np.float32) for name, value in network.parameters.items()}
    model = Model(replace(network.spec, training={}), parameters)
    has_validation = any(stream.stops[1] > stream.stops[0] for stream in dataset.streams)
    part = "validation" if has_validation else "train"  # of a refit all rows are learned from
    history = measure_history(model, dataset, part)
    gradients = measure_fading(model, dataset, "train", dataset.config.truncation_steps)
    return replace(
        warmup,
        history=history.to_dict() if history else None,
        gradients=gradients.to_dict() if gradients else None,
        units=tuple(each.to_dict() for each in measure_layers(model, dataset, part)),
    )


def _measure_warmup(network: Network, dataset: Dataset) -> Memory:
    """Compare new streams with warmed-up ones, over windows of the training part."""
    longest = max(stream.stops[0] for stream in dataset.streams)
    num_steps = max(1, min(MAX_HORIZON, longest // 2))
    windows = _windows(dataset, num_steps)
    if not windows:
        return Memory(0, False, 0)
    begins = [max(0, start - num_steps) for _, start in windows]
    informed, fresh = [], []
    for (k, start), begin in zip(windows, begins, strict=True):
        stream = dataset.streams[k]
        fresh.append(encode(dataset.spec, stream.x[start : start + num_steps]))
        codes = {name: code[begin:start] for name, code in stream.chunk.codes.items()}
        past = Chunk(stream.chunk.features[begin:start], codes)
        informed.append(network.outputs(past, network.initial_state(1))[1])
    names = fresh[0].codes
    joined = Chunk(
        np.concatenate([new.features for new in fresh], axis=1),
        {name: np.concatenate([new.codes[name] for new in fresh], axis=1) for name in names},
    )
    known, _ = stack_rows(dataset.streams, [(k, start, start + num_steps) for k, start in windows])
    warm_state = [
        tuple(np.concatenate([state[layer][s] for state in informed]) for s in range(num_states))
        for layer, num_states in enumerate(len(states) for states in informed[0])
    ]
    warm, _ = network.outputs(known, warm_state)
    cold, _ = network.outputs(joined, network.initial_state(len(windows)))
    # Of the later half: a window near a stream's start has yet to warm up itself.
    spread = np.maximum(warm[num_steps // 2 :].std(axis=(0, 1)), 1e-12)
    distance = np.sqrt(np.mean(((warm - cold) / spread) ** 2, axis=(1, 2)))
    differ = np.flatnonzero(distance > SAME)
    horizon = int(differ[-1]) + 1 if len(differ) else 0
    return Memory(horizon, horizon < num_steps, num_steps)
