"""A graph that is being written: nodes, constants, inputs and outputs, as they come.

Along the edges of a graph of sequences goes ``[steps, streams, n]``. In a graph of one step a
vector is ``[streams, n]``, a frame of L places ``[streams, C, L]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.exporters.walk import StatePart, state_parts
from streamrnn.model.layers.base import Layer, Shape
from streamrnn.model.model import Model

__all__ = ["Graph"]

Size = int | str


class Graph:
    """Nodes, constants, inputs and outputs, as they come.

    Parameters
    ----------
    model : Model
        What is written.
    is_sequence : bool
        Whether the graph takes many steps at once.
    layers : mapping of type to function
        What writes each kind of layer: ``(graph, k, layer, values, shapes)`` to a value.
    """

    def __init__(
        self, model: Model, *, is_sequence: bool, layers: dict[type, Callable[..., str]]
    ) -> None:
        from onnx import helper

        self.helper, self.model, self.spec = helper, model, model.spec
        self.is_sequence, self._layers = is_sequence, layers
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.inputs: list[tuple[str, int, list[Size]]] = []
        self.outputs: list[tuple[str, int, list[Size]]] = []
        self._moved: set[str] = set()
        self.parts = {part.name: part for part in state_parts(model)}
        self.masked = ""  # whether each stream leaves this step out, [streams]

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Keep a constant under its name."""
        self.constants[name] = np.ascontiguousarray(np.asarray(value, dtype))
        return name

    def numbers(self, *values: int) -> str:
        """Keep whole numbers: axes, sizes, places."""
        return self.constant("numbers_" + "_".join(map(str, values)), values, np.int64)

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of one output."""
        return self.add_many(op, inputs, [output], **attributes)[0]

    def add_many(
        self, op: str, inputs: Sequence[str], outputs: list[str], **attributes: Any
    ) -> list[str]:
        """Add a node."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op, list(inputs), outputs, name, **attributes))
        return outputs

    def move(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node that moves a value, once for all that read it so."""
        if output not in self._moved:
            self._moved.add(output)
            self.add(op, inputs, output, **attributes)
        return output

    def parameter(self, name: str) -> NDArray[np.float32]:
        """Return a parameter of the model."""
        return self.model.parameters[name]

    def layer(self, k: int, layer: Layer, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Add a layer."""
        return self._layers[type(layer)](self, k, layer, values, shapes)

    # --- states ---------------------------------------------------------------------------------

    def state_shape(self, part: StatePart) -> list[Size]:
        """Return the shape of a state as an input; recurrent operators want an axis more."""
        shape: list[Size] = ["streams", *part.first.shape]
        return [1, *shape] if self.is_sequence and part.first.ndim == 1 else shape

    def take(self, name: str) -> str:
        """Let a part of the state be an input."""
        self.inputs.append((name, 1, self.state_shape(self.parts[name])))
        return name

    def give(self, name: str, value: str) -> str:
        """Let a part of the state be an output: as it was where the step is masked."""
        part, to = self.parts[name], f"next_{name}"
        if self.masked:
            masked = self.masked
            if part.first.ndim > 1:
                axes = self.numbers(*range(1, part.first.ndim))
                masked = self.add("Unsqueeze", [masked, axes], f"{name}_masked")
            self.add("Where", [masked, name, value], to)
        else:
            self.add("Identity", [value], to)
        self.outputs.append((to, 1, self.state_shape(part)))
        return to

    # --- vectors and frames ---------------------------------------------------------------------

    def vector(self, value: str, shape: Shape) -> str:
        """Lay a frame out as a vector, place after place."""
        length, channels = shape
        if length == 1:
            return value
        if channels > 1:
            value = self.move("Transpose", [value], f"{value}_places", perm=[0, 2, 1])
        return self.move("Reshape", [value, self.numbers(0, length * channels)], f"{value}_flat")

    def frame(self, value: str, shape: Shape) -> str:
        """Give a vector an axis of places."""
        if shape[0] > 1:
            return value
        return self.move("Unsqueeze", [value, self.numbers(2)], f"{value}_frame")

    def framed(self, value: str, shape: Shape) -> str:
        """Take the axis of places from a frame of one place."""
        if shape[0] > 1:
            return value
        return self.move("Squeeze", [value, self.numbers(2)], f"{value}_vector")

    def joined(self, k: int, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Join all that a layer reads, of the shape `Graph.shape_of_joined`."""
        if len(values) == 1:
            return values[0]
        lengths = {length for length, _ in shapes}
        if len(lengths) > 1:
            values = [self.vector(*pair) for pair in zip(values, shapes, strict=True)]
        axis = 1 if lengths != {1} and len(lengths) == 1 else -1
        return self.add("Concat", values, f"read_l{k}", axis=axis)

    def joined_vector(self, k: int, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Join all that a layer reads as one vector."""
        return self.vector(self.joined(k, values, shapes), self.spec.graph.shape_of_joined(k))

    def along_channels(self, value: str, shape: Shape, op: Callable[[str], str]) -> str:
        """Apply what works along the last axis to the channels of every place."""
        if shape[0] == 1:
            return op(value)
        value = self.move("Transpose", [value], f"{value}_last", perm=[0, 2, 1])
        done = op(value)
        return self.move("Transpose", [done], f"{done}_back", perm=[0, 2, 1])

    def per_channel(self, name: str, value: NDArray[Any], shape: Shape) -> str:
        """Keep one number for each channel."""
        return self.constant(name, value if shape[0] == 1 else value[:, None])
