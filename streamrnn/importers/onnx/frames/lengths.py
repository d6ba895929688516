"""What a graph computes from the sizes of axes that its file leaves open.

Such an axis is followed with a size of our own. A graph that was followed twice, with other sizes,
must have become the same layers: else they hold that size, and suit no other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from streamrnn.importers.network import FrameLayer, Layer
from streamrnn.importers.onnx.values import Signal, Unknown, Value
from streamrnn.model.layers.frame import PoolSpec, SliceSpec

__all__ = ["length_dependence"]


def length_dependence(
    values: Mapping[str, Value], others: Mapping[str, Value], name: str, open_axes: Collection[str]
) -> str:
    """Return what depends on the sizes of open axes in an output of two graphs; nothing if none."""
    one, other = values.get(name), others.get(name)
    if isinstance(one, Signal) and isinstance(other, Unknown):
        return other.reasons[0]
    if not isinstance(one, Signal) or not isinstance(other, Signal):
        return ""
    one, other = one.pruned(), other.pruned()
    for layer, twin in zip(one.layers, other.layers, strict=False):
        if not _are_alike(layer, twin, open_axes):
            return f"layer {layer.name!r}"
    is_same = len(one.layers) == len(other.layers) and one.time == other.time
    return (
        "" if is_same and _axes(one, open_axes) == _axes(other, open_axes) else f"output {name!r}"
    )


def _axes(signal: Signal, open_axes: Collection[str]) -> list[list[tuple[str, int]]]:
    """Return the axes, of open ones the labels alone."""
    return [
        [(label, 0 if label in open_axes else size) for label, size in axis] for axis in signal.axes
    ]


def _are_alike(layer: Layer, twin: Layer, open_axes: Collection[str]) -> bool:
    if not isinstance(layer, FrameLayer) or layer.along not in open_axes:
        return _is_same(layer, twin)
    if type(twin) is not type(layer) or type(twin.spec) is not type(layer.spec):
        return False
    if isinstance(layer.spec, SliceSpec) and isinstance(twin.spec, SliceSpec):
        ends = zip(layer.spec.places, twin.spec.places, strict=True)
        more = twin.places - layer.places  # an end may be counted from the last step
        return all(end - own in (0, more) for own, end in ends)
    # What pools along an open axis is refused for that.
    # How many places it takes counts the steps.
    return isinstance(layer.spec, PoolSpec) or _is_same(layer, replace(twin, places=layer.places))


def _is_same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        is_one = a.__array_interface__["data"] == b.__array_interface__["data"]
        return (is_one and a.strides == b.strides) or a.tobytes() == b.tobytes()
    if is_dataclass(a):
        return all(_is_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return bool(a == b or (a != a and b != b))  # NaN is as NaN
