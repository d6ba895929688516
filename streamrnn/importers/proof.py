"""Prove an imported model: compare it with what the original answered.

The tolerance has two parts. Outputs are compared on the scale on which each of them varies; and
float32 has a cost of its own on a network, which the float64 reference tells: its outputs move when
its parameters do in their last bits. The recording carries that cost, and so does the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError
from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec
from streamrnn.reference.model import ReferenceModel

__all__ = ["TOLERANCE", "Proof", "Recording", "joined", "prove", "read_recording"]

# Of the range over which an output varies. A framework that sums in another order is some 1e-6 off,
# any other network much more than this.
TOLERANCE = 1e-5
# Where the cost of the recording's precision is above this share of the range, a network that
# differs a little would pass too: the proof says so.
_COARSE = 0.01
_NUM_MOVED = 4  # times that the parameters are moved, for so many steps at most
_MOVED_STEPS = 10_000
# Eight units in the last place stand for a sum of some terms and an activation; the margin is over
# the largest of so few draws (tests/tolerances.py has what was measured).
_UNITS, _MARGIN = 8, 4


@dataclass(frozen=True)
class Recording:
    """Inputs, and what the original answered."""

    x: NDArray[Any]  # [B, T, I]
    y: NDArray[np.float64]  # [B, T, O], or [B, 1, O] where only the last step was recorded
    precision: np.dtype[Any]  # in which y was recorded
    source: str  # for messages and the metadata

    @property
    def is_last_step(self) -> bool:
        """Whether only the last step was recorded."""
        return self.y.shape[1] != self.x.shape[1]


@dataclass
class Proof:
    """Outcome of a comparison."""

    lines: list[str]  # for the user
    failure: str | None  # why it failed
    facts: dict[str, Any]  # for the model's metadata


def prove(
    model: Model, recording: Recording, tolerance: float = TOLERANCE, *, advises: bool = True
) -> Proof:
    """Compare reference and engine with a recording.

    Parameters
    ----------
    model : Model
        To be proved.
    recording : Recording
        As `read_recording` returns it.
    tolerance : float
        Largest error of an output, as a share of the range over which it varies; more is allowed
        where the recording's precision costs more.
    advises : bool
        Whether a failure says what a user of ``streamrnn import`` may try.

    Returns
    -------
    Proof

    Raises
    ------
    DataError
        If the model does not take these inputs.
    """
    y, exact = recording.y, _shown(recording, ReferenceModel(model).steps(recording.x))
    span = y.max(axis=(0, 1)) - y.min(axis=(0, 1))
    span = np.where(np.isfinite(span), span, 0.0)
    cost = _cost(model, recording, exact)
    limit = np.maximum(tolerance * span, cost)
    num_values = y.shape[0] * y.shape[1]
    coarse = num_values > 1 and bool((limit > max(_COARSE, tolerance) * span).all())
    lines, errors, failure = [], {}, None
    for name, answer in (
        ("float64 reference", lambda: exact),
        ("engine", _engine(model, recording)),
    ):
        given = answer()
        worst = np.abs(given - y).max()
        errors[name] = float(f"{worst:.2g}") if np.isfinite(worst) else None
        lines.append(f"check: {name}: max abs error {worst:.3g} over {y.size} outputs")
        failure = _first_beyond(model, recording, given, limit)
        if failure is not None:
            if advises:
                failure += f". {_advice(model, recording, given, limit)}"
            break
    lines.append(
        f"check: tolerance {tolerance:g} of the range of each output ({_range_text(span)}), or "
        f"what {_costly(recording)} itself costs there (up to {cost.max():.2g})"
    )
    if recording.precision.itemsize < 4:
        lines.append(f"check: the outputs were recorded in half precision ({recording.precision})")
    if coarse:
        lines.append(
            f"check: this is coarse: {_costly(recording)} costs more than {_COARSE:.0%} of the "
            "range of every output; record in float64 for a sharper one"
        )
    facts = {
        "compared_with": recording.source,
        "num_outputs": int(y.size),
        "last_step_only": recording.is_last_step,
        "tolerance": tolerance,
        "is_coarse": coarse,
        "max_abs_error": errors,
    }
    return Proof(lines, failure, facts)


def joined(proofs: Sequence[Proof]) -> dict[str, Any]:
    """Return the facts of several proofs of one model, for its metadata."""
    facts = [proof.facts for proof in proofs]
    errors: dict[str, float] = {}
    for item in facts:
        for name, error in item["max_abs_error"].items():
            errors[name] = max(error, errors.get(name, 0.0))
    return facts[0] | {
        "compared_with": "; ".join(item["compared_with"] for item in facts),
        "num_outputs": sum(item["num_outputs"] for item in facts),
        "is_coarse": any(item["is_coarse"] for item in facts),
        "max_abs_error": errors,
    }


def _shown(recording: Recording, y: NDArray[Any]) -> NDArray[Any]:
    """Take of the outputs of all steps those that were recorded."""
    return y[:, -1:] if recording.is_last_step else y


def _costly(recording: Recording) -> np.dtype[Any]:
    """Return the least precision on the way: ours is float32."""
    return min(recording.precision, np.dtype(np.float32), key=lambda dtype: dtype.itemsize)


def _cost(model: Model, recording: Recording, exact: NDArray[Any]) -> NDArray[np.float64]:
    """Return what the recording's precision costs at every step and output: [T, O].

    What a step costs, later ones may cost too: it never falls. Of a long recording the first steps
    tell; after them it stays as it is.
    """
    num_steps = exact.shape[1] if recording.is_last_step else min(exact.shape[1], _MOVED_STEPS)
    x = recording.x if recording.is_last_step else recording.x[:, :num_steps]
    exact = exact[:, :num_steps]
    info = np.finfo(_costly(recording))
    rng = np.random.default_rng(0)
    moved = ReferenceModel(model)
    given = moved.parameters
    most = np.zeros(exact.shape[1:])
    for _ in range(_NUM_MOVED):
        moved.parameters = {
            name: value * (1 + _UNITS / 2 * float(info.eps) * rng.uniform(-1, 1, value.shape))
            for name, value in given.items()
        }
        change = np.abs(_shown(recording, moved.steps(x)) - exact).max(axis=0)
        most = np.maximum(most, change)
    most = np.maximum.accumulate(most, axis=0)
    most = np.pad(most, ((0, recording.y.shape[1] - num_steps), (0, 0)), mode="edge")
    # A few units in the last place, where outputs differ by little more than these.
    rounding = 4 * float(info.eps) * np.abs(recording.y).max(axis=0)
    cost: NDArray[np.float64] = _MARGIN * most + np.where(np.isfinite(rounding), rounding, 0.0)
    return cost


def _engine(model: Model, recording: Recording) -> Callable[[], NDArray[Any]]:
    def answer() -> NDArray[Any]:
        from streamrnn.engine.engine import Engine

        engine = Engine(model)
        streams = range(recording.x.shape[0])
        return _shown(recording, np.stack([engine.steps(b, recording.x[b]) for b in streams]))

    return answer


def _first_beyond(
    model: Model, recording: Recording, y: NDArray[Any], limit: NDArray[Any]
) -> str | None:
    """Say where the earliest step beyond the tolerance (or NaN) is."""
    expected = recording.y
    beyond = ~(np.abs(y - expected) <= limit)
    if not beyond.any():
        return None
    t, b, o = (int(i) for i in np.argwhere(beyond.transpose(1, 0, 2))[0])
    step = recording.x.shape[1] - 1 if recording.is_last_step else t
    return (
        f"beyond {limit[t, o]:.3g} first at stream {b}, step {step}, output "
        f"{model.spec.outputs[o].name!r}: got {y[b, t, o]:.9g}, expected {expected[b, t, o]:.9g}"
    )


def _advice(model: Model, recording: Recording, y: NDArray[Any], limit: NDArray[Any]) -> str:
    x, expected = recording.x, recording.y
    t = int(np.argmax(~(np.abs(y - expected) <= limit).all(axis=(0, 2))))
    if x.shape[2] == y.shape[2] and not model.spec.is_token:
        rest = expected - _shown(recording, x)
        if (np.abs(y - rest) <= limit + np.finfo(np.float32).eps * np.abs(expected)).all():
            return (
                "With the input added, the outputs agree: the original has a skip connection from "
                "its input to its output (of a state dict: --skip)"
            )
    if recording.is_last_step:
        hint = "Only the last step was recorded: record all steps to see where they part"
    elif t == 0:
        hint = (
            "The first step differs already. Of a state dict try --activation, --nonlinearity, "
            "--head-input, --skip, --head or --first-state; --layers says everything"
        )
    else:
        hint = f"The first {t} steps agree: try --nonlinearity, and record from a zero state"
    if x.shape[0] > 1:
        hint += "; arrays of a module with batch_first=False must be transposed to [B, T, ...]"
    return hint


def _range_text(span: NDArray[Any]) -> str:
    least, most = span.min(), span.max()
    return f"{most:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


def read_recording(spec: ModelSpec, input_path: str, output_path: str) -> Recording:
    """Read recorded inputs and outputs (``.npy``).

    Inputs [T, I] or [B, T, I], outputs [T, O] or [B, T, O], or of the last step alone, [O] or
    [B, O]. Raises `DataError` if they are no arrays of numbers, or do not fit the model.
    """
    x, y = _load(input_path), _load(output_path)
    size = spec.output_size
    if spec.num_inputs == 1 and x.shape[-1:] != (1,):
        x = x[..., None]
    is_last = x.ndim == y.ndim + 1 and x.shape[:-2] == y.shape[:-1]
    if y.ndim not in (1, 2, 3)[not is_last :] or y.shape[-1] != size or y.size == 0:
        raise DataError(
            f"{output_path} has shape {list(y.shape)}; expected [T, {size}] or [B, T, {size}], or "
            f"of the last step alone [B, {size}]"
        )
    wanted = (*x.shape[:-1], spec.num_inputs) if is_last else (*y.shape[:-1], spec.num_inputs)
    if x.ndim not in (2, 3) or x.shape != wanted or x.size == 0:
        raise DataError(
            f"{input_path} has shape {list(x.shape)}; with outputs {list(y.shape)} expected "
            f"{list(wanted)}"
            + (
                f", or [{y.shape[0]}, T, {spec.num_inputs}] if they are of the last step alone"
                if y.ndim == 2
                else ""
            )
        )
    if spec.is_token and x.dtype.kind == "f":
        raise DataError(f"{input_path} holds {x.dtype}; token ids are whole numbers")
    x = x.reshape(-1, *x.shape[-2:]).astype(np.int64 if spec.is_token else np.float32)
    precision = y.dtype if y.dtype.kind == "f" else np.dtype(np.float64)
    expected = y.astype(np.float64).reshape(x.shape[0], -1, size)
    source = f"{Path(input_path).name}, {Path(output_path).name}"
    return Recording(x, expected, precision, source)


def _load(path: str) -> NDArray[Any]:
    try:
        with Path(path).open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path} is no array in NumPy's .npy format: {error}; save it with numpy.save"
        ) from error
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {array.dtype}; expected numbers")
    return array
