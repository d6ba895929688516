"""Models to measure: one layer, random weights, named by their sizes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from streamrnn.model.layers.base import Layer
from streamrnn.model.layers.frame import ConvSpec, DenseSpec
from streamrnn.model.model import Model
from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import CELLS, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn_bench.report.results import BenchError

__all__ = ["BATCH_SIZES", "Case", "parse_case"]

KINDS = (*CELLS, "dense", "conv")
PLACES, _KERNEL = 32, 3  # of a convolution
BATCH_SIZES = (1, 4, 8, 12, 16, 48, 192)  # streams stepped together

_PATTERN = re.compile(r"\s*(\w+)[\s:]+(\d+)\s*(?:->|:)\s*(\d+)\s*")


@dataclass(frozen=True)
class Case:
    """One layer, from I inputs to H units that are its outputs.

    A ``conv`` has a frame of `PLACES` places a step, I channels in and H out, and a kernel of 3.
    """

    cell: str  # a name in `streamrnn.model.spec.CELLS`, or ``dense`` or ``conv``
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return f"{self.cell} {self.input_size}->{self.hidden_size}"

    @property
    def flops(self) -> int:
        """Floating-point operations of one step's products, the additions counted too."""
        if self.cell == "dense":
            return 2 * self.hidden_size * self.input_size
        if self.cell == "conv":
            return 2 * PLACES * self.hidden_size * self.input_size * _KERNEL
        gates = CELLS[self.cell].gates
        return 2 * len(gates) * self.hidden_size * (self.input_size + self.hidden_size)

    def model(self, seed: int = 0) -> Model:
        """Make the model with random weights, the same ones for the same seed.

        They are uniform in +-1/sqrt(H), or the terms of a sum in place of H, as PyTorch draws them:
        no cell saturates.
        """
        layer: Layer
        inputs = tuple(InputSpec(f"x{i}") for i in range(self.input_size))
        outputs = tuple(OutputSpec(f"y{o}") for o in range(self.hidden_size))
        if self.cell == "conv":
            layer = ConvSpec(self.hidden_size, _KERNEL, padding=(1, 1), activation="relu")
            inputs = (InputSpec("x", shape=(PLACES, self.input_size)),)
            outputs = (OutputSpec("y", shape=(PLACES, self.hidden_size)),)
        elif self.cell == "dense":
            layer = DenseSpec(self.hidden_size, "relu")
        else:
            layer = LayerSpec(self.cell, self.hidden_size)
        spec = ModelSpec(inputs, (layer,), outputs)
        rng = np.random.default_rng(seed)
        fan_in = {"conv": _KERNEL * self.input_size, "dense": self.input_size}
        bound = 1 / math.sqrt(fan_in.get(self.cell, self.hidden_size))
        parameters = {
            name: rng.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in parameter_shapes(spec).items()
        }
        return Model(spec, parameters)


def parse_case(text: str) -> Case:
    """Parse ``"lstm 64->128"``, or ``lstm:64:128``, which needs no quotes in a shell.

    Raises a `BenchError` if it is neither, or there is no such cell.
    """
    found = _PATTERN.fullmatch(text)
    if not found:
        raise BenchError(f"case {text!r} is not of the form 'lstm 64->128' (or lstm:64:128)")
    cell, input_size, hidden_size = found[1], int(found[2]), int(found[3])
    if cell not in KINDS:
        raise BenchError(f"case {text!r}: there is no cell {cell!r}; cells are {', '.join(KINDS)}")
    if not input_size or not hidden_size:
        raise BenchError(f"case {text!r}: sizes begin at 1")
    return Case(cell, input_size, hidden_size)
