"""Errors of reduced weight precision against the float64 reference."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.engine import Engine
from streamrnn.kernels.precisions import PRECISION_NAMES
from streamrnn.model.model import Model
from streamrnn.model.spec import NUM_SAMPLE_STEPS
from streamrnn.reference.model import ReferenceModel

__all__ = [
    "PrecisionError",
    "measure_precisions",
    "sample_of",
    "time_precisions",
]

_NUM_TURNS, _TURN_S = 20, 0.002


@dataclass(frozen=True)
class PrecisionError:
    """Errors of one precision over a sample, each [output_size] in the output's unit."""

    precision: str
    largest: NDArray[np.float64]
    root_mean_square: NDArray[np.float64]


def sample_of(model: Model) -> tuple[NDArray[Any], bool]:
    """Return inputs [T, num_inputs] to try a model with, and whether they are its own.

    Without a sample in the weight file they are made up: standard normal numbers around each
    input's center, uniform categories.
    """
    spec = model.spec
    dtype = np.uint32 if spec.is_token else np.float64  # an origin is taken off in float64
    rows = spec.training.get("sample")
    if rows:
        filled = [[np.nan if value is None else value for value in row] for row in rows]
        return np.array(filled).astype(dtype), True
    rng = np.random.default_rng(0)
    columns = [
        rng.integers(0, item.num_categories, NUM_SAMPLE_STEPS)
        if item.num_categories
        else item.origin + item.center + item.scale * rng.standard_normal(NUM_SAMPLE_STEPS)
        for item in spec.inputs
    ]
    return np.stack(columns, axis=1).astype(dtype), False


def measure_precisions(model: Model) -> tuple[list[PrecisionError], int, bool]:
    """Run the sample in every precision, the widest first.

    Also returns the sample's number of steps, and whether it is the model's own (see `sample_of`).
    """
    x, is_own = sample_of(model)
    exact = ReferenceModel(model).steps(x)
    errors = []
    for precision in PRECISION_NAMES:
        y = Engine(model, max_streams=1, precision=precision).steps("sample", x)
        difference = np.abs(y - exact)
        rms = np.sqrt(np.mean(difference**2, axis=0))
        errors.append(PrecisionError(precision, difference.max(axis=0), rms))
    return errors, len(x), is_own


def time_precisions(model: Model) -> dict[str, float]:
    """Return microseconds of a step of one stream, called from Python, by precision.

    All take turns; the fastest turn counts, for what disturbs a step only slows it down.
    """
    x = sample_of(model)[0][:1]
    engines = {name: Engine(model, max_streams=1, precision=name) for name in PRECISION_NAMES}
    best_s = dict.fromkeys(engines, float("inf"))
    for _ in range(_NUM_TURNS):
        for name, engine in engines.items():
            engine.steps("sample", x)  # its weights come back into the cache
            num_steps, began = 0, time.perf_counter()
            while (took_s := time.perf_counter() - began) < _TURN_S or not num_steps:
                engine.steps("sample", x)
                num_steps += 1
            best_s[name] = min(best_s[name], took_s / num_steps)
    return {name: 1e6 * seconds for name, seconds in best_s.items()}
