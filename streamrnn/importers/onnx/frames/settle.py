"""What runs along time becomes layers over steps, where it is causal.

Paddings, cuts and convolutions shift a value against the steps of the input. Of every value is
followed how many steps it has before the first one, and after the last; at the end, and where it
meets others, both must be none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamrnn.importers.network import Activation, Dense, FrameLayer, Layer, Recurrent
from streamrnn.importers.onnx.frames.conv import PlaneConv, Window
from streamrnn.model.layers.base import BEFORE, INPUT
from streamrnn.model.layers.frame import (
    ActivationSpec,
    ConvSpec,
    MixSpec,
    PadSpec,
    PoolSpec,
    SliceSpec,
)
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec

__all__ = ["settle"]

_MAX_DELAY = 32  # steps of frames that are kept one by one


@dataclass(frozen=True)
class _Edges:
    """How a value's steps lie against those of the input.

    ``before`` are steps before the first one, ``after`` those after the last one; fewer than none
    are missing. ``is_zeros`` says that those before are zeros, as a stream begins.
    """

    before: int = 0
    after: int = 0
    is_zeros: bool = True
    reason: str = ""  # what made it so

    @property
    def fits(self) -> bool:
        return (self.before, self.after) == (0, 0)

    @property
    def begins(self) -> bool:
        """Whether it begins as a stream does."""
        return self.is_zeros or self.before <= 0


def settle(
    layers: Sequence[Layer], times: Collection[str], head: str, problem: Callable[[str], None]
) -> list[Layer]:
    """Let what runs along time be causal layers over steps; say what cannot be.

    ``times`` are the labels of the axes that are steps, ``head`` the layer that gives the output.
    """
    settling = _Settling(set(times) - {""}, problem)
    for layer in layers:
        settling.add(layer)
    last = settling.edges.get(head, _Edges())
    if not last.fits:
        problem(last.reason or "its output has other steps than its input")
    for name in sorted(settling.kept):
        edges = settling.edges.get(name, _Edges())
        if not edges.fits:
            problem(edges.reason or f"{name!r} is kept, and has other steps than the input")
    settled = settling.settled if settling.moved.get(head, head) == head else settling.ended(head)
    return [replace(layer, reads=tuple(map(settling.final, layer.reads))) for layer in settled]


class _Settling:
    """The layers so far, and where the steps of each lie."""

    def __init__(self, times: set[str], problem: Callable[[str], None]) -> None:
        self.times, self.problem = times, problem
        self.settled: list[Layer] = []
        self.edges: dict[str, _Edges] = {INPUT: _Edges()}
        self.moved: dict[str, str] = {}  # what stands for a layer that went
        self.delayed: dict[tuple[str, int], str] = {}
        self.kept: set[str] = set()  # what the graph itself reads of the step before

    def add(self, layer: Layer) -> None:
        """Settle one more layer, all that it reads having been."""
        reads = tuple(self.moved.get(name, name) for name in layer.reads)
        self.kept |= {name.removesuffix(BEFORE) for name in layer.reads if name.endswith(BEFORE)}
        edges = self._common(layer)
        if isinstance(layer, PlaneConv):
            self._plane(layer, reads, edges)
        elif not isinstance(layer, FrameLayer) or layer.along not in self.times:
            if isinstance(layer, Recurrent) and not edges.fits:
                self.problem(edges.reason or f"{layer.name!r} runs on other steps than the input's")
                edges = _Edges()
            is_zeros = edges.begins and (edges.before <= 0 or _keeps_zeros(layer))
            self._keep(replace(layer, reads=reads), replace(edges, is_zeros=is_zeros))
        else:
            self._along(layer, reads, edges)

    def ended(self, head: str) -> list[Layer]:
        """Return the layers where the last one went."""
        layer = FrameLayer(head, ActivationSpec("identity"), reads=(self.moved[head],))
        return [*self.settled, layer]

    def final(self, read: str) -> str:
        """Return what a layer reads where that was moved later."""
        bare = read.removesuffix(BEFORE)
        if bare == read:
            return read
        return self.moved.get(bare, bare) + BEFORE

    def _common(self, layer: Layer) -> _Edges:
        """Return the edges of all that a layer reads."""
        found = [self.edges[name] for name in layer.reads if not name.endswith(BEFORE)]
        found = found or [_Edges()]
        places = {(each.before, each.after) for each in found}
        if len(places) > 1:
            reasons = [each.reason for each in found if not each.fits and each.reason]
            self.problem(
                next(iter(reasons), f"{layer.name!r} joins what is shifted against each other")
            )
            return _Edges()
        return replace(found[0], is_zeros=all(each.begins for each in found))

    def _keep(self, layer: Layer, edges: _Edges) -> None:
        self.settled.append(layer)
        self.edges[layer.name] = edges

    def _leave_out(self, layer: Layer, reads: tuple[str, ...], edges: _Edges) -> None:
        self.moved[layer.name] = reads[0]
        self.edges[layer.name] = edges

    def _along(self, layer: FrameLayer, reads: tuple[str, ...], edges: _Edges) -> None:
        spec = layer.spec
        if isinstance(spec, SliceSpec):
            first, end = spec.places
            rest = layer.places - end
            reason = f"{layer.name!r} takes steps {first} to {end} of {layer.places} out"
            made = _Edges(edges.before - first, edges.after - rest, edges.is_zeros, reason)
            self._shift(layer, reads, made)
        elif isinstance(spec, PadSpec | MemorySpec):
            self._pad(layer, reads, edges)
        elif isinstance(spec, ConvSpec):
            weight = layer.arrays["weight"]
            window = Window(spec.kernel, spec.stride, spec.dilation, spec.padding)
            edges = self._convolved(layer, window, edges)
            made_: Layer
            if spec.kernel == 1 and spec.groups == 1:
                bias = layer.arrays["bias"]
                made_ = Dense(layer.name, weight[:, :, 0], bias, layer.origins, reads=reads)
            else:
                time = TimeConvSpec(spec.channels, spec.kernel, spec.dilation, spec.groups)
                made_ = replace(layer, spec=time, reads=reads)
            self._keep(made_, edges)
        else:
            self.problem(
                f"{layer.name!r} ({spec.describe()}) runs along time: it needs inputs to come"
            )
            self._keep(layer, _Edges())

    def _pad(self, layer: FrameLayer, reads: tuple[str, ...], edges: _Edges) -> None:
        spec = layer.spec
        before, after = (spec.places, 0) if isinstance(spec, MemorySpec) else (0, 0)
        mode = "zeros"
        if isinstance(spec, PadSpec):
            (before, after), mode = spec.padding, spec.mode
        reason = f"{layer.name!r} pads time, and no convolution after it is causal with it"
        if mode != "zeros" or (before and edges.before < 0):
            self.problem(f"{layer.name!r} pads time with other than zeros, or where steps miss")
            edges = _Edges()
        made = _Edges(edges.before + before, edges.after + after, edges.begins, reason)
        self._shift(layer, reads, made)

    def _shift(self, layer: FrameLayer, reads: tuple[str, ...], made: _Edges) -> None:
        """Leave a padding or a cut out; zeros in front in place of the last steps are a delay."""
        if made.before == -made.after and 0 < made.before <= _MAX_DELAY and made.is_zeros:
            late = self._delayed(layer.name, reads[0], made.before)
            self._leave_out(layer, (late,), _Edges())
        else:
            self._leave_out(layer, reads, made)

    def _delayed(self, name: str, read: str, steps: int) -> str:
        """Return the name of what a layer gave some steps before."""
        if steps == 0:
            return read
        key = read, steps
        if key not in self.delayed:
            if read == INPUT and steps == 1:  # what is kept is a layer's
                read_before = f"{name}.input"
                layer = FrameLayer(read_before, ActivationSpec("identity"), reads=(INPUT,))
                self.settled.append(layer)
            else:
                read_before = self._delayed(name, read, steps - 1)
            late = f"{name}.{steps} before"
            reads = (f"{read_before}{BEFORE}",)
            self.settled.append(FrameLayer(late, ActivationSpec("identity"), reads=reads))
            self.delayed[key] = late
        return self.delayed[key]

    def _convolved(self, layer: FrameLayer, window: Window, edges: _Edges) -> _Edges:
        """Return where the steps of a convolution over time lie."""
        before, after = window.padding
        kind = f"{layer.name!r} is a convolution over time with padding"
        causal = (
            f"stride {window.stride}; causal, so that it can be streamed, it has "
            f"[{window.reach}, 0] and 1"
        )
        reason = f"{kind} {[max(0, edges.before) + before, max(0, edges.after) + after]} and "
        reason += causal
        cannot = (before and edges.before < 0) or (window.reach and not edges.begins)
        if window.stride != 1 or cannot:
            self.problem(reason)
            return _Edges()
        made = _Edges(edges.before + before - window.reach, edges.after + after, False, reason)
        return replace(made, reason="" if made.fits else reason)

    def _plane(self, layer: PlaneConv, reads: tuple[str, ...], edges: _Edges) -> None:
        spec, weight = layer.spec, layer.arrays["weight"]
        assert isinstance(spec, ConvSpec)
        over_places = Window(spec.kernel, spec.stride, spec.dilation, spec.padding)
        over_time, label = layer.first, layer.along
        if layer.along in self.times and layer.along_first not in self.times:
            over_time, over_places, label = over_places, over_time, layer.along_first
            weight = weight.transpose(0, 1, 3, 2)
        elif layer.along_first not in self.times:
            self.problem(f"{layer.name!r} is a convolution along two axes, none of which is time")
            self._keep(layer, _Edges())
            return
        edges = self._convolved(layer, over_time, edges)
        kernel, groups = over_time.kernel, spec.groups
        if over_time.reach > _MAX_DELAY:
            self.problem(
                f"{layer.name!r} reads frames of {over_time.reach} steps before; at most "
                f"{_MAX_DELAY} are kept"
            )
            return self._keep(layer, edges)
        if kernel > 1 and groups > 1:
            weight, groups = _ungrouped(weight, groups), 1
        taps = np.moveaxis(weight, 2, 1)  # [C', taps, C, places]
        taps = taps.reshape(len(weight), -1, weight.shape[3])
        delays = [(kernel - 1 - j) * over_time.dilation for j in range(kernel)]
        made = ConvSpec(
            spec.channels,
            over_places.kernel,
            over_places.stride,
            over_places.padding,
            over_places.dilation,
            groups,
        )
        self._keep(
            FrameLayer(
                layer.name,
                made,
                layer.arrays | {"weight": taps},
                layer.origins,
                label,
                reads=tuple(self._delayed(reads[0], reads[0], delay) for delay in delays),
            ),
            edges,
        )


def _keeps_zeros(layer: Layer) -> bool:
    """Whether a layer makes zeros of zeros."""
    if isinstance(layer, Activation):
        return layer.kind in ("abs", "elu", "gelu", "leaky_relu", "relu", "relu6", "silu", "tanh")
    return isinstance(layer, FrameLayer) and isinstance(
        layer.spec, MixSpec | PadSpec | PoolSpec | SliceSpec
    )


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """Spread the kernels of groups over all channels, with zeros between."""
    rows, own = weight.shape[:2]
    whole = np.zeros((rows, own * groups, *weight.shape[2:]), weight.dtype)
    for j in range(groups):
        mine = slice(j * rows // groups, (j + 1) * rows // groups)
        whole[mine, j * own : (j + 1) * own] = weight[mine]
    return whole
