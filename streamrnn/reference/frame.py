"""Layers over the frame of one step, in float64: frames are [B, L, C]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.layers import frame, memory
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Layer
from streamrnn.reference.activations import ACTIVATIONS
from streamrnn.reference.norm import normalised

__all__ = ["activated", "frame_step", "joined_frames", "time_conv"]

Array = NDArray[np.float64]
Parameters = Mapping[str, Array]


def joined_frames(frames: Sequence[Array]) -> Array:
    """Join frames channel by channel where they are equally long, else as vectors."""
    if len({each.shape[1] for each in frames}) == 1:
        return np.concatenate(frames, axis=2)
    flat = [each.reshape(len(each), 1, -1) for each in frames]
    return np.concatenate(flat, axis=2)


def activated(layer: Layer, x: Array, get: Parameters) -> Array:
    """Apply the activation that a layer ends with."""
    name = layer.activation  # type: ignore[attr-defined]
    if name == "prelu":
        return np.where(x > 0, x, get["slope"] * x)
    given = layer.slope  # type: ignore[attr-defined]
    slope = np.float64(np.float32((LAYER_ACTIVATIONS[name] or 0.0) if given is None else given))
    if name == "leaky_relu":
        return np.where(x > 0, x, slope * x)
    if name == "elu":
        return np.where(x > 0, x, slope * np.expm1(np.minimum(x, 0.0)))
    if name == "at_least":
        return np.maximum(x, slope)
    if name == "at_most":
        return np.minimum(x, slope)
    return ACTIVATIONS[name](x)


def frame_step(layer: Layer, frames: Sequence[Array], get: Parameters) -> Array:
    """Compute one layer without memory: frames [B, L, C] to [B, L', C']."""
    if isinstance(layer, frame.MixSpec):
        return _mix(layer, frames)
    x = joined_frames(frames)
    match layer:
        case frame.DenseSpec():
            flat = x.reshape(len(x), -1)
            return activated(layer, flat @ get["weight"].T + get["bias"], get)[:, None]
        case frame.ConvSpec():
            return _conv(layer, x, get)
        case frame.ActivationSpec():
            return activated(layer, x, get)
        case frame.ScaleSpec():
            return x * get["weight"] + get["bias"]
        case frame.NormSpec():
            return normalised(x, layer.epsilon) * get["weight"] + get["bias"]
        case frame.PadSpec():
            widths = ((0, 0), layer.padding, (0, 0))
            padded: Array = np.pad(x, widths, mode=frame.PADDING_MODES[layer.mode])  # type: ignore[call-overload]
            return padded
        case frame.SliceSpec():
            if layer.places != (0, 0):
                x = x[:, slice(*layer.places)]
            return x if layer.channels == (0, 0) else x[:, :, slice(*layer.channels)]
        case frame.PoolSpec():
            windows = _windows(x, layer.size or x.shape[1], layer.stride, 1)
            pooled: Array = windows.max(axis=2) if layer.kind == "max" else windows.mean(axis=2)
            return pooled
        case frame.MagnitudeSpec():
            return np.hypot(*np.split(x, 2, axis=2))
    raise TypeError(f"a {type(layer).__name__} is no layer over a frame")


def time_conv(layer: memory.TimeConvSpec, taps: Array, get: Parameters) -> Array:
    """Compute one step of a causal convolution: taps [B, kernel, C] to [B, 1, C'].

    Taps are the inputs ``(kernel - 1) * dilation``, ..., ``dilation`` and 0 steps ago. Source: A.
    van den Oord et al., "WaveNet: a generative model for raw audio", arXiv:1609.03499 (2016).
    """
    sums = _grouped(taps[:, None], get["weight"], layer.groups) + get["bias"]
    return activated(layer, sums, get)


def _conv(layer: frame.ConvSpec, x: Array, get: Parameters) -> Array:
    """Convolve as ``nn.Conv1d``, which correlates: the kernel is not turned round."""
    x = np.pad(x, ((0, 0), layer.padding, (0, 0)))
    windows = _windows(x, layer.kernel, layer.stride, layer.dilation)
    return activated(layer, _grouped(windows, get["weight"], layer.groups) + get["bias"], get)


def _windows(x: Array, size: int, stride: int, dilation: int) -> Array:
    """[B, L, C] -> [B, L', size, C]."""
    num = (x.shape[1] - (size - 1) * dilation - 1) // stride + 1
    places = np.arange(num)[:, None] * stride + np.arange(size) * dilation
    return x[:, places]


def _grouped(windows: Array, weight: Array, groups: int) -> Array:
    """[B, L, kernel, C] times [C', C / groups, kernel] -> [B, L, C']."""
    parts = zip(np.split(windows, groups, axis=3), np.split(weight, groups), strict=True)
    return np.concatenate([np.einsum("blkc,ock->blo", x, w) for x, w in parts], axis=2)


def _mix(layer: frame.MixSpec, frames: Sequence[Array]) -> Array:
    if layer.is_product:
        product = frames[0]
        for each in frames[1:]:
            product = product * each
        return product
    total = layer.gains[0] * frames[0]
    for gain, each in zip(layer.gains[1:], frames[1:], strict=True):
        total = total + gain * each
    return total
