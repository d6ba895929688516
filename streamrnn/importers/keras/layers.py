"""Layers of Keras, one by one: its configuration and its arrays become ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.gates import in_our_order
from streamrnn.importers.network import (
    Activation,
    Dense,
    Embedding,
    Layer,
    Network,
    Recurrent,
    Scale,
    zeros,
)

__all__ = ["RECURRENT", "make_layers"]

Config = dict[str, Any]
Arrays = Sequence[NDArray[Any]]
RECURRENT = ("GRU", "LSTM", "SimpleRNN")
# They do nothing once a network is trained.
_NOTHING = (
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "InputLayer",
    "SpatialDropout1D",
)
_EPSILON = 1e-7  # of Keras's backend
_ACTIVATION_LAYERS = {
    "ELU": "elu",
    "LeakyReLU": "leaky_relu",
    "PReLU": "prelu",
    "ReLU": "relu",
    "Softmax": "softmax",
}


def make_layers(
    kind: str, config: Config, arrays: Arrays, version: str, network: Network
) -> list[Layer]:
    """Make ours of one layer; what a model cannot hold is noted in the network's problems."""
    name = str(config.get("name", kind))[:100]
    problems = network.problems
    if kind in _NOTHING:
        return []
    _check_policy(config, name, network)
    if kind in RECURRENT:
        return _recurrent(kind, name, config, arrays, version, problems)
    if kind in _ACTIVATION_LAYERS:
        plain = {"max_value": None, "negative_slope": 0, "threshold": 0, "axis": -1}
        if kind in ("ReLU", "Softmax") and any(
            config.get(key, default) not in (default, [default]) for key, default in plain.items()
        ):
            problems.append(f"layer {name!r} ({kind}) has options that are not supported")
        return [Activation(name, _ACTIVATION_LAYERS[kind])]
    makers: dict[str, Callable[[], list[Layer]]] = {
        "Activation": lambda: [Activation(name, _activation(config.get("activation"), version))],
        "BatchNormalization": lambda: [_batch_norm(name, config, arrays)],
        "Dense": lambda: [_dense(name, config, arrays, version)],
        "Embedding": lambda: [_embedding(name, config, arrays, problems)],
        "Normalization": lambda: [_normalization(name, config, arrays)],
        "Rescaling": lambda: [_rescaling(name, config)],
    }
    if kind in makers:
        return makers[kind]()
    problems.append(_unsupported(kind, name))
    return []


def _unsupported(kind: str, name: str) -> str:
    if kind == "Bidirectional":
        return (
            f"layer {name!r} is bidirectional: it needs the end of a sequence before it can answer "
            "its beginning, so it cannot be streamed"
        )
    if kind == "Masking":
        return f"layer {name!r} masks steps (Masking), which no model does"
    return f"layer {name!r} is a {kind}, which is not supported"


def _check_policy(config: Config, name: str, network: Network) -> None:
    policy = config.get("dtype", "float32")
    if isinstance(policy, dict):
        inner = policy.get("config")
        policy = inner.get("name", "float32") if isinstance(inner, dict) else "float32"
    policy = str(policy)
    if config.get("quantization_config") or "int8" in policy or "float8" in policy:
        network.problems.append(f"layer {name!r} is quantised ({policy})")
    elif policy not in ("float32", "int32", "int64") and policy.endswith("float16"):
        note = f"the file computes in half precision ({policy}); the model in float32"
        if note not in network.notes:
            network.notes.append(note)


def _activation(value: Any, version: str) -> str:
    """Return our name of an activation; what is none of Keras's own keeps its name."""
    if isinstance(value, dict):  # a function or an object, serialised
        inner = value.get("config")
        value = inner if isinstance(inner, str) else value.get("class_name")
    if value is None or value == "linear":
        return "identity"
    if value == "hard_sigmoid":
        # The slope changed behind the name: 1/5 in Keras 2, 1/6 in Keras 3.
        return "hard_sigmoid_fifth" if version.startswith(("1.", "2.")) else "hard_sigmoid_sixth"
    return str(value)[:60]


def _expect(arrays: Arrays, shapes: Sequence[tuple[int, ...]], name: str) -> None:
    got = [array.shape for array in arrays]
    if got != list(shapes):
        raise ModelFileError(
            f"layer {name!r} has weights of shapes {[list(s) for s in got]}; its configuration "
            f"asks for {[list(s) for s in shapes]}"
        )


def _units(config: Config, name: str, key: str = "units") -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= 1 << 20:
        raise ModelFileError(f"layer {name!r}: {key} is {str(value)[:40]!r}")
    return value


def _columns(arrays: Arrays, name: str) -> int:
    if not arrays or arrays[0].ndim != 2:
        raise ModelFileError(f"layer {name!r} has no weights in the file")
    return int(arrays[0].shape[0])


def _recurrent(
    kind: str, name: str, config: Config, arrays: Arrays, version: str, problems: list[str]
) -> list[Layer]:
    units = _units(config, name)
    found = list(problems)
    if config.get("go_backwards"):
        problems.append(f"layer {name!r} runs backwards (go_backwards), so it cannot be streamed")
    if config.get("return_state"):
        problems.append(f"layer {name!r} returns its state too (return_state)")
    if config.get("time_major"):
        problems.append(f"layer {name!r} takes time first (time_major)")
    activation = _activation(config.get("activation", "tanh"), version)
    gate = _activation(config.get("recurrent_activation", "sigmoid"), version)
    if kind == "SimpleRNN":
        cell = f"rnn_{activation}"
        if activation not in ("tanh", "relu"):
            problems.append(f"layer {name!r} has the activation {activation}; known: tanh, relu")
    else:
        cell = kind.lower()
        if activation != "tanh":
            problems.append(
                f"layer {name!r} has the activation {activation} where a {kind} has tanh"
            )
        if gate not in ("sigmoid", "hard_sigmoid_fifth", "hard_sigmoid_sixth"):
            problems.append(f"layer {name!r}: its gates have the activation {gate}")
    if problems != found:
        return []
    rows = {"GRU": 3, "LSTM": 4, "SimpleRNN": 1}[kind] * units
    use_bias = bool(config.get("use_bias", True))
    bias_shape: tuple[int, ...] = (rows,)
    reset_after = True
    if kind == "GRU":
        # Files of old versions do not say it; the shape of the bias does.
        stored = arrays[2].ndim == 2 if len(arrays) > 2 else None
        reset_after = bool(config.get("reset_after", stored))
        if "reset_after" not in config and stored is None:
            problems.append(f"layer {name!r}: the file does not say reset_after")
        bias_shape = (2, rows) if reset_after else (rows,)
    wanted = [(_columns(arrays, name), rows), (units, rows), *([bias_shape] * use_bias)]
    _expect(arrays, wanted, name)
    biases = [zeros(rows), zeros(rows)]
    origins = {"weight_ih": f"{name}/kernel", "weight_hh": f"{name}/recurrent_kernel"}
    if use_bias:
        parts = arrays[2].reshape(-1, rows)
        for k, (field, part) in enumerate(zip(("bias_ih", "bias_hh"), parts, strict=False)):
            biases[k] = part
            origins[field] = f"{name}/bias" + (f"[{k}]" if len(parts) == 2 else "")
    kernel, recurrent, b_ih, b_hh = (
        in_our_order(a, "keras", cell) for a in (arrays[0].T, arrays[1].T, *biases)
    )
    return [
        Recurrent(
            name,
            cell,
            kernel,
            recurrent,
            b_ih,
            b_hh,
            origins,
            reset_after=reset_after,
            gate_activation="sigmoid" if kind == "SimpleRNN" else gate,
        )
    ]


def _dense(name: str, config: Config, arrays: Arrays, version: str) -> Layer:
    units, use_bias = _units(config, name), bool(config.get("use_bias", True))
    _expect(arrays, [(_columns(arrays, name), units), *([(units,)] * use_bias)], name)
    origins = {"weight": f"{name}/kernel"} | ({"bias": f"{name}/bias"} if use_bias else {})
    bias = arrays[1] if use_bias else zeros(units)
    activation = _activation(config.get("activation"), version)
    return Dense(name, arrays[0].T, bias, origins, activation)


def _embedding(name: str, config: Config, arrays: Arrays, problems: list[str]) -> Layer:
    if config.get("mask_zero"):
        problems.append(
            f"layer {name!r} masks token 0 (mask_zero): a masked step repeats the output, which no "
            "model does"
        )
    shape = (_units(config, name, "input_dim"), _units(config, name, "output_dim"))
    _expect(arrays, [shape], name)
    return Embedding(name, arrays[0], {"weight": f"{name}/embeddings"})


def _batch_norm(name: str, config: Config, arrays: Arrays) -> Layer:
    axis = config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, 2):
        raise ModelFileError(f"layer {name!r} normalises along axis {axis}; known is the last")
    scale, center = bool(config.get("scale", True)), bool(config.get("center", True))
    size = arrays[0].shape[0] if arrays and arrays[0].ndim == 1 else 0
    _expect(arrays, [(size,)] * (2 + scale + center), name)
    vectors = [array.astype(np.float64) for array in arrays]
    gamma = vectors.pop(0) if scale else np.ones(size)
    beta = vectors.pop(0) if center else np.zeros(size)
    mean, variance = vectors
    epsilon = _number(config.get("epsilon", 1e-3), name, "epsilon")
    gain = gamma / np.sqrt(variance + epsilon)
    return Scale(name, gain, beta - mean * gain)


def _normalization(name: str, config: Config, arrays: Arrays) -> Layer:
    """Make a scale of what was adapted to data: mean and variance."""
    if config.get("invert") or config.get("mean") is not None:
        raise ModelFileError(f"layer {name!r}: invert and a given mean are not supported")
    vectors = [a.reshape(-1).astype(np.float64) for a in arrays if a.dtype.kind == "f"][:2]
    if len(vectors) != 2 or vectors[0].shape != vectors[1].shape:
        raise ModelFileError(f"layer {name!r} has no mean and variance in the file")
    gain = 1 / np.maximum(np.sqrt(vectors[1]), _EPSILON)
    return Scale(name, gain, -vectors[0] * gain)


def _rescaling(name: str, config: Config) -> Layer:
    gain = _number(config.get("scale", 1.0), name, "scale")
    offset = _number(config.get("offset", 0.0), name, "offset")
    return Scale(name, np.array([gain]), np.array([offset]))


def _number(value: Any, name: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30:
        raise ModelFileError(f"layer {name!r}: {key} is {str(value)[:40]!r}; expected a number")
    return float(value)
