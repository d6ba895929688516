"""The operators RNN, GRU and LSTM, with all their attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.gates import SOURCE_GATES, in_our_order
from streamrnn.importers.network import Recurrent, zeros
from streamrnn.importers.onnx.values import (
    FEATURE,
    ONE_STEP,
    NotFollowed,
    Signal,
    Symbols,
    Unknown,
    Value,
)

__all__ = ["RECURRENT", "StateUse", "apply_recurrent", "time_label"]

RECURRENT = ("RNN", "GRU", "LSTM")
_DEFAULTS = {
    "RNN": ("tanh",),
    "GRU": ("sigmoid", "tanh"),
    "LSTM": ("sigmoid", "tanh", "tanh"),
}
_CELL_ACTIVATIONS = {
    "tanh": "tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "softsign": "softsign",
    "softplus": "softplus",
    "elu": "elu",
    "affine": "identity",
}
# Functions that take numbers, with those that they have by default.
_ALPHAS = {"affine": 1.0, "elu": 1.0, "hardsigmoid": 0.2}
_BETAS = {"affine": 0.0, "hardsigmoid": 0.5}
_SLOPES = {0.2: "hard_sigmoid_fifth", 1 / 6: "hard_sigmoid_sixth"}


@dataclass(frozen=True)
class StateUse:
    """Which symbols a recurrent layer begins with, and which it ends with."""

    layer: str
    first: NDArray[np.int64]  # [B, H]
    last: NDArray[np.int64]  # [B, H]
    # A cell that was written out is one only if its state comes back.
    must_return: bool = False


def apply_recurrent(
    op: str,
    name: str,
    inputs: Sequence[Value | None],
    names: Sequence[str],
    attributes: dict[str, Any],
    new_symbols: Any,
) -> tuple[list[Value], list[StateUse]]:
    """Follow one node; return its outputs and what it does with states.

    ``new_symbols`` makes symbols of a shape. Raises `NotFollowed` with all reasons.
    """
    slots = [*inputs, *[None] * (8 - len(inputs))]
    labels = [*names, *[""] * (8 - len(names))]
    signal = slots[0]
    if isinstance(signal, Unknown):
        raise NotFollowed(*signal.reasons)
    problems = _problems(attributes)
    if not isinstance(signal, Signal) or len(signal.axes) != 3:
        raise NotFollowed(*problems, "its input is not [time, batch, features] of the network")
    layout = int(attributes.get("layout", 0))
    if layout not in (0, 1):
        raise NotFollowed(*problems, f"layout is {layout}")
    time_axis = 1 if layout else 0
    time = time_label(signal, time_axis)
    weights = [_constant(slots[k], what) for k, what in ((1, "W"), (2, "R"))]
    order = signal.feature_order()
    if order is not None and weights[0].shape[-1] == order.size:
        weights[0] = weights[0][..., order]
    cell = "rnn_tanh" if op == "RNN" else op.lower()
    num_gates = len(SOURCE_GATES["onnx"][cell])
    hidden_size = weights[1].shape[-1]
    if attributes.get("hidden_size", hidden_size) != hidden_size:
        problems.append(f"hidden_size is {attributes['hidden_size']}, and R has {hidden_size}")
    rows = num_gates * hidden_size
    wanted = ((1, rows, signal.shape[2]), (1, rows, hidden_size))
    if weights[1].shape[0] == 2 and not problems:
        problems.append("it has weights of two directions: it cannot be streamed")
    if problems:
        raise NotFollowed(*problems)
    for weight, shape, what in zip(weights, wanted, "WR", strict=True):
        if weight.shape != shape:
            raise NotFollowed(f"{what} has shape {list(weight.shape)}; expected {list(shape)}")
    _check_lengths(slots[4], signal.shape[time_axis])
    signal.num_features()
    form, form_problems = _form(op, attributes)
    peepholes = _peepholes(slots[7], hidden_size)
    if form_problems:
        raise NotFollowed(*form_problems)
    cell = form.pop("cell", cell)
    bias = zeros(2 * rows) if slots[3] is None else _constant(slots[3], "B").reshape(-1)
    if bias.shape != (2 * rows,):
        raise NotFollowed(f"B has {bias.size} elements; expected {2 * rows}")
    batch = signal.shape[1 - time_axis]
    states = [_state(slots[k], layout, (batch, hidden_size)) for k in (5, 6)[: 1 + (op == "LSTM")]]
    firsts = [state for state in states if state is not None and state.dtype.kind == "f"]
    first: tuple[NDArray[Any], ...] = ()
    if firsts:
        if any(state is not None and state.dtype.kind != "f" for state in states):
            raise NotFollowed("one of its first states is an input and the other one is not")
        first = tuple(np.zeros(hidden_size) if state is None else state for state in states)
    ours = [in_our_order(part, "onnx", cell) for part in (weights[0][0], weights[1][0])]
    origins = {"weight_ih": f"{labels[1]}", "weight_hh": labels[2]}
    if slots[3] is not None:
        origins |= {"bias_ih": f"{labels[3]} (Wb)", "bias_hh": f"{labels[3]} (Rb)"}
    origins |= {
        f"first_{which}": labels[5 + k]
        for k, which in enumerate("hc"[: len(first)])
        if labels[5 + k]
    }
    if peepholes is not None:
        origins |= dict.fromkeys(("weight_ci", "weight_cf", "weight_co"), labels[7])
    layer = Recurrent(
        name,
        cell,
        ours[0],
        ours[1],
        in_our_order(bias[:rows], "onnx", cell),
        in_our_order(bias[rows:], "onnx", cell),
        origins,
        peepholes=peepholes,
        first=first,
        **form,
    )
    return _outputs(layer, signal, time, layout, states, new_symbols, (batch, hidden_size))


def _outputs(
    layer: Recurrent,
    signal: Signal,
    time: str,
    layout: int,
    states: Sequence[NDArray[Any] | None],
    new_symbols: Any,
    shape: tuple[int, int],
) -> tuple[list[Value], list[StateUse]]:
    feature = ((FEATURE, shape[1]),)
    a, b = signal.axes[0], signal.axes[1]
    # Y is [T, directions, B, H], or with layout 1 [B, T, directions, H].
    axes = (a, b, (), feature) if layout else (a, (), b, feature)
    outputs: list[Value] = [replace(signal, axes=axes, time=time).plus(layer)]
    uses = []
    for state in states:
        last = new_symbols(shape)
        is_input = state is not None and state.dtype.kind != "f"
        first = state if is_input and state is not None else np.full(shape, -1)
        uses.append(StateUse(layer.name, first, last, must_return=time == ONE_STEP))
        outputs.append(Symbols(last[:, None] if layout else last[None]))
    return outputs, uses


def _problems(attributes: dict[str, Any]) -> list[str]:
    problems = []
    direction = str(attributes.get("direction", "forward"))
    if direction == "bidirectional":
        problems.append(
            "it is bidirectional: it needs the end of a sequence before it can answer its "
            "beginning, so it cannot be streamed"
        )
    elif direction == "reverse":
        problems.append("it runs backwards (direction reverse), so it cannot be streamed")
    elif direction != "forward":
        problems.append(f"direction is {direction!r}")
    if "clip" in attributes:
        problems.append(f"it clips its gates at {attributes['clip']:g}, which no model does")
    if attributes.get("input_forget", 0):
        problems.append("it couples input and forget gate (input_forget), which no model does")
    return problems


def _form(op: str, attributes: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a layer that the activations and attributes ask for."""
    given = [str(name).lower() for name in attributes.get("activations", _DEFAULTS[op])]
    wanted = _DEFAULTS[op]
    if len(given) != len(wanted):
        return {}, [f"it has {len(given)} activations; expected {len(wanted)}"]
    alphas = _numbers(given, attributes.get("activation_alpha", ()), _ALPHAS)
    betas = _numbers(given, attributes.get("activation_beta", ()), _BETAS)
    form: dict[str, Any] = {}
    problems = []
    if op == "GRU":
        form["reset_after"] = bool(attributes.get("linear_before_reset", 0))
    gate = "tanh" if op == "RNN" else given[0]
    if op == "RNN" and given[0] in ("tanh", "relu"):
        form["cell"] = f"rnn_{given[0]}"
    elif op == "RNN":
        problems.append(
            f"it has the activation {given[0]}; a simple recurrent layer has tanh, relu"
        )
    elif gate == "hardsigmoid":
        alpha, beta = alphas[0], betas[0]
        slope = next((slope for slope in _SLOPES if abs(slope - alpha) < 1e-6), None)
        if slope is None or beta != 0.5:
            problems.append(
                f"its gates are hard sigmoids with alpha {alpha:g} and beta {beta:g}; known are "
                "alpha 0.2 and 1/6 with beta 0.5"
            )
        else:
            form["gate_activation"] = _SLOPES[slope]
    elif gate != "sigmoid":
        problems.append(f"its gates have the activation {gate}; known are sigmoid and hard sigmoid")
    keys = ("cell_activation", "output_activation")
    for j, (key, function) in enumerate(zip(keys, given[1:] if op != "RNN" else (), strict=False)):
        name = _CELL_ACTIVATIONS.get(function)
        # An affine function is nothing with its usual numbers, and an elu of ours has them.
        if name is None or (alphas[j + 1], betas[j + 1]) != (
            _ALPHAS.get(function, 0.0),
            _BETAS.get(function, 0.0),
        ):
            problems.append(
                f"it has the activation {function}; a {op} layer has one of "
                f"{', '.join(_CELL_ACTIVATIONS)}"
            )
        else:
            form[key] = name
    return form, problems


def _numbers(
    functions: Sequence[str], given: Sequence[float], defaults: dict[str, float]
) -> list[float]:
    """Deal numbers out: they are given for those functions alone that take some."""
    left = [float(number) for number in given]
    return [
        (left.pop(0) if left else defaults[function]) if function in defaults else 0.0
        for function in functions
    ]


def time_label(signal: Signal, axis: int) -> str:
    """Check that every recurrent layer runs along the same axis, and return its label."""
    labels = [label for label, _ in signal.axes[axis]]
    if signal.is_last_step:
        raise NotFollowed("it runs on the last step of another one")
    where = signal.find(signal.time) if signal.time else None
    is_one = all(size == 1 for _, size in signal.axes[axis]) and FEATURE not in labels
    if is_one and (signal.time == ONE_STEP or (where is not None and signal.shape[where] == 1)):
        return signal.time
    if signal.time:
        if signal.time not in labels:
            raise NotFollowed("it runs along another axis than the recurrent layers before it")
        return signal.time
    if not labels:
        return ONE_STEP
    if len(labels) != 1 or labels[0] == FEATURE:
        raise NotFollowed("it runs along an axis that is not one of the input's")
    return labels[0]


def _constant(value: Value | None, what: str) -> NDArray[Any]:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or 0 in value.shape:
        raise NotFollowed(f"{what} is no constant")
    if what != "B" and value.ndim != 3:
        raise NotFollowed(f"{what} has {value.ndim} axes; expected 3")
    return value


def _check_lengths(value: Value | None, num_steps: int) -> None:
    if value is None:
        return
    if not isinstance(value, np.ndarray) or not (value == num_steps).all():
        raise NotFollowed("it has sequence lengths of its own (sequence_lens), which no stream has")


def _peepholes(
    value: Value | None, hidden_size: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Read P, whose blocks are i, o, f; ours are i, f, o."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.shape != (1, 3 * hidden_size):
        raise NotFollowed("P is no constant [1, 3*H]")
    i, o, f = np.split(value[0], 3)
    return i, f, o


def _state(value: Value | None, layout: int, shape: tuple[int, int]) -> NDArray[Any] | None:
    """Return the symbols that a layer begins with, or the numbers [H]; None for zeros."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        wanted = (shape[0], 1, shape[1]) if layout else (1, *shape)
        if value.shape != wanted:
            raise NotFollowed(
                f"its first state has the shape {list(value.shape)}; expected {list(wanted)}"
            )
        rows = value.reshape(shape).astype(np.float64)
        if (rows != rows[0]).any():
            raise NotFollowed("its first state differs from sequence to sequence of the batch")
        return rows[0] if rows[0].any() else None
    if isinstance(value, Symbols):
        ids = value.ids[:, 0] if layout and value.ids.ndim == 3 else value.ids
        ids = ids[0] if not layout and ids.ndim == 3 and len(ids) == 1 else ids
        if ids.shape == shape:
            return ids
    raise NotFollowed("it begins with something else than a constant or a state input")
