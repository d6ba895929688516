"""Operators that compute: on constants with NumPy, on what the network computes as layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.importers.network import Activation, Dense, Embedding, Scale, zeros
from streamrnn.importers.onnx.frames.axes import with_channels
from streamrnn.importers.onnx.frames.join import join_signals
from streamrnn.importers.onnx.moves import MAX_ELEMENTS
from streamrnn.importers.onnx.patterns import find_pattern
from streamrnn.importers.onnx.values import FEATURE, NotFollowed, Signal, Symbols, Value

__all__ = [
    "ARITHMETIC",
    "FUNCTIONS",
    "apply_arithmetic",
    "apply_function",
    "apply_product",
    "check_cast",
    "look_up",
    "normalise",
]

Attributes = dict[str, Any]
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Sub": np.subtract,
}
_FLOATS = (1, 10, 11, 16)  # data types of ONNX
# Our names of them; which of them a model can hold is not asked here.
FUNCTIONS = {
    "Abs": "abs",
    "Celu": "elu",
    "Elu": "elu",
    "Erf": "@erf",
    "Exp": "exp",
    "Gelu": "gelu",
    "HardSigmoid": "hard_sigmoid",
    "HardSwish": "hard_swish",
    "LeakyRelu": "leaky_relu",
    "Log": "log",
    "LogSoftmax": "log_softmax",
    "Mish": "softplus",
    "Neg": "identity",
    "Reciprocal": "reciprocal",
    "Relu": "relu",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


def apply_function(
    op: str, name: str, value: Value | None, attributes: Attributes, opset: int
) -> Value:
    """Apply a function of one argument to a signal."""
    if not isinstance(value, Signal):
        raise NotFollowed("it is applied to something else than what the network computes")
    if op in ("Softmax", "LogSoftmax"):
        rank = len(value.axes)
        # Before opset 13 the default was 1, and all axes from there on were one.
        axis = int(attributes.get("axis", -1 if opset >= 13 else 1)) % max(rank, 1)
        value = value.featured()
        if value.find(FEATURE) != axis:
            raise NotFollowed("it is a softmax along another axis than the features'")
        if opset < 13 and math.prod(value.shape[axis + 1 :]) != 1:
            raise NotFollowed(
                "it is a softmax over the features and all axes after them, as all were before "
                "opset 13: export with that or a later one"
            )
        if any(size != 1 for label, size in value.axes[axis] if label != FEATURE):
            raise NotFollowed("it is a softmax over the places of a frame, with their channels")
    if op in ("Celu", "Log", "Mish", "Neg"):
        return _composed(op, name, value, attributes)
    return value.plus(_activation(op, name, attributes))


def _composed(op: str, name: str, signal: Signal, attributes: Attributes) -> Signal:
    """Apply a function that is several layers of ours."""

    def scaled(value: Signal, own: str, factor: float) -> Signal:
        return value.plus(Scale(own, np.array([factor]), np.zeros(1)))

    if op == "Neg":
        return scaled(signal, name, -1.0)
    if op == "Mish":  # x tanh(softplus(x))
        soft = signal.plus(Activation(f"{name}.softplus", "softplus"))
        return join_signals("Mul", name, (signal, soft.plus(Activation(f"{name}.tanh", "tanh"))))
    if op == "Celu":  # alpha elu(x / alpha)
        alpha = float(attributes.get("alpha", 1.0))
        if not alpha:
            raise NotFollowed("its alpha is 0")
        inner = scaled(signal, f"{name}.inner", 1.0 / alpha).plus(Activation(f"{name}.elu", "elu"))
        return scaled(inner, name, alpha)
    last = signal.last
    if isinstance(last, Activation) and last.kind == "sigmoid":  # without its loss of digits
        before = replace(signal, head=last.reads[0])
        soft = scaled(before, f"{name}.minus", -1.0).plus(Activation(f"{name}.soft", "softplus"))
        return scaled(soft, name, -1.0).pruned()
    return signal.plus(Activation(name, "log"))


def _activation(op: str, name: str, attributes: Attributes) -> Activation:
    """Return an activation with its numbers, which must be ones that a layer has."""
    kind = FUNCTIONS[op]
    alpha, beta = attributes.get("alpha"), attributes.get("beta", 0.5)
    if op in ("Elu", "LeakyRelu"):
        return Activation(name, kind, None if alpha is None else float(alpha))
    if op == "HardSigmoid":
        alpha = 0.2 if alpha is None else alpha
        slopes = {0.2: "hard_sigmoid_fifth", 1 / 6: "hard_sigmoid_sixth"}
        named = next((name for slope, name in slopes.items() if abs(slope - alpha) < 1e-6), None)
        if named is None or beta != 0.5:
            raise NotFollowed(
                f"it has alpha {alpha:g} and beta {beta:g}; known are alpha 0.2 and 1/6 with beta "
                "0.5"
            )
        return Activation(name, named)
    if op == "Gelu" and str(attributes.get("approximate", "none")) == "tanh":
        return Activation(name, "gelu_tanh")
    known = {"Selu": {"alpha": 1.67326319, "gamma": 1.05070102}}.get(op, {})
    for key, value in known.items():
        if abs(float(attributes.get(key, value)) - value) > 1e-5:
            raise NotFollowed(f"it has {key} {attributes[key]:g}; known is {value:g}")
    return Activation(name, kind)


def apply_arithmetic(
    op: str, name: str, inputs: Sequence[Value | None], names: Sequence[str]
) -> Value:
    """Apply an operator of two arguments."""
    a, b = inputs[0], inputs[1]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if math.prod(np.broadcast_shapes(a.shape, b.shape)) > MAX_ELEMENTS:
            raise NotFollowed("it makes too many elements")
        if op == "Div" and a.dtype.kind in "iu":
            if (b == 0).any():
                raise NotFollowed("it divides by zero")
            floor = a // b  # ONNX rounds towards zero
            return np.asarray(floor + ((floor < 0) & (floor * b != a)), floor.dtype)
        return np.asarray(ARITHMETIC[op](a, b))
    if isinstance(a, Signal) and isinstance(b, Signal):
        return find_pattern(op, name, a, b) or join_signals(op, name, (a, b))
    if isinstance(a, Signal) and isinstance(b, np.ndarray):
        signal, constant, stored, is_left = a, b, names[1], False
    elif isinstance(b, Signal) and isinstance(a, np.ndarray):
        signal, constant, stored, is_left = b, a, names[0], True
    elif op == "Add" and isinstance(a, Symbols) and isinstance(b, np.ndarray) and not b.any():
        return a  # a zero that an exporter adds so that an input has a use
    else:
        raise NotFollowed("it computes with states of the network")
    if constant.size == 1 and op in ("Add", "Sub", "Mul", "Div") and not is_left:
        neutral = 0.0 if op in ("Add", "Sub") else 1.0
        if float(constant.reshape(())) == neutral and signal.layers:
            return signal
    signal = _with_named_channels(signal, constant)
    row = _row(signal, constant) if constant.size != 1 else _number(constant)
    one, none = np.ones_like(row), np.zeros_like(row)
    last = signal.last
    if op == "Add" and isinstance(last, Dense) and last.activation == "identity":
        origins = last.origins | {
            "bias": ", ".join(filter(None, (last.origins.get("bias"), stored)))
        }
        return signal.exchanged(replace(last, bias=last.bias + row, origins=origins))
    if op == "Div" and is_left:
        signal = signal.plus(Activation(f"{name}.divisor", "reciprocal"))
        op = "Mul"
    if op in ("Add", "Sub"):
        gain = -one if op == "Sub" and is_left else one
        shift = -row if op == "Sub" and not is_left else row
    else:
        with np.errstate(divide="ignore"):  # the model refuses the Inf, by name
            gain, shift = (one / row if op == "Div" else row), none
    k = signal.find(FEATURE)
    if (
        row.size != 1
        and k == len(signal.axes) - 1
        and (order := signal.feature_order()) is not None
    ):
        gain, shift = gain[order], shift[order]
    made = signal.plus(Scale(name, gain, shift))
    return made if k is not None or row.size == 1 else made.with_features(row.size)


def _number(constant: NDArray[Any]) -> NDArray[np.float64]:
    if constant.dtype.kind not in "fiu":
        raise NotFollowed("its constant is no number")
    return constant.reshape(1).astype(np.float64)


def _with_named_channels(signal: Signal, constant: NDArray[Any]) -> Signal:
    """Let the input's features lie where a constant has one number for each."""
    if signal.find(FEATURE) is not None or constant.size == 1:
        return signal
    shape = [1] * (len(signal.axes) - constant.ndim) + list(constant.shape)
    wide = [k for k, size in enumerate(shape) if size != 1]
    if len(wide) != 1 or shape[wide[0]] != signal.shape[wide[0]] or wide[0] == 0:
        return signal
    return with_channels(signal, wide[0], shape[wide[0]])


def _row(signal: Signal, constant: NDArray[Any]) -> NDArray[np.float64]:
    """Return a constant as one number for every feature."""
    k = signal.find(FEATURE)
    if k is not None and k != len(signal.axes) - 1:  # a frame, its channels before the places
        shape = [1] * (len(signal.axes) - constant.ndim) + list(constant.shape)
        others = [size for axis, size in enumerate(shape) if axis != k]
        if any(size != 1 for size in others) or constant.dtype.kind not in "fiu":
            raise NotFollowed("its constant is not one number for every channel")
        channels = np.broadcast_to(constant.reshape(-1).astype(np.float64), signal.shape[k])
        return channels
    num_features = signal.num_features()
    if constant.dtype.kind not in "fiu" or constant.size not in (1, num_features):
        raise NotFollowed("its constant is not one number for every feature")
    if constant.size > 1 and constant.shape[-1] != num_features:
        raise NotFollowed("its constant goes along another axis than the features'")
    row: NDArray[np.float64] = np.broadcast_to(
        constant.reshape(-1).astype(np.float64), (num_features,)
    )
    return row


def apply_product(
    op: str,
    name: str,
    inputs: Sequence[Value | None],
    names: Sequence[str],
    attributes: Attributes,
) -> Value:
    """Apply a MatMul or a Gemm with a constant matrix."""
    signal, weight = inputs[0], inputs[1]
    if isinstance(signal, np.ndarray) and isinstance(weight, np.ndarray):
        raise NotFollowed("it multiplies constants")
    if not isinstance(signal, Signal) or not isinstance(weight, np.ndarray) or weight.ndim != 2:
        raise NotFollowed("it is no product of what the network computes with a constant matrix")
    bias = inputs[2] if len(inputs) > 2 else None
    alpha, beta = 1.0, 1.0
    if op == "Gemm":
        alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
        if attributes.get("transA", 0):
            raise NotFollowed("it transposes its first matrix")
        if len(signal.axes) != 2:
            raise NotFollowed(f"it takes {len(signal.axes)} axes")
    rows = weight if attributes.get("transB", 0) and op == "Gemm" else weight.T
    if signal.num_features() != rows.shape[1]:
        raise NotFollowed(f"its matrix takes {rows.shape[1]} of {signal.num_features()} features")
    num_outputs = rows.shape[0]
    shift: NDArray[Any] = zeros(num_outputs)
    origins = {"weight": names[1]}
    if bias is not None:
        if not isinstance(bias, np.ndarray) or bias.size not in (1, num_outputs):
            raise NotFollowed("its bias is not one number for every output")
        shift = np.broadcast_to(bias.reshape(-1), (num_outputs,))
        origins["bias"] = names[2]
    if (order := signal.feature_order()) is not None:
        rows = rows[:, order]
    rows = rows if alpha == 1 else rows.astype(np.float64) * alpha
    shift = shift if beta == 1 else shift.astype(np.float64) * beta
    return signal.plus(Dense(name, rows, shift, origins)).with_features(num_outputs)


def check_cast(signal: Signal, attributes: Attributes, *, is_whole: bool) -> None:
    """Refuse to make whole numbers of floats; ``is_whole`` says that the input is of such."""
    last = signal.last
    if int(attributes.get("to", 0)) in _FLOATS or (is_whole and not signal.layers):
        return
    if not isinstance(last, Activation) or not last.kind.startswith("@"):
        raise NotFollowed("it makes whole numbers of what the network computes")


def look_up(signal: Signal, table: NDArray[Any], name: str, stored: str) -> Signal:
    """Make an embedding of a Gather from a constant table."""
    if signal.layers or table.ndim != 2:
        raise NotFollowed("it looks up in a table by what the network computes")
    axes = (*signal.axes, ((FEATURE, table.shape[1]),))
    return replace(signal, axes=axes).plus(Embedding(name, table, {"weight": stored}))


def normalise(signal: Signal, inputs: Sequence[Value | None], name: str, epsilon: float) -> Signal:
    """Make a scale of a batch normalisation, whose features lie on axis 1."""
    constants = [value for value in inputs[1:5] if isinstance(value, np.ndarray)]
    if len(constants) != 4 or len({c.shape for c in constants}) != 1 or constants[0].ndim != 1:
        raise NotFollowed("its four vectors are no constants")
    k = 1
    labels = {label for label, size in signal.axes[k] if size != 1} if len(signal.axes) > k else {}
    if (
        not labels
        or (labels != {FEATURE} and signal.find(FEATURE) is not None)
        or signal.shape[k] != constants[0].size
    ):
        raise NotFollowed("it does not work along the features")
    if labels != {FEATURE}:  # the input as it came: axis 1 has the features by definition
        signal = with_channels(signal, k, signal.shape[k])
    scale, bias, mean, variance = (c.astype(np.float64) for c in constants)
    gain = scale / np.sqrt(variance + epsilon)
    return signal.plus(Scale(name, gain, bias - mean * gain))
