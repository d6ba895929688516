"""A module that is being written: lines of its constructor and of one step, and its tensors.

In a step a vector is ``[B, n]``, a frame of L places ``[B, C, L]``. No text of a user's stands in
the lines: values are named after the numbers of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.exporters.walk import state_parts
from streamrnn.model.layers.base import Layer, Shape
from streamrnn.model.model import Model

__all__ = ["Module"]


class Module:
    """Lines of a module's constructor and of its step, and its tensors.

    Parameters
    ----------
    model : Model
        What is written.
    layers : mapping of type to function
        What writes each kind of layer: ``(module, k, layer, values, shapes)`` to a value.
    """

    def __init__(self, model: Model, layers: dict[type, Callable[..., str]]) -> None:
        self.model, self.spec, self._layers = model, model.spec, layers
        self.made: list[str] = []
        self.lines: list[str] = []
        self.tensors: dict[str, NDArray[Any]] = {}
        self.problems: list[str] = []
        self.parts = {part.name: part for part in state_parts(model)}
        self.is_masked = model.spec.mask_value is not None

    def parameter(self, name: str) -> NDArray[np.float32]:
        """Return a parameter of the model."""
        return self.model.parameters[name]

    def add(self, name: str, text: str) -> str:
        """Add a line to the step: a name and its value."""
        self.lines.append(f"{name} = {text}")
        return name

    def module(self, name: str, text: str, **tensors: NDArray[Any]) -> str:
        """Add a module of ``torch.nn`` with its tensors; return what it is called by."""
        self.made.append(f"self.{name} = torch.nn.{text}")
        self.tensors |= {f"{name}.{key}": value for key, value in tensors.items()}
        return f"self.{name}"

    def buffer(self, name: str, value: Any) -> str:
        """Keep numbers under a name."""
        value = np.asarray(value, np.float32)
        self.made.append(f'self.register_buffer("{name}", torch.zeros({list(value.shape)}))')
        self.tensors[name] = value
        return f"self.{name}"

    def layer(self, k: int, layer: Layer, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Add a layer."""
        self.lines.append(f"# layer {k}: {layer.op or layer.cell}")  # type: ignore[attr-defined]
        return self._layers[type(layer)](self, k, layer, values, shapes)

    def take(self, name: str) -> str:
        """Return a part of the state as it was before the step."""
        return f'states["{name}"]'

    def give(self, name: str, value: str) -> str:
        """Keep a part of the state: as it was where the step is masked."""
        if self.is_masked:
            axes = "[:, None]" + "[:, :, None]" * (self.parts[name].first.ndim - 1)
            value = f"torch.where(masked{axes}, {self.take(name)}, {value})"
        self.lines.append(f'after["{name}"] = {value}')
        return f'after["{name}"]'

    # --- vectors and frames ---------------------------------------------------------------------

    def vector(self, value: str, shape: Shape) -> str:
        """Lay a frame out as a vector, place after place."""
        return value if shape[0] == 1 else f"{value}.transpose(1, 2).flatten(1)"

    def frame(self, value: str, shape: Shape) -> str:
        """Give a vector an axis of places."""
        return value if shape[0] > 1 else f"{value}[:, :, None]"

    def framed(self, value: str, shape: Shape) -> str:
        """Take the axis of places from a frame of one place."""
        return value if shape[0] > 1 else f"{value}.squeeze(2)"

    def joined(self, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Join all that a layer reads, of the shape `Graph.shape_of_joined`."""
        if len(values) == 1:
            return values[0]
        if len({length for length, _ in shapes}) > 1:
            values = [self.vector(*pair) for pair in zip(values, shapes, strict=True)]
        return f"torch.cat([{', '.join(values)}], dim=1)"

    def joined_vector(self, k: int, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Join all that a layer reads as one vector."""
        return self.vector(self.joined(values, shapes), self.spec.graph.shape_of_joined(k))

    def joined_frame(self, k: int, values: Sequence[str], shapes: Sequence[Shape]) -> str:
        """Join all that a layer reads as one frame."""
        return self.frame(self.joined(values, shapes), self.spec.graph.shape_of_joined(k))
