"""Frames in scratch memory, and the operations on them that a program is built of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.kernels import activations
from streamrnn.kernels.activations import ACTIVATIONS
from streamrnn.kernels.cpu.frames import ops
from streamrnn.kernels.cpu.pack import Packed, aligned_floats, pack
from streamrnn.kernels.cpu.plan import Op
from streamrnn.kernels.gates import DENSE, padded
from streamrnn.kernels.row_layout import RowLayout
from streamrnn.model.graph import Read
from streamrnn.model.layers import frame
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Shape
from streamrnn.model.spec import LayerSpec, ModelSpec

__all__ = ["Array", "Frame", "FrameBuilder", "columns_of", "fill_weights"]

Array = NDArray[np.float64]
_MAX_FLOATS = 1 << 22  # of all frames of a step
_MOST_SPREAD = 1.5  # of a place with what follows it, to the place
# Activations that make something else of the zeros behind a place's channels.
_NOT_ZERO_AT_ZERO = frozenset(
    (
        activations.SIGMOID,
        activations.SOFTMAX,
        activations.SOFTPLUS,
        activations.HARD_SIGMOID_FIFTH,
        activations.HARD_SIGMOID_SIXTH,
        activations.LOG_SOFTMAX,
        activations.EXP,
        activations.LOG,
        activations.RECIPROCAL,
    )
)


@dataclass(frozen=True)
class Frame:
    """Where a frame lies: its base, and all else in floats."""

    base: int
    offset: int
    length: int
    channels: int
    pitch: int  # from place to place

    @property
    def is_padded(self) -> bool:
        """Whether whole vectors can be read from and written to every place."""
        return self.base == ops.SCRATCH and self.pitch == padded(self.channels)


def columns_of(weights: Array, read: Frame) -> Array:
    """Spread the columns of a matrix that reads a whole frame, [O, L * C], over its floats."""
    num_rows = len(weights)
    spread = np.zeros((num_rows, read.length, read.pitch))
    spread[:, :, : read.channels] = weights.reshape(num_rows, read.length, read.channels)
    flat = spread.reshape(num_rows, -1)
    return flat[:, : (read.length - 1) * read.pitch + read.channels]


def fill_weights(weights: Any, packed: Packed, own: Callable[[NDArray[Any]], int]) -> None:
    """Fill a `Weights` struct; ``own`` keeps an array alive and returns its address."""
    weights["panels"] = own(packed.memory)
    weights["panel_bytes"] = packed.panel_bytes
    weights["first_weight"] = packed.first_weight
    weights["first_h_weight"] = packed.first_h_weight
    weights["num_panels"] = packed.num_panels


class FrameBuilder:
    """Allocates frames and collects operations.

    Parameters
    ----------
    spec : ModelSpec
        What to compute.
    layout : RowLayout
        Where a stream keeps what.
    parameters : mapping of str to ndarray of float64
        Its parameters.
    precision : int
        Of all products' weights.
    own : callable
        Keeps an array alive as long as the program, and returns its address.
    add_recurrent : callable
        ``(k, layer, read)``: packs a recurrent layer and returns the address of its `Layer`.

    Attributes
    ----------
    ops : list of ndarray of Op, shape (1,)
        In the order of computation.
    num_floats : int
        Of a row of the scratch.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layout: RowLayout,
        parameters: Mapping[str, Array],
        precision: int,
        own: Callable[[NDArray[Any]], int],
        add_recurrent: Callable[[int, LayerSpec, Frame], int],
    ) -> None:
        self.spec, self.graph = spec, spec.graph
        self.k = -1
        self.layout, self.all_parameters = layout, parameters
        self.precision, self.own, self.add_recurrent = precision, own, add_recurrent
        self.ops: list[NDArray[np.void]] = []
        self.num_floats = 0
        self.is_held = False
        self.parameters: dict[str, Array] = {}
        self.margins = self._find_margins()
        length, channels = self.spec.input_shape
        self.frames: dict[int, Frame] = {
            -1: Frame(ops.INPUT, 0, length, channels, channels),
        }

    # Frames.

    def _take(self, size: int) -> int:
        """Return where so many floats begin, a multiple of a vector.

        Raises `ModelError` if the frames of a step would take too much memory.
        """
        offset, self.num_floats = self.num_floats, self.num_floats + padded(size)
        if self.num_floats > _MAX_FLOATS:
            raise ModelError(
                f"a step's frames take more than {4 * _MAX_FLOATS:,} bytes a stream; such a model "
                "is not computed"
            )
        return offset

    def allocate(self, shape: Shape, margins: tuple[int, int] = (0, 0)) -> Frame:
        """Allocate a frame whose places are whole vectors, between places of zeros."""
        length, channels = shape
        pitch = padded(channels)
        offset = self._take((margins[0] + length + margins[1]) * pitch) + margins[0] * pitch
        return Frame(ops.SCRATCH, offset, length, channels, pitch)

    def allocate_tight(self, shape: Shape, margins: tuple[int, int] = (0, 0)) -> Frame:
        """Allocate a frame without anything between its places, for what is copied there."""
        length, channels = shape
        size = (margins[0] + length + margins[1]) * channels
        offset = self._take(size) + margins[0] * channels
        return Frame(ops.SCRATCH, offset, length, channels, channels)

    def dense(self, read: Frame, margins: tuple[int, int] = (0, 0)) -> Frame:
        """Return a frame whose places lie close enough for a product to read over them.

        What lies between them has weights too, of zero.
        """
        if read.length == 1 or read.pitch <= _MOST_SPREAD * read.channels:
            return read
        target = self.allocate_tight((read.length, read.channels), margins)
        self.copy(read, target)
        return target

    def before(self, k: int) -> Frame:
        """Return the frame in the row with a layer's output of the step before."""
        length, channels = self.graph.shape_of(Read(k, is_before=True))
        return Frame(ops.ROW, self.layout.before_offsets[k] // 4, length, channels, channels)

    def _find_margins(self) -> dict[int, tuple[int, int]]:
        """Return how many zero places convolutions read before and after each layer's frame."""
        margins: dict[int, tuple[int, int]] = {}
        for layer, reads in zip(self.spec.layers, self.graph.reads, strict=True):
            if isinstance(layer, frame.ConvSpec) and len(reads) == 1 and not reads[0].is_before:
                before, after = margins.get(reads[0].layer, (0, 0))
                own = layer.padding
                margins[reads[0].layer] = max(before, own[0]), max(after, own[1])
        return margins

    def output_frame(self, shape: Shape) -> Frame:
        """Allocate the output of the layer at hand, with the margins that others read."""
        return self.allocate(shape, self.margins.get(self.k, (0, 0)))

    def read(self, k: int) -> Frame:
        """Return all that a layer reads as one frame."""
        frames = [
            self.before(read.layer) if read.is_before else self.frames[read.layer]
            for read in self.graph.reads[k]
        ]
        if len(frames) == 1:
            return frames[0]
        shape = self.graph.shape_of_joined(k)
        lengths = {each.length for each in frames}
        target = self.allocate(shape)
        at = target.offset
        for each in frames:
            if len(lengths) == 1:
                part = Frame(ops.SCRATCH, at, each.length, each.channels, target.pitch)
                at += each.channels
            else:
                part = Frame(ops.SCRATCH, at, each.length, each.channels, each.channels)
                at += each.length * each.channels
            self.copy(each, part)
        return target

    def padded_read(self, k: int) -> Frame:
        """Return what a layer reads where whole vectors can be read."""
        read = self.read(k)
        return read if read.is_padded else self.copied(read)

    def copied(self, read: Frame) -> Frame:
        """Copy a frame to where its places are whole vectors."""
        target = self.allocate((read.length, read.channels))
        self.copy(read, target)
        return target

    # Operations.

    def add(self, code: int, read: Frame, out: Frame, **fields: Any) -> NDArray[np.void]:
        """Append an operation."""
        op = np.zeros(1, Op.dtype)
        op["code"], op["is_held"] = code, self.is_held
        op["in_base"], op["in_offset"], op["in_pitch"] = (
            read.base,
            4 * read.offset,
            4 * read.pitch,
        )
        op["out_base"], op["out_offset"], op["out_pitch"] = (
            out.base,
            4 * out.offset,
            4 * out.pitch,
        )
        op["length"], op["size"] = out.length, out.channels
        for name, value in fields.items():
            op[name] = value
        self.ops.append(op)
        return op

    def beside(self, op: NDArray[np.void], other: Frame) -> None:
        """Let an operation read a second frame."""
        op["other_base"], op["other_offset"] = other.base, 4 * other.offset
        op["other_pitch"] = 4 * other.pitch

    def copy(self, read: Frame, out: Frame) -> None:
        """Copy a frame to one of the same shape, place by place where they do not lie tight."""
        if read.pitch == read.channels == out.pitch:
            runs = [(0, 0, 4 * read.length * read.channels)]
        else:
            runs = [
                (4 * p * read.pitch, 4 * p * out.pitch, 4 * read.channels)
                for p in range(read.length)
            ]
        self.copy_runs(read, out, runs)

    def copy_runs(self, read: Frame, out: Frame, runs: Sequence[tuple[int, int, int]]) -> None:
        """Copy runs of bytes: from, to, and how many."""
        table = np.array(runs, dtype=np.int64).reshape(-1, 3)
        self.add(ops.COPY, read, out, runs=self.own(table), num_runs=len(table))

    def floats(self, values: Array, num_blocks: int = 1) -> int:
        """Store one number a channel, padded with zeros, and return the address."""
        size = len(values) // num_blocks
        kept = aligned_floats(num_blocks * padded(size))
        kept.reshape(num_blocks, -1)[:, :size] = values.reshape(num_blocks, size)
        return self.own(kept)

    def activation(self, layer: Any, size: int) -> dict[str, Any]:
        """Return the fields of an operation that ends with a layer's activation."""
        kind = ACTIVATIONS[layer.activation]
        slopes = 0
        if layer.activation == "prelu":
            slopes = self.floats(self.parameters["slope"])
        elif (default := LAYER_ACTIVATIONS[layer.activation]) is not None:
            slope = default if layer.slope is None else layer.slope
            slopes = self.floats(np.full(size, slope))
        return {"activation": kind, "slopes": slopes, "pads": self.pads(kind, size)}

    def pads(self, kind: int, size: int) -> bool:
        """Whether an activation makes something else of the zeros behind the channels."""
        return kind in _NOT_ZERO_AT_ZERO and padded(size) != size

    def product(
        self, read: Frame, out: Frame, weights: Array, bias: Array, step: int, **fields: Any
    ) -> None:
        """Multiply windows that start at ``read`` and are ``step`` floats apart."""
        nothing = np.zeros((len(weights), 0))
        packed = pack(DENSE, [np.zeros(len(weights))], weights, nothing, self.precision)
        # Inf times the zero weights behind the channels is a NaN, which must go no further.
        pads = out.pitch != out.channels
        fields |= {"num_x": weights.shape[1], "bias": self.floats(bias), "pads": pads}
        op = self.add(ops.PRODUCT, read, out, **fields)
        op["in_pitch"] = 4 * step
        fill_weights(op["weights"][0], packed, self.own)
