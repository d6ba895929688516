"""Recurrent layers of Keras."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.gates import in_our_order
from streamrnn.importers.keras.activations import activation_of
from streamrnn.importers.keras.values import Call, Value
from streamrnn.importers.network import FrameLayer, Origins, Recurrent, zeros
from streamrnn.model.layers.base import BEFORE
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.layers.recurrent import CELL_ACTIVATIONS, GATE_ACTIVATIONS

__all__ = ["RECURRENT", "recurrent"]

RECURRENT = ("GRU", "LSTM", "RNN", "SimpleRNN")
_NUM_GATES = {"GRU": 3, "LSTM": 4, "SimpleRNN": 1}
# Options that a model cannot follow, and why.
_OPTIONS = {
    "go_backwards": "runs backwards (go_backwards), so it cannot be streamed",
    "time_major": "takes time first (time_major)",
    "zero_output_for_mask": "gives zeros at masked steps (zero_output_for_mask)",
}


def recurrent(call: Call) -> Value:
    """Make a recurrent layer; the value is every step's, or the last one's."""
    if call.kind == "RNN":
        call = _unwrapped(call)
    for option, reason in _OPTIONS.items():
        if call.config.get(option):
            raise call.refuse(reason)
    value = call.vector()
    if not value.has_time and value.is_sure:
        raise call.refuse(
            f"runs on the last step of {value.last_of!r} alone"
            if value.last_of
            else "starts anew in every step: what it reads has no axis of time"
        )
    if not value.is_masked:
        call.build.unmasked.append(call.name)
    result = replace(_made(call, value), from_state=True)
    if not call.config.get("return_sequences", False):
        result = replace(result, has_time=False, last_of=call.name, is_masked=False)
    return result


def _unwrapped(call: Call) -> Call:
    """Let ``RNN(LSTMCell(...))`` be an ``LSTM``."""
    cell = call.config.get("cell")
    kind = str(cell.get("class_name") if isinstance(cell, dict) else cell)[:60]
    if not isinstance(cell, dict) or kind.removesuffix("Cell") not in _NUM_GATES:
        raise call.refuse(f"is an RNN of {kind}; known are GRUCell, LSTMCell and SimpleRNNCell")
    own = cell.get("config")
    config = call.config | (own if isinstance(own, dict) else {})
    return replace(call, kind=kind.removesuffix("Cell"), config=config)


def _made(call: Call, value: Value) -> Value:
    kind, config, version = call.kind, call.config, call.build.version
    units, where = call.whole("units"), f"layer {call.name!r}"
    activation, slope = activation_of(config.get("activation", "tanh"), version, where)
    gate, _ = activation_of(config.get("recurrent_activation", "sigmoid"), version, where)
    if kind != "SimpleRNN":
        if activation not in CELL_ACTIVATIONS or slope not in (None, 1.0):
            raise call.refuse(
                f"has the activation {activation} where a {kind} has one of "
                f"{', '.join(CELL_ACTIVATIONS)}"
            )
        if gate not in GATE_ACTIVATIONS:
            raise call.refuse(f"has the activation {gate} at its gates")
    kernel, recurrent_kernel, biases, origins = _arrays(call, units)
    if kind == "SimpleRNN" and activation not in ("tanh", "relu"):
        return _of_dense(call, (kernel, recurrent_kernel, biases), origins, (activation, slope))
    cell = f"rnn_{activation}" if kind == "SimpleRNN" else kind.lower()
    kernel, recurrent_kernel, bias_ih, bias_hh = (
        in_our_order(a, "keras", cell) for a in (kernel, recurrent_kernel, *biases)
    )
    layer = Recurrent(
        call.name,
        cell,
        kernel,
        recurrent_kernel,
        bias_ih,
        bias_hh,
        origins,
        reset_after=kind != "GRU" or _is_reset_after(call),
        gate_activation="sigmoid" if kind == "SimpleRNN" else gate,
        cell_activation="tanh" if kind == "SimpleRNN" else activation,
        output_activation=activation if kind == "LSTM" else "tanh",
    )
    return call.build.add(layer, value, 1, units)


def _arrays(
    call: Call, units: int
) -> tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]], Origins]:
    """Check the arrays; return them with rows first, in Keras's order of gates."""
    rows = _NUM_GATES[call.kind] * units
    has_bias = call.flag("use_bias")
    is_double = call.kind == "GRU" and _is_reset_after(call)
    bias_shape: tuple[int, ...] = (2, rows) if is_double else (rows,)
    call.expect((call.columns(0, 2), rows), (units, rows), *([bias_shape] * has_bias))
    biases = [zeros(rows), zeros(rows)]
    origins = {"weight_ih": f"{call.name}/kernel", "weight_hh": f"{call.name}/recurrent_kernel"}
    if has_bias:
        parts = call.arrays[2].reshape(-1, rows)
        for k, (name, part) in enumerate(zip(("bias_ih", "bias_hh"), parts, strict=False)):
            biases[k] = part
            origins[name] = f"{call.name}/bias" + (f"[{k}]" if len(parts) == 2 else "")
    return call.arrays[0].T, call.arrays[1].T, biases, origins


def _is_reset_after(call: Call) -> bool:
    """Whether the reset gate scales a product; the shape of the bias says it in old files."""
    if "reset_after" in call.config:
        return call.flag("reset_after")
    if len(call.arrays) < 3:
        raise call.refuse("is a GRU, but the file does not say reset_after")
    return call.arrays[2].ndim == 2


def _of_dense(
    call: Call,
    arrays: tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]]],
    origins: Origins,
    activation: tuple[str, float | None],
) -> Value:
    """Make a simple recurrent layer of any activation: a product that reads its own output."""
    kernel, recurrent_kernel, biases = arrays
    if call.value.is_masked:
        raise call.refuse(f"has the activation {activation[0]}; a masked one has tanh or relu")
    value = call.build.single(call.value, call.name)
    weights = np.concatenate([kernel, recurrent_kernel], axis=1)
    both = {
        "weight": f"{origins['weight_ih']}, {origins['weight_hh']}",
        "bias": origins.get("bias_ih", "nothing (zeros)"),
    }
    name = call.build.free(call.name)
    spec = DenseSpec(len(weights), *activation)
    layer = FrameLayer(
        name,
        spec,
        {"weight": weights, "bias": biases[0]},
        both,
        reads=(*value.reads, name + BEFORE),
    )
    return call.build.add(layer, value, 1, len(weights))
