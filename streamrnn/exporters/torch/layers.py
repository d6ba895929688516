"""Layers of a model as lines of a step, one function for each kind; recurrent ones in `cells`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from streamrnn.exporters.torch.module import Module
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Shape
from streamrnn.model.layers.frame import (
    ActivationSpec,
    ConvSpec,
    DenseSpec,
    MagnitudeSpec,
    MixSpec,
    NormSpec,
    PadSpec,
    PoolSpec,
    ScaleSpec,
    SliceSpec,
)
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec

__all__ = ["FRAME_LAYERS", "function_text"]

# Our activations as expressions of a value and a slope; channels are axis 1.
_FUNCTIONS = {
    "abs": "torch.abs({0})",
    "at_least": "torch.clamp({0}, min={1})",
    "at_most": "torch.clamp({0}, max={1})",
    "elu": "F.elu({0}, alpha={1})",
    "exp": "torch.exp({0})",
    "gelu": "F.gelu({0})",
    "gelu_tanh": 'F.gelu({0}, approximate="tanh")',
    "hard_sigmoid_fifth": "torch.clamp(0.2 * {0} + 0.5, 0.0, 1.0)",
    "hard_sigmoid_sixth": "F.hardsigmoid({0})",
    "hard_swish": "F.hardswish({0})",
    "hard_tanh": "F.hardtanh({0})",
    "identity": "{0}",
    "leaky_relu": "F.leaky_relu({0}, negative_slope={1})",
    "log": "torch.log({0})",
    "log_softmax": "F.log_softmax({0}, dim=1)",
    "reciprocal": "torch.reciprocal({0})",
    "relu": "torch.relu({0})",
    "relu6": "F.relu6({0})",
    "selu": "F.selu({0})",
    "sigmoid": "torch.sigmoid({0})",
    "silu": "F.silu({0})",
    "softmax": "torch.softmax({0}, dim=1)",
    "softplus": "F.softplus({0})",
    "softsign": "F.softsign({0})",
    "sqrt": "torch.sqrt({0})",
    "tanh": "torch.tanh({0})",
}
Values: TypeAlias = Sequence[str]
Shapes: TypeAlias = Sequence[Shape]


def function_text(module: Module, name: str, value: str, slope: float | None = None) -> str:
    """Write an activation without parameters."""
    if name not in _FUNCTIONS:
        module.problems.append(f"the activation {name} is not exported")
        return value
    slope = LAYER_ACTIVATIONS.get(name) if slope is None else slope
    return _FUNCTIONS[name].format(value, slope)


def _activated(module: Module, k: int, layer: Any, text: str) -> str:
    """Name what a layer gives, with what it ends with."""
    if layer.activation != "prelu":
        return module.add(f"l{k}", function_text(module, layer.activation, text, layer.slope))
    slopes = module.parameter(f"slope_l{k}")
    prelu = module.module(f"l{k}_prelu", f"PReLU({len(slopes)})", weight=slopes)
    return module.add(f"l{k}", f"{prelu}({text})")


def _weights(module: Module, k: int) -> dict[str, Any]:
    return {name: module.parameter(f"{name}_l{k}") for name in ("weight", "bias")}


def _dense(module: Module, k: int, layer: DenseSpec, values: Values, shapes: Shapes) -> str:
    weights = _weights(module, k)
    linear = module.module(
        f"l{k}", f"Linear({weights['weight'].shape[1]}, {layer.size})", **weights
    )
    return _activated(module, k, layer, f"{linear}({module.joined_vector(k, values, shapes)})")


def _conv(module: Module, k: int, layer: ConvSpec, values: Values, shapes: Shapes) -> str:
    frame = module.joined_frame(k, values, shapes)
    before, after = layer.padding
    if before != after:
        frame = f"F.pad({frame}, ({before}, {after}))"
    padding = f", padding={before}" * (before == after > 0)
    stride = f", stride={layer.stride}" * (layer.stride > 1)
    return _convolved(module, k, layer, frame, stride + padding)


def _convolved(module: Module, k: int, layer: Any, frame: str, options: str = "") -> str:
    weights = _weights(module, k)
    channels, kernel = weights["weight"].shape[1] * layer.groups, layer.kernel
    options += f", dilation={layer.dilation}" * (layer.dilation > 1)
    options += f", groups={layer.groups}" * (layer.groups > 1)
    conv = module.module(
        f"l{k}", f"Conv1d({channels}, {layer.channels}, {kernel}{options})", **weights
    )
    return _activated(
        module, k, layer, module.framed(f"{conv}({frame})", module.spec.graph.shapes[k])
    )


def _time_conv(module: Module, k: int, layer: TimeConvSpec, values: Values, shapes: Shapes) -> str:
    steps = f"{module.joined_vector(k, values, shapes)}[:, :, None]"
    if layer.num_kept:
        name = f"kept_l{k}"
        steps = module.add(f"steps{k}", f"torch.cat([{module.take(name)}, {steps}], dim=2)")
        module.give(name, f"{steps}[:, :, 1:]")
    return _convolved(module, k, layer, steps)


def _memory(module: Module, k: int, layer: MemorySpec, values: Values, shapes: Shapes) -> str:
    name, frame = f"kept_l{k}", module.joined_frame(k, values, shapes)
    module.add(f"l{k}", f"torch.cat([{module.take(name)}, {frame}], dim=2)")
    module.give(name, f"l{k}[:, :, -{layer.places}:]")
    return f"l{k}"


def _activation(
    module: Module, k: int, layer: ActivationSpec, values: Values, shapes: Shapes
) -> str:
    return _activated(module, k, layer, module.joined(values, shapes))


def _scale(module: Module, k: int, layer: ScaleSpec, values: Values, shapes: Shapes) -> str:
    weights, more = _weights(module, k), "" if module.spec.graph.shapes[k][0] == 1 else "[:, None]"
    gain, shift = (module.buffer(f"l{k}_{name}", value) for name, value in weights.items())
    return module.add(f"l{k}", f"{module.joined(values, shapes)} * {gain}{more} + {shift}{more}")


def _norm(module: Module, k: int, layer: NormSpec, values: Values, shapes: Shapes) -> str:
    length, channels = module.spec.graph.shapes[k]
    value = module.joined(values, shapes)
    norm = module.module(
        f"l{k}", f"LayerNorm({channels}, eps={layer.epsilon})", **_weights(module, k)
    )
    turned = f"{norm}({value}.transpose(1, 2)).transpose(1, 2)"
    return module.add(f"l{k}", f"{norm}({value})" if length == 1 else turned)


def _mix(module: Module, k: int, layer: MixSpec, values: Values, shapes: Shapes) -> str:
    if module.spec.graph.shapes[k][0] > 1:
        values = [module.frame(*pair) for pair in zip(values, shapes, strict=True)]
    if layer.is_product:
        return module.add(f"l{k}", " * ".join(values))
    parts = [
        value if gain == 1 else f"{gain!r} * {value}"
        for value, gain in zip(values, layer.gains, strict=True)
    ]
    return module.add(f"l{k}", " + ".join(parts))


def _pad(module: Module, k: int, layer: PadSpec, values: Values, shapes: Shapes) -> str:
    mode = {"zeros": "constant", "edge": "replicate"}.get(layer.mode, layer.mode)
    frame = module.joined_frame(k, values, shapes)
    padded = f'F.pad({frame}, {tuple(layer.padding)}, mode="{mode}")'
    return module.add(f"l{k}", module.framed(padded, module.spec.graph.shapes[k]))


def _slice(module: Module, k: int, layer: SliceSpec, values: Values, shapes: Shapes) -> str:
    value = module.joined(values, shapes)
    if layer.places not in ((0, 0), (0, module.spec.graph.shape_of_joined(k)[0])):
        first, end = layer.places
        value = module.framed(f"{value}[:, :, {first}:{end}]", module.spec.graph.shapes[k])
    if layer.channels != (0, 0):
        value = f"{value}[:, {layer.channels[0]}:{layer.channels[1]}]"
    return module.add(f"l{k}", value)


def _pool(module: Module, k: int, layer: PoolSpec, values: Values, shapes: Shapes) -> str:
    frame, shape = module.joined_frame(k, values, shapes), module.spec.graph.shapes[k]
    if not layer.size:
        method = {"max": "amax", "mean": "mean"}[layer.kind]
        return module.add(f"l{k}", f"{frame}.{method}(dim=2)")
    function = {"max": "max_pool1d", "mean": "avg_pool1d"}[layer.kind]
    pooled = f"F.{function}({frame}, {layer.size}, stride={layer.stride})"
    return module.add(f"l{k}", module.framed(pooled, shape))


def _magnitude(module: Module, k: int, layer: MagnitudeSpec, values: Values, shapes: Shapes) -> str:
    value = module.joined(values, shapes)
    return module.add(f"l{k}", f"torch.hypot(*{value}.chunk(2, dim=1))")


FRAME_LAYERS: dict[type, Callable[..., str]] = {
    ActivationSpec: _activation,
    ConvSpec: _conv,
    DenseSpec: _dense,
    MagnitudeSpec: _magnitude,
    MemorySpec: _memory,
    MixSpec: _mix,
    NormSpec: _norm,
    PadSpec: _pad,
    PoolSpec: _pool,
    ScaleSpec: _scale,
    SliceSpec: _slice,
    TimeConvSpec: _time_conv,
}
