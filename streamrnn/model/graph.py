"""Which layer reads which: resolved names, shapes, and what an output depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamrnn.errors import SpecError
from streamrnn.model.layers.base import BEFORE, INPUT, Layer, Shape, joined
from streamrnn.model.layers.recurrent import LayerSpec

__all__ = ["HEAD", "Graph", "Read"]

HEAD = "head"  # the name of the head's output, for layers that read it from the step before
_MAX_VALUES = 1 << 22  # numbers in all frames of a step


@dataclass(frozen=True)
class Read:
    """One thing that a layer reads.

    Attributes
    ----------
    layer : int
        The layer's number; -1 for the input; the number of layers for the head.
    is_before : bool
        Whether it is the output of the step before.
    """

    layer: int
    is_before: bool = False


class Graph:
    """The layers of a model and what each of them reads.

    Parameters
    ----------
    layers : sequence of Layer
        In the order of computation.
    input_shape : Shape
        Of the features.
    head_size : int or None
        Of the head's output; None without a head.

    Attributes
    ----------
    reads : list of tuple of Read
        For each layer.
    shapes : list of Shape
        Of each layer's output.
    kept : list of int
        Layers (or the head) whose output the next step reads.
    from_state : list of bool
        Whether each layer's output follows from the states of recurrent layers alone.
    output_is_state : bool
        Whether the last layer's does.
    is_chain : bool
        Whether all layers are recurrent ones, each reading the one before.

    Raises
    ------
    SpecError
        If a name is unknown or taken twice, or a layer cannot read what it should.
    """

    def __init__(self, layers: Sequence[Layer], input_shape: Shape, head_size: int | None) -> None:
        self._layers, self._input_shape, self._head_size = layers, input_shape, head_size
        self.reads = self._resolve()
        self.shapes = self._infer()
        self.kept = sorted({read.layer for reads in self.reads for read in reads if read.is_before})
        self.is_chain = all(
            isinstance(layer, LayerSpec) and reads == (Read(k - 1),)
            for k, (layer, reads) in enumerate(zip(layers, self.reads, strict=True))
        )
        self.from_state = self._follows_from_state()
        self.output_is_state = self.from_state[-1]
        total = sum(length * channels for length, channels in self.shapes)
        if total > _MAX_VALUES:
            raise SpecError(f"the layers give {total} numbers in a step; at most {_MAX_VALUES} may")

    def read_shapes(self, k: int) -> list[Shape]:
        """Return the shapes of what layer k reads."""
        return [self.shape_of(read) for read in self.reads[k]]

    def shape_of_joined(self, k: int) -> Shape:
        """Return the shape of all that layer k reads, as one frame."""
        return joined(self.read_shapes(k), f"layer {k}")

    def shape_of(self, read: Read) -> Shape:
        """Return the shape of what is read."""
        if read.layer < 0:
            return self._input_shape
        if read.layer == len(self._layers):
            assert self._head_size is not None
            return 1, self._head_size
        return self.shapes[read.layer]

    def _resolve(self) -> list[tuple[Read, ...]]:
        numbers: dict[str, int] = {}
        for k, layer in enumerate(self._layers):
            if layer.name:
                if layer.name in numbers or (layer.name == HEAD and self._head_size is not None):
                    raise SpecError(f"two layers are named {layer.name!r}; names must differ")
                numbers[layer.name] = k
        if self._head_size is not None:
            numbers[HEAD] = len(self._layers)
        resolved = []
        for k, layer in enumerate(self._layers):
            reads = []
            for name in layer.reads:
                bare = name.removesuffix(BEFORE)
                number = -1 if bare == INPUT else numbers.get(bare)
                is_before = bare != name
                if number is None or (number < 0 and is_before):
                    known = ", ".join([INPUT, *numbers])
                    raise SpecError(f"layer {k} reads {name!r}; known are {known}")
                if number >= k and not is_before:
                    raise SpecError(
                        f"layer {k} reads {name!r}, which is computed later; "
                        f"{name + BEFORE!r} is its output of the step before"
                    )
                reads.append(Read(number, is_before))
            resolved.append(tuple(reads) or (Read(k - 1),))
        return resolved

    def _infer(self) -> list[Shape]:
        """Return every layer's shape; those that a step before feeds may need a later one's."""
        self.shapes = [layer.fixed_shape or (0, 0) for layer in self._layers]
        waiting = list(range(len(self._layers)))
        while waiting:
            ready = [k for k in waiting if all(shape[0] for shape in self.read_shapes(k))]
            if not ready:
                raise SpecError(f"the size of layer {waiting[0]}'s output depends on itself")
            for k in ready:
                try:
                    self.shapes[k] = self._layers[k].output_shape(self.read_shapes(k))
                except SpecError as error:
                    raise SpecError(f"layer {k}: {error}") from None
            waiting = [k for k in waiting if k not in ready]
        return self.shapes

    def _follows_from_state(self) -> list[bool]:
        """Whether each layer's output follows from the states of recurrent layers alone."""
        follows: list[bool] = []
        for layer, reads in zip(self._layers, self.reads, strict=True):
            has_memory = layer.op in ("memory", "time_conv")
            follows.append(
                isinstance(layer, LayerSpec)
                or (
                    not has_memory
                    and not any(
                        read.is_before or read.layer < 0 or not follows[read.layer]
                        for read in reads
                    )
                )
            )
        return follows
