"""A graph that is being written: nodes, constants, inputs and outputs, as they come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model

__all__ = ["Graph"]


class Graph:
    """Nodes, constants, inputs and outputs, as they come."""

    def __init__(self, model: Model) -> None:
        from onnx import helper

        self.helper, self.model, self.spec = helper, model, model.spec
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.inputs: list[tuple[str, int, list[int | str]]] = []
        self.outputs: list[tuple[str, int, list[int | str]]] = []
        self.problems: list[str] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Keep a constant under its name."""
        self.constants[name] = np.ascontiguousarray(np.asarray(value, dtype))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node of one output."""
        return self.add_many(op, inputs, [output], **attributes)[0]

    def add_many(
        self, op: str, inputs: list[str], outputs: list[str], **attributes: Any
    ) -> list[str]:
        """Add a node."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op, inputs, outputs, name, **attributes))
        return outputs

    def parameter(self, name: str) -> NDArray[np.float32]:
        """Return a parameter of the model."""
        return self.model.parameters[name]
