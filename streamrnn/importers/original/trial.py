"""Made-up inputs with which an original and its model are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec

__all__ = ["num_trial_steps", "trial_inputs"]

_NUM_STEPS, _LEAST_STEPS = 200, 10
_NUM_PRODUCTS = 200_000_000  # of the reference, which needs some seconds for them
_MISSING_SHARE = 0.2


def num_trial_steps(model: Model) -> int:
    """Return over how many steps a model is compared: fewer for one of millions of parameters."""
    affordable = _NUM_PRODUCTS // max(model.num_parameters, 1)
    return max(_LEAST_STEPS, min(_NUM_STEPS, affordable))


def trial_inputs(spec: ModelSpec, num_streams: int, num_steps: int) -> NDArray[Any]:
    """Make inputs [B, T, I]: normal numbers around each centre, some missing where they may be."""
    rng = np.random.default_rng(0)
    shape = (num_streams, num_steps)
    columns: list[NDArray[Any]] = []
    for item in spec.input_elements:
        if item.num_categories:
            columns.append(rng.integers(0, item.num_categories, shape))
            continue
        column = item.center + item.scale * rng.standard_normal(shape)
        if item.missing != "error":
            column[rng.random(shape) < _MISSING_SHARE] = np.nan
        columns.append(column)
    return np.stack(columns, axis=2).astype(np.int64 if spec.is_token else np.float32)
