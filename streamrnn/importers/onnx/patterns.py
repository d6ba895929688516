"""Layers that exporters write out as arithmetic: GELU and layer normalisation, clips and slopes.

A step on the way that no layer of ours is becomes a mark, an activation whose kind begins with
``@``; the last step finds them. A mark that is left is refused by `refuse_marks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from streamrnn.importers.network import Activation, FrameLayer, Layer, Scale
from streamrnn.importers.onnx.values import FEATURE, NotFollowed, Signal, Value
from streamrnn.model.layers.frame import ActivationSpec, MixSpec, NormSpec

__all__ = ["apply_clip", "apply_slopes", "find_pattern", "mark_mean", "mark_root", "refuse_marks"]

_MEAN, _CENTRED, _ROOT = "@mean", "@centred", "@sqrt"
_ERF = "@erf"
_WHAT = {
    _MEAN: "a mean over the features",
    _CENTRED: "a difference from a mean",
    _ROOT: "a root",
    _ERF: "the function erf",
}


def mark_mean(name: str, signal: Signal) -> Signal:
    """Take the mean over the features, which stay as one."""
    signal = signal.featured()
    signal.num_features()
    return signal.plus(Activation(name, _MEAN)).with_features(1)


def mark_root(name: str, signal: Signal) -> Signal | None:
    """Take the root of a variance; None of anything else."""
    if _variance(signal, signal.head) is None:
        return None
    return signal.plus(Activation(name, _ROOT))


def find_pattern(op: str, name: str, a: Signal, b: Signal) -> Signal | None:
    """Return what an operator on two signals ends; None if that is no layer."""
    if op == "Sub" and _kind(b, b.head) == _MEAN and _reads(b, b.head) == (a.head,):
        return a.merged(b).plus(Activation(name, _CENTRED), reads=(a.head,))
    if op == "Div" and _kind(a, a.head) == _CENTRED and _kind(b, b.head) == _ROOT:
        found = _variance(b, _reads(b, b.head)[0])
        if found is None or found[0] != a.head:
            return None
        size = a.num_features()
        arrays = {"weight": np.ones(size), "bias": np.zeros(size)}
        layer = FrameLayer(name, NormSpec(found[1]), arrays)
        return a.merged(b).plus(layer, reads=_reads(a, a.head))
    if op == "Mul":
        return _gelu(name, a, b) or _gelu(name, b, a)
    return None


def _gelu(name: str, x: Signal, gate: Signal) -> Signal | None:
    """Find ``x (1 + erf(x / sqrt 2))``, with its half in front or yet to come."""
    one = gate.layer(gate.head)
    if not _is_scale(one, 1.0, 1.0) or one is None:
        return None
    erf = gate.layer(one.reads[0])
    if erf is None or not isinstance(erf, Activation) or erf.kind != _ERF:
        return None
    inner = gate.layer(erf.reads[0])
    if inner is None or not _is_scale(inner, math.sqrt(0.5), 0.0):
        return None
    (base,) = inner.reads
    merged, half = x.merged(gate), x.layer(x.head)
    if half is not None and _is_scale(half, 0.5, 0.0) and half.reads == (base,):
        return merged.plus(Activation(name, "gelu"), reads=(base,))
    if x.head != base:
        return None
    size = x.shape[x.find(FEATURE) or -1] if x.find(FEATURE) is not None else x.shape[-1]
    whole = merged.plus(Activation(f"{name}.gelu", "gelu"), reads=(base,))
    return whole.plus(Scale(name, np.full(size, 2.0), np.zeros(size)))


def _variance(signal: Signal, name: str) -> tuple[str, float] | None:
    """Return what a variance is of, with what is added to it: a mean of squares, and an epsilon."""
    layer = signal.layer(name)
    if not isinstance(layer, Scale) or layer.gain.size != 1 or float(layer.gain[0]) != 1.0:
        return None
    epsilon, mean = float(layer.shift[0]), layer.reads[0]
    if _kind(signal, mean) != _MEAN or not 1e-12 <= epsilon <= 1.0:
        return None
    square = signal.layer(_reads(signal, mean)[0])
    if not isinstance(square, FrameLayer) or not isinstance(square.spec, MixSpec):
        return None
    of, *others = square.reads
    is_square = square.spec.is_product and others == [of] and _kind(signal, of) == _CENTRED
    return (of, epsilon) if is_square else None


def _kind(signal: Signal, name: str) -> str:
    layer = signal.layer(name)
    return layer.kind if isinstance(layer, Activation) else ""


def _reads(signal: Signal, name: str) -> tuple[str, ...]:
    layer = signal.layer(name)
    return () if layer is None else layer.reads


def _is_scale(layer: Layer | None, gain: float, shift: float) -> bool:
    return (
        isinstance(layer, Scale)
        and bool(np.allclose(layer.gain, gain, rtol=1e-6, atol=0))
        and bool((layer.shift == shift).all())
    )


def apply_clip(
    name: str, signal: Signal, least: Value | float | None, most: Value | float | None
) -> Signal:
    """Find the activation that a clip is."""
    bounds: list[float | None] = []
    for bound in (least, most):
        if bound is None:
            bounds.append(None)
            continue
        if not isinstance(bound, np.ndarray | float | int) or np.size(bound) != 1:
            raise NotFollowed("its bounds are no constants")
        bounds.append(float(np.asarray(bound).reshape(())))
    kinds: dict[tuple[float | None, float | None], str] = {
        (0.0, 6.0): "relu6",
        (-1.0, 1.0): "hard_tanh",
        (0.0, None): "relu",
    }
    kind = kinds.get((bounds[0], bounds[1]))
    if kind is None:
        raise NotFollowed(
            f"it clips to {bounds}; known are 0 to 6 (relu6), -1 to 1 (hard_tanh), 0 alone (relu)"
        )
    return signal.featured().plus(Activation(name, kind))


def apply_slopes(name: str, signal: Signal, slopes: Value | None, stored: str) -> Signal:
    """Make a prelu, with one slope for all channels or one for each."""
    signal = signal.featured()
    k = signal.find(FEATURE)
    k = len(signal.axes) - 1 if k is None else k
    channels = signal.shape[k]
    if not isinstance(slopes, np.ndarray) or slopes.size not in (1, channels):
        raise NotFollowed("its slopes are no constants, one for all channels or for each")
    shape = [1] * (len(signal.axes) - slopes.ndim) + list(slopes.shape)
    if slopes.size > 1 and shape[k] != channels:
        raise NotFollowed("its slopes go along another axis than the channels'")
    arrays = {"slope": np.broadcast_to(slopes.reshape(-1), (channels,))}
    return signal.plus(FrameLayer(name, ActivationSpec("prelu"), arrays, {"slope": stored}))


def refuse_marks(layers: Iterable[Layer], problem: Callable[[str], None]) -> None:
    """Say which marks are no part of a layer."""
    for layer in layers:
        if isinstance(layer, Activation) and layer.kind in _WHAT:
            problem(f"{layer.name!r} is {_WHAT[layer.kind]}, which no layer has")
