"""Check of a saved model: the engine must reproduce the trainer's outputs."""

from __future__ import annotations

import numpy as np

from streamrnn.errors import TrainingError
from streamrnn.model.model import Model
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.network.lags import network_of
from streamrnn.training.network.layers import Array
from streamrnn.training.network.network import Chunk

__all__ = ["trainer_outputs", "verify"]

MAX_STREAMS = 4
MAX_STEPS, LEAST_STEPS = 4096, 64
MAX_ELEMENTS = 16_000_000  # outputs of a stream, if it may be fewer steps
# Share of an output's scale: float32 sums in another order, over thousands of steps.
TOLERANCE = 1e-4


def trainer_outputs(model: Model, stream: Stream, dtype: type) -> Array:
    """Compute a stream's outputs as the trainer does, in the user's units.

    ``dtype`` is what is computed in, float32 or float64; returns [T, O] of float64, at most
    `MAX_STEPS` rows.
    """
    network = network_of(model.spec, model.parameters, dtype)
    num_steps = _num_steps(model)
    codes = {name: code[:num_steps] for name, code in stream.chunk.codes.items()}
    chunk = Chunk(stream.chunk.features[:num_steps].astype(dtype), codes)
    y, _ = network.outputs(chunk, network.initial_state(1))
    outputs = model.spec.outputs
    scaled = y[:, 0].astype(np.float64) * [item.scale for item in outputs]
    scaled += [item.center for item in outputs]
    return scaled + stream.level[:num_steps]


def _num_steps(model: Model) -> int:
    return max(LEAST_STEPS, min(MAX_STEPS, MAX_ELEMENTS // model.spec.output_size))


def verify(model: Model, dataset: Dataset) -> float:
    """Compare the engine's outputs with the trainer's; return the largest difference.

    It is a share of the output's scale. Raises `TrainingError` if one is too large.
    """
    from streamrnn.engine.sequences import Sequences

    worst = 0.0
    for stream in dataset.streams[:MAX_STREAMS]:
        x = stream.x[: _num_steps(model)]
        origins = [item.origin for item in model.spec.inputs]
        if any(origins):
            x = x + np.array(origins)  # in float64: the engine takes it away again
        sequences = Sequences(model, x.astype(np.uint32) if model.spec.is_token else x)
        y = sequences.run(np.array([0]), np.array([len(x)]))
        origin = np.array([item.origin for item in model.spec.outputs])
        y = y - origin
        exact = trainer_outputs(model, stream, np.float64)
        rounded = trainer_outputs(model, stream, np.float32)
        scale = np.array([item.scale for item in model.spec.outputs])
        # A chaotic network multiplies rounding errors: grant the engine what float32 costs us.
        own_error = np.maximum.accumulate(np.abs(rounded - exact), axis=0)
        # Beside its origin an output is rounded as float64 is there.
        resolution = 4 * np.finfo(np.float32).eps * np.abs(exact) + np.spacing(np.abs(origin))
        allowed = TOLERANCE * scale + 10 * own_error + resolution
        error = np.abs(y - exact)
        if not np.all(error <= allowed):
            step, output = np.argwhere(~(error <= allowed))[0]
            raise TrainingError(
                f"the saved model does not reproduce its training: at step {step} of stream "
                f"{stream.name!r} the engine says {y[step, output]:.9g} for output "
                f"{model.spec.outputs[output].name!r}, the trainer {exact[step, output]:.9g}. "
                "This is a defect of StreamRNN; please report it with the configuration"
            )
        worst = max(worst, float(np.max(error / scale, initial=0.0)))
    return worst
