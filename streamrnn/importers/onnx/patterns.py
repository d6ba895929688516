"""Layers that exporters write out as arithmetic: GELU, layer normalisation, softplus.

A step on the way that may be a part of such a layer becomes a mark, an activation whose kind begins
with ``@``; the last step finds them. `resolve_marks` makes layers of those that are left, or
refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from streamrnn.importers.network import Activation, FrameLayer, Layer, Scale
from streamrnn.importers.onnx.values import FEATURE, NotFollowed, Signal, Value
from streamrnn.model.layers.frame import ConvSpec, MixSpec, NormSpec

__all__ = ["choose", "compare", "find_pattern", "mark_mean", "resolve_marks"]

# Marks of features have their number as their slope, those of comparisons what is compared with.
_MEAN, _CENTRED, _ERF, _ABOVE, _BELOW = "@mean", "@centred", "@erf", "@above", "@below"
_WHAT = {
    _ERF: "the function erf",
    _ABOVE: "a comparison",
    _BELOW: "a comparison",
}
# From here on softplus is x to the last bit that float32 has.
_FAR = 15.0


def mark_mean(name: str, signal: Signal, k: int) -> Signal:
    """Take the mean over the features, which stay as one, along an axis."""
    made = signal.plus(Activation(name, _MEAN, float(signal.shape[k])))
    axes = list(made.axes)
    axes[k] = ((FEATURE, 1),)
    return replace(made, axes=tuple(axes))


def compare(op: str, name: str, signal: Signal, bound: Value | None) -> Signal:
    """Compare what the network computes with a number; `choose` may find what that is for."""
    if not isinstance(bound, np.ndarray) or bound.size != 1:
        raise NotFollowed("it compares what the network computes with no constant number")
    kind = _ABOVE if op.startswith("Greater") else _BELOW
    return signal.plus(Activation(name, kind, float(bound.reshape(()))))


def choose(name: str, condition: Signal, a: Value | None, b: Value | None) -> Signal:
    """Find the activation that a Where is."""
    mark = condition.layer(condition.head)
    if isinstance(mark, Activation) and mark.kind in (_ABOVE, _BELOW) and mark.slope is not None:
        (base,) = mark.reads
        above, below = (a, b) if mark.kind == _ABOVE else (b, a)
        found = _chosen(name, condition, mark.slope, base, above, below)
        if found is not None:
            return replace(found, axes=condition.axes)
    raise NotFollowed("it chooses between two values by a condition that the network computes")


def _chosen(
    name: str, signal: Signal, bound: float, base: str, above: Value | None, below: Value | None
) -> Signal | None:
    """Find a softplus, or a leaky relu or an elu: x itself above a bound, something else below."""
    if not isinstance(above, Signal) or not isinstance(below, Signal):
        return None
    if not _wide(signal) == _wide(above) == _wide(below):
        return None
    merged = signal.merged(above).merged(below)
    last = merged.layer(below.head)
    if bound == 0.0 and above.head == base and last is not None and last.reads == (base,):
        if isinstance(last, Scale) and not last.shift.any() and len(set(last.gain.tolist())) == 1:
            kind = Activation(name, "leaky_relu", float(last.gain[0]))
            return merged.plus(kind, reads=(base,))
        if isinstance(last, Activation) and last.kind in ("elu", "leaky_relu"):
            return replace(merged, head=below.head)
    # Behind factors: softplus(beta x) / beta, where x beta is compared.
    soft, factor, inner = last, 1.0, base
    if isinstance(soft, Scale) and not soft.shift.any() and len(set(soft.gain.tolist())) == 1:
        factor, soft = float(soft.gain[0]), merged.layer(soft.reads[0])
    scaled = merged.layer(base)
    if isinstance(scaled, Scale) and above.head != base:
        inner = scaled.reads[0]
    is_soft = isinstance(soft, Activation) and soft.kind == "softplus" and soft.reads == (base,)
    one = 1.0 if inner == base else float(scaled.gain[0]) if isinstance(scaled, Scale) else 0.0
    if is_soft and bound >= _FAR and above.head == inner and abs(factor * one - 1.0) < 1e-6:
        return replace(merged, head=below.head)
    return None


def find_pattern(op: str, name: str, a: Signal, b: Signal) -> Signal | None:
    """Return what an operator on two signals ends; None if that is no layer."""
    if op in ("Div", "Sub") and not _fits(a, b):
        return None
    if op == "Sub" and _kind(b, b.head) == _MEAN and _reads(b, b.head) == (a.head,):
        mean = b.layer(b.head)
        size = mean.slope if isinstance(mean, Activation) else None
        return a.merged(b).plus(Activation(name, _CENTRED, size), reads=(a.head,))
    if op == "Div" and _kind(a, a.head) == _CENTRED and _kind(b, b.head) == "sqrt":
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


def _wide(signal: Signal) -> list[list[tuple[str, int]]]:
    """Return what lies along each axis, but for what is one element."""
    return [[factor for factor in axis if factor[1] != 1] for axis in signal.axes]


def _fits(a: Signal, b: Signal) -> bool:
    """Whether b has one element in place of all that lie along one axis of a, and all others."""
    unlike = [(mine, own) for mine, own in zip(_wide(a), _wide(b), strict=False) if mine != own]
    return len(a.axes) == len(b.axes) and (not unlike or (len(unlike) == 1 and not unlike[0][1]))


def _gelu(name: str, x: Signal, gate: Signal) -> Signal | None:
    """Find ``x (1 + erf(x / sqrt 2))``, with its half in front or yet to come."""
    one = gate.layer(gate.head)
    if _wide(x) != _wide(gate):
        return None
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
    whole = merged.plus(Activation(f"{name}.gelu", "gelu"), reads=(base,))
    return whole.plus(Scale(name, np.array([2.0]), np.zeros(1)))


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


def resolve_marks(layers: Iterable[Layer], problem: Callable[[str], None]) -> list[Layer]:
    """Make layers of the marks that are no part of one; say which cannot be."""
    resolved: list[Layer] = []
    for layer in layers:
        kind = layer.kind if isinstance(layer, Activation) else ""
        if kind in _WHAT:
            problem(f"{layer.name!r} is {_WHAT[kind]}, which no layer has")
        if isinstance(layer, Activation) and kind in (_MEAN, _CENTRED):
            size = int(layer.slope or 1)
            weight = np.full((1 if kind == _MEAN else size, size, 1), 1.0 / size)
            if kind == _CENTRED:
                weight = np.eye(size)[:, :, None] - weight
            arrays = {"weight": weight, "bias": np.zeros(len(weight))}
            spec = ConvSpec(len(weight), 1)
            resolved.append(FrameLayer(layer.name, spec, arrays, reads=layer.reads))
        else:
            resolved.append(layer)
    return resolved
