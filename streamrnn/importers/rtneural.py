"""RTNeural's JSON, which AIDA-X uses too: layers in a row, with arrays in Keras's layout.

Source: ``python/model_utils.py`` and ``RTNeural/model_loader.h`` of
https://github.com/jatinchowdhury18/RTNeural.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamrnn.errors import ModelFileError
from streamrnn.importers.build.model import build_model
from streamrnn.importers.gates import SOURCE_GATES, in_our_order
from streamrnn.importers.json_text import array_of, whole
from streamrnn.importers.network import (
    Activation,
    Dense,
    FrameLayer,
    ImportedModel,
    Layer,
    Names,
    Network,
    Recurrent,
    Scale,
    zeros,
)
from streamrnn.model.layers.base import INPUT, LAYER_ACTIVATIONS
from streamrnn.model.layers.frame import ActivationSpec, MixSpec, SliceSpec
from streamrnn.model.layers.memory import TimeConvSpec

__all__ = ["import_rtneural", "is_rtneural"]

_MAX_LAYERS = 1_000
_MAX_SIZE = 65_536
_NAMES = {"linear": "identity", "swish": "silu", "": "identity"}


def is_rtneural(value: dict[str, Any]) -> bool:
    """Whether a JSON object has the form of one."""
    return isinstance(value.get("layers"), list) and "in_shape" in value


def import_rtneural(path: str, value: dict[str, Any], names: Names) -> ImportedModel:
    """Make a model of a parsed file.

    Parameters
    ----------
    path : str
        For messages.
    value : dict
        The file's JSON.
    names : Names
        Names for inputs and outputs.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If it is damaged, or has what no model has: all of that is listed.
    """
    layers = value["layers"]
    if not 0 < len(layers) <= _MAX_LAYERS:
        raise ModelFileError(f"{path} has {len(layers)} layers")
    network = Network(path, "RTNeural")
    size = num_inputs = network.num_inputs = _last(value["in_shape"], f"{path}: in_shape")
    for k, item in enumerate(layers):
        if not isinstance(item, dict):
            raise ModelFileError(f"{path}: layer {k} is no object")
        name = f"layer {k} ({str(item.get('type'))[:40]})"
        try:
            network.layers += _layers(item, name, size, network.problems)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
        if "shape" in item:
            size = _last(item["shape"], f"{path}: shape of {name}")
    _apply_gains(path, value, network, num_inputs, size)
    return build_model(network, names)


def _apply_gains(
    path: str, value: dict[str, Any], network: Network, num_inputs: int, num_outputs: int
) -> None:
    """Take what AIDA-X adds: ``(model(x) + x) * out_gain``, x being the input times in_gain.

    The gains are in decibels. Of several inputs the first is the sound, and the others are knobs.
    """
    before, after = (_gain(path, value, key) for key in ("in_gain", "out_gain"))
    source = INPUT
    if before != 1:
        source = "in_gain"
        gains = np.where(np.arange(num_inputs) == 0, before, 1.0)
        network.layers.insert(0, Scale(source, gains, np.zeros(num_inputs)))
    skip = value.get("in_skip", 0)
    if isinstance(skip, bool) or not isinstance(skip, int | float):
        skip = 0  # as its player
    if skip not in (0, 1) or (skip and num_outputs != 1):
        network.problems.append(
            f"in_skip is {str(skip)[:20]}, with {num_outputs} outputs; read are 0, and 1 with one"
        )
    elif skip and network.layers:
        last = network.layers[-1].name
        if num_inputs > 1:
            spec = SliceSpec(channels=(0, 1))
            network.layers.append(FrameLayer("sound", spec, reads=(source,)))
            source = "sound"
        reads = (last, source)
        mix = MixSpec(gains=(1.0, 1.0), reads=reads)
        network.layers.append(FrameLayer("in_skip", mix, reads=reads))
    if after != 1:
        gains = np.full(num_outputs, after)
        network.layers.append(Scale("out_gain", gains, np.zeros(num_outputs)))


def _gain(path: str, value: dict[str, Any], key: str) -> float:
    gain = value.get(key, 0)
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not abs(gain) <= 200:
        raise ModelFileError(f"{path}: {key} is {str(gain)[:40]}; expected decibels")
    return float(10 ** (gain / 20)) if gain > -90 else 0.0


def _last(shape: Any, what: str) -> int:
    if not isinstance(shape, list) or not shape:
        raise ModelFileError(f"{what} is no list of sizes")
    return whole(shape[-1], what, 1, _MAX_SIZE)


def _layers(item: dict[str, Any], name: str, size: int, problems: list[str]) -> list[Layer]:
    kind = str(item.get("type"))
    activation = item.get("activation", "")
    activation = "" if activation is None else activation
    if not isinstance(activation, str):
        raise ModelFileError(f"{name}: its activation is no text")
    weights = item.get("weights", [])
    if not isinstance(weights, list):
        raise ModelFileError(f"{name}: its weights are no list")
    activation = _NAMES.get(activation, activation[:40])
    if kind not in ("lstm", "gru") and activation not in LAYER_ACTIVATIONS:
        problems.append(f"{name} has the activation {activation!r}, which is unknown")
        activation = "identity"
    if kind in ("dense", "time-distributed-dense"):
        return [_dense(name, weights, size, _last(item.get("shape"), name), activation)]
    if kind == "conv1d":
        return _convolution(item, name, weights, size, activation, problems)
    if kind in ("lstm", "gru"):
        if activation not in ("tanh", "identity"):  # it is written, and never read
            problems.append(f"{name} has the activation {activation} where it has tanh")
        return [_recurrent(kind, name, weights, size, _last(item.get("shape"), name))]
    if kind == "activation":
        return [Activation(name, activation)]
    if kind == "prelu":
        return [_prelu(name, weights, size)]
    if kind == "batchnorm":
        return [_batch_norm(name, item, weights, size)]
    problems.append(f"{name} is not supported")
    return []


def _convolution(
    item: dict[str, Any],
    name: str,
    weights: list[Any],
    size: int,
    activation: str,
    problems: list[str],
) -> list[Layer]:
    """Read a causal convolution over steps: kernel [taps, I / groups, O] and bias."""
    units = _last(item.get("shape"), name)
    taps = _last(item.get("kernel_size"), f"{name}: kernel_size")
    dilation = _last(item.get("dilation", [1]), f"{name}: dilation")
    groups = whole(item.get("groups", 1), f"{name}: groups", 1, size)
    strides = str(item.get("strides", 1))
    if strides not in ("1", "[1]"):
        problems.append(f"{name} has strides of {strides[:20]}: it gives fewer steps")
    if size % groups or units % groups:
        raise ModelFileError(f"{name}: {size} and {units} channels in {groups} groups")
    if len(weights) not in (1, 2):
        raise ModelFileError(f"{name} has {len(weights)} arrays; expected kernel and bias")
    kernel = array_of(weights[0], f"{name}: kernel", (taps, size // groups, units))
    bias = array_of(weights[1], f"{name}: bias", (units,)) if weights[1:] else zeros(units)
    origins = {"weight": f"{name}, weights[0]"}
    origins |= {"bias": f"{name}, weights[1]"} if weights[1:] else {}
    spec = TimeConvSpec(units, taps, dilation, groups)
    arrays = {"weight": kernel.transpose(2, 1, 0), "bias": bias}
    layers: list[Layer] = [FrameLayer(name, spec, arrays, origins)]
    if activation != "identity":
        layers.append(Activation(f"{name}, activation", activation))
    return layers


def _prelu(name: str, weights: list[Any], size: int) -> FrameLayer:
    """Read the slopes [1, C], which all steps share; or [1, 1], which all channels share."""
    if len(weights) != 1:
        raise ModelFileError(f"{name} has {len(weights)} arrays; expected the slopes")
    slopes = array_of(weights[0], f"{name}: slopes").reshape(-1)
    if slopes.shape not in ((size,), (1,)):
        raise ModelFileError(f"{name} has {slopes.size} slopes; expected {size}")
    arrays = {"slope": np.broadcast_to(slopes, (size,))}
    return FrameLayer(name, ActivationSpec("prelu"), arrays, {"slope": f"{name}, weights[0]"})


def _dense(name: str, weights: list[Any], size: int, units: int, activation: str) -> Dense:
    if len(weights) not in (1, 2):
        raise ModelFileError(f"{name} has {len(weights)} arrays; expected kernel and bias")
    kernel = array_of(weights[0], f"{name}: kernel", (size, units))
    bias = zeros(units)
    if len(weights) == 2:
        bias = array_of(weights[1], f"{name}: bias", (units,))
    origins = {"weight": f"{name}, weights[0]", "bias": f"{name}, weights[1]"}
    return Dense(name, kernel.T, bias, origins, activation)


def _recurrent(kind: str, name: str, weights: list[Any], size: int, units: int) -> Recurrent:
    if len(weights) != 3:
        raise ModelFileError(
            f"{name} has {len(weights)} arrays; expected kernel, recurrent kernel and bias"
        )
    rows = len(SOURCE_GATES["keras"][kind]) * units
    kernel = array_of(weights[0], f"{name}: kernel", (size, rows))
    recurrent = array_of(weights[1], f"{name}: recurrent kernel", (units, rows))
    # A GRU resets after the product and has two biases, as Keras's default.
    shape = (rows,) if kind == "lstm" else (2, rows)
    bias = array_of(weights[2], f"{name}: bias", shape).reshape(-1, rows)
    b_ih, b_hh = (bias[0], zeros(rows)) if len(bias) == 1 else bias
    where = f"{name}, weights"
    origins = {"weight_ih": f"{where}[0]", "weight_hh": f"{where}[1]", "bias_ih": f"{where}[2]"}
    if len(bias) == 2:
        origins |= {"bias_ih": f"{where}[2][0]", "bias_hh": f"{where}[2][1]"}
    w_ih, w_hh, b_ih, b_hh = (
        in_our_order(a, "keras", kind) for a in (kernel.T, recurrent.T, b_ih, b_hh)
    )
    return Recurrent(name, kind, w_ih, w_hh, b_ih, b_hh, origins)


def _batch_norm(name: str, item: dict[str, Any], weights: list[Any], size: int) -> Scale:
    epsilon = item.get("epsilon", 1e-3)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 <= epsilon <= 1e6:
        raise ModelFileError(f"{name}: epsilon is {str(epsilon)[:40]}")
    if len(weights) not in (2, 4):
        raise ModelFileError(f"{name} has {len(weights)} arrays; expected 2 or 4")
    vectors = [array_of(part, name, (size,)).astype(np.float64) for part in weights]
    gamma, beta = vectors[:2] if len(vectors) == 4 else (np.ones(size), np.zeros(size))
    mean, variance = vectors[-2:]
    with np.errstate(invalid="ignore", divide="ignore"):  # the model refuses the NaN, by name
        gain = gamma / np.sqrt(variance + float(epsilon))
        return Scale(name, gain, beta - mean * gain)
