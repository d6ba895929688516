"""Memory of a trained network, and the warm-up that a new stream needs.

Vanishing gradients (Bengio, Simard and Frasconi 1994; Pascanu et al. 2013) are measured, not
guessed: the norm of the gradient of an output by the input some steps earlier.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamrnn.training.data.dataset import Dataset, encode
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.network.network import Chunk, Network

__all__ = ["Memory", "gradient_by_lag", "measure_memory"]

NUM_WINDOWS, LEAST_WINDOWS = 32, 4
MAX_ELEMENTS = 16_000_000  # outputs at once, if there may be fewer windows
MAX_LAG = 256
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
    gradient_by_lag: dict[str, float]  # relative to lag 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


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


def gradient_by_lag(network: Network, dataset: Dataset) -> dict[str, float]:
    """Measure how the influence of an input on the outputs fades.

    For the lags 0, 1, 2, 4, ...: root mean square over windows of the norm of the gradient of the
    sum of the pre-activations by the features of the step `lag` earlier, in the training part,
    relative to lag 0.
    """
    longest = max(stream.stops[0] for stream in dataset.streams)
    num_steps = max(1, min(MAX_LAG + 1, longest // 2))
    rows = [(k, start, start + num_steps) for k, start in _windows(dataset, num_steps)]
    if not rows:
        return {}
    chunk, _ = stack_rows(dataset.streams, rows)
    z, _ = network.forward(chunk, network.initial_state(len(rows)))
    grad_z = np.zeros_like(z)
    grad_z[-1] = 1.0
    grad_x = network.backward(grad_z, need_grad_x=True)
    if grad_x is None:
        return {}
    norms = np.sqrt(np.mean(np.sum(grad_x.astype(np.float64) ** 2, axis=2), axis=1))[::-1]
    lags = [0, *(1 << k for k in range(16) if 1 << k < num_steps)]
    return {str(lag): float(norms[lag] / max(norms[0], 1e-300)) for lag in lags}


def measure_memory(network: Network, dataset: Dataset) -> Memory:
    """Compare new streams with warmed-up ones, over windows of the training part."""
    longest = max(stream.stops[0] for stream in dataset.streams)
    num_steps = max(1, min(MAX_HORIZON, longest // 2))
    windows = _windows(dataset, num_steps)
    fading = gradient_by_lag(network, dataset)
    if not windows:
        return Memory(0, False, 0, fading)
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
    return Memory(horizon, horizon < num_steps, num_steps, fading)
