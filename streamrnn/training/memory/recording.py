"""What a network does with a stream that is served: its row once, and its inputs since.

In float64, by the reference, which needs no compiler: from the row on, what the stream did; from
new streams, begun at some of its steps, what it would have done without its past.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.kernels.row_layout import first_row
from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec
from streamrnn.reference.gates import LayerGates, run_gates
from streamrnn.reference.model import ReferenceModel
from streamrnn.state.reference_row import reference_state
from streamrnn.training.memory.drift import measure_drift
from streamrnn.training.memory.units import STUCK, measure_units

__all__ = ["SAME", "measure_recording", "measure_restarts"]

Doubles = NDArray[np.float64]

NUM_TOLD = 16  # units
NUM_RESTARTS = 4
LEAST_STEPS = 64  # of a restart
SAME = 0.01  # outputs closer than this share of their spread are the same, as in the training
HOLDS = 0.05  # closer than this after the warm-up, and it holds: other streams spread otherwise
_LEAST_SPREAD = 1e-6  # of the largest output: less is a stream whose outputs stand still


def measure_recording(
    model: Model, row: NDArray[np.float32], x: NDArray[Any], past_steps: int | None = None
) -> dict[str, Any]:
    """Measure a recorded piece of a stream.

    Parameters
    ----------
    model : Model
        Which computed it.
    row : ndarray of float32
        The stream's before the first step.
    x : ndarray of float32 or uint32, shape (T, num_inputs)
        Its inputs as they were computed: less their origins.
    past_steps : int or None
        How many steps it had taken before; None: not known.

    Returns
    -------
    dict
        JSON types: ``num_steps``, ``layers`` (of each recurrent layer half-lives, shares of
        saturated gates, stuck gates, dead units, root mean squares of its states), ``warmup`` (as
        `measure_restarts` returns it) and ``inputs`` (as `measure_drift` does).
    """
    raw = _as_sent(model.spec, x)
    with np.errstate(all="ignore"):
        y, layers = run_gates(model, raw[None], reference_state(model.spec, row))
        is_new = row.tobytes() == first_row(model).tobytes()
        warmup = measure_restarts(model, raw, y[0], 0 if is_new else past_steps)
    return {
        "num_steps": len(x),
        "layers": [_layer_facts(found) for found in layers],
        "warmup": warmup,
        "inputs": measure_drift(model.spec, x),
    }


def _as_sent(spec: ModelSpec, x: NDArray[Any]) -> NDArray[Any]:
    origins = np.array([item.origin for item in spec.input_elements])
    return x + origins if origins.any() else x


def _layer_facts(found: LayerGates) -> dict[str, Any]:
    units = measure_units(found)
    facts: dict[str, Any] = {"layer": found.layer, "cell": found.cell, "half_life": None}
    if len(units.half_lives):
        order = np.argsort(-units.half_lives, kind="stable")[:NUM_TOLD]
        lives = [[int(k), _finite(units.half_lives[k])] for k in order]
        facts["half_life"] = {"median": _finite(np.median(units.half_lives)), "longest": lives}
    facts["saturated"] = {name: float(share.mean()) for name, share in units.saturated.items()}
    facts["stuck"] = {
        name: np.flatnonzero(share >= STUCK)[:NUM_TOLD].tolist()
        for name, share in units.saturated.items()
    }
    facts["dead"] = np.flatnonzero(units.dead)[:NUM_TOLD].tolist()
    facts["num_dead"] = int(units.dead.sum())
    facts["rms"] = {name: float(np.sqrt(np.mean(state**2))) for name, state in found.states.items()}
    return facts


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def measure_restarts(
    model: Model, raw: NDArray[Any], y: Doubles, past_steps: int | None = None
) -> dict[str, Any]:
    """Begin new streams at some steps of one, and see how far their outputs are from its own.

    Returns ``promised_steps`` (the model's ``warmup_steps``), ``num_restarts``, ``distance`` (the
    largest after so many steps: the root mean square over restarts and outputs, as a share of the
    outputs' spread), ``holds`` (whether it is at most 5 %) and ``needed_steps`` (after which it was
    within 1 %; None: it never was). The last three are None, and ``why`` says why, where nothing
    can be told.
    """
    promised = model.spec.warmup_steps
    num_steps = len(raw)
    length = min(3 * num_steps // 4, max(2 * promised, LEAST_STEPS))
    first = max(1, promised - (promised if past_steps is None else past_steps))
    none = {"promised_steps": promised, "num_restarts": 0, "distance": None, "holds": None}
    if length <= promised or first + length > num_steps:
        return none | {
            "needed_steps": None,
            "why": f"no more than {counted(num_steps, 'step')} recorded",
        }
    spread = y.std(axis=0)
    if not np.all(np.isfinite(y)) or np.all(spread <= _LEAST_SPREAD * np.abs(y).max()):
        return none | {"needed_steps": None, "why": "the outputs hardly change"}
    starts = np.unique(np.linspace(first, num_steps - length, NUM_RESTARTS).astype(int))
    places = starts[:, None] + np.arange(length)
    cold = ReferenceModel(model).steps(raw[places])
    error = (cold - y[places]) / np.maximum(spread, max(1e-12, _LEAST_SPREAD * spread.max()))
    distance = np.sqrt(np.mean(error**2, axis=(0, 2)))
    differ = np.flatnonzero(~(distance <= SAME))
    needed = int(differ[-1]) + 1 if len(differ) else 0
    largest = float(distance[promised:].max())
    return {
        "promised_steps": promised,
        "num_restarts": len(starts),
        "distance": _finite(largest),
        "holds": largest <= HOLDS,
        "needed_steps": needed if needed < length else None,
    }
